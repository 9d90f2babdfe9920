"""`sdft init`: which sessions are here, what suits this machine, and a project file that says so."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sdft_cli.cli.support.common import command, print_json
from sdft_cli.cli.support.options import AsJson, option
from sdft_cli.errors import DataError, UsageError
from sdft_cli.notices import say
from sdft_cli.stages.project import NAME

if TYPE_CHECKING:
    from sdft_cli.traces.stores import Contents


@command
def init(
    source: Annotated[
        str | None,
        typer.Argument(
            help="A trace file, a folder of them, or a Hub dataset id (owner/name).",
            show_default="the agent with the most turns on this machine",
        ),
    ] = None,
    yes: Annotated[bool, option("--yes", "-y", help="Ask nothing: take what is proposed.")] = False,
    out: Annotated[Path, option(metavar="FILE", help="The project file to write.")] = Path(NAME),
    overwrite: Annotated[bool, option("--overwrite", help="Replace an existing project file.")] = False,
    profile: Annotated[
        str | None, option(help="A shipped profile, or a YAML file.", left_out="what suits this machine")
    ] = None,
    model: Annotated[str | None, option(help="The model to train.", left_out="the profile's")] = None,
    license: Annotated[
        str | None, option(help="The licence that the records' card names: mit, cc-by-4.0, other.", left_out="none")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Find the sessions of coding agents on this machine, and write sdft.yaml for them, with comments.

    Looks where Claude Code and other agents keep their sessions, at the newest 256 MB of each at most. Asks for what to
    take; --yes takes the agent with the most turns, the model that suits the machine, and no licence. Nothing is read
    beyond counts, and nothing leaves the machine.

    Example: sdft init --yes
    """
    from sdft_cli.records.folders import write_text
    from sdft_cli.report import terminal
    from sdft_cli.stages.project import parse_project
    from sdft_cli.stages.proposal import Machine, project_text, propose

    if out.exists() and not overwrite:
        raise UsageError(f"{out} already exists: edit it, choose another --out, or add --overwrite to replace it.")
    if not yes and not sys.stdin.isatty():
        raise UsageError("There is no terminal to ask on: add --yes to take what is proposed, or name it by options.")
    contents = _found(source)
    if contents and not as_json:
        terminal.stdout().print(_table(contents))
    _check(contents)
    chosen = source or _path(contents[0].folder)
    if source is None and not yes and len(contents) > 1:
        chosen = typer.prompt("Sessions to train on", default=chosen, err=True)
    seen = next((one for one in contents if chosen in (_path(one.folder), source)), None)
    proposal = propose(Machine.here(), seen.sessions if seen else 0, profile)
    say(f"Proposed: profile {proposal.profile} with {proposal.model} ({proposal.why}).")
    model = model or (proposal.model if yes else typer.prompt("Model to train", default=proposal.model, err=True))
    if license is None and not yes:
        license = typer.prompt("Licence of the records (enter: none)", default="", show_default=False, err=True) or None
    text = project_text(proposal, chosen, model, license, _seen_line(seen))
    parse_project(text, out)
    write_text(out, text, overwrite)
    if as_json:
        print_json(_document(contents, proposal.profile, model, chosen))
    config = "" if out == Path(NAME) else f" --config {out}"
    say(f"Written: {out}; next: sdft run{config} (or step by step: sdft prepare{config})")


def _found(source: str | None) -> list[Contents]:
    """Look at a source, or at all agents' stores, and return what is there.

    Raises:
        DataError: there are no sessions; it says where it looked.
    """
    from sdft_cli.report import terminal
    from sdft_cli.traces.stores import STORES, exported_stores, find_stores, look

    if source is not None:
        path = Path(source).expanduser()
        contents = [look("sessions", path)] if path.exists() else []
    else:
        with terminal.stderr().status("Looking for sessions ..."):
            contents = find_stores()
    for agent, path, advice in exported_stores() if source is None else []:
        say(f"{agent} keeps sessions in {_path(path)}, which is not read as it is: {advice}, then name that folder.")
    if not contents and source is None:
        places = dict.fromkeys(_path(folder) for store in STORES for folder in store.folders())
        raise DataError(
            f"No agent's sessions were found in {', '.join(places)}: work with one of these agents first, name a file "
            "or a folder (`sdft init FOLDER`), or try the example sessions (`sdft demo`)."
        )
    return contents


def _check(contents: list[Contents]) -> None:
    """Say what was not looked at.

    Raises:
        DataError: nothing can be read.
    """
    for one in contents:
        _tell_limits(one)
    if contents and not contents[0].turns:
        raise DataError(
            f"No session that can be read was found in {', '.join(_path(one.folder) for one in contents)}: name a file "
            "or a folder of sessions (`sdft init FOLDER`), or try the example sessions (`sdft demo`)."
        )


def _document(contents: list[Contents], profile: str, model: str, source: str) -> dict[str, object]:
    """Return what was found and taken, as JSON has it."""
    from dataclasses import asdict

    kept = ("agent", "files", "sessions", "turns", "output_tokens")
    found = [{key: value for key, value in asdict(one).items() if key in kept} for one in contents]
    return {"sessions": found, "source": source, "profile": profile, "model": model}


def _path(path: Path) -> str:
    """Return a path as one would write it: from the home folder, where it is below."""
    try:
        return f"~/{path.relative_to(Path.home())}"
    except ValueError:
        return str(path)


def _table(contents: list[Contents]) -> object:
    from sdft_cli.report import terminal

    rows = [
        (
            one.agent,
            f"{one.files:,}",
            f"{one.sessions:,}",
            f"{one.turns:,}",
            f"{one.output_tokens:,}" if one.output_tokens else "-",
            _versions(one),
            "\n".join(sorted(one.dates)) or "-",
        )
        for one in contents
    ]
    columns = ["agent", "files", "sessions", "turns", "tokens", "versions", "days"]
    caption = "tokens: written by the model, where the files say so; versions and days: the first and the last"
    return terminal.table("Sessions on this machine", columns, rows, caption)


def _versions(one: Contents) -> str:
    from sdft_cli.report.visible import printable

    names = sorted((printable(name)[:20] for name in one.versions), key=_number)
    return "-" if not names else names[0] if len(names) == 1 else f"{names[0]}\n{names[-1]}"


def _number(version: str) -> list[int]:
    import re

    return [int(digits[:9]) for digits in re.findall(r"[0-9]+", version)]


def _tell_limits(one: Contents) -> None:
    """Say what was not looked at, and what cannot be read."""
    from sdft_cli.report.visible import printable

    if one.looked_bytes < one.bytes and not one.problem:
        say(
            f"{one.agent}: looked at the newest {one.looked_bytes / 1e6:,.0f} MB of {one.bytes / 1e6:,.0f} MB, in "
            f"{one.looked_files:,} of {one.files:,} files; the counts are of those."
        )
    if one.problem:
        say(f"{one.agent}: not all of {_path(one.folder)} can be read, first: {printable(one.problem)}")


def _seen_line(one: Contents | None) -> str:
    if one is None:
        return ""
    days = " to ".join(sorted(one.dates)) or "no date"
    return f"Seen here: {one.agent}, {one.sessions:,} session(s), {one.turns:,} turns, {days}."
