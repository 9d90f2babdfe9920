"""How the expert's turn is shown to the teacher (SDFT, arXiv 2601.19897, sec. 3): one message, or a few turns.

A template is a text with a slot. Lines that are `[user]` or `[assistant]` and nothing else divide it into turns; a
text without them is one message of the user. In a user's turn the slot is filled with the expert's turn as the model
would write it; an assistant's turn that is the slot alone is the expert's turn itself, with its calls, which the chat
template writes like any other. Such turns may come more than once: what a model has said twice, it says again.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

from sdft_cli.errors import UsageError, did_you_mean
from sdft_cli.resources import resource, resource_text, text_hash
from sdft_cli.texts import read_text

SLOT = "{reference}"
_CLOSING = re.compile(r"\s*(</[^<>\s]+>)")
_ROLE = re.compile(r"^\[(user|assistant)\][ \t]*$", re.MULTILINE)
DEFAULT = "expert_reference"


@dataclass(frozen=True)
class Part:
    """One turn of a teacher template."""

    role: Literal["user", "assistant"]
    text: str

    @property
    def is_reference(self) -> bool:
        """Is this the expert's turn itself?"""
        return self.role == "assistant" and self.text == SLOT

    def filled(self, reference: str) -> str:
        """Return the text with the reference, as the model would write it, in its slot.

        It stands there verbatim, but for the tag that closes the block: in the reference it is written `<\\/tag>`, so
        that no reference can end its own block.
        """
        before, slot, after = self.text.partition(SLOT)
        if not slot:
            return before
        closing = _CLOSING.match(after)
        if closing:
            reference = reference.replace(closing[1], closing[1].replace("/", "\\/", 1))
        return before + reference + after


@dataclass(frozen=True)
class TeacherTemplate:
    """A text with a slot for the expert's turn: once in a user's turn, or as one or more turns of the assistant."""

    name: str
    text: str

    def __post_init__(self) -> None:
        wrong = self._fault()
        if wrong:
            raise UsageError(f"Teacher template {self.name} {wrong}: correct the file.")

    def _fault(self) -> str | None:
        shown = [part for part in self.parts if SLOT in part.text]
        if not shown:
            return f"must contain {SLOT}"
        if self.text.count(SLOT) > 1 and not all(part.is_reference for part in shown):
            return f"contains {SLOT} more than once: that is for turns of the assistant that are {SLOT} alone"
        if not all(part.text for part in self.parts):
            return "has a turn without text"
        if any(a.role == b.role for a, b in pairwise(self.parts)):
            return "has two turns of one role in a row"
        if self.parts[-1].role != "user":
            return "must end with a turn of the user, which asks for the answer"
        if any(part.role == "assistant" and SLOT in part.text and not part.is_reference for part in self.parts):
            return f"has an assistant's turn that is not {SLOT} alone"
        return None

    @property
    def opening(self) -> str:
        """What stands in a user's turn in the line of the slot or the one before it: the tag of a block, or nothing.

        A teacher whose answers begin with it copies its prompt's form and not the expert's turn.
        """
        part = next(part for part in self.parts if SLOT in part.text)
        before = part.text.partition(SLOT)[0].rstrip()
        return "" if part.is_reference else before.rpartition("\n")[2].strip()

    @property
    def hash(self) -> str:
        return text_hash(self.text)

    @cached_property
    def parts(self) -> tuple[Part, ...]:
        """Its turns, in order."""
        first, *rest = _ROLE.split(self.text)
        if first.strip() or not rest:
            return (Part("user", self.text),)
        found: list[Any] = list(zip(rest[::2], rest[1::2], strict=True))
        return tuple(Part(role, text.strip()) for role, text in found)


def load_teacher_template(name: str = DEFAULT) -> TeacherTemplate:
    """Load a teacher template, a name in `templates/teacher/` or the path of a text file; raises `UsageError`."""
    path = Path(name)
    if path.suffix == ".txt":
        return TeacherTemplate(path.stem, read_text(path, "Teacher template").strip())
    if name not in teacher_templates():
        raise UsageError(
            f"Teacher template {name} is no .txt file and none of those that ship with sdft: "
            f"{did_you_mean(name, teacher_templates())}"
        )
    return TeacherTemplate(name, resource_text("templates", "teacher", f"{name}.txt").strip())


def teacher_templates() -> list[str]:
    """Return the names of the wordings that ship with sdft."""
    return sorted(Path(item.name).stem for item in resource("templates", "teacher").iterdir())


def teacher_template_of(manifest: Mapping[str, Any]) -> TeacherTemplate:
    """Return the teacher template of a dataset; manifests of older versions name a shipped one.

    Raises:
        UsageError: an older one names a template that does not ship.
    """
    name, text = str(manifest["teacher_template"]), manifest.get("teacher_text")
    return load_teacher_template(name) if text is None else TeacherTemplate(name, text)
