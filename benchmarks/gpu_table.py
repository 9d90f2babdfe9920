"""The lines of a GPU check as Markdown tables, for docs/gpu.md.

    python -m benchmarks.gpu_table results.jsonl [EARLIER.jsonl]

With an earlier file, each number of that one stands behind a slash.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

Row = dict[str, Any]

COLUMNS: dict[str, tuple[str, ...]] = {
    "attention": ("path", "engine", "blocks"),
    "delta": ("tokens", "bound_ms", "reference_ms", "out", "dq", "dk", "dv", "dg", "dbeta", "dstate"),
    "lora": ("tokens", "width", "out", "rank", "base", "fp32", "tf32", "autocast", "y", "dx", "dA", "dB"),
    "head": ("rows", "ms", "back_ms", "logits", "rounded", "back"),
    "sharing": ("states_from_alone", "states_floor", "gradients_from_alone", "gradients_floor", "says"),
    "step": ("sharing", "prompt_tokens", "answer_tokens", "seconds", "utilisation", "peak_gb", "predicted_gb"),
    "shared": ("way", "turns", "prompt_tokens", "seconds", "peak_gb", "speed_of_sharing", "gradient_distance"),
    "alone": ("turns", "seconds", "peak_gb"),
    "trl": ("turns", "seconds", "peak_gb", "engine_seconds", "engine_peak_gb", "gradient_distance"),
    "unsloth": ("way", "seconds", "peak_gb", "gradient_distance"),
    "rollout": ("weights", "way", "prompts", "longest", "ms_per_decoding_step", "times_the_bytes_bound", "peak_gb"),
    "tree": ("tokens", "blocks_ms", "dense_ms", "blocks_first_call_s", "out", "dq", "dk", "dv"),
    "merge": ("size_gb", "seconds", "adapted"),
}
"""Stage -> the numbers that are shown; others stay in the file. A column that no row has is left out."""


def read(path: Path) -> list[Row]:
    """Return the lines of a check; those of other programs are left out."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.startswith("{")]


def cell(value: Any) -> str:
    """Return a value as it stands in a table."""
    if isinstance(value, dict):
        return ", ".join(f"{name} {cell(inner)}" for name, inner in value.items())
    if isinstance(value, float):
        return f"{value:.3g}"
    return str(value)


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def stage_table(stage: str, rows: Sequence[Row], earlier: Sequence[Row]) -> str:
    """Return the table of a stage; the n-th row of the earlier file belongs to the n-th of this one."""
    measured = [row for row in rows if not {"skipped", "failed"} & row.keys() or len(row) > 4]
    columns = [name for name in COLUMNS[stage] if any(name in row for row in measured)]

    def one(place: int, row: Row, name: str) -> str:
        if name not in row:
            return ""
        other = earlier[place].get(name) if place < len(earlier) else None
        before = f" / {cell(other)}" if isinstance(other, float | int) and other != row[name] else ""
        return cell(row[name]) + before

    return table(columns, [[one(place, row, name) for name in columns] for place, row in enumerate(measured)])


def report(rows: Sequence[Row], earlier: Sequence[Row] = ()) -> str:
    """Return all tables, the card and versions first, then what was skipped and what failed."""
    env = next((row for row in rows if row["stage"] == "env"), {})
    facts = [(name, cell(value)) for name, value in env.items() if name not in ("stage", "at_s")]
    parts = [table(("", ""), facts)]
    for stage in COLUMNS:
        own, other = ([row for row in found if row["stage"] == stage] for found in (rows, earlier))
        if any(set(COLUMNS[stage]) & row.keys() for row in own):
            parts.append(f"**{stage}**\n\n{stage_table(stage, own, other)}")
    for what in ("skipped", "failed"):
        parts += [f"{row['stage']}: {what}, {row[what]}" for row in rows if what in row]
    return "\n\n".join(parts)


def main(arguments: Sequence[str]) -> int:
    """Print the tables of one or two files."""
    if not 1 <= len(arguments) <= 2:
        print((__doc__ or "").strip(), file=sys.stderr)
        return 2
    print(report(*(read(Path(name)) for name in arguments)))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
