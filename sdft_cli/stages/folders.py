"""Where datasets and runs are, if nobody says; the newest of them."""

from __future__ import annotations

from pathlib import Path

from sdft_cli.errors import UsageError
from sdft_cli.notices import say

DATA_ROOT = Path("data")
RUNS_ROOT = Path("runs")


def name_of(source: str) -> str:
    """Return the name of a source's dataset or run: that of the file without its ending, the folder or the Hub id."""
    path = Path(source).expanduser()
    return (path.resolve().stem if path.exists() else "") or source.rstrip("/").split("/")[-1]


def newest(root: Path, marker: str, what: str, hint: str, inner: str) -> Path:
    """Return the newest folder under `root`, or `inner` of a whole run, that holds `marker`, and say which it is.

    Raises:
        UsageError: there is none.
    """
    names: list[Path] = [*(root.iterdir() if root.is_dir() else ()), *RUNS_ROOT.glob(f"*/{inner}")]
    found = [folder for folder in names if not folder.name.startswith(".") and (folder / marker).is_file()]
    if not found:
        raise UsageError(f"No {what} under {root}/: {hint}")
    chosen = max(found, key=lambda folder: ((folder / marker).stat().st_mtime_ns, folder.name))
    say(f"Using the newest {what}: {chosen}")
    return chosen


def newest_dataset() -> Path:
    """Return the newest dataset under `data/`."""
    return newest(DATA_ROOT, "manifest.json", "dataset", "run `sdft prepare SOURCE` first, or name a dataset.", "data")


def newest_run() -> Path:
    """Return the newest finished run under `runs/`."""
    return newest(RUNS_ROOT, "adapter/adapter_config.json", "run", "run `sdft train` first, or name a run.", "run")
