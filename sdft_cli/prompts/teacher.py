"""The teacher's last message: the expert's turn in a block, and what to do with it (SDFT, arXiv 2601.19897, sec. 3)."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from sdft_cli.errors import UsageError
from sdft_cli.records import Message
from sdft_cli.resources import resource_text, text_hash

SLOT = "{reference}"
_CLOSING = re.compile(r"\s*(</[^<>\s]+>)")
DEFAULT = "expert_reference"


@dataclass(frozen=True)
class TeacherTemplate:
    """A text with one slot for the expert's turn, rendered in the model's own tool-call syntax."""

    name: str
    text: str

    def __post_init__(self) -> None:
        if self.text.count(SLOT) != 1:
            raise UsageError(f"Teacher template {self.name} must contain {SLOT} exactly once: correct the file.")

    @property
    def hash(self) -> str:
        return text_hash(self.text)

    def message(self, reference: str) -> Message:
        """Return the user message that shows `reference` to the teacher.

        The slot is filled once, verbatim, but for the tag that closes the block: in the reference it is written
        `<\\/tag>`, so that no reference can end its own block.
        """
        before, after = self.text.split(SLOT)
        closing = _CLOSING.match(after)
        if closing:
            reference = reference.replace(closing[1], closing[1].replace("/", "\\/", 1))
        return Message("user", before + reference + after)


def load_teacher_template(name: str = DEFAULT) -> TeacherTemplate:
    """Load a teacher template, a name in `templates/teacher/` or the path of a text file; raises `UsageError`."""
    path = Path(name)
    if path.suffix == ".txt":
        if not path.is_file():
            raise UsageError(f"Teacher template {path} does not exist: check the path.")
        return TeacherTemplate(path.stem, path.read_text(encoding="utf-8").strip())
    return TeacherTemplate(name, resource_text("templates", "teacher", f"{name}.txt").strip())
