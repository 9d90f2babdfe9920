"""`sdft inspect`: look at a dataset, a session or a record."""

from __future__ import annotations

import json
import shlex
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from sdft_cli.cli.support.common import command
from sdft_cli.cli.support.options import DatasetPath, option
from sdft_cli.notices import say
from sdft_cli.stages.folders import newest_dataset

if TYPE_CHECKING:
    from sdft_cli.inspection.screen import View
    from sdft_cli.prompts.chat import ChatPrompts
    from sdft_cli.records.lazy import LazyDataset


@command
def inspect(
    dataset: DatasetPath = None,
    record: Annotated[
        str | None,
        typer.Argument(
            help="A session, a record (session/turn), or the beginning of a session's name.",
            show_default="all sessions",
        ),
    ] = None,
    rejected: Annotated[bool, option("--rejected", help="What was dropped, and why.", panel="What to show")] = False,
    reason: Annotated[str | None, option(help="With --rejected: this reason alone.", left_out="all")] = None,
    search: Annotated[
        str | None, option(metavar="TEXT", help="The messages that hold a text, literally.", left_out="none")
    ] = None,
    tokens: Annotated[bool, option("--tokens", help="Of a record: token ids and pieces.")] = False,
    split: Annotated[
        Literal["train", "validation"] | None, option(help="Sessions with records of this split.", left_out="both")
    ] = None,
    model: Annotated[
        str | None, option(help="Of a record: the model whose tokenizer reads it.", left_out="the dataset's")
    ] = None,
    limit: Annotated[int | None, option(min=1, help="So many rows at most.", left_out="all", panel="Output")] = None,
    as_json: Annotated[bool, option("--json", help="One JSON document, whole and in ASCII.")] = False,
) -> None:
    """Look at a dataset: its sessions, one session as a timeline, or one record as the model reads it.

    Text is shown with control characters written out, and long lines are cut with a count; --json has all of it.

    Example: sdft inspect data/my-sessions 1a289c77/12 --tokens
    """
    from sdft_cli.cli.support.pager import show, this_screen
    from sdft_cli.records.lazy import LazyDataset

    data = LazyDataset(dataset or newest_dataset())
    view = _view(data, record, rejected, reason, search, tokens, split, model, limit)
    if as_json:
        typer.echo(json.dumps(view.document(), indent=2))
    else:
        show(view.lines(this_screen()))

    def call(name: str | None = None, *more: str) -> str:
        from sdft_cli.report.visible import visible

        return visible(shlex.join(["sdft", "inspect", str(data.path), *([name] if name else []), *more]))

    say(view.after(call))


def _view(
    data: LazyDataset,
    name: str | None,
    rejected: bool,
    reason: str | None,
    search: str | None,
    tokens: bool,
    split: str | None,
    model: str | None,
    limit: int | None,
) -> View:
    """Return what was asked for; raises `UsageError` for options that do not go together."""
    from sdft_cli.errors import UsageError
    from sdft_cli.inspection.listing import SessionList
    from sdft_cli.inspection.names import find
    from sdft_cli.inspection.record_view import RecordView
    from sdft_cli.inspection.rejected import RejectedList
    from sdft_cli.inspection.search import Search
    from sdft_cli.inspection.timeline import Timeline

    found = find(data, name) if name is not None else None
    is_record = found is not None and found.fate is not None
    listed = rejected or search is not None
    wrong = {
        "--reason belongs to --rejected: add it.": reason is not None and not rejected,
        "--rejected and --search are two views: leave one out.": rejected and search is not None,
        "--rejected and --search look at sessions: name a session, not a record.": listed and is_record,
        "--tokens is for a record: name one, as session/turn.": tokens and (listed or not is_record),
        "--model is for a record: name one, as session/turn.": model is not None and (listed or not is_record),
        "--split is for lists: leave it out, or name no session.": split is not None and found is not None,
        "--limit is for lists and sessions: leave it out.": limit is not None and is_record,
    }
    for sentence, holds in wrong.items():
        if holds:
            raise UsageError(sentence)
    only = {row.session_id for row in data.records(split)} if split else None
    if found is not None and listed:
        only = {found.session_id}
    if search is not None:
        return Search(data, search, only, limit)
    if rejected:
        return RejectedList(data, found.session_id if found else None, reason, only, limit)
    if found is None:
        return SessionList(data, split, limit)
    if found.fate is None:
        return Timeline(data, found.session_id, limit)
    return RecordView(data, found.session_id, found.fate, lambda: _prompts(data.manifest, model), tokens)


def _prompts(manifest: dict[str, Any], given: str | None) -> ChatPrompts:
    """Open the tokenizer of the dataset's model, or of a model that was given, and the dataset's templates."""
    from sdft_cli.engine.models.names import resolve_model
    from sdft_cli.errors import UsageError
    from sdft_cli.prompts.chat import open_prompts

    model = given or str(manifest["config"]["model"])
    say(f"Opening the tokenizer of {model}; this takes some seconds.")
    try:
        folder = resolve_model(model, say)
    except UsageError as error:
        if given:
            raise
        raise UsageError(
            f"The dataset was prepared for {model}, which is no folder, Hub id or alias here: name its folder with "
            "--model."
        ) from error
    return open_prompts(folder, manifest)
