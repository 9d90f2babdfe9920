"""What every command shares: errors become one sentence and an exit code."""

from __future__ import annotations

import functools
import os
import signal
import sys
from collections.abc import Callable
from typing import Any

import typer

from sdft_cli.errors import EXTRA_OF, MissingPackage, SdftError
from sdft_cli.notices import say


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
