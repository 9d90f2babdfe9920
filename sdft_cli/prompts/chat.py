"""The two prompts of a record, through the model's own chat template.

Student: conversation + tools, `enable_thinking=False`. Teacher: the same plus one last user message that carries the
expert's turn (`prompts/teacher.py`). Both end in the same generation prompt, so both start from the same think-prefix;
a record whose template would begin the two differently is refused. Where a template refuses two user messages in a row,
they are joined, the teacher's too.

Everything that comes from a session is guarded before it is rendered (`prompts/control_tokens.py`). Guarded text is of
type `str` all the same; only `encoder.encode` and `encoder.control.restore` know what to do with it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from os.path import commonprefix
from pathlib import Path
from typing import Any

from sdft_cli.errors import WARNING, DataError, MachineError, UsageError
from sdft_cli.notices import loudness
from sdft_cli.prompts.encoding import PieceEncoder
from sdft_cli.prompts.forms import find_form
from sdft_cli.prompts.syntaxes.find import FoundSyntax, find_syntax
from sdft_cli.prompts.teacher import TeacherTemplate, load_teacher_template, teacher_template_of
from sdft_cli.prompts.template import OWN, ChatTemplate, TemplateError, check_tokens, load_chat_template
from sdft_cli.prompts.tool_calls import ParsedTurn, calls_of, comes_back, parse_turn
from sdft_cli.prompts.turn_end import TurnEnds, without_end
from sdft_cli.prompts.unsaid import ANSWERS, ASK, MORE, SAY, TemplateLoses, Unsaid, find_unsaid, planted_texts, sentence
from sdft_cli.records import Message, Record, ToolSchema
from sdft_cli.resources import text_hash


def load_tokenizer(model: str | Path, revision: str | None = None) -> Any:
    """Load the tokenizer of a model folder or Hub id; no weights, no remote code.

    Raises:
        UsageError: the folder or the Hub id holds no tokenizer, or one that loses characters of a text.
        MachineError: the Hub cannot be reached.
    """
    from transformers import AutoTokenizer
    from transformers.utils import logging

    if loudness() != "verbose":
        logging.set_verbosity_error()
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(model), revision=revision or "main", trust_remote_code=False)
    except (OSError, ValueError) as error:
        if Path(model).exists():
            raise UsageError(f"{model} holds no tokenizer that transformers can load: give a model folder.") from error
        raise MachineError(
            f"Model {model} is no local folder and could not be loaded from the Hub: check the name and the network, "
            "or use the alias smollm2-135m."
        ) from error
    _check_text_comes_back(tokenizer, model)
    return tokenizer


def _check_text_comes_back(tokenizer: Any, model: str | Path) -> None:
    """Refuse a tokenizer that loses characters of plain text, as some classes of transformers 5 do with some files."""
    text = "It's here , in a file: x = [1, 2] ."
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    if (found := tokenizer.decode(ids, clean_up_tokenization_spaces=False)).strip() != text:
        raise UsageError(
            f"The tokenizer of {model}, as this version of transformers loads it, makes {found!r} of {text!r}: correct "
            "tokenizer_class in its tokenizer_config.json (PreTrainedTokenizerFast fits any tokenizer.json), or use "
            "another version of transformers."
        )


class UnreadableCall(TemplateError):
    """A call that the model's own syntax cannot hold; the record is rejected as `unreadable_call`."""


@dataclass(frozen=True)
class Turn:
    """An assistant turn as the model would write it: guarded text, and the token that ends it."""

    text: str
    end: str


class ChatPrompts:
    """Render and encode the prompts of records with one tokenizer, one chat template and one teacher template.

    Attributes:
        form: how the chat template reads a message.
        turn_end_id: the token that ends a turn of plain text.
        turn_end_ids: those that end any turn; a rollout stops there.
    """

    def __init__(self, tokenizer: Any, teacher: TeacherTemplate, template: ChatTemplate | None = None) -> None:
        """Take the tokenizer's own chat template if `template` is None.

        Raises:
            UsageError: there is no template, or nothing ends a turn.
        """
        self.tokenizer = tokenizer
        self.teacher = teacher
        self.template = template or ChatTemplate(tokenizer)
        self.form = find_form(self.template)
        self.encoder = PieceEncoder(tokenizer)
        self._guard = self.encoder.control.guard
        self._tools: dict[tuple[ToolSchema, ...], list[dict[str, Any]]] = {}
        special = [t.content for t in tokenizer.added_tokens_decoder.values() if t.special]
        self._ends = TurnEnds([*special, *tokenizer.all_special_tokens], tokenizer.eos_token)
        self.turn_end_id = self._id_of(self._end_of_text)

    @cached_property
    def unsaid(self) -> Unsaid:
        """What the chat template drops without a word."""
        return find_unsaid(self.template, self.form)

    def fingerprint(self) -> dict[str, str]:
        """Return the hashes that tie a dataset to a tokenizer, a chat template and a teacher template."""
        return {
            "tokenizer": text_hash(self.tokenizer.backend_tokenizer.to_str()),
            "chat_template": self.template.hash,
            "teacher_template": self.teacher.hash,
        }

    def guarded(self, message: Message) -> dict[str, Any]:
        """Return a message as the chat template reads it, its text guarded."""
        message_dict: dict[str, Any] = self._guard(self.form.write(message))
        return message_dict

    def render(
        self, messages: Sequence[dict[str, Any]], tools: tuple[ToolSchema, ...] = (), generation: bool = True
    ) -> str:
        """Return the guarded text of guarded messages, up to the next turn if `generation`; raises `TemplateError`."""
        if tools not in self._tools:
            self._tools[tools] = self._guard([tool.as_openai() for tool in tools])
        return self.template.render(messages, self._tools[tools], generation)

    @cached_property
    def _question(self) -> tuple[dict[str, Any], str]:
        """A user message that any turn can answer, and its rendering up to where the answer begins."""
        question = self.form.write(Message("user", "."))
        return question, self.render([question])

    @cached_property
    def generation_prompt(self) -> str:
        """What the template writes to have the next turn begun, with a thinking model's empty think block."""
        _, prompt = self._question
        return prompt[self._asked :]

    @cached_property
    def _plain(self) -> str:
        """The same user message, nothing begun behind it; some templates end the document here."""
        return self.render([self._question[0]], generation=False)

    @cached_property
    def _asked(self) -> int:
        """The length of what both have in common, up to a whole token."""
        prompt = self._question[1]
        shared = commonprefix([prompt, self._plain])  # noqa: RUF071  # text, not paths
        return self._ends.before_token(prompt, len(shared))

    @cached_property
    def _document_end(self) -> str:
        """What the template writes behind the last message where no turn is begun: Phi-3's `<|endoftext|>`."""
        return self._plain[self._asked :]

    @cached_property
    def joins_users(self) -> bool:
        """Say whether user messages in a row are joined: the template refuses two, and takes one."""
        return self._refuses([ASK, MORE]) and not self._refuses([ASK])

    @cached_property
    def _user_behind_result(self) -> bool:
        """Say whether the template takes a user message behind the result of a call."""
        call = ANSWERS["calls"][0]
        result = Message("tool", "quokka_result", tool_call_id=call.tool_calls[0].id, name=call.tool_calls[0].name)
        return not self._refuses([ASK, call, result, MORE])

    def _refuses(self, messages: Sequence[Message]) -> bool:
        try:
            self.render([self.form.write(m) for m in messages])
        except TemplateError:
            return True
        return False

    def _conversation(self, messages: Sequence[Message]) -> list[dict[str, Any]]:
        """Return guarded messages, those of the user joined where the template wants it."""
        found: list[dict[str, Any]] = []
        for message in map(self.guarded, messages):
            if self.joins_users and message["role"] == "user" and found and found[-1]["role"] == "user":
                found[-1] = _joined(found[-1], message)
            else:
                found.append(message)
        return found

    def _with_teacher(self, messages: list[dict[str, Any]], turns: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Return a conversation with the teacher's turns behind it, or the first joined to the last of the user."""
        role, (first, *rest) = messages[-1]["role"], turns
        free = not self.joins_users or (role == "tool" and self._user_behind_result) or role not in ("user", "tool")
        if free or first["role"] != "user":
            return [*messages, *turns]
        place = max(i for i, message in enumerate(messages) if message["role"] == "user")
        return [*messages[:place], _joined(messages[place], first), *messages[place + 1 :], *rest]

    def _prompt(self, messages: Sequence[dict[str, Any]], tools: tuple[ToolSchema, ...]) -> str:
        """Render a prompt that ends as every prompt does, so that both roles begin their turn alike.

        Behind the result of a call the turn may simply go on, without a generation prompt (Gemma 4).
        """
        text = self.render(messages, tools)
        if text.endswith(self.generation_prompt):
            return text
        goes_on = messages[-1]["role"] == "tool" and self._ends.last(text) != self._closing_token
        if not goes_on or text != self.render(messages, tools, generation=False):
            raise TemplateError("The chat template begins the turn differently at this point of the conversation.")
        return text

    @cached_property
    def _end_of_text(self) -> str:
        """The token that ends a turn of plain text."""
        end = self._closing_token or self._following([SAY], MORE) or self._ends.eos
        if end is None:
            raise UsageError(
                "The chat template ends no turn with a token, and the tokenizer has no eos_token: name another "
                "template with --chat-template."
            )
        return end

    @cached_property
    def _closing_token(self) -> str | None:
        """The token with which the template closes a turn of plain text; None: it closes none."""
        try:
            return self._ends.last(self._behind_question([SAY]))
        except TemplateError:
            return None

    def _following(self, answer: Sequence[Message], message: Message) -> str | None:
        """Return the token that begins what is written behind a planted turn, or None."""
        try:
            turn, more = (self._behind_question(part) for part in (answer, [*answer, message]))
        except TemplateError:
            return None
        return self._ends.follows(more.removeprefix(turn.rstrip())) if more.startswith(turn.rstrip()) else None

    def _behind_question(self, messages: Sequence[Message]) -> str:
        """Return what is rendered of messages that follow a question and its generation prompt.

        Raises `TemplateError` where the template does not write a turn after its own generation prompt.
        """
        question, prompt = self._question
        whole = self.render([question, *map(self.guarded, messages)], generation=False)
        if not whole.startswith(prompt):
            raise TemplateError("The chat template writes an assistant turn differently from its generation prompt.")
        return whole[len(prompt) :].removesuffix(self._document_end)

    @cached_property
    def _end_of_call(self) -> str:
        """The token that ends a turn with calls, where the template closes none: what a result begins with."""
        call = ANSWERS["calls"][0]
        result = Message("tool", "quokka_result", tool_call_id=call.tool_calls[0].id, name=call.tool_calls[0].name)
        return self._following([call], result) or self._end_of_text

    def turn(self, message: Message) -> Turn:
        """Return an assistant turn as the model would write it.

        Raises `TemplateError` where the template does not write it after its own generation prompt, does not close it,
        or writes its end within it.
        """
        written = self._behind_question([message])
        if self._closing_token is None:
            end = self._end_of_call if message.tool_calls else self._end_of_text
        elif (found := self._ends.last(written)) is None:
            raise TemplateError("The chat template does not close this turn.")
        else:
            end = found
        return Turn(without_end(written, end), end)

    @cached_property
    def turn_end_ids(self) -> tuple[int, ...]:
        """The tokens that end any turn."""
        found = {self.turn_end_id}
        for answer, _ in ANSWERS.values():
            try:
                found.add(self._id_of(self.turn(answer).end))
            except TemplateError:  # no turn of this kind can be asked of the model
                continue
        return tuple(sorted(found))

    def _id_of(self, token: str) -> int:
        return int(self.tokenizer.convert_tokens_to_ids(token))

    def reference(self, message: Message) -> str:
        """Return the guarded text of an assistant turn, its end token left out; raises as `turn`."""
        return self.turn(message).text

    def teacher_messages(self, reference: Message) -> list[dict[str, Any]]:
        """Return the guarded messages that show a turn to the teacher; raises as `turn`."""
        written = self.reference(reference)
        return [
            self.guarded(reference) if part.is_reference else self.form.write(Message(part.role, part.filled(written)))
            for part in self.teacher.parts
        ]

    def check(self, record: Record) -> None:
        """Raise `TemplateLoses` if the record has what the chat template drops."""
        lost = self.unsaid.lost(record, self.joins_users, any(part.is_reference for part in self.teacher.parts))
        if lost:
            raise TemplateLoses(sentence(lost))

    def student(self, record: Record) -> str:
        """Return the guarded text of the student's prompt, the conversation before the turn; raises `TemplateError`."""
        self.check(record)
        return self._prompt(self._conversation(record.context), record.tools)

    def teacher_prompt(self, record: Record, shown: Message | None = None) -> str:
        """Return the guarded text of the teacher's prompt: the student's and the expert's turn (or `shown`).

        Raises `TemplateError`, as `student` and `reference`.
        """
        self.check(record)
        turns = self.teacher_messages(shown or record.reference)
        return self._prompt(self._with_teacher(self._conversation(record.context), turns), record.tools)

    def reference_text(self, message: Message) -> str:
        """Return an assistant turn as the model would write it, for a reader."""
        return self.encoder.control.restore(self.reference(message))

    @cached_property
    def syntax(self) -> FoundSyntax:
        """How the template writes tool calls, or why nothing reads them back."""
        return find_syntax(self.reference_text)

    def parse(self, text: str, tools: Sequence[ToolSchema] = ()) -> ParsedTurn:
        """Take an answer apart in the model's own syntax."""
        return parse_turn(text, tools, self.syntax.syntax)

    def scores_calls(self, record: Record) -> bool:
        """Say whether the calls of an answer to a record can be scored: the expert's come back from its own turn."""
        if self.syntax.syntax is None:
            return False
        if not record.reference.tool_calls:
            return True
        return comes_back(self.reference_text(record.reference), record.reference, record.tools, self.syntax.syntax)

    def check_calls(self, message: Message, tools: Sequence[ToolSchema]) -> None:
        """Raise `UnreadableCall` if the calls of a turn, as the model would write them, do not read as what they are.

        Where no syntax is known, nothing can be said.
        """
        if not message.tool_calls or self.syntax.syntax is None:
            return
        if not calls_of(self.parse(self.reference_text(message), tools), message):
            raise UnreadableCall(f"{self.syntax.syntax.name}, as this model writes calls, cannot hold this one.")

    def calls_warning(self, records: Sequence[Record]) -> str | None:
        """Return a sentence for the user where records call tools and no call can be scored, else None."""
        if self.syntax.syntax or not any(record.reference.tool_calls for record in records):
            return None
        return f"{WARNING}tool calls cannot be scored, and scores about them are left out: {self.syntax.reason}"

    def student_ids(self, record: Record) -> list[int]:
        """Return the token ids of the student's prompt."""
        return self.encoder.encode(self.student(record))

    def teacher_ids(self, record: Record, shown: Message | None = None) -> list[int]:
        """Return the token ids of the teacher's prompt; `shown` as in `teacher_prompt`."""
        return self.encoder.encode(self.teacher_prompt(record, shown))

    def question_ids(self, text: str) -> list[int]:
        """Return the token ids of a prompt that is one user message, without tools."""
        return self.encoder.encode(self.render([self.guarded(Message("user", text))]))

    def turn_ids(self, turn: Turn) -> list[int]:
        """Return the token ids of a turn, the token that ends it included."""
        return [*self.encoder.encode(turn.text), self._id_of(turn.end)]

    def reference_ids(self, record: Record) -> list[int]:
        """Return the token ids of the expert's turn, the token that ends the turn included."""
        return self.turn_ids(self.turn(record.reference))


def _joined(first: dict[str, Any], second: dict[str, Any]) -> dict[str, Any]:
    """Return two messages of the user as one, a blank line between them."""
    one, two = first["content"], second["content"]
    content = f"{one}\n\n{two}" if isinstance(one, str) else [*one, {"type": "text", "text": "\n\n"}, *two]
    return {**first, "content": content}


def prompts_for(
    model: str, teacher: str, chat_template: str | None = None, date: str | None = None, revision: str | None = None
) -> ChatPrompts:
    """Return the prompts of a model for `sdft prepare`.

    Args:
        model: folder or Hub id.
        teacher: name or file of the teacher's wording.
        chat_template: name or file of a chat template; None: the model's own.
        date: what a template that asks for the date is told, `YYYY-MM-DD`; None: today.
        revision: of the model.

    Raises:
        UsageError: there is no such template or tokenizer, or the template is for other tokens.
        MachineError: the Hub cannot be reached.
    """
    tokenizer, wording = load_tokenizer(model, revision), load_teacher_template(teacher)
    text = None if chat_template is None else load_chat_template(chat_template)
    template = ChatTemplate(tokenizer, text, chat_template or OWN, date)
    prompts = ChatPrompts(tokenizer, wording, template)
    if text is not None:
        check_tokens(template, planted_texts(template, prompts.form))
    return prompts


def template_facts(prompts: ChatPrompts) -> dict[str, Any]:
    """Return what a manifest says of the chat template, so that later stages render with the same one.

    `chat_template` is None for the model's own, else name and text of the other; `template_date` is what it is told.
    """
    template = prompts.template
    other = None if template.name == OWN else {"name": Path(template.name).name, "text": template.text}
    return {"chat_template": other, "template_date": template.date}


def open_prompts(
    model: str, manifest: Mapping[str, Any], revision: str | None = None, records: Iterable[Record] = ()
) -> ChatPrompts:
    """Return the prompts of a dataset for a model, with the templates and the date that its tokens were counted with.

    Raises:
        DataError: the dataset was prepared with another tokenizer, chat template or teacher template, so its token
            counts and caps do not hold; or one of `records` has what the template drops (older versions kept it).
    """
    tokenizer, wording = load_tokenizer(model, revision), teacher_template_of(manifest)
    other = manifest.get("chat_template") or {"name": OWN, "text": None}
    template = ChatTemplate(tokenizer, other["text"], other["name"], manifest.get("template_date"))
    prompts = ChatPrompts(tokenizer, wording, template)
    expected, actual = manifest["fingerprint"], prompts.fingerprint()
    differing = [name for name in actual if actual[name] != expected.get(name)]
    if differing:
        raise DataError(
            f"The dataset was prepared for {manifest['config']['model']}: "
            f"its {' and '.join(differing).replace('_', ' ')} differ from those of {Path(model).name}; "
            "run `sdft prepare` again with --model for this model."
        )
    for record in records:
        try:
            prompts.check(record)
        except TemplateLoses as error:
            raise DataError(f"Record {record.record_id} cannot be used: {error} Run `sdft prepare` again.") from None
    return prompts
