"""`sdft gate`: does the expert's turn in the teacher's prompt teach this model anything?"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sdft_cli.cli.common import command, newest_dataset, say
from sdft_cli.cli.options import (
    DEFAULT_PROFILE,
    DatasetPath,
    Model,
    Overrides,
    Profile,
    given_settings,
    option,
    setting,
)

if TYPE_CHECKING:
    from sdft_cli.config import TrainConfig
    from sdft_cli.engine.models.backend import Backend
    from sdft_cli.engine.score.ranking import Ranked
    from sdft_cli.engine.score.verdict import GateResult
    from sdft_cli.prompts.chat import ChatPrompts
    from sdft_cli.records import Dataset, Record


@command
def gate(
    context: typer.Context,
    dataset: DatasetPath = None,
    json_file: Annotated[
        Path | None, option("--json", help="Write every number and answer to this file.", left_out="none")
    ] = None,
    shuffle: Annotated[
        bool,
        typer.Option("--shuffle-references", help="Show each record another one's reference: the gate should fail."),
    ] = False,
    templates: Annotated[
        str | None,
        option(
            help="Rank these wordings, joined by commas: names in templates/teacher/, or .txt files.",
            left_out="the dataset's",
        ),
    ] = None,
    divergences: Annotated[
        str | None, option(help="Rank these divergences, joined by commas, too.", left_out="that of the profile")
    ] = None,
    profile: Profile = None,
    model: Model = None,
    records: Annotated[int | None, setting("train.gate.records")] = None,
    overrides: Overrides = None,
) -> None:
    """Measure the teacher's lift before training; exit code 4 if there is none.

    The base model scores held-out expert turns without a reference, with the record's own, and with another record's,
    and answers with and without it. Training runs the same gate before its first step. With --templates or
    --divergences it ranks them: whether each wording passes, and how far the objective's gradient points to the
    expert's turns.

    Example: sdft gate data/my-sessions --profile cpu-demo --templates again,own_turn --divergences forward_kl,jsd
    """
    from sdft_cli.config import load_train_config
    from sdft_cli.records import read_dataset

    config = load_train_config(profile or DEFAULT_PROFILE, overrides or (), given_settings(context))
    data = read_dataset(dataset or newest_dataset())
    if templates is not None or divergences is not None:
        _show_ranking(config, data, _names(templates), _names(divergences), json_file, shuffle)
        return
    result = measure_gate(config, data, shuffle)

    from sdft_cli.errors import VerificationError
    from sdft_cli.records.folders import writable_file
    from sdft_cli.records.json_files import write_json
    from sdft_cli.report import terminal

    document = result.to_json()
    if document["summary"]:
        terminal.stdout().print(terminal.gate_table(document))
    if json_file:
        write_json(writable_file(json_file), document)
    for note in result.notes:
        say(note)
    if not result.passed:
        raise VerificationError(result.verdict)
    say(result.verdict)


def measure_gate(config: TrainConfig, data: Dataset, shuffle: bool = False) -> GateResult:
    """Load the base model, without an adapter, and run the gate on a dataset."""
    from sdft_cli.engine.models.load import open_for_eval
    from sdft_cli.engine.passes.choose import choose_sharing
    from sdft_cli.engine.passes.start_check import choose_decoding
    from sdft_cli.engine.score.gate import run_gate
    from sdft_cli.report import terminal

    model, prompts, records, split = _opened(config, data)
    if config.load_in_4bit:
        say(f"The gate measures the weights in {config.dtype}, not in 4 bits.")
    backend = open_for_eval(model, config.dtype, config.revision, None)
    if backend.kernels:
        say(backend.kernels)
    say(choose_decoding(backend, config.rollout.graphs))
    say(choose_sharing(backend, config.prefix_sharing))
    with terminal.progress_reporter() as progress:
        return run_gate(
            backend,
            prompts,
            records,
            config.gate,
            max_tokens_per_pass=config.optim.max_tokens_per_pass,
            max_decode_tokens=config.rollout.max_tokens_per_pass,
            seed=config.seed,
            split=split,
            shuffle=shuffle,
            progress=progress,
        )


def _opened(config: TrainConfig, data: Dataset) -> tuple[str, ChatPrompts, list[Record], str]:
    """Return the model's folder or id, the prompts of the dataset, the records to score, and their split."""
    from sdft_cli.engine.models.limits import check_limits
    from sdft_cli.engine.models.load import check_machine
    from sdft_cli.engine.models.names import resolve_model
    from sdft_cli.engine.score.gate_records import gate_records
    from sdft_cli.prompts.chat import open_prompts

    check_machine(config)
    records, split = gate_records(data, config.gate.records)
    model = resolve_model(config.model, say)
    prompts = open_prompts(model, data.manifest, config.revision, [*data.train, *data.validation])
    if warning := prompts.calls_warning(records):
        say(warning)
    check_limits(model, config.revision, [r.row for r in records], config.gate.max_new_tokens, prompts)
    return model, prompts, records, split


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
    json_file: Path | None,
    shuffle: bool,
) -> None:
    """Rank wordings and divergences; say which is best and how to take it.

    Raises:
        UsageError: an unknown name, or --shuffle-references.
        VerificationError: no wording passes the gate.
    """
    from sdft_cli.errors import UsageError, VerificationError
    from sdft_cli.records.folders import writable_file
    from sdft_cli.records.json_files import write_json
    from sdft_cli.report import terminal

    if shuffle:
        raise UsageError("--shuffle-references checks one wording: leave --templates and --divergences out.")
    if json_file:
        writable_file(json_file)  # before the minutes that it takes to fill it
    ranked = measure_ranking(config, data, templates, divergences)
    rows = [one.to_json() for one in ranked]
    terminal.stdout().print(terminal.ranking_table(rows))
    if json_file:
        write_json(json_file, {"ranking": rows, "settings": config.gate.model_dump(mode="json")})
    best = ranked[0]
    if not best.gate.passed:
        raise VerificationError(best.gate.verdict)
    say(
        f"The best of {len(ranked)}: prepare with --teacher-template {best.template}, and train with "
        f"--set distill.divergence={best.divergence}."
    )


def measure_ranking(config: TrainConfig, data: Dataset, templates: list[str], divergences: list[str]) -> list[Ranked]:
    """Load the model with a fresh adapter, and rank wordings (none: the dataset's) and divergences (the profile's)."""
    from sdft_cli.choices import DIVERGENCES
    from sdft_cli.engine.score.ranking import rank
    from sdft_cli.errors import UsageError
    from sdft_cli.prompts.chat import ChatPrompts
    from sdft_cli.prompts.teacher import load_teacher_template
    from sdft_cli.report import terminal

    unknown = [name for name in divergences if name not in DIVERGENCES]
    if unknown:
        raise UsageError(f"{unknown[0]} is no divergence: choose of {', '.join(DIVERGENCES)}.")
    wordings = [load_teacher_template(name) for name in templates]
    names = [one.name for one in wordings]
    if twice := [name for name in names if names.count(name) > 1]:
        raise UsageError(f"Two wordings are called {twice[0]}: rename a file.")
    model, prompts, records, split = _opened(config, data)
    named = {one.name: ChatPrompts(prompts.tokenizer, one, prompts.template) for one in wordings or [prompts.teacher]}
    for name, other in named.items():
        _check_lengths(config, model, name, other, records)
    backend = _with_adapter(config, model)
    with terminal.progress_reporter() as progress:
        told = lambda name: lambda what, done, total: progress(f"{name}: {what}", done, total)  # noqa: E731
        return rank(backend, named, divergences or [config.distill.divergence], records, config, split, told)


def _check_lengths(config: TrainConfig, model: str, name: str, prompts: ChatPrompts, records: list[Record]) -> None:
    """Say how many records a wording makes too long for the profile, and refuse what the model cannot read.

    Raises:
        UsageError: as `check_limits`.
    """
    from dataclasses import replace

    from sdft_cli.engine.models.limits import check_limits
    from sdft_cli.errors import WARNING

    rows = [replace(r.row, teacher_prompt_tokens=len(prompts.teacher_ids(r))) for r in records]
    prompts.encoder.forget()
    over = sum(row.teacher_prompt_tokens > config.max_prompt_tokens for row in rows)
    if over:
        say(
            f"{WARNING}with the wording {name}, {over} of {len(rows)} records are over max_prompt_tokens "
            f"({config.max_prompt_tokens}): `sdft prepare` would reject such records"
        )
    check_limits(model, config.revision, rows, config.gate.max_new_tokens)


def _with_adapter(config: TrainConfig, model: str) -> Backend:
    """Load the model with a fresh adapter; turns share prefixes only where passes are packed."""
    from sdft_cli.engine.models.load import choose_library, load_backend
    from sdft_cli.engine.passes.choose import choose_sharing
    from sdft_cli.engine.passes.start_check import choose_decoding

    name, _ = choose_library(config.backend, model, config.revision)
    backend = load_backend(config, name, model)
    if backend.kernels:
        say(backend.kernels)
    say(choose_decoding(backend, config.rollout.graphs))
    said = choose_sharing(backend, config.prefix_sharing)
    if backend.sharing == "depth_first":
        backend.sharing = "none"
        said = (
            "Prefix sharing: off here, since a depth-first walk goes backwards once, and each objective wants its own"
        )
    say(said)
    return backend
