"""From a configuration and a dataset to a finished run folder: check, load, gate, rehearse, train, save."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdft_cli.config import TrainConfig
from sdft_cli.engine.train.opening import Job, Loaded, Say, base_folder, base_identity, load, open_server, records_hash
from sdft_cli.errors import WARNING, DataError, MachineError, VerificationError
from sdft_cli.notices import progress
from sdft_cli.records import Dataset
from sdft_cli.records.folders import new_folder, remove_folder, replacing_folder
from sdft_cli.records.json_files import read_json, write_json
from sdft_cli.run_folder import FORMAT, base_revision, read_run_json, write_check_prompts

if TYPE_CHECKING:
    import torch

    from sdft_cli.engine.train.loop import Loop, Observer
    from sdft_cli.engine.train.sdft_step import Trainer


def start_training(
    job: Job,
    say: Say,
    observer: Callable[[], AbstractContextManager[Observer]],
    starting: Callable[[], AbstractContextManager[object]] = nullcontext,
) -> dict[str, Any]:
    """Train, and leave a run folder behind; return what `run.json` says about the result.

    Args:
        say: told what was chosen and why, one sentence at a time.
        observer: opens what watches the run.
        starting: opens what watches the work before its first step (`notices.progress`).

    Raises:
        MachineError: the machine lacks something that the profile needs.
        DataError: the dataset does not fit the profile, or is not that of the run that is resumed.
        VerificationError: the gate found that the teacher has nothing to teach, or a stop rule ended the run.
        InterruptedBySignal: SIGINT or SIGTERM; the state is saved.
    """
    if job.resume:
        check_same_records(job)
        check_same_base(job)
        job = on_its_base(job)
    for warning in warnings_of(job.config):
        say(warning)
    with starting():
        loaded = load(job, say)
    with open_server(job, loaded.trainer, say):
        with starting():
            gate = None if job.resume else pass_gate(job, loaded.trainer, say)
            if job.config.rehearse:
                from sdft_cli.engine.train.rehearsal import rehearse

                say(rehearse(loaded.trainer, job.data.train))
        if not job.resume and loaded.trainer.processes.first:
            create_run(job, loaded, gate)
        loop = _run(job, loaded, say, observer)
    return finish_run(job, loaded.trainer, loop, say)


def _run(job: Job, loaded: Loaded, say: Say, observer: Callable[[], AbstractContextManager[Observer]]) -> Loop:
    from sdft_cli.engine.train.heldout import HeldOut
    from sdft_cli.engine.train.loop import Loop
    from sdft_cli.engine.train.profile import Profile
    from sdft_cli.engine.train.sdft_step import teacher_weights
    from sdft_cli.engine.train.trackers import Trackers, open_trackers

    trainer, config = loaded.trainer, job.config
    heldout = HeldOut(
        trainer.backend,
        trainer.prompts,
        job.data.validation,
        config.heldout,
        teacher_weights(config.teacher) if config.objective == "sdft" else "base",
        trainer.ema,
        decoding=trainer.sampling,
        max_tokens_per_pass=config.optim.max_tokens_per_pass,
        max_decode_tokens=config.rollout.max_tokens_per_pass,
        notify=say,
        processes=trainer.processes,
    )
    first = trainer.processes.first
    trackers = open_trackers(loaded.accelerator, config, job.folder) if first else Trackers(loaded.accelerator)
    try:
        with observer() as watching:
            profile = Profile(trainer, job.profile_steps, job.folder) if job.profile_steps else None
            loop = Loop(
                trainer, job.data.train, job.folder, heldout, watching, trackers.log, profile, trackers.log_rollout
            )
            if job.resume:
                step = loop.resume()
                say(f"Going on after step {step}" if step else "There is no checkpoint yet: starting with step 1")
            loop.run()
    finally:
        trackers.close()
    return loop


def warnings_of(config: TrainConfig) -> list[str]:
    """Return what is known to go wrong with a configuration."""
    found = []
    if config.objective == "sdft" and config.teacher.kind == "live":
        found.append(f"{WARNING}runs with a live teacher, which follows its student, collapse: use base or ema")
    if config.lora.dropout > 0 and config.samples and config.rollout.gap_every:
        found.append(f"{WARNING}with lora.dropout the sampler is not compared with the trainer, which has its noise")
    if config.optim.learning_rate > 1e-3:
        found.append(f"{WARNING}the learning rate {config.optim.learning_rate:g} is above those of LoRA runs (to 1e-3)")
    return found


def pass_gate(job: Job, trainer: Trainer, say: Say) -> dict[str, Any] | None:
    """Measure the teacher's lift before step 1, unless it is off or there is no teacher.

    Raises:
        VerificationError: the reference does not help, and `gate.action` is stop.
    """
    from sdft_cli.engine.models.device_memory import out_of_memory_explained
    from sdft_cli.engine.score.gate import run_gate
    from sdft_cli.engine.score.gate_records import gate_records

    config = job.config
    if config.gate.action == "off" or config.objective == "sft":
        return None
    records, split = gate_records(job.data, config.gate.records)
    say(f"Gate: does the reference teach? Measuring {len(records)} {split} records ...")
    with out_of_memory_explained(config, "the gate"):
        found = run_gate(
            trainer.backend,
            trainer.prompts,
            records,
            config.gate,
            max_tokens_per_pass=config.optim.max_tokens_per_pass,
            max_decode_tokens=config.rollout.max_tokens_per_pass,
            seed=config.seed,
            split=split,
            progress=progress,
            processes=trainer.processes,
        )
    for note in found.notes:
        say(note)
    if not found.passed and config.gate.action == "stop":
        raise VerificationError(found.verdict)
    say(found.verdict)
    return found.to_json()


def check_same_records(job: Job) -> None:
    """Refuse to go on with other records than the run was started with, or with records rendered in another way.

    Raises:
        DataError: they differ.
    """
    stored, found = read_run_json(job.folder)["dataset"], dataset_facts(job.data)
    if any(stored.get(key, found[key]) != found[key] for key in ("records_hash", "fingerprint")):  # old runs have one
        raise DataError(f"{job.data.path} is not the dataset that {job.folder} was started with: name that one.")


def check_same_base(job: Job) -> None:
    """Refuse to go on with another base than the run was started with; raises VerificationError."""
    from sdft_cli.engine.models.names import check_base

    if base := base_folder(job.config):
        check_base(base, read_run_json(job.folder).get("base"), job.folder)


def on_its_base(job: Job) -> Job:
    """Let a resumed run go on with the commit of its base that it was started with."""
    revision = base_revision(read_run_json(job.folder), job.config)
    return replace(job, config=job.config.model_copy(update={"revision": revision}))


def dataset_facts(data: Dataset) -> dict[str, Any]:
    """Return what a run says about its dataset: enough to find it again, and for a model card without it."""
    manifest = data.manifest
    return {
        "name": data.path.resolve().name,
        "path": str(data.path),
        "records_hash": records_hash(data.train),
        "fingerprint": manifest["fingerprint"],
        "chat_template": manifest.get("chat_template"),
        "template_date": manifest.get("template_date"),
        "source": manifest["source"],
        "caps": {key: value for key, value in manifest["config"].items() if key.startswith("max_")},
        "funnel": manifest["funnel"],
        "redaction": manifest.get("redaction"),
    }


def environment(device: torch.device) -> dict[str, str]:
    """Return what a run is made with: versions, the system, the device. Nothing in it names this machine."""
    import platform
    from importlib.metadata import version

    import torch

    from sdft_cli import __version__

    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    packages = {package: version(package) for package in ("torch", "transformers", "peft", "accelerate")}
    system = {"python": platform.python_version(), "system": platform.system()}
    return {"sdft": __version__, **packages, **system, "device": f"{device.type}: {name}"}


def create_run(job: Job, loaded: Loaded, gate: dict[str, Any] | None) -> None:
    """Make the run folder, with all that is known before step 1."""
    from sdft_cli.engine.train.loop import check_prompts

    data, prompts = job.data, loaded.trainer.prompts
    info = {
        "format": FORMAT,
        "status": "running",
        "objective": job.config.objective,
        "backend": loaded.backend_name,
        "backend_reason": loaded.backend_reason,
        "sampling_weights": loaded.trainer.sampling,
        "prefix_sharing": loaded.trainer.backend.sharing,
        "products": loaded.trainer.backend.products,
        "model": job.config.model,
        "base": base_identity(job.config),
        "init_adapter": loaded.begins_with,
        "teacher_template": data.manifest["teacher_template"],
        "dataset": dataset_facts(data),
        "environment": environment(loaded.trainer.backend.device),
    }
    with new_folder(job.folder, "run.json", job.overwrite) as scratch:
        write_json(scratch / "config.json", job.config.model_dump(mode="json"))
        write_json(scratch / "run.json", info)
        if gate is not None:
            write_json(scratch / "gate.json", gate)
        write_check_prompts(scratch / "check_prompts.jsonl", check_prompts([*data.validation, *data.train], prompts))


def _save_adapter(trainer: Trainer, target: Path) -> None:
    """Write an adapter that can be given away: no path of this machine, and no card that says nothing."""
    from sdft_cli.engine.models.names import known_as

    info = read_run_json(target.parent)
    commit = (info.get("base") or {}).get("commit") or trainer.config.revision
    try:
        with replacing_folder(target) as scratch:
            trainer.backend.save_adapter(scratch)
            (scratch / "README.md").unlink(missing_ok=True)  # peft's own; `sdft train` writes one
            config = read_json(scratch / "adapter_config.json", "run `sdft train --resume` again")
            named = {"base_model_name_or_path": known_as(trainer.config.model)["base"], "revision": commit}
            write_json(scratch / "adapter_config.json", config | named)
    except OSError as error:
        raise MachineError(
            f"Writing {target} failed ({error.strerror or error}): free space, then `sdft train --resume --out "
            f"{target.parent}`; the last checkpoint holds all of it."
        ) from error


def _save_best(job: Job, trainer: Trainer, loop: Loop, say: Say) -> None:
    """Write the adapter with the lowest held-out divergence beside the last one, if it is another."""
    from sdft_cli.engine.train.resume_state import trainable

    progress, target = loop.progress, job.folder / "adapter-best"
    if target.exists():  # of an earlier end of this run
        remove_folder(target)
    if progress.best_step is None or progress.best_step == progress.step:
        return
    numbers = (
        f"{progress.best_kl:.4f} after step {progress.best_step}, {progress.heldout['kl_per_token']:.4f} at the end"
    )
    best = loop.checkpoints.best() if progress.best_step else None
    if best and best.step != progress.best_step:
        say(f"{WARNING}the checkpoint of step {progress.best_step}, the best one, is not there: no adapter-best")
        return
    if best is None:
        say(f"The held-out divergence never fell below that before step 1 ({numbers})")
        return
    own = {name: p.data for name, p in trainable(trainer.backend.model).items()}
    try:
        for name, tensor in best.tensors("adapter").items():
            trainer.backend.model.get_parameter(name).data = tensor.to(own[name].device)
        _save_adapter(trainer, target)
    finally:
        for name, data in own.items():
            trainer.backend.model.get_parameter(name).data = data
    say(f"The held-out divergence was lowest earlier ({numbers}): `sdft merge --best` takes that adapter, {target}")


def finish_run(job: Job, trainer: Trainer, loop: Loop, say: Say) -> dict[str, Any]:
    """Write the adapter, the best one too if it is another, and mark the run as finished, if this process is to.

    Raises:
        MachineError: the disk is full; the state is in the last checkpoint.
    """
    progress = loop.progress
    if not trainer.processes.first:
        return {}
    _save_adapter(trainer, job.folder / "adapter")
    _save_best(job, trainer, loop, say)
    info = read_run_json(job.folder)
    info |= {
        "status": "finished",
        "last_step": progress.metrics,
        "heldout": progress.heldout,
        "best_step": progress.best_step,
    }
    write_json(job.folder / "run.json", info)
    write_json(job.folder / "config.json", job.config.model_dump(mode="json"))
    return info
