"""`sdft chat`: talk to a trained model, or serve it."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from sdft_cli.cli.support import completion
from sdft_cli.cli.support.common import command, print_json
from sdft_cli.cli.support.options import OUTPUT, option
from sdft_cli.errors import InterruptedBySignal, UsageError
from sdft_cli.notices import say
from sdft_cli.stages.folders import newest_run
from sdft_cli.texts import check_unicode

if TYPE_CHECKING:
    from sdft_cli.chat.loop import Chat
    from sdft_cli.stages.chat import Subject


@command
def chat(
    subject: Annotated[
        str | None,
        typer.Argument(
            metavar="[RUN|MODEL]",
            help="A run, an adapter, or a model.",
            show_default="the newest run",
            autocompletion=completion.finished_runs,
        ),
    ] = None,
    message: Annotated[
        list[str] | None,
        option(
            "--message",
            "-m",
            help="Say this instead of typing, and leave. Repeatable; behind a call it is the call's result.",
            left_out="what is typed, or all of a piped stdin as one message",
        ),
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Cap on an answer, tokens.")] = 1024,
    temperature: Annotated[float, typer.Option(min=0, max=5, help="Of sampling; 0 is greedy.")] = 0.0,
    seed: Annotated[int | None, option(min=0, help="Seed of sampling.", left_out="another one each time")] = None,
    compare: Annotated[
        bool,
        option(
            "--compare",
            help="Let the base answer too, beside the trained model.",
            panel="What answers, and what it is shown",
        ),
    ] = False,
    base: Annotated[
        str | None, option(help="Of an adapter folder: the model that it was trained on.", left_out="the run's own")
    ] = None,
    dataset: Annotated[
        Path | None,
        option(
            help="Offer the tools of a session of this dataset.",
            left_out="no tools",
            autocompletion=completion.datasets,
        ),
    ] = None,
    session: Annotated[
        str | None, option(help="That session's id, or how it begins.", left_out="the first held-out one")
    ] = None,
    system: Annotated[
        str | None, option(help="A system message.", left_out="the session's, with --dataset; '' is none")
    ] = None,
    serve: Annotated[
        bool, option("--serve", help="Print the command that serves the checkpoint, and run it.", panel="Serving")
    ] = False,
    engine: Annotated[str, option(help="Who serves: transformers or vllm.")] = "transformers",
    host: Annotated[str, option(help="Where it listens.")] = "localhost",
    port: Annotated[int, option(min=1, max=65_535, help="Its port.")] = 8000,
    dry_run: Annotated[bool, option("--dry-run", help="With --serve: print the command only.")] = False,
    as_json: Annotated[bool, option("--json", help="Print every answer as a line of JSON.", panel=OUTPUT)] = False,
) -> None:
    """Talk to a trained model: a run's merged checkpoint, or where there is none its base with the adapter.

    It is shown what it was shown in training: the same chat template, no thinking, and with --dataset the tools of a
    session. Its calls are shown and never run; type their results. /help lists the commands of a chat.

    With --compare the base answers first; the conversation goes on with the other's answer. A merged checkpoint is left
    aside then: base and adapter are one model in memory.

    Example: sdft chat runs/my-run --dataset data/my-sessions --message "What is in src?"
    """
    from sdft_cli.stages.chat import find_subject

    if serve:
        given = {"--message": message, "--compare": compare, "--dataset": dataset, "--session": session}
        if wrong := [name for name, value in given.items() if value]:
            raise UsageError(f"{wrong[0]} is for a chat, and --serve serves others: leave one of them out.")
        _serve(find_subject(subject or str(newest_run()), base, False), engine, host, port, dry_run, as_json)
        return
    if dry_run:
        raise UsageError("--dry-run prints the command of a server: add --serve.")
    if session is not None and dataset is None:
        raise UsageError("--session is one of a dataset: name that with --dataset.")
    for text in message or ():  # before a model is loaded for it
        check_unicode(text, "--message")
    found = find_subject(subject or str(newest_run()), base, compare)

    from sdft_cli.chat.loop import Chat
    from sdft_cli.chat.screen import JsonScreen, TextScreen
    from sdft_cli.records import read_dataset
    from sdft_cli.stages.chat import open_chat_prompts, open_models, start_conversation

    typing = message is None and sys.stdin.isatty()
    piped = None if typing or message is not None else _piped()
    data = read_dataset(dataset) if dataset else None
    prompts = open_chat_prompts(found, data)
    conversation = start_conversation(data, session, system)
    say(f"Talking to {_called(found, compare)}")
    models = open_models(found, prompts, compare, max_new_tokens, temperature, seed)
    talk = Chat(models, conversation, JsonScreen() if as_json else TextScreen(), stop_at_errors=not typing)
    signal.signal(signal.SIGTERM, _terminated)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # in a chat Ctrl-C stops an answer, and nothing has failed
    if piped is not None:
        talk.said(piped)
    elif typing:
        say("/help lists the commands; Ctrl-D leaves")
        _converse(talk, _typed(talk), echo=False)
    else:
        _converse(talk, iter(message or ()), echo=len(message or ()) > 1 and not as_json)


def _called(subject: Subject, compare: bool) -> str:
    what = {"merged": f"{subject.model} (merged)", "model": subject.model}.get(
        subject.name, f"{subject.model} with the adapter {subject.adapter}"
    )
    return f"{subject.model}, and beside it {what}" if compare else what


def _piped() -> str:
    try:
        text = check_unicode(sys.stdin.read(), "What is piped").strip("\n")
    except UnicodeDecodeError as error:  # where the locale is of UTF-8
        raise UsageError("What is piped is no UTF-8 text: convert it first.") from error
    if not text.strip():
        raise UsageError("There is nothing on stdin: pipe a message, give --message, or run it in a terminal.")
    return text


def _typed(talk: Chat) -> Iterator[str]:
    """Yield what is typed, line by line; Ctrl-C drops the line."""
    from sdft_cli.chat.loop import blocks

    with suppress(ImportError):
        import readline  # noqa: F401  # input() then edits lines and remembers them

    def lines() -> Iterator[str]:
        while True:
            try:
                yield input(talk.prompt)
            except EOFError:
                print()
                return
            except UnicodeDecodeError:
                print("(no UTF-8 text: set the terminal's encoding)")
            except InterruptedBySignal:
                raise
            except KeyboardInterrupt:
                print("\n(/quit or Ctrl-D leaves)")

    return blocks(lines())


def _converse(talk: Chat, texts: Iterator[str], echo: bool) -> None:
    """Take one text after the other; `echo` shows each, where nobody typed it."""
    from sdft_cli.chat.loop import Quit
    from sdft_cli.notices import visible

    try:
        for text in texts:
            if echo:
                talk.screen.note(f"{talk.prompt}{visible(text)}")
            talk.typed(text)
    except Quit:
        return


def _terminated(signum: int, frame: object) -> NoReturn:
    raise InterruptedBySignal("interrupted.")


def _serve(subject: Subject, engine: str, host: str, port: int, dry_run: bool, as_json: bool) -> None:
    """Print the command that serves a checkpoint, and how clients are pointed at it; then run it."""
    from sdft_cli.stages.serve import service_for, start

    service = service_for(subject, engine, host, port)
    if as_json:
        print_json(service.to_json())
    else:
        typer.echo("\n".join(service.told()))
    if not dry_run:
        sys.stdout.flush()
        start(service)
