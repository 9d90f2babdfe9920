"""Families of models through all commands, as a table: `python -m benchmarks.families --out docs/models.md`.

Every family of `tests/families/tiny.py` is tried with a tiny random model; `benchmarks/chat_templates.py` asks every
chat template that TRL ships. About 10 minutes on two CPU cores. `--families` tries some only and prints the table.
"""

from __future__ import annotations

import argparse
import re
import tempfile
from pathlib import Path

from benchmarks.chat_templates import page as templates_page
from tests.families.matrix import STAGES, Cell, run_family, write_sessions
from tests.families.tiny import FAMILIES, make_model

HEAD = """# Models that were tried

Made by `python -m benchmarks.families --out docs/models.md`; do not edit. Each family is a tiny random model of
transformers {version}, with all linear layers adapted (`lora.target_modules=all-linear`): prepare, two steps of SDFT,
two of the control arm, merge with its certificate, eval of base, tuned, merged and control. A model of such a family is
refused or taken alike; whether it learns is another question. `sdft doctor --model M` asks a model of your own. `python
-m benchmarks.family_logits` compares likelihood and divergence with those of each model's own logits.
"""


def adapted(cells: dict[str, Cell]) -> str:
    """Return what the adapter sat on, and which share of the trunk it left out, as `sdft train` said it."""
    said = "\n".join(cells["train"].said) if "train" in cells else ""
    targets = re.search(r"LoRA on: (.*) \(", said)
    routed = re.search(r"does not reach the routed experts.*\((\d+%)\)", said)
    names = ", ".join(f"`{name}`" for name in targets[1].split(", ")) if targets else ""
    return f"{names}; routed experts are not ({routed[1]} here)" if routed else names


def row(family: str, cells: dict[str, Cell]) -> list[str]:
    """Return a line of the table."""
    last = list(cells)[-1]
    marks = ["yes" if stage in cells and cells[stage].right else "no" if stage == last else "" for stage in STAGES]
    wrong = cells[last]
    sentence = wrong.crash or wrong.sentence
    return [family, *marks, adapted(cells), "" if wrong.right else f"exit {wrong.code}: {sentence}"]


def families_table(names: list[str], folder: Path) -> list[str]:
    """Run families in a folder; return the lines of a Markdown table."""
    sessions = write_sessions(folder / "sessions")
    head = ["family", *STAGES, "adapted", "refused with"]
    lines = [head, ["---"] * len(head)]
    for name in names:
        place = folder / name
        lines.append(row(name, run_family(make_model(name, place / "model"), sessions, place)))
        print(" ".join(lines[-1][: 1 + len(STAGES)]), lines[-1][-1], flush=True)
    return [f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines]


def main() -> None:
    """Run the matrix and write the page, or print it."""
    import transformers

    from sdft_cli.engine.models.quiet import quiet_libraries

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--families", nargs="*", default=list(FAMILIES), choices=list(FAMILIES), metavar="FAMILY")
    arguments = parser.parse_args()
    quiet_libraries()
    with tempfile.TemporaryDirectory() as folder:
        table = families_table(arguments.families, Path(folder))
    page = "\n".join([HEAD.format(version=transformers.__version__), "## Families\n", *table, "", templates_page()])
    if arguments.out:
        arguments.out.write_text(page.replace(folder, "."), encoding="utf-8")
    else:
        print(page)


if __name__ == "__main__":
    main()
