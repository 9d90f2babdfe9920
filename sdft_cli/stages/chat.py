"""A run or a model -> models that answer in a chat."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from sdft_cli.notices import say
from sdft_cli.texts import check_unicode

if TYPE_CHECKING:
    from sdft_cli.chat.answer import Answer
    from sdft_cli.chat.conversation import Conversation
    from sdft_cli.engine.score.scoring import Role
    from sdft_cli.prompts.chat import ChatPrompts
    from sdft_cli.records import Dataset, Session
    from sdft_cli.run_folder import Run


@dataclass(frozen=True)
class Subject:
    """Which model a chat is with.

    Attributes:
        name: `merged`, `tuned` or `model`.
        model: folder or Hub id to load.
        adapter: folder of an adapter to load with it; None: `model` alone.
        run: the run that it is of, if any.
    """

    name: str
    model: str
    adapter: Path | None = None
    run: Run | None = None

    @property
    def revision(self) -> str | None:
        """The revision of the base; a merged checkpoint has none."""
        return self.run.revision if self.run and self.name == "tuned" else None


def find_subject(named: str, base: str | None, compare: bool) -> Subject:
    """Return what a chat with a run, an adapter folder or a model loads.

    Of a run it is the merged checkpoint, if there is one of this adapter that passed its certificate and nothing is to
    be compared; else base and adapter.

    Raises:
        UsageError: there is none, an adapter folder came without its base, or a model alone has nothing to compare.
        DataError: the run is damaged or not finished.
    """
    from sdft_cli.engine.models.names import check_base, loaded_folder, resolve_model
    from sdft_cli.engine.models.quiet import quiet_libraries
    from sdft_cli.errors import UsageError
    from sdft_cli.run_folder import is_run, read_run

    quiet_libraries()
    folder = Path(named).expanduser()
    if is_run(folder):
        run = read_run(folder)
        if base is not None:
            raise UsageError(f"{named} is a run and knows its base: leave --base out.")
        if not compare and (merged := _merged_of(run)):
            return Subject("merged", str(merged), None, run)
        model = resolve_model(run.config.model, say)
        if found := loaded_folder(model, run.revision):
            check_base(found, run.info.get("base"), run.path)
        return Subject("tuned", model, run.adapter, run)
    if (folder / "adapter_config.json").is_file():
        if base is None:
            raise UsageError(f"{named} is an adapter: name the model that it was trained on with --base.")
        return Subject("tuned", resolve_model(base, say), folder)
    if compare or base is not None:
        raise UsageError(f"{named} is a model alone: --compare and --base are for runs and adapters.")
    return Subject("model", resolve_model(named, say))


def _merged_of(run: Run) -> Path | None:
    """Return the run's merged checkpoint, if it is this adapter's and passed; say why one that is there is not used."""
    from sdft_cli.merging.certificate import has_passed, read_certificate
    from sdft_cli.records.folders import sha256_of

    merged = run.path / "merged"
    if not merged.is_dir():
        return None
    if not has_passed(merged):
        say(f"{merged} did not pass its certificate, so base and adapter answer: merge again with --overwrite.")
        return None
    if read_certificate(merged)["adapter"]["sha256"] != sha256_of(run.adapter / "adapter_model.safetensors"):
        say(f"{merged} is of another adapter, so base and adapter answer: merge again with --overwrite.")
        return None
    return merged


class Models:
    """The models of a chat, which answer one after the other.

    Args:
        roles: name -> backend and weights; the conversation goes on with the answer of the last one.
        prompts: that render and encode what they are shown, as in training.
        max_new_tokens: cap on an answer.
        temperature: 0 is greedy.
    """

    def __init__(self, roles: dict[str, Role], prompts: ChatPrompts, max_new_tokens: int, temperature: float) -> None:
        self.names: Sequence[str] = list(roles)
        self._roles, self._prompts = roles, prompts
        self._cap, self._temperature = max_new_tokens, temperature or None

    def answer(self, name: str, conversation: Conversation, write: Callable[[str], None]) -> Answer:
        """Let one model answer; `write` gets the text while it comes.

        Raises:
            DataError: the chat template does not take the conversation, or drops a part of it; or it is too long.
        """
        from sdft_cli.chat.answer import Answer
        from sdft_cli.chat.stream import TextStream
        from sdft_cli.engine.passes.decode import generate, stop_tokens
        from sdft_cli.engine.score.scoring import answer_text

        prompts, role = self._prompts, self._roles[name]
        ids = prompts.student_ids(conversation.record())
        prompts.encoder.forget()
        stop = stop_tokens(role.backend, prompts.turn_end_ids)
        cap = self._room(role, len(ids))
        plain = {"skip_special_tokens": False, "clean_up_tokenization_spaces": False}
        stream = TextStream(lambda found: str(prompts.tokenizer.decode(found, **plain)), write, stop)
        with role.weights(role.scoring):
            (rollout,) = generate(
                role.backend, [ids], cap, stop, prompts.turn_end_id, self._temperature, streamer=stream
            )
        text = answer_text(rollout, prompts)
        turn = prompts.parse(text, conversation.tools)
        return Answer(name, text, turn, rollout.finished, len(ids), len(rollout.ids))

    def _room(self, role: Role, tokens: int) -> int:
        """Return how long an answer to a prompt may be."""
        from sdft_cli.engine.models.limits import positions_of
        from sdft_cli.errors import DataError

        positions = positions_of(role.backend.base.config.get_text_config())
        if positions is None or tokens + self._cap <= positions:
            return self._cap
        if tokens >= positions:
            raise DataError(
                f"The conversation has {tokens} tokens and the model reads {positions}: begin anew with /reset, or "
                "offer fewer tools."
            )
        return positions - tokens


def open_models(
    subject: Subject,
    prompts: ChatPrompts,
    compare: bool = False,
    max_new_tokens: int = 1024,
    temperature: float = 0.0,
    seed: int | None = None,
) -> Models:
    """Load the models of a chat.

    Base and adapter are one model in memory, whose adapter is on or off.

    Raises:
        MachineError: a model cannot be loaded, or its logits are not ours.
        UsageError: the tokenizer is not the model's.
    """
    import torch

    from sdft_cli.engine.models.limits import check_words
    from sdft_cli.engine.models.load import config_of, open_for_eval
    from sdft_cli.engine.score.scoring import Role
    from sdft_cli.report import terminal

    check_words(prompts, config_of(subject.model, subject.revision).get_text_config())
    dtype = subject.run.config.dtype if subject.run else None
    with terminal.stderr().status("Loading the model ..."):
        backend = open_for_eval(subject.model, dtype, subject.revision, subject.adapter)
    if backend.kernels:
        say(backend.kernels)
    if seed is not None:
        torch.manual_seed(seed)
    roles = {"base": Role(backend, "base", "base")} if compare else {}
    weights = "adapter" if subject.adapter else "base"
    roles[subject.name] = Role(backend, weights, weights)  # type: ignore[arg-type]
    return Models(roles, prompts, max_new_tokens, temperature)


def open_chat_prompts(subject: Subject, data: Dataset | None = None) -> ChatPrompts:
    """Return what renders the chat: with the dataset's chat template, else the run's, else the model's own.

    Raises:
        DataError: the dataset was prepared for another tokenizer or template.
    """
    from sdft_cli.prompts.chat import ChatPrompts, load_tokenizer, open_prompts, prompts_for
    from sdft_cli.prompts.teacher import load_teacher_template
    from sdft_cli.prompts.template import OWN, ChatTemplate

    if data is not None:
        return open_prompts(subject.model, data.manifest, subject.revision)
    if subject.run is None:
        return prompts_for(subject.model, WORDING)
    trained = subject.run.info["dataset"]
    tokenizer = load_tokenizer(subject.model, subject.revision)
    other = trained.get("chat_template") or {"name": OWN, "text": None}
    template = ChatTemplate(tokenizer, other["text"], other["name"], trained.get("template_date"))
    return ChatPrompts(tokenizer, load_teacher_template(WORDING), template)


WORDING = "expert_reference"
"""Prompts want a teacher's wording; no teacher speaks in a chat."""


def start_conversation(data: Dataset | None, session: str | None, system: str | None) -> Conversation:
    """Return a conversation with the tools and system messages of a session, and nothing said.

    Args:
        data: None: no tools.
        session: its id, or how that begins; None: the first held-out one, else the first of all.
        system: a system message instead of the session's; empty: none.

    Raises:
        UsageError: there is no such session, or `system` is none that UTF-8 holds.
        DataError: the dataset has no session.
    """
    from sdft_cli.chat.conversation import Conversation
    from sdft_cli.records import Message

    own = () if not system else (Message("system", check_unicode(system, "--system")),)
    if data is None:
        return Conversation(own)
    found = _session_of(data, session)
    recorded = tuple(message for message in found.messages if message.role == "system")
    front = own if system is not None else recorded[: _leading(found)]
    say(
        f"Tools of session {found.session_id}: {len(found.tools)}, none of which is run"
        + (f"; system messages of it: {len(front)}" if system is None else "")
    )
    return Conversation(front, found.tools)


def _leading(session: Session) -> int:
    """Return how many system messages a session begins with."""
    return next((i for i, message in enumerate(session.messages) if message.role != "system"), len(session.messages))


def _session_of(data: Dataset, name: str | None) -> Session:
    from sdft_cli.errors import DataError, UsageError, did_you_mean

    if not data.sessions:
        raise DataError(f"{data.path} has no session: prepare one with sessions.")
    if name is None:
        first = next(iter([*data.validation, *data.train]), None)
        return first.session if first else next(iter(data.sessions.values()))
    found = [key for key in data.sessions if key == name] or [key for key in data.sessions if key.startswith(name)]
    if len(found) == 1:
        return data.sessions[found[0]]
    if found:
        raise UsageError(f"{len(found)} sessions of {data.path} begin with {name}: write more of its id.")
    meant = did_you_mean(name, data.sessions, f"one of them is {next(iter(data.sessions))}.")
    raise UsageError(f"{data.path} has no session {name}: {meant}")
