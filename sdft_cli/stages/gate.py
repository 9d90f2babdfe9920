"""The teacher-lift gate, and the ranking of wordings and divergences, on a dataset."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sdft_cli.notices import say

if TYPE_CHECKING:
    from sdft_cli.config import TrainConfig
    from sdft_cli.engine.models.backend import Backend
    from sdft_cli.engine.score.ranking import Ranked
    from sdft_cli.engine.score.verdict import GateResult
    from sdft_cli.prompts.chat import ChatPrompts
    from sdft_cli.records import Dataset, Record


def measure_gate(config: TrainConfig, data: Dataset, shuffle: bool = False) -> GateResult:
    """Load the base model, without an adapter, and run the gate on a dataset."""
    from sdft_cli.engine.models.load import open_for_eval
    from sdft_cli.engine.passes.choose import choose_sharing
    from sdft_cli.engine.passes.start_check import choose_decoding
    from sdft_cli.engine.score.gate import run_gate
    from sdft_cli.report.progress import progress_reporter

    model, prompts, records, split = _opened(config, data)
    if config.load_in_4bit:
        say(f"The gate measures the weights in {config.dtype}, not in 4 bits.")
    backend = open_for_eval(model, config.dtype, config.revision, None)
    if backend.kernels:
        say(backend.kernels)
    say(choose_decoding(backend, config.rollout.graphs))
    say(choose_sharing(backend, config.prefix_sharing))
    with progress_reporter() as progress:
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
    from sdft_cli.engine.models.quiet import quiet_libraries
    from sdft_cli.engine.score.gate_records import gate_records
    from sdft_cli.prompts.chat import open_prompts

    quiet_libraries()
    check_machine(config)
    records, split = gate_records(data, config.gate.records)
    model = resolve_model(config.model, say)
    prompts = open_prompts(model, data.manifest, config.revision, [*data.train, *data.validation])
    if warning := prompts.calls_warning(records):
        say(warning)
    check_limits(model, config.revision, [r.row for r in records], config.gate.max_new_tokens, prompts)
    return model, prompts, records, split


def measure_ranking(config: TrainConfig, data: Dataset, templates: list[str], divergences: list[str]) -> list[Ranked]:
    """Load the model with a fresh adapter, and rank wordings (none: the dataset's) and divergences (the profile's)."""
    from sdft_cli.choices import DIVERGENCES
    from sdft_cli.engine.score.ranking import rank
    from sdft_cli.errors import UsageError, did_you_mean
    from sdft_cli.prompts.chat import ChatPrompts
    from sdft_cli.prompts.teacher import load_teacher_template
    from sdft_cli.report.progress import progress_reporter

    unknown = [name for name in divergences if name not in DIVERGENCES]
    if unknown:
        raise UsageError(f"{unknown[0]} is no divergence: {did_you_mean(unknown[0], DIVERGENCES)}")
    wordings = [load_teacher_template(name) for name in templates]
    names = [one.name for one in wordings]
    if twice := [name for name in names if names.count(name) > 1]:
        raise UsageError(f"Two wordings are called {twice[0]}: rename a file.")
    model, prompts, records, split = _opened(config, data)
    named = {one.name: ChatPrompts(prompts.tokenizer, one, prompts.template) for one in wordings or [prompts.teacher]}
    for name, other in named.items():
        _check_lengths(config, model, name, other, records)
    backend = _with_adapter(config, model)
    with progress_reporter() as progress:
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
