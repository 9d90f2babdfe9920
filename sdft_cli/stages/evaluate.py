"""A run or a model -> an evaluation."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdft_cli.notices import say

if TYPE_CHECKING:
    from sdft_cli.config import EvalConfig
    from sdft_cli.records import Dataset
    from sdft_cli.run_folder import Run


def run_evaluation(
    subject: str,
    data: Dataset,
    config: EvalConfig,
    best: bool = False,
    merged: bool = False,
    controls: Sequence[Path] = (),
) -> dict[str, Any]:
    """Evaluate a run or a model."""
    from sdft_cli.engine.models.limits import check_limits
    from sdft_cli.engine.models.names import check_base, known_as, loaded_folder, resolve_model
    from sdft_cli.engine.score.scoring import choose_records
    from sdft_cli.errors import DataError, UsageError
    from sdft_cli.evaluation.contenders import contenders_of, control_names, single_model
    from sdft_cli.evaluation.evaluation import evaluate as run
    from sdft_cli.evaluation.harness import open_harness
    from sdft_cli.merging.certificate import check_certified
    from sdft_cli.prompts.chat import open_prompts
    from sdft_cli.records.folders import sha256_of
    from sdft_cli.report.progress import progress_reporter
    from sdft_cli.run_folder import is_run, read_run

    if not data.validation:
        raise DataError("The dataset has no validation record: prepare it with --validation-fraction above 0.")
    found = read_run(Path(subject), best) if is_run(Path(subject)) else None
    if found is None and (merged or controls):
        raise UsageError("--merged and --control compare with a run: give a run folder, not a model.")
    others = [read_run(path) for path in controls]
    checkpoint = _existing(found.path / "merged") if found and merged else None
    model = resolve_model(found.config.model if found else subject, say)
    revision = found.revision if found else None
    chosen = choose_records(data.validation, config.limit) if config.limit else data.validation
    prompts = open_prompts(model, data.manifest, revision, chosen)
    check_limits(model, revision, [r.row for r in chosen], config.max_new_tokens, prompts)
    if warning := prompts.calls_warning(chosen):
        say(warning)
    if found:
        if folder := loaded_folder(model, revision):
            for one in [found, *others]:
                check_base(folder, one.info.get("base"), one.path)
        certificate = check_certified(checkpoint, found.adapter) if checkpoint else None
        for one in [found, *others]:
            _say_whose_records(one, data)
        exact = certificate is not None and certificate["dtype"] == "float32"
        models = contenders_of(found, model, checkpoint, others, config.prefix_sharing, say, exact)
    else:
        models, config = single_model(model, config.prefix_sharing, say), config.model_copy(update={"general": 0})
    harness = open_harness(config, prompts)
    with progress_reporter() as progress:
        result = run(models, data.validation, prompts, config, progress, harness)
    if result["facts"]["chrf"] != "sacrebleu":
        say("chrF of prose was not computed: it needs sacrebleu (pip install 'sdft-cli[eval]').")
    if found:
        adapters = [
            {"name": one.adapter.name, "sha256": sha256_of(one.adapter / "adapter_model.safetensors")}
            for one in [found, *others]
        ]
        result["adapter"] = adapters[0]
        result["controls"] = dict(zip(control_names(others), adapters[1:], strict=True))
        result["merged"] = certificate["sha256"] if certificate else None
    return {**result, "model": known_as(found.config.model if found else subject), "dataset": _dataset_facts(data)}


def _existing(checkpoint: Path) -> Path:
    from sdft_cli.errors import UsageError

    if not checkpoint.is_dir():
        raise UsageError(f"{checkpoint} does not exist: run `sdft merge {checkpoint.parent} --bf16` first.")
    return checkpoint


def _dataset_facts(data: Dataset) -> dict[str, Any]:
    from sdft_cli.engine.train.opening import records_hash

    return {
        "name": data.path.resolve().name,
        "source": data.manifest["source"],
        "validation_hash": records_hash(data.validation),
    }


def _say_whose_records(run: Run, data: Dataset) -> None:
    """Say if nothing keeps these records apart from those that a run was trained on."""
    from sdft_cli.engine.train.opening import records_hash

    trained = run.info["dataset"]
    if trained["records_hash"] != records_hash(data.train):
        say(
            f"Note: {run.path} was trained on {trained['name']} and is evaluated on another dataset; whether these "
            "sessions were in its training data is not known here."
        )


def update_card(run: Run, result: dict[str, Any]) -> None:
    """Put an evaluation of all held-out records into the card of the run's checkpoint."""
    from sdft_cli.stages.model_card import evaluated_card

    if result["config"]["limit"] is not None:
        say("The checkpoint's card was left as it is: this evaluation is of some held-out records only.")
        return
    if card := evaluated_card(run, result):
        say(f"The checkpoint's card has this evaluation now: {card}")
