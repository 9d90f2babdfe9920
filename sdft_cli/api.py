"""The commands as functions, for notebooks and programs: `from sdft_cli import prepare, train, merge, evaluate`.

    from sdft_cli import evaluate, load_dataset, merge, prepare, train

    data = prepare("~/.claude/projects", model="smollm2-135m", teacher_template="again", out="data/mine")
    run = train(data, profile="cpu-demo", max_steps=30, settings={"lora.rank": 16})
    checkpoint = merge(run)
    print(evaluate(run, data, limit=50))

Each does what its command does, with the same settings, files, checks and notices (on stderr); it returns what it made.
Errors are `sdft_cli.errors.SdftError`: one sentence that says what to do next. `examples/api.py` runs as it is.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, TypedDict, Unpack

from sdft_cli.threads import limit_spinning

if TYPE_CHECKING:
    from rich.console import RenderableType

    from sdft_cli.records import Dataset
    from sdft_cli.run_folder import Run

limit_spinning()  # before anything imports torch

Folder: TypeAlias = str | PathLike[str]


class PrepareSettings(TypedDict, total=False):
    """The settings of `prepare`, which `docs/settings.md` describes; what is left out has the default there."""

    revision: str | None
    model: str
    max_seq_tokens: int
    max_prompt_tokens: int
    max_rollout_tokens: int
    max_unseen_tokens: int
    validation_fraction: float
    split_by: Literal["session", "project"]
    redact: bool
    workers: int
    engine: Literal["local", "ray"]
    ray_address: str
    seed: int
    limit_sessions: int | None
    license: str | None
    branches: Literal["last", "all"]
    tools: Literal["observed", "all"]
    system_prompt: Literal["recorded", "none"]
    chat_template: str | None
    template_date: str | None
    parallel_calls: Literal["keep", "split"]
    teacher_template: str


class TrainOptions(TypedDict, total=False):
    """The options of `sdft train` that give a setting; what is left out is the profile's."""

    model: str
    backend: str
    objective: Literal["sdft", "sft"]
    max_steps: int
    seed: int
    gate: Literal["off", "warn", "stop"]
    track: Sequence[str]
    init_adapter: str
    rollouts: Literal["local", "vllm"]
    vllm_url: str


class EvalSettings(TypedDict, total=False):
    """The settings of `evaluate`, which `docs/settings.md` describes; what is left out has the default there."""

    max_new_tokens: int
    max_records_per_pass: int
    max_tokens_per_pass: int
    prefix_sharing: Literal["auto", "packed", "depth_first", "none"]
    limit: int | None
    general: int
    drift_tokens: int
    questions: int
    question_tokens: int
    lm_eval: list[str]
    lm_eval_path: str | None
    lm_eval_limit: int | None
    confidence: float
    resamples: int
    seed: int


SETTING_OF = {
    "max_steps": "optim.max_steps",
    "gate": "gate.action",
    "track": "trackers",
    "rollouts": "rollout.source",
    "vllm_url": "rollout.vllm_url",
}
"""Options of `sdft train` that are called otherwise than their settings."""


@dataclass(frozen=True)
class Merged:
    """A certified checkpoint. `str()` of it is the table that `sdft merge` prints.

    Attributes:
        path: the folder.
        certificate: what `merge-certificate.json` says.
    """

    path: Path
    certificate: Mapping[str, Any]

    def __str__(self) -> str:
        from sdft_cli.report import terminal

        return _as_text(terminal.merge_table(dict(self.certificate)))


@dataclass(frozen=True)
class Evaluation:
    """What an evaluation found. `str()` of it is the table that `sdft eval` prints.

    Attributes:
        path: the file with all of it; None: it was not written.
        document: every answer and number, as in that file.
    """

    path: Path | None
    document: Mapping[str, Any]

    @property
    def summaries(self) -> dict[str, Any]:
        """The numbers and differences of each model without the single answers, as `sdft eval --json` prints them."""
        from sdft_cli.records.json_files import finite
        from sdft_cli.report import evaluation

        found: dict[str, Any] = finite(evaluation.summaries(dict(self.document)))
        return found

    def __str__(self) -> str:
        from sdft_cli.report import evaluation

        return _as_text(evaluation.report(dict(self.document)))


def load_dataset(folder: Folder | None = None) -> Dataset:
    """Read a dataset folder that `prepare` or `sdft prepare` wrote.

    Args:
        folder: None takes the newest one under `data/`.

    Returns:
        The dataset: `train` and `validation` are sequences of records (`context`, `reference`, `tools`, token counts in
        `row`), `rejected` says of each other turn why it is none, `manifest` holds settings and counts.

    Raises:
        UsageError: there is no such folder.
        DataError: it is no dataset, or a file of it is damaged.
    """
    from sdft_cli.records import read_dataset
    from sdft_cli.stages.folders import newest_dataset

    return read_dataset(newest_dataset() if folder is None else _path(folder))


def prepare(
    source: Folder, *, out: Folder | None = None, overwrite: bool = False, **settings: Unpack[PrepareSettings]
) -> Dataset:
    """Turn recorded sessions into per-turn records, as `sdft prepare` does.

    Args:
        source: a trace file, a folder of them, a Hub dataset id (owner/name), or an address (s3://...).
        out: the dataset folder to create, on this machine; None: `data/<source name>`.
        overwrite: replace a dataset that is there.
        settings: as in `docs/settings.md`, e.g. `model="smollm2-135m"`.

    Returns:
        The dataset, which is on disk too (`.path`).

    Raises:
        UsageError: an unknown setting (the message has the nearest one), a bad value, no such source, or `out` exists.
        DataError: the source holds no session, or no turn that can be kept.
        MachineError: the Hub cannot be reached, or a package is missing.
    """
    from sdft_cli.addresses import is_address
    from sdft_cli.config import PrepareConfig, build
    from sdft_cli.errors import UsageError
    from sdft_cli.records import read_dataset
    from sdft_cli.stages.prepare import card_defaults, dataset_folder, run_preparation

    name = str(_path(source)) if str(source).startswith("~") else str(source)
    _check_keywords(settings, ("source", "out", "overwrite"), PrepareConfig)
    config = build(PrepareConfig, {"source": name, **card_defaults(name), **settings})
    if out is not None and is_address(str(out)):
        raise UsageError(f"{out} is an address: name a folder of this machine, from which the dataset is returned.")
    target = dataset_folder(name) if out is None else _path(out)
    run_preparation(config, target, overwrite)
    return read_dataset(target)


def train(
    dataset: Dataset | Folder | None = None,
    *,
    out: Folder | None = None,
    profile: str | None = None,
    resume: bool = False,
    overwrite: bool = False,
    settings: Mapping[str, Any] | None = None,
    **options: Unpack[TrainOptions],
) -> Run:
    """Train an adapter on a dataset by self-distillation, as `sdft train` does.

    Args:
        dataset: a dataset or its folder; None: the newest under `data/`.
        out: the run folder to create, or to go on with; None: `runs/<dataset>-<profile>`.
        profile: a shipped one or a YAML file; None: `qwen3.5-9b-64k`, or with `resume` the run's own.
        resume: go on from the newest checkpoint of `out`, or of the newest run.
        overwrite: replace a run that is there.
        settings: any setting of `docs/settings.md` by its dotted key, e.g. `{"optim.learning_rate": 1e-4}`.
        options: the options of the command, e.g. `max_steps=30`; they go before `settings`.

    Returns:
        The finished run: `path`, `adapter`, `config`, and `info`, what `run.json` says.

    Raises:
        UsageError: an unknown setting (the message has the nearest one), a bad value, or `out` exists.
        DataError: the dataset is damaged, or of another tokenizer.
        MachineError: the profile needs a GPU that is not here.
        VerificationError: the gate says stop, or the engine found that it computes something else than it should.
        InterruptedBySignal: it was interrupted; `resume=True` goes on.
    """
    from sdft_cli.choices import DEFAULT_PROFILE
    from sdft_cli.config import TrainConfig, leaves, load_train_config
    from sdft_cli.run_folder import read_run
    from sdft_cli.stages.train import job_to_resume, joined, new_job, run_training

    own = ("dataset", "out", "profile", "resume", "overwrite", "settings")
    _check_keywords(options, (*own, *SETTING_OF), TrainConfig)
    given = {SETTING_OF.get(name, name): value for name, value in options.items()}
    flags = {**leaves(settings or {}), **given}
    folder = None if dataset is None else _dataset_folder(dataset)
    target = None if out is None else _path(out)
    with joined() as processes:
        if resume:
            job = job_to_resume(folder, profile, target, [], flags)
        else:
            chosen = profile or DEFAULT_PROFILE
            job = new_job(folder, load_train_config(chosen, (), flags), chosen, target, overwrite)
        run_training(job, processes=processes)
    return read_run(job.folder)


def merge(
    run: Run | Folder | None = None,
    *,
    out: Folder | None = None,
    dtype: Literal["bfloat16", "float32"] = "bfloat16",
    best: bool = False,
    base: str | None = None,
    prompts: int = 8,
    overwrite: bool = False,
) -> Merged:
    """Merge an adapter into its base and certify what is on disk, as `sdft merge` does.

    Args:
        run: a run, its folder, or the folder of a plain PEFT adapter; None: the newest run under `runs/`.
        out: the checkpoint folder to create; None: `<run>/merged`, or `<adapter>-merged`.
        dtype: the weights to write; `float32` keeps every bit of the update.
        best: take the run's adapter that was best on held-out records, not the last.
        base: merge into this model: the 16-bit form of a 4-bit one; of an adapter folder, the model it was trained on.
        prompts: number of the run's check prompts to compare on, 1 to 8.
        overwrite: replace a checkpoint that is there.

    Raises:
        UsageError: there is no such run, `out` exists, or an adapter folder came without `base`.
        DataError: the run is damaged or not finished.
        VerificationError: the checkpoint is not base + adapter; its folder is marked as failed.
    """
    from sdft_cli.run_folder import is_run, read_run
    from sdft_cli.stages.folders import newest_run
    from sdft_cli.stages.merge import run_merge, run_merge_adapter

    if dtype not in ("bfloat16", "float32"):
        raise _usage(f"dtype {dtype} is not known: use bfloat16 or float32.")
    folder = newest_run() if run is None else _folder_of(run)
    alone = (folder / "adapter_config.json").is_file() and not is_run(folder)
    if alone:
        if base is None or best:
            raise _usage(f"{folder} is an adapter and no run: name the model that it was trained on as base, not best.")
        target = folder.resolve().with_name(f"{folder.resolve().name}-merged") if out is None else _path(out)
        return Merged(target, run_merge_adapter(folder, target, prompts, overwrite, dtype, base))
    target = folder / "merged" if out is None else _path(out)
    return Merged(target, run_merge(read_run(folder, best), target, prompts, overwrite, dtype, base))


def evaluate(
    subject: Run | Merged | Folder | None = None,
    dataset: Dataset | Folder | None = None,
    *,
    out: Folder | None = None,
    best: bool = False,
    merged: bool = False,
    controls: Sequence[Run | Folder] = (),
    **settings: Unpack[EvalSettings],
) -> Evaluation:
    """Measure what was learned on held-out records and what was forgotten elsewhere, as `sdft eval` does.

    Args:
        subject: a run (base against tuned), or a model alone: a folder or a Hub id; None: the newest run.
        dataset: a dataset or its folder, whose validation records are used; None: the newest under `data/`.
        out: the JSON file to write; None: `<run>/eval.json`, and none for a model alone.
        best: measure the run's adapter that was best on held-out records, not the last.
        merged: measure the run's merged checkpoint too.
        controls: runs of the same base whose tuned models are measured too.
        settings: as in `docs/settings.md`, e.g. `limit=50`.

    Raises:
        UsageError: an unknown setting (the message has the nearest one), a bad value, or no such run or model.
        DataError: nothing was held out, or run and dataset do not fit.
        VerificationError: the merged checkpoint is not the certified one, or a number is not finite.
    """
    from sdft_cli.config import EvalConfig, build
    from sdft_cli.records import Dataset
    from sdft_cli.records.folders import writable_file
    from sdft_cli.records.json_files import write_json
    from sdft_cli.run_folder import is_run, read_run
    from sdft_cli.stages.evaluate import run_evaluation, update_card
    from sdft_cli.stages.folders import newest_run

    _check_keywords(settings, ("subject", "dataset", "out", "best", "merged", "controls"), EvalConfig)
    config = build(EvalConfig, settings)
    name = str(newest_run() if subject is None else _name_of(subject))
    data = dataset if isinstance(dataset, Dataset) else load_dataset(dataset)
    of_run = is_run(Path(name))
    target = Path(name) / f"eval{'-best' * best}.json" if out is None and of_run else out
    file = None if target is None else writable_file(_path(target))
    document = run_evaluation(name, data, config, best, merged, [_folder_of(one) for one in controls])
    if file is not None:
        write_json(file, document)
    if of_run:
        update_card(read_run(Path(name), best), document)
    return Evaluation(file, document)


def _path(folder: Folder) -> Path:
    return Path(folder).expanduser()


def _dataset_folder(dataset: Dataset | Folder) -> Path:
    from sdft_cli.records import Dataset

    return dataset.path if isinstance(dataset, Dataset) else _path(dataset)


def _folder_of(run: Run | Folder) -> Path:
    from sdft_cli.run_folder import Run

    return run.path if isinstance(run, Run) else _path(run)


def _name_of(subject: Run | Merged | Folder) -> str:
    """Return what `sdft eval` would be given; a Hub id stays as it is."""
    from sdft_cli.run_folder import Run

    return str(subject.path if isinstance(subject, Run | Merged) else _path(subject))


def _usage(sentence: str) -> Exception:
    from sdft_cli.errors import UsageError

    return UsageError(sentence)


def _check_keywords(given: Mapping[str, Any], own: Sequence[str], kind: Any) -> None:
    """Refuse a keyword that is spelled like an argument of the function; `build` refuses other unknown ones."""
    from sdft_cli.config import fields_of

    for name in given:
        if name in own or name in fields_of(kind):
            continue
        if near := difflib.get_close_matches(name, own, 1, 0.75):
            raise _usage(f"{name} is no argument: did you mean {near[0]}?")


def _as_text(shown: RenderableType, width: int = 110) -> str:
    """Return what a terminal of this many columns would show, without colours."""
    from io import StringIO

    from rich.console import Console

    buffer = StringIO()
    Console(file=buffer, width=width, highlight=False, color_system=None).print(shown)
    return buffer.getvalue().rstrip()
