"""Everything before the first step: a job -> model, tokenizer and trainer, checked and agreed on by all processes."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdft_cli.config import TrainConfig
from sdft_cli.errors import WARNING, DataError, UsageError
from sdft_cli.records import Dataset, Record
from sdft_cli.run_folder import read_adapter, read_run_json

if TYPE_CHECKING:
    import torch

    from sdft_cli.engine.models.adapters import SamplingWeights
    from sdft_cli.engine.models.backend import Backend
    from sdft_cli.engine.parallel.processes import Processes
    from sdft_cli.engine.parallel.sharding import Sharding
    from sdft_cli.engine.train.sdft_step import Trainer
    from sdft_cli.prompts.chat import ChatPrompts

Say = Callable[[str], None]


@dataclass(frozen=True)
class Job:
    """A run to start, or to go on with from its newest checkpoint (`resume`): configuration, data, and its folder.

    `profile_steps`: the first so many steps are profiled (`engine/train/profile.py`). `processes`: those that share the
    run; None: this one alone.
    """

    config: TrainConfig
    data: Dataset
    folder: Path
    resume: bool = False
    overwrite: bool = False
    profile_steps: int = 0
    processes: Processes | None = None


@dataclass(frozen=True)
class Loaded:
    """A model that is ready to train, and how that was decided. `begins_with`: an adapter that was trained before."""

    trainer: Trainer
    backend_name: str
    backend_reason: str
    accelerator: Any
    begins_with: dict[str, Any] | None = None


def load(job: Job, say: Say) -> Loaded:
    """Load tokenizer, model and a fresh adapter; say which backend, prefix sharing and sampling weights were taken."""
    from sdft_cli.engine.models.load import check_machine, load_backend
    from sdft_cli.engine.models.quiet import quiet_libraries
    from sdft_cli.engine.train.trackers import check_trackers

    config = job.config
    check_machine(config)
    check_trackers(config.trackers)
    sharding = _sharding_of(job)
    model, name, why = _model_and_library(job, say)
    say(f"Backend: {name} ({why})")
    quiet_libraries()

    from sdft_cli.engine.models.device_memory import out_of_memory_explained
    from sdft_cli.engine.parallel.processes import ALONE
    from sdft_cli.engine.train.resume_state import digest
    from sdft_cli.engine.train.sdft_step import Trainer

    processes = job.processes or ALONE
    accelerator = _accelerator(processes)
    prompts = _prompts_of(job, model, say)
    check_loaded = _check_targets(config, model, say)
    begin = _begin_with(job, say)
    shard = partial(_shard, processes, sharding, say) if sharding else None
    with out_of_memory_explained(config, "loading the model"):
        backend = load_backend(config, name, model, shard)
    if backend.kernels:
        say(backend.kernels)
    check_loaded()
    begins_with = begin(backend)
    sampling = _choose_ways(job, backend, processes, say)
    processes.agree("backend", (name, backend.sharing))
    processes.agree("adapter at the start", digest(backend.model))
    trainer = Trainer(config, backend, prompts, accelerator, sampling, processes)
    return Loaded(trainer, name, why, accelerator, begins_with)


def _model_and_library(job: Job, say: Say) -> tuple[str, str, str]:
    """Return the model's folder or id, the library that runs it, and why that one."""
    from sdft_cli.engine.models.load import choose_library
    from sdft_cli.engine.models.names import resolve_model

    config, together = job.config, job.processes
    if together is None:
        model = resolve_model(config.model, say)
        return model, *choose_library(config.backend, model, config.revision)
    check_shareable(job)
    together.agree("configuration or dataset", f"{config.model_dump(mode='json')} {records_hash(job.data.train)}")
    model = together.in_turn(lambda: resolve_model(config.model, say))
    name, _ = choose_library("transformers", model, config.revision)
    return model, name, "several processes run no other"


def _accelerator(processes: Processes) -> Any:
    """Return accelerate's view of this machine.

    Raises:
        UsageError: it counts other processes than those that share the run.
    """
    import torch
    from accelerate import Accelerator

    from sdft_cli.engine.parallel.sharding import hidden_from_accelerate

    # Each process makes every step of the whole run: the schedule is not to count those of the others.
    with hidden_from_accelerate():
        on_cpu = not torch.cuda.is_available()
        found = Accelerator(cpu=on_cpu, mixed_precision="no", step_scheduler_with_optimizer=False)
    if found.num_processes != processes.count:
        raise UsageError(
            f"{found.num_processes} processes were started, and they can share `sdft train` only: start any other "
            "command without `accelerate launch`, `torchrun` or `mpirun`."
        )
    return found


def _choose_ways(job: Job, backend: Backend, processes: Processes, say: Say) -> SamplingWeights:
    """Choose products, decoding and prefix sharing for a loaded model; return the weights that sample. Says each."""
    from sdft_cli.engine.kernels.products import choose_products
    from sdft_cli.engine.passes.choose import choose_sharing
    from sdft_cli.engine.passes.start_check import check_reach, choose_decoding
    from sdft_cli.engine.plan.memory import packed_room
    from sdft_cli.engine.train.rollouts import choose_sampling_weights

    config = job.config
    backend.segment_tokens = config.segment_tokens
    rows = [record.row for record in job.data.train]
    processes.wait()  # all have loaded: what is free now is free for good
    room = packed_room(backend, rows, config) if config.prefix_sharing == "auto" else None
    room = next((why for why in processes.gather(room) if why), None)
    known = read_run_json(job.folder).get("products") if job.resume else None
    chosen = choose_products(config.products, backend.device, backend.head.weight.dtype, known)
    backend.products, told = processes.same(chosen)
    if told:
        say(told)
    say(choose_decoding(backend, config.rollout.graphs))
    say(choose_sharing(backend, config.prefix_sharing, room))
    if warning := check_reach(backend):
        say(warning)
    found = processes.gather(choose_sampling_weights(backend, config.rollout))
    sampling, sentence = next((each for each in found if each[0] == "adapter"), found[0])  # if any lacks the memory
    if config.objective == "sdft" and config.rollout.source == "local":
        say(sentence)
    return sampling


def _sharding_of(job: Job) -> Sharding | None:
    """Return how the base is to be sharded over the processes, None: not.

    Raises:
        UsageError: something of it is not possible; names the setting.
    """
    from sdft_cli.engine.parallel.sharding import asked_sharding

    found = asked_sharding(job.config.dtype)
    if job.processes is not None:
        job.processes.agree("configuration of FSDP", found)
    elif found:
        raise UsageError("FSDP2 shards a model over several processes, and this is one: start more, or leave FSDP out.")
    if found and job.config.rollout.weights == "merged":
        raise UsageError("rollout.weights is merged, but the base is in shards: use --set rollout.weights=adapter.")
    return found


def _shard(processes: Processes, sharding: Sharding, say: Say, model: Any, device: torch.device) -> None:
    """Cut the layers of a model into shards, and say what each process holds of them."""
    layers = processes.shard(model, device, sharding)
    part = layers.bytes / processes.count / 1e9
    say(
        f"FSDP2: {len(layers)} layers of {layers.bytes / 1e9:.2f} GB in shards, {part:.2f} GB on each of "
        f"{processes.count} processes; embeddings, output head and adapter are whole on each"
    )
    say(f"{WARNING}FSDP2 is experimental: this project has run it on CPUs only")


@contextmanager
def open_server(job: Job, trainer: Trainer, say: Say) -> Iterator[None]:
    """Let the trainer have its rollouts from a server meanwhile, if that was asked for: one of the run's model.

    Raises:
        ServerError: it does not answer, serves something else, or takes no adapter.
    """
    config = job.config
    if config.rollout.source == "local" or config.objective == "sft":
        yield
        return
    from sdft_cli.engine.remote.opening import PROBED, Run, open_sampler

    own = job.folder.parent / f".{job.folder.name}.vllm"  # of this run alone: what a killed one left goes first
    given = config.rollout.vllm_folder
    if given is None and trainer.processes.first:
        shutil.rmtree(own, ignore_errors=True)
    records = sorted(job.data.train, key=lambda r: (r.row.prompt_tokens, r.record_id))
    run = Run(
        config,
        trainer.backend,
        trainer.prompts.tokenizer,
        trainer.stop_ids,
        trainer.pad_id,
        prompts=[trainer.example(record).student for record in records[:PROBED]],
        longest=records[-1].row.prompt_tokens,
        folder=own if given is None else Path(given),
    )
    try:
        trainer.remote, sentence = open_sampler(run, trainer.processes)
        say(sentence)
        yield
    finally:
        if trainer.remote:
            trainer.remote.close()
        if given is None and trainer.processes.first:
            shutil.rmtree(own, ignore_errors=True)


def check_shareable(job: Job) -> None:
    """Refuse what several processes cannot do as one would: the run is to be the same for any number of them.

    Raises:
        UsageError: names the setting.
    """
    config = job.config
    if os.environ.get("ACCELERATE_USE_DEEPSPEED", "").lower() in ("1", "true"):
        raise UsageError("DeepSpeed is not supported: launch without it, or with FSDP2.")
    if config.backend == "unsloth" or config.fast_inference or config.load_in_4bit:
        raise UsageError("Several processes run the transformers backend only: add --backend transformers.")
    if config.lora.dropout > 0:
        raise UsageError(
            "With lora.dropout, several processes would drop other values than one does: add --set lora.dropout=0, or "
            "train in one process."
        )
    if job.profile_steps:
        raise UsageError("--profile-steps measures one process: leave it out, or train in one process.")


def _begin_with(job: Job, say: Say) -> Callable[[Backend], dict[str, Any] | None]:
    """Look at the adapter that a run begins with, before the model is loaded.

    Returns what gives its weights to a loaded model, and returns what `run.json` says about it. A run that goes on from
    a checkpoint has its own, and the other adapter need not be there any more.
    """
    from sdft_cli.engine.models.adapters import check_adapter_fits, take_weights
    from sdft_cli.engine.models.names import differences

    config = job.config
    if config.init_adapter is None or (job.resume and any((job.folder / "checkpoints").glob("step-*"))):
        return lambda backend: None
    found = read_adapter(Path(config.init_adapter))
    check_adapter_fits(found, config)

    def begin(backend: Backend) -> dict[str, Any]:
        base = base_folder(config)
        if base and differences(base, found.run.get("base") or {}):
            raise UsageError(f"{found.name} was trained on other weights of {config.model}: begin with one of these.")
        told = {"name": found.name, "sha256": take_weights(backend.model, found)}
        if job.resume and read_run_json(job.folder).get("init_adapter") != told:
            raise DataError(f"{found.folder} changed since {job.folder} was started: start a new run.")
        say(f"Adapter: begins with the weights of {found.name}")
        return told

    return begin


def base_folder(config: TrainConfig) -> Path | None:
    """Return the folder of the base that is loaded; None: the Hub's library does not say where it is."""
    from sdft_cli.engine.models.names import loaded_folder, resolve_model

    return loaded_folder(resolve_model(config.model), config.revision)


def base_identity(config: TrainConfig) -> dict[str, Any] | None:
    """Return what tells the loaded base from others; None: the Hub's library does not say where it is."""
    from sdft_cli.engine.models.names import identity

    base = base_folder(config)
    return identity(base) if base else None


def cut_warning(records: Sequence[Record], config: TrainConfig) -> str | None:
    """Warn where the cap on rollouts is below the length of more than a tenth of the expert's turns."""
    cap = config.rollout.max_new_tokens
    longer = sum(record.row.reference_tokens > cap for record in records)
    if not config.samples or longer <= len(records) / 10:
        return None
    return (
        f"{WARNING}{longer} of {len(records)} turns of the expert are longer than rollout.max_new_tokens ({cap}), and "
        "rollouts as long as these are cut: raise it, and heldout.max_new_tokens with it, or prepare with "
        f"--max-rollout-tokens {cap}"
    )


def _prompts_of(job: Job, model: str, say: Say) -> ChatPrompts:
    """Return the prompts of the dataset, after looking whether this model can take its records."""
    from sdft_cli.engine.models.limits import check_limits
    from sdft_cli.engine.train.loop import check_lengths, check_records
    from sdft_cli.prompts.chat import open_prompts

    config, records = job.config, [*job.data.train, *job.data.validation]
    prompts = open_prompts(model, job.data.manifest, config.revision, records)
    check_records(job.data.train, config)
    check_lengths(job.data.validation, config)
    check_limits(model, config.revision, [r.row for r in records], config.rollout.max_new_tokens, prompts)
    for warning in (prompts.calls_warning(records), cut_warning(job.data.train, config)):
        if warning:
            say(warning)
    return prompts


def _check_targets(config: TrainConfig, model: str, say: Say) -> Callable[[], None]:
    """Say what the adapter sits on, and refuse what could not be trained or merged.

    Returns what has to be called once the model was loaded: names on disk are looked at then, if its files were not on
    this machine before.
    """
    from sdft_cli.engine.models.backend_transformers import empty_model
    from sdft_cli.engine.models.disk_names import check_adapter
    from sdft_cli.engine.models.load import config_of
    from sdft_cli.engine.models.targets import target_names, targets_told

    empty = empty_model(config_of(model, config.revision))
    for sentence in targets_told(empty, config.lora.target_modules):
        say(sentence)
    targets = target_names(empty, config.lora.target_modules)
    checked = check_adapter(model, config.revision, empty, targets)

    def check_loaded() -> None:
        if not checked and not check_adapter(model, config.revision, empty, targets, loaded=True):
            say(f"{WARNING}the files of {model} are not in the Hub's cache; whether it can be merged is not known yet")

    return check_loaded


def records_hash(records: Sequence[Record]) -> str:
    """Return a hash of the training records in their order: what a resumed run has to find again."""
    rows = "".join(f"{r.record_id} {r.row.prompt_tokens} {r.row.teacher_prompt_tokens}\n" for r in records)
    return sha256(rows.encode()).hexdigest()
