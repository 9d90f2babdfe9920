"""Where datasets and runs are, if nobody says, and which are there. Nothing heavy: shell completion reads it, too."""

from __future__ import annotations

from pathlib import Path

from sdft_cli.errors import did_you_mean

DATA_ROOT = Path("data")
RUNS_ROOT = Path("runs")
DATASET = "manifest.json"
RUN = "run.json"
FINISHED_RUN = "adapter/adapter_config.json"
EVALUATED_RUN = "eval.json"
WHOLE_RUN = "sdft-run.json"
"""What the folders of each kind hold."""


def folders_with(marker: str, root: Path) -> list[Path]:
    """Return the folders directly under `root` that hold the file `marker`, by name; hidden ones are left out."""
    try:
        names = sorted(root.iterdir())
    except OSError:  # there is no such folder, or it cannot be read
        return []
    return [folder for folder in names if not folder.name.startswith(".") and (folder / marker).is_file()]


def meant_folder(asked: Path, marker: str, root: Path, otherwise: str, *more: tuple[str, Path]) -> str:
    """Return the end of a sentence about a folder that is not there: which ones may be meant, else `otherwise`.

    Candidates hold `marker` and lie beside `asked` or under `root`, or so with one of `more` (marker, root); their last
    names are compared.
    """
    kinds = ((marker, root), *more)
    places = [(mark, place) for mark, home in kinds for place in (home, asked.parent)]
    found = {folder.name: str(folder) for mark, place in places for folder in folders_with(mark, place)}
    return did_you_mean(asked.name, found, otherwise, said=lambda name: found[name])
