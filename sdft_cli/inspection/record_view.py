"""One record as the model reads it: the student's prompt, the teacher's and how it differs, the expert's turn."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from sdft_cli.errors import WARNING, DataError
from sdft_cli.inspection import prompt_lines, tokens
from sdft_cli.inspection.names import Fate
from sdft_cli.inspection.prompt_lines import Part, differences, lines_of, written
from sdft_cli.inspection.screen import Screen
from sdft_cli.inspection.timeline import LONGEST_FATE, fate_document, fate_text, message_lines
from sdft_cli.records import Record, RecordRow
from sdft_cli.records.lazy import LazyDataset
from sdft_cli.report.visible import folded, in_short

if TYPE_CHECKING:
    from sdft_cli.prompts.chat import ChatPrompts

CONTEXT = 3
"""So many lines of what both prompts have in common are shown around a difference."""
_COUNTED = ("prompt_tokens", "teacher_prompt_tokens", "reference_tokens")


@dataclass(frozen=True)
class Rendered:
    """A text as the model reads it: cut at its control tokens, and its token ids."""

    parts: list[Part]
    ids: list[int]


@dataclass(frozen=True)
class Prompts:
    """The three texts of a record."""

    student: Rendered
    teacher: Rendered
    reference: Rendered

    def lengths(self) -> tuple[int, int, int]:
        return len(self.student.ids), len(self.teacher.ids), len(self.reference.ids)


def render(prompts: ChatPrompts, record: Record) -> Prompts:
    """Render a record as training does; raises `TemplateError` where the chat template refuses it."""

    def rendered(text: str) -> Rendered:
        return Rendered(prompts.encoder.parts(text), prompts.encoder.encode(text))

    student, teacher = prompts.student(record), prompts.teacher_prompt(record)
    turn = prompts.turn(record.reference)
    reference = Rendered([*prompts.encoder.parts(turn.text), (turn.end, True)], prompts.turn_ids(turn))
    return Prompts(rendered(student), rendered(teacher), reference)


class RecordView:
    """A record, or a turn that was dropped. What needs no tokenizer comes first; `open_prompts` is called behind it."""

    def __init__(
        self,
        data: LazyDataset,
        session_id: str,
        fate: Fate,
        open_prompts: Callable[[], ChatPrompts],
        show_tokens: bool = False,
    ) -> None:
        self.data, self.session_id, self.fate = data, session_id, fate
        self.open_prompts, self.show_tokens = open_prompts, show_tokens
        self.differing = ""

    @cached_property
    def record(self) -> Record | None:
        """The turn as a record; None if it is in no conversation. Raises `DataError` if its session lacks it."""
        row = self.fate.row
        if row.turn_index is None:
            return None
        session = self.data.session(self.session_id)
        if not 0 <= row.turn_index < len(session.messages):
            raise DataError(f"{self.data.path} has no message {row.record_id}: run `sdft prepare` again.")
        has_call = bool(session.messages[row.turn_index].tool_calls)
        counts = {name: getattr(row, name) or 0 for name in _COUNTED}
        pointer = RecordRow(row.record_id, row.session_id, row.turn_index, has_tool_call=has_call, **counts)
        return Record(pointer, session)

    @cached_property
    def _prompts(self) -> ChatPrompts:
        return self.open_prompts()

    @cached_property
    def rendered(self) -> Prompts | str | None:
        """The texts of the record; why there are none, in the chat template's words; None for a turn in no message."""
        from sdft_cli.prompts.template import TemplateError

        if self.record is None:
            return None
        try:
            found = render(self._prompts, self.record)
        except TemplateError as error:
            return str(error)
        stated = tuple(getattr(self.fate.row, name) for name in _COUNTED)
        if None not in stated and stated != found.lengths():
            self.differing = (
                f"{WARNING}counted now, the student's prompt, the teacher's and the turn have "
                f"{', '.join(f'{n:,}' for n in found.lengths())} tokens, and the dataset states "
                f"{', '.join(f'{n:,}' for n in stated)}: run `sdft prepare` again."
            )
        return found

    def lines(self, screen: Screen) -> Iterator[str]:
        yield from self._head(screen)
        found = self.rendered
        if isinstance(found, str):
            yield screen.rule("No prompts")
            yield from folded(in_short(found, 10 * screen.width), screen.width)
        if not isinstance(found, Prompts):
            return
        if self.differing:
            yield from (screen.styled(line, "bold red") for line in folded(self.differing, screen.width))
        yield from folded(prompt_lines.LEGEND, screen.width)
        if self.show_tokens:
            yield from folded(tokens.LEGEND, screen.width)
        student, teacher, turn = found.lengths()
        yield screen.rule(f"Student's prompt: {student:,} tokens")
        yield from self._whole(found.student, screen)
        yield screen.rule(f"Teacher's prompt: {teacher:,} tokens, {teacher - student:+,}; the difference")
        yield from self._difference(found, screen)
        yield screen.rule(f"Expert's turn, the reference: {turn:,} tokens")
        yield from self._whole(found.reference, screen)

    def _head(self, screen: Screen) -> Iterator[str]:
        row = self.fate.row
        yield screen.rule(f"Record {in_short(row.record_id, screen.width - 14)}")
        yield from folded(in_short(fate_text(self.fate), LONGEST_FATE), screen.width)
        record = self.record
        if record is None:
            yield "This turn is in no conversation of the dataset, so there are no prompts to show."
            return
        session = record.session
        tools = f"{len(record.tools):,} tools offered" if record.tools else "no tools offered"
        yield f"message {row.turn_index} of {len(session.messages):,}; {tools}; in short, with the one before it:"
        turn = record.row.turn_index
        for index in range(max(0, turn - 1), turn + 1):
            yield from message_lines(index, session.messages[index], screen)

    def _pieces(self, ids: Sequence[int]) -> list[tokens.Piece]:
        return tokens.pieces(self._prompts.encoder, ids)

    def _whole(self, text: Rendered, screen: Screen) -> Iterator[str]:
        if self.show_tokens:
            yield from tokens.token_lines(self._pieces(text.ids), screen)
        else:
            yield from (written(line, screen) for line in lines_of(text.parts))

    def _difference(self, found: Prompts, screen: Screen) -> Iterator[str]:
        """Show the teacher's prompt by how it differs from the student's: "+" is only in it, "-" only in the other."""
        if self.show_tokens:
            yield from self._token_difference(found, screen)
            return
        changes = list(differences(lines_of(found.student.parts), lines_of(found.teacher.parts)))
        for place, (change, lines) in enumerate(changes):
            if change == "=":
                head = lines[:CONTEXT] if place else lines[:0]
                tail = lines[max(len(head), len(lines) - CONTEXT) :] if place < len(changes) - 1 else lines[:0]
                yield from (f"  {written(line, screen)}" for line in head)
                if rest := len(lines) - len(head) - len(tail):
                    yield screen.dim(f"  ({rest:,} more lines as in the student's prompt)")
                yield from (f"  {written(line, screen)}" for line in tail)
            else:
                sign = screen.styled(change, "bold green" if change == "+" else "bold red")
                yield from (f"{sign} {written(line, screen)}" for line in lines)

    def _token_difference(self, found: Prompts, screen: Screen) -> Iterator[str]:
        place = 0
        for change, ids in differences(found.student.ids, found.teacher.ids):
            if change == "=":
                yield screen.dim(f"  ({len(ids):,} tokens as in the student's prompt)")
            else:
                narrow = Screen(screen.width - 2, screen.colour)
                first = place if change == "+" else 0
                sign = screen.styled(change, "bold green" if change == "+" else "bold red")
                yield from (f"{sign} {line}" for line in tokens.token_lines(self._pieces(ids), narrow, first))
            place += len(ids) if change != "-" else 0

    def document(self) -> dict[str, Any]:
        found = self.rendered
        document: dict[str, Any] = {"session_id": self.session_id, "turn_index": self.fate.row.turn_index}
        document |= fate_document(self.fate)
        if isinstance(found, str):
            document["template_error"] = found
        if not isinstance(found, Prompts):
            return document
        for name in ("student", "teacher", "reference"):
            text: Rendered = getattr(found, name)
            document[name] = {
                "tokens": len(text.ids),
                "parts": [{"text": part, "control": control} for part, control in text.parts],
            }
            if self.show_tokens:
                document[name]["ids"] = text.ids
                document[name]["pieces"] = [[list(p.ids), p.text] for p in self._pieces(text.ids)]
        return document

    def after(self, call: Callable[..., str]) -> str:
        if self.record is None or isinstance(self.rendered, str):
            return f"Look at its session: {call(self.session_id)}"
        if self.show_tokens:
            return f"Look at its session: {call(self.session_id)}"
        return f"Look at its tokens: {call(self.fate.row.record_id, '--tokens')}"
