"""Text from files on a terminal: nothing in it moves the cursor, changes colours, or turns the direction of the text.

Characters that are not printable (ANSI escapes, other controls, marks of direction, lone surrogates, characters without
a glyph) are written as Python writes them in a string: `\\x1b`, `\\u202e`.
"""

from __future__ import annotations

from collections.abc import Iterator

from rich.cells import cell_len

MORE = "\N{HORIZONTAL ELLIPSIS}"


def printable(name: str) -> str:
    """Return a name from a file for the terminal: characters that are none become question marks."""
    return "".join(character if character.isprintable() else "?" for character in name)


def escaped(character: str) -> str:
    """Return a character as Python writes it in a string, in ASCII."""
    written = character.encode("unicode_escape").decode("ascii")
    return written if written != character else f"\\x{ord(character):02x}"


def visible(text: str, keep: str = "", also: str = "") -> str:
    """Return a text with all that is not printable written out.

    Args:
        keep: characters that stay as they are, e.g. a tab.
        also: characters that are written out as well.
    """
    if text.isprintable() and not any(character in text for character in also):
        return text
    return "".join(
        character if (character.isprintable() or character in keep) and character not in also else escaped(character)
        for character in text
    )


def cells_of(text: str) -> int:
    """Return the cells of a visible text; characters without a width count too, or combining marks would never end."""
    return sum(max(1, cell_len(character)) for character in text)


def cut(text: str, cells: int) -> str:
    """Return the beginning of a visible text that fits into so many cells of a terminal, as `cells_of` counts."""
    room = cells
    for index, character in enumerate(text[: cells + 1]):
        room -= cells_of(character)
        if room < 0:
            return text[:index]
    return text


def folded(text: str, cells: int) -> Iterator[str]:
    """Break a visible text into lines of at most so many cells, at spaces where there are any."""
    while text:
        line = cut(text, cells)
        if len(line) < len(text) and (space := line.rfind(" ")) > 0:
            line = line[:space]
        yield line.rstrip()
        text = text[len(line) :].lstrip()


def in_short(text: str, cells: int, length: int | None = None, told: bool = True) -> str:
    """Return a text as one visible line of at most so many cells; where it is cut, the length of all of it is said.

    Args:
        length: of all of it, in characters, where `text` is its beginning.
        told: the length stands elsewhere in the line if this is False.
    """
    length = len(text) if length is None else length
    head = text[: 4 * cells]
    line = visible(" ".join(head.split()))
    if len(head) == length and cut(line, cells) == line:
        return line
    end = f"{MORE} ({length:,} ch)" if told else MORE
    return cut(line, max(0, cells - len(end))).rstrip() + end
