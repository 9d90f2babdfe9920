"""What every command shares: errors become one sentence and an exit code; how loud it is; JSON on stdout."""

from __future__ import annotations

import functools
import inspect
import os
import signal
import sys
from collections.abc import Callable
from typing import Any

import typer

from sdft_cli.cli.support.options import Quiet, Verbose
from sdft_cli.errors import EXTRA_OF, MissingPackage, SdftError, UsageError
from sdft_cli.notices import ERROR, loudness, say, set_loudness, set_rank


def _interrupt(signum: int, frame: object) -> None:
    raise KeyboardInterrupt


def exit_of(error: SdftError) -> typer.Exit:
    """Say what an error says, and return the end of the command."""
    if loudness() == "verbose":
        import traceback

        say("".join(traceback.format_exception(error)).rstrip())
    say(f"{ERROR}{error}")
    return typer.Exit(error.exit_code)


def be_loud(quiet: bool, verbose: bool) -> None:
    """Take over what `--quiet` and `--verbose` say, before the command or behind it.

    Raises:
        UsageError: both are given.
    """
    if quiet and verbose:
        raise UsageError("--quiet and --verbose contradict each other: leave one out.")
    if quiet or verbose:
        set_loudness("quiet" if quiet else "verbose")


def print_json(document: Any) -> None:
    """Print a document to stdout, as JSON in ASCII: nothing in it can steer a terminal."""
    import json

    from sdft_cli.records.json_files import finite

    typer.echo(json.dumps(finite(document), indent=2))


def check_alone(name: str) -> None:
    """Refuse a command that several processes would each do all of, and write over each other; the first one says so.

    Raises:
        UsageError: this is one of several processes, and the command is not `train`.
    """
    from sdft_cli.engine.parallel.launch import launched

    rank, count = launched()
    if count > 1 and name != "train":
        set_rank(rank)
        raise UsageError(
            f"{count} processes were started, and they can share `sdft train` only: start sdft {name} without "
            "`torchrun` or `accelerate launch`."
        )


def command(function: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap a command: an `SdftError` is one sentence on stderr and its exit code; Ctrl-C and SIGTERM are 130.

    A package of an extra that is not installed is such a sentence too; any other missing module is a bug. The command
    has the options `--quiet` and `--verbose`, too.
    """
    signature = inspect.signature(function, eval_str=True)
    called = {"evaluate": "eval"}.get(function.__name__, function.__name__)  # eval is Python's own
    loud = {"quiet": Quiet, "verbose": Verbose}

    @functools.wraps(function)
    def wrapper(*args: Any, quiet: bool = False, verbose: bool = False, **kwargs: Any) -> Any:
        signal.signal(signal.SIGTERM, _interrupt)
        try:
            be_loud(quiet, verbose)
            check_alone(called)
            return function(*args, **kwargs)
        except SdftError as error:
            raise exit_of(error) from None
        except ModuleNotFoundError as error:
            if error.name not in EXTRA_OF:
                raise
            raise exit_of(MissingPackage(f"sdft {called}", error.name)) from None
        except KeyboardInterrupt:
            say(f"{ERROR}interrupted; nothing half-written was left behind.")
            raise typer.Exit(130) from None
        except BrokenPipeError:  # the reader of our output left, e.g. `sdft ... | head`
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(1) from None

    both = [inspect.Parameter(n, inspect.Parameter.KEYWORD_ONLY, default=False, annotation=loud[n]) for n in loud]
    wrapper.__signature__ = signature.replace(parameters=[*signature.parameters.values(), *both])  # type: ignore[attr-defined]
    wrapper.__annotations__ = {name: one.annotation for name, one in signature.parameters.items()} | loud
    return wrapper
