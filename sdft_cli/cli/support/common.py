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
from sdft_cli.errors import EXTRA_OF, InterruptedBySignal, LostProcess, MissingPackage, SdftError, UsageError
from sdft_cli.notices import ERROR, loudness, say, set_loudness, set_rank


class _Stop(KeyboardInterrupt):
    """Ctrl-C or SIGTERM.

    A plain `KeyboardInterrupt` that passes through an extension module, e.g. one being imported, makes Python end by
    the signal whatever exit code follows.
    """


_stopped = False  # whether one came: what fails afterwards failed because of it


def _stop(signum: int, frame: object) -> None:
    global _stopped
    _stopped = True
    raise _Stop


def _watch_signals() -> None:
    global _stopped
    _stopped = False  # one process may run several commands
    signal.signal(signal.SIGTERM, _stop)
    if signal.getsignal(signal.SIGINT) != signal.SIG_IGN:  # as a shell has it for what runs in the background
        signal.signal(signal.SIGINT, _stop)


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


def _end_of(called: str, error: BaseException) -> typer.Exit | None:
    """Say why a command ended, and return its end; None is a bug.

    A signal in the middle of an import may come out of it as any error: libraries wrap it, and import again what is
    half there, and what we make of that is no more true. An error that explains the signal stays.
    """
    explains = isinstance(error, InterruptedBySignal | LostProcess)
    if isinstance(error, SdftError) and (explains or not _stopped):
        return exit_of(error)
    if isinstance(error, BrokenPipeError):  # the reader of our output left, e.g. `sdft ... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return typer.Exit(1)
    if _stopped or isinstance(error, KeyboardInterrupt):
        say(f"{ERROR}interrupted; nothing half-written was left behind.")
        return typer.Exit(130)
    if isinstance(error, ModuleNotFoundError) and error.name in EXTRA_OF:
        return exit_of(MissingPackage(f"sdft {called}", error.name))
    return None


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
        _watch_signals()
        try:
            be_loud(quiet, verbose)
            check_alone(called)
            return function(*args, **kwargs)
        except typer.Exit:
            raise
        except (Exception, KeyboardInterrupt) as error:
            end = _end_of(called, error)
            if end is None:
                raise
            raise end from None

    both = [inspect.Parameter(n, inspect.Parameter.KEYWORD_ONLY, default=False, annotation=loud[n]) for n in loud]
    wrapper.__signature__ = signature.replace(parameters=[*signature.parameters.values(), *both])  # type: ignore[attr-defined]
    wrapper.__annotations__ = {name: one.annotation for name, one in signature.parameters.items()} | loud
    return wrapper
