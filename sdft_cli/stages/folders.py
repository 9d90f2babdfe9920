"""Where datasets and runs are, if nobody says; the newest of them."""

from __future__ import annotations

from pathlib import Path

from sdft_cli.errors import UsageError
from sdft_cli.notices import say
from sdft_cli.places import DATA_ROOT, DATASET, FINISHED_RUN, RUNS_ROOT, folders_with


def name_of(source: str) -> str:
    """Return the name of a source's dataset or run: that of the file without its ending, the folder or the Hub id."""
    path = Path(source).expanduser()
    return (path.resolve().stem if path.exists() else "") or source.rstrip("/").split("/")[-1]


def all_of(root: Path, marker: str, inner: str) -> list[Path]:
    """Return the folders under `root`, and those named `inner` of whole runs, that hold `marker`."""
    return [*folders_with(marker, root), *(p for p in RUNS_ROOT.glob(f"*/{inner}") if (p / marker).is_file())]


def newest(root: Path, marker: str, what: str, hint: str, inner: str) -> Path:
    """Return the newest folder under `root`, or `inner` of a whole run, that holds `marker`, and say which it is.

    Raises:
        UsageError: there is none.
    """
    found = all_of(root, marker, inner)
    if not found:
        raise UsageError(f"No {what} under {root}/: {hint}")
    chosen = max(found, key=lambda folder: ((folder / marker).stat().st_mtime_ns, folder.name))
    say(f"Using the newest {what}: {chosen}")
    return chosen


def newest_dataset() -> Path:
    """Return the newest dataset under `data/`."""
    return newest(DATA_ROOT, DATASET, "dataset", "run `sdft prepare SOURCE` first, or name a dataset.", "data")


def newest_run() -> Path:
    """Return the newest finished run under `runs/`."""
    return newest(RUNS_ROOT, FINISHED_RUN, "run", "run `sdft train` first, or name a run.", "run")
