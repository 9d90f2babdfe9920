"""`sdft gate`: does the expert's turn in the teacher's prompt teach this model anything?"""

from __future__ import annotations

from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sdft_cli.cli.support import completion
from sdft_cli.cli.support.common import command, print_json
from sdft_cli.cli.support.options import (
    AsJson,
    DatasetPath,
    Model,
    Overrides,
    Profile,
    ProjectFile,
    given_settings,
    option,
    setting,
)
from sdft_cli.notices import say
from sdft_cli.stages.folders import newest_dataset
from sdft_cli.stages.gate import measure_gate, measure_ranking
from sdft_cli.stages.project import read_project

if TYPE_CHECKING:
    from sdft_cli.config import TrainConfig
    from sdft_cli.records import Dataset


@command
def gate(
    context: typer.Context,
    dataset: DatasetPath = None,
    out: Annotated[Path | None, option(help="Write every number and answer to this file.", left_out="none")] = None,
    as_json: AsJson = False,
    shuffle: Annotated[
        bool,
        typer.Option("--shuffle-references", help="Show each record another one's reference: the gate should fail."),
    ] = False,
    templates: Annotated[
        str | None,
        option(
            help="Rank these wordings, joined by commas: names in templates/teacher/, or .txt files.",
            left_out="the dataset's",
            autocompletion=completion.joined(completion.teacher_templates),
        ),
    ] = None,
    divergences: Annotated[
        str | None,
        option(
            help="Rank these divergences, joined by commas, too.",
            left_out="that of the profile",
            autocompletion=completion.joined(completion.divergences),
        ),
    ] = None,
    profile: Profile = None,
    model: Model = None,
    records: Annotated[int | None, setting("train.gate.records")] = None,
    overrides: Overrides = None,
    project: ProjectFile = None,
) -> None:
    """Measure the teacher's lift before training; exit code 4 if there is none.

    The base model scores held-out expert turns without a reference, with the record's own, and with another record's,
    and answers with and without it. Training runs the same gate before its first step. With --templates or
    --divergences it ranks them: whether each wording passes, how likely its teacher finds the expert's turns, and how
    far the objective's gradient points to them.

    Example: sdft gate data/my-sessions --profile cpu-demo --templates again,own_turn --divergences forward_kl,jsd
    """
    from sdft_cli.records import read_dataset

    settings = read_project(project)
    config = settings.train_config(profile, overrides or (), given_settings(context))
    data = read_dataset(dataset or newest_dataset())
    if templates is not None or divergences is not None:
        _show_ranking(config, data, _names(templates), _names(divergences), out, shuffle, as_json)
        return
    _check_file(out)
    result = measure_gate(config, data, shuffle)

    from sdft_cli.errors import VerificationError
    from sdft_cli.report import terminal

    document = result.to_json()
    if as_json:
        print_json(document)
    elif document["summary"]:
        terminal.stdout().print(terminal.gate_table(document))
    _write(out, document)
    for note in result.notes:
        say(note)
    if not result.passed:
        raise VerificationError(result.verdict)
    say(result.verdict)
    say(f"Next: sdft train {data.path} --profile {settings.profile(profile)}")


def _check_file(out: Path | None) -> None:
    """Raise `MachineError` where the file cannot be written, before the minutes that it takes to fill it."""
    from sdft_cli.records.folders import writable_file

    if out:
        writable_file(out)


def _write(out: Path | None, document: dict[str, Any]) -> None:
    from sdft_cli.records.json_files import write_json

    if out:
        write_json(out, document)
        say(f"Every number and answer: {out}")


def _names(text: str | None) -> list[str]:
    """Return the names in a list joined by commas; raises `UsageError` where one is empty or comes twice."""
    from sdft_cli.errors import UsageError

    names = [] if text is None else [name.strip() for name in text.split(",")]
    if not all(names) or len(set(names)) < len(names):
        raise UsageError(f"{text!r} has an empty name or one twice: join different names by commas.")
    return names


def _show_ranking(
    config: TrainConfig,
    data: Dataset,
    templates: list[str],
    divergences: list[str],
    out: Path | None,
    shuffle: bool,
    as_json: bool,
) -> None:
    """Rank wordings and divergences; say which is best and how to take it.

    Raises:
        UsageError: an unknown name, or --shuffle-references.
        VerificationError: no wording passes the gate.
    """
    from sdft_cli.errors import UsageError, VerificationError
    from sdft_cli.report import terminal

    if shuffle:
        raise UsageError("--shuffle-references checks one wording: leave --templates and --divergences out.")
    _check_file(out)
    ranked = measure_ranking(config, data, templates, divergences)
    rows = [one.to_json() for one in ranked]
    document = {"ranking": rows, "settings": config.gate.model_dump(mode="json")}
    if as_json:
        print_json(document)
    else:
        terminal.stdout().print(terminal.ranking_table(rows))
    _write(out, document)
    best = ranked[0]
    if not best.gate.passed:
        raise VerificationError(best.gate.verdict)
    take = how_to_take(best.template, templates)
    say(f"The best of {len(ranked)}: {take}, and train with --set distill.divergence={best.divergence}.")


def how_to_take(wording: str, given: list[str]) -> str:
    """Say how to prepare with a wording, by the name or file that it was `given` as; not given, it is the dataset's."""
    names = [name for name in given if wording in (name, PurePath(name).stem)]
    return f"prepare with --teacher-template {names[0]}" if names else "keep the dataset's wording"
