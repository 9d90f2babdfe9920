"""Token ids and their pieces of text, with their boundaries visible."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich.cells import cell_len

from sdft_cli.inspection.prompt_lines import CLOSE, OPEN
from sdft_cli.inspection.screen import Screen
from sdft_cli.report.visible import visible

if TYPE_CHECKING:
    from sdft_cli.prompts.encoding import PieceEncoder

SPACE, BAR = "\N{MIDDLE DOT}", "\N{BOX DRAWINGS LIGHT VERTICAL}"
LEGEND = f"Between {BAR} stand a token's id and text; {SPACE} is a space; + joins ids that spell one character."


@dataclass(frozen=True)
class Piece:
    """A token and its text; several where only together they spell a character."""

    ids: tuple[int, ...]
    text: str
    control: bool = False

    def shown(self, screen: Screen) -> tuple[str, int]:
        """Return it for the terminal, and its width in cells."""
        text = visible(self.text, also=SPACE + BAR + OPEN + CLOSE).replace(" ", SPACE)
        text = f"{OPEN}{text}{CLOSE}" if self.control else text
        number = "+".join(map(str, self.ids))
        width = len(number) + 1 + cell_len(text)
        return f"{screen.dim(number)} {screen.styled(text, 'bold reverse') if self.control else text}", width


def pieces(encoder: PieceEncoder, ids: Sequence[int]) -> list[Piece]:
    """Return the tokens with their text; joined, the texts are what the ids decode to."""
    found: list[Piece] = []
    waiting: list[int] = []
    stream = encoder.decode_stream()
    for token in ids:
        control = encoder.is_control(token)
        if control and waiting:
            found.append(Piece(tuple(waiting), encoder.decode(waiting)))
            waiting, stream = [], encoder.decode_stream()
        waiting.append(token)
        if (text := stream(token)) is not None:
            found.append(Piece(tuple(waiting), text, control))
            waiting = []
    return [*found, Piece(tuple(waiting), encoder.decode(waiting))] if waiting else found


def token_lines(found: Sequence[Piece], screen: Screen, first: int = 0) -> Iterator[str]:
    """Show tokens in rows that begin with the place of their first; a row ends with a line or where it is full."""
    row: list[str] = []
    used, start, place = 0, first, first
    for piece in found:
        text, width = piece.shown(screen)
        if row and used + width + 3 > screen.width - 8:
            yield f"{screen.dim(f'{start:>6}')}  {f' {BAR} '.join(row)}"
            row, used, start = [], 0, place
        row.append(text)
        used += width + 3
        place += len(piece.ids)
        if "\n" in piece.text:
            yield f"{screen.dim(f'{start:>6}')}  {f' {BAR} '.join(row)}"
            row, used, start = [], 0, place
    if row:
        yield f"{screen.dim(f'{start:>6}')}  {f' {BAR} '.join(row)}"
