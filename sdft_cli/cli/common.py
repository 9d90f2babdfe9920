"""What every command shares: errors become one sentence and an exit code; the newest dataset or run is found."""

from __future__ import annotations

import functools
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import typer

from sdft_cli.errors import EXTRA_OF, WARNING, MissingPackage, SdftError, UsageError

DATA_ROOT = Path("data")
RUNS_ROOT = Path("runs")


def say(text: str) -> None:
    """Print a notice to stderr, as plain text; a warning in bold where that is a terminal."""
    loud = text.startswith(WARNING) and sys.stderr.isatty() and "NO_COLOR" not in os.environ
    print(f"\x1b[1;31m{text}\x1b[0m" if loud else text, file=sys.stderr)


def _interrupt(signum: int, frame: object) -> None:
    raise KeyboardInterrupt


def _exit(error: SdftError) -> typer.Exit:
    say(f"sdft: {error}")
    return typer.Exit(error.exit_code)


def command(function: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap a command: an `SdftError` is one sentence on stderr and its exit code; Ctrl-C and SIGTERM are 130.

    A package of an extra that is not installed is such a sentence too; any other missing module is a bug.
    """

    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        signal.signal(signal.SIGTERM, _interrupt)
        try:
            return function(*args, **kwargs)
        except SdftError as error:
            raise _exit(error) from None
        except ModuleNotFoundError as error:
            if error.name not in EXTRA_OF:
                raise
            name = {"evaluate": "eval"}.get(function.__name__, function.__name__)  # eval is Python's own
            raise _exit(MissingPackage(f"sdft {name}", error.name)) from None
        except KeyboardInterrupt:
            say("sdft: interrupted; nothing half-written was left behind.")
            raise typer.Exit(130) from None
        except BrokenPipeError:  # the reader of our output left, e.g. `sdft ... | head`
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(1) from None

    return wrapper


def newest(root: Path, marker: str, what: str, hint: str) -> Path:
    """Return the newest folder under `root` that holds `marker`, and say which it is.

    Raises:
        UsageError: there is none.
    """
    names = root.iterdir() if root.is_dir() else ()
    found = [folder for folder in names if not folder.name.startswith(".") and (folder / marker).is_file()]
    if not found:
        raise UsageError(f"No {what} under {root}/: {hint}")
    chosen = max(found, key=lambda folder: ((folder / marker).stat().st_mtime_ns, folder.name))
    say(f"Using the newest {what}: {chosen}")
    return chosen


def newest_dataset() -> Path:
    """Return the newest dataset under `data/`."""
    return newest(DATA_ROOT, "manifest.json", "dataset", "run `sdft prepare SOURCE` first, or name a dataset.")


def newest_run() -> Path:
    """Return the newest finished run under `runs/`."""
    return newest(RUNS_ROOT, "adapter/adapter_config.json", "run", "run `sdft train` first, or name a run.")
