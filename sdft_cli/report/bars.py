"""A histogram as text bars, as wide as the terminal; kept and rejected differ by character, not by colour."""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import Console, ConsoleOptions
from rich.text import Text

from sdft_cli.report.statistics import Length

_GLYPHS = {"kept": "\u2588", "over": "\u2591", "rule": "\u2500", "most": "\u2264"}
_ASCII = {"kept": "#", "over": ".", "rule": "-", "most": "<="}
_MOST_BAR = 60


def bar_cells(kept: int, over_cap: int, largest: int, width: int) -> tuple[int, int]:
    """Return how many characters show the kept and the rejected; a count above 0 is never shown as nothing."""

    def cells(count: int) -> int:
        return max(1, round(count * width / largest)) if count else 0

    return cells(kept), cells(over_cap)


class HistogramBars:
    """One length of the records: a line per bin, the cap as a rule below the bin that it falls in."""

    def __init__(self, length: Length) -> None:
        self.length = length

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Text]:
        glyphs = _ASCII if options.ascii_only else _GLYPHS
        histogram, cap = self.length.histogram, self.length.cap
        title = Text(f"\n{self.length.what}, tokens", style="italic")
        if any(histogram.over_cap):
            title.append(f"  ({glyphs['kept']} kept, {glyphs['over']} rejected by a cap)")
        yield title
        labels = [f"{glyphs['most']} {edge:,}" for edge in histogram.edges[1:]]
        label_width = max((len(label) for label in labels), default=0)
        largest = max((k + o for k, o in zip(histogram.kept, histogram.over_cap, strict=True)), default=0)
        count_width = len(f" {largest:,} + {largest:,}")
        width = max(8, min(_MOST_BAR, options.max_width - label_width - count_width - 4))
        bins = zip(labels, histogram.edges, histogram.edges[1:], histogram.kept, histogram.over_cap, strict=False)
        for label, low, high, kept, over in bins:
            first, second = bar_cells(kept, over, largest or 1, width)
            counts = f"{kept:,} + {over:,}" if over else f"{kept:,}"
            bar = glyphs["kept"] * first + glyphs["over"] * second
            yield Text(f"  {label:>{label_width}} {bar} {counts}" if bar else f"  {label:>{label_width}} 0")
            if cap and low < cap <= high:
                name = str(self.length.cap_name).replace("_", "-")
                yield Text(f"  {glyphs['rule'] * label_width} cap {cap:,} (--{name})")
