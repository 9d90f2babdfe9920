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
    from sdft_cli.engine.score.verdict import GateResult
    from sdft_cli.records import Dataset


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
    profile: Profile = None,
    model: Model = None,
    records: Annotated[int | None, setting("train.gate.records")] = None,
    overrides: Overrides = None,
) -> None:
    """Measure the teacher's lift before training; exit code 4 if there is none.

    The base model scores held-out expert turns without a reference, with the record's own, and with another record's,
    and answers with and without it. Training runs the same gate before its first step.

    Example: sdft gate data/my-sessions --profile cpu-demo --records 24
    """
    from sdft_cli.config import load_train_config
    from sdft_cli.records import read_dataset

    config = load_train_config(profile or DEFAULT_PROFILE, overrides or (), given_settings(context))
    result = measure_gate(config, read_dataset(dataset or newest_dataset()), shuffle)

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
    from sdft_cli.engine.models.limits import check_limits
    from sdft_cli.engine.models.load import check_machine, open_for_eval
    from sdft_cli.engine.models.names import resolve_model
    from sdft_cli.engine.passes.choose import choose_sharing
    from sdft_cli.engine.passes.start_check import choose_decoding
    from sdft_cli.engine.score.gate import run_gate
    from sdft_cli.engine.score.gate_records import gate_records
    from sdft_cli.prompts.chat import open_prompts
    from sdft_cli.report import terminal

    check_machine(config)
    records, split = gate_records(data, config.gate.records)
    model = resolve_model(config.model, say)
    prompts = open_prompts(model, data.manifest, config.revision, [*data.train, *data.validation])
    if warning := prompts.calls_warning(records):
        say(warning)
    if config.load_in_4bit:
        say(f"The gate measures the weights in {config.dtype}, not in 4 bits.")
    check_limits(model, config.revision, [r.row for r in records], config.gate.max_new_tokens, prompts)
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
