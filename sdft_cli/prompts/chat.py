"""The two prompts of a record, through the model's own chat template.

Student: conversation + tools, `enable_thinking=False`. Teacher: the same plus one last user message that carries the
expert's turn (`prompts/teacher.py`). Both end in the same generation prompt, so both start from the same think-prefix;
a record whose template would begin the two differently is refused.

Everything that comes from a session is guarded before it is rendered (`prompts/control_tokens.py`). Guarded text is of
type `str` all the same; only `encoder.encode` and `encoder.control.restore` know what to do with it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from os.path import commonprefix
from pathlib import Path
from typing import Any

from sdft_cli.errors import WARNING, DataError, MachineError, UsageError
from sdft_cli.prompts.encoding import PieceEncoder
from sdft_cli.prompts.syntaxes.find import FoundSyntax, find_syntax
from sdft_cli.prompts.teacher import TeacherTemplate, load_teacher_template
from sdft_cli.prompts.tool_calls import ParsedTurn, comes_back, parse_turn
from sdft_cli.records import Message, Record, ToolSchema
from sdft_cli.resources import text_hash


class TemplateError(DataError):
    """The model's chat template cannot render this conversation; the record is rejected as `template_error`."""


def load_tokenizer(model: str | Path, revision: str | None = None) -> Any:
    """Load the tokenizer of a model folder or Hub id; no weights, no remote code.

    Raises:
        UsageError: the folder or the Hub id holds no tokenizer with a chat template.
        MachineError: the Hub cannot be reached.
    """
    from transformers import AutoTokenizer
    from transformers.utils import logging

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
    if not tokenizer.chat_template:
        raise UsageError(f"The tokenizer of {model} has no chat template: use an instruct model.")
    return tokenizer


def template_message(message: Message) -> dict[str, Any]:
    """Return a message in the form that chat templates read: OpenAI's, with the name of the tool beside its result."""
    return message.as_openai() | ({"name": message.name} if message.role == "tool" else {})


class ChatPrompts:
    """Render and encode the prompts of records with one tokenizer and one teacher template."""

    def __init__(self, tokenizer: Any, teacher: TeacherTemplate) -> None:
        self.tokenizer = tokenizer
        self.teacher = teacher
        self.encoder = PieceEncoder(tokenizer)
        self.turn_end: str = tokenizer.eos_token
        self.turn_end_id: int = tokenizer.eos_token_id
        self._guard = self.encoder.control.guard
        self._tools: dict[tuple[ToolSchema, ...], list[dict[str, Any]]] = {}

    def fingerprint(self) -> dict[str, str]:
        """Return the hashes that tie a dataset to a tokenizer, a chat template and a teacher template."""
        backend = self.tokenizer.backend_tokenizer.to_str()
        return {
            "tokenizer": text_hash(backend),
            "chat_template": text_hash(str(self.tokenizer.chat_template)),
            "teacher_template": self.teacher.hash,
        }

    def guarded(self, message: Message) -> dict[str, Any]:
        """Return a message as chat templates read it, its text guarded."""
        message_dict: dict[str, Any] = self._guard(template_message(message))
        return message_dict

    def render(
        self, messages: Sequence[dict[str, Any]], tools: tuple[ToolSchema, ...] = (), generation: bool = True
    ) -> str:
        """Return the guarded text of guarded messages, up to the next turn if `generation`; raises `TemplateError`."""
        from jinja2 import TemplateError as JinjaError

        if tools not in self._tools:
            self._tools[tools] = self._guard([tool.as_openai() for tool in tools])
        try:
            text = self.tokenizer.apply_chat_template(
                list(messages),
                tools=self._tools[tools] or None,
                tokenize=False,
                add_generation_prompt=generation,
                enable_thinking=False,
            )
        except (JinjaError, TypeError, KeyError, ValueError) as error:
            raise TemplateError(f"The chat template refuses this conversation: {error}") from error
        return str(text)

    @cached_property
    def _question(self) -> tuple[dict[str, Any], str]:
        """A user message that any turn can answer, and its rendering up to where the answer begins."""
        question = {"role": "user", "content": "."}
        return question, self.render([question])

    @cached_property
    def generation_prompt(self) -> str:
        """What the template writes to have the next turn begun, with a thinking model's empty think block."""
        question, prompt = self._question
        plain = self.render([question], generation=False)  # some templates write a token that ends the document here
        shared = commonprefix([prompt, plain])  # noqa: RUF071  # text, not paths
        return prompt[len(shared) :]

    def _prompt(self, messages: Sequence[dict[str, Any]], tools: tuple[ToolSchema, ...]) -> str:
        """Render a prompt that ends as every prompt does, so that both roles begin their turn alike."""
        text = self.render(messages, tools)
        if not text.endswith(self.generation_prompt):
            raise TemplateError("The chat template begins the turn differently at this point of the conversation.")
        return text

    def reference(self, message: Message) -> str:
        """Return the guarded text of an assistant turn as the model would write it, its end token left out.

        Raises `TemplateError` where the template does not write the turn after its own generation prompt.
        """
        question, prompt = self._question
        whole = self.render([question, self.guarded(message)], generation=False)
        if not whole.startswith(prompt):
            raise TemplateError("The chat template writes an assistant turn differently from its generation prompt.")
        return whole[len(prompt) :].rstrip().removesuffix(self.turn_end)

    def teacher_message(self, reference: str) -> dict[str, Any]:
        """Return the user message that shows a guarded reference to the teacher."""
        return template_message(self.teacher.message(reference))

    def student(self, record: Record) -> str:
        """Return the guarded text of the student's prompt, the conversation before the turn; raises `TemplateError`."""
        return self._prompt([self.guarded(m) for m in record.context], record.tools)

    def teacher_prompt(self, record: Record, shown: Message | None = None) -> str:
        """Return the guarded text of the teacher's prompt: the student's and the expert's turn (or `shown`).

        Raises `TemplateError`, as `student` and `reference`.
        """
        last = self.teacher_message(self.reference(shown or record.reference))
        return self._prompt([*(self.guarded(m) for m in record.context), last], record.tools)

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

    def reference_ids(self, record: Record) -> list[int]:
        """Return the token ids of the expert's turn, the token that ends the turn included."""
        return [*self.encoder.encode(self.reference(record.reference)), self.turn_end_id]


def open_prompts(model: str, manifest: Mapping[str, Any], revision: str | None = None) -> ChatPrompts:
    """Return the prompts of a dataset for a model, with the teacher template that its tokens were counted with.

    Raises:
        DataError: the dataset was prepared with another tokenizer, chat template or teacher template, so its token
            counts and caps do not hold.
    """
    prompts = ChatPrompts(load_tokenizer(model, revision), load_teacher_template(str(manifest["teacher_template"])))
    expected, actual = manifest["fingerprint"], prompts.fingerprint()
    differing = [name for name in actual if actual[name] != expected.get(name)]
    if differing:
        raise DataError(
            f"The dataset was prepared for {manifest['config']['model']}: "
            f"its {' and '.join(differing).replace('_', ' ')} differ from those of {Path(model).name}; "
            "run `sdft prepare` again with --model for this model."
        )
    return prompts
