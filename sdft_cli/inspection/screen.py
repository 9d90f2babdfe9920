"""How lines are written: so many cells wide, in colours or without. Nothing is told by colour alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

from rich.color import ColorSystem
from rich.style import Style

RULE = "\N{BOX DRAWINGS LIGHT HORIZONTAL}"


@dataclass(frozen=True)
class Screen:
    """A terminal, or a file that is read like one."""

    width: int = 80
    colour: bool = False

    def styled(self, text: str, style: str) -> str:
        """Return a text in a style of rich, as `bold` or `dim`; as it is without colours."""
        return Style.parse(style).render(text, color_system=ColorSystem.STANDARD) if self.colour and text else text

    def dim(self, text: str) -> str:
        return self.styled(text, "dim")

    def bold(self, text: str) -> str:
        return self.styled(text, "bold")

    def rule(self, title: str) -> str:
        """Return a line that begins a section."""
        return self.bold(f"{RULE * 2} {title} {RULE * max(2, self.width - len(title) - 4)}"[: max(self.width, 20)])


class View(Protocol):
    """What a person looks at."""

    def lines(self, screen: Screen) -> Iterator[str]:
        """Return it as lines for a terminal, the first of them soon."""

    def document(self) -> dict[str, Any]:
        """Return it as a JSON document."""

    def after(self, call: Callable[..., str]) -> str:
        """Say what to look at next, once it was shown; `call` writes the command for a name and options."""
