"""The run folder: what a training run leaves behind, and where merge and eval read it from.

my-run/
  run.json             format, status, backend and why, model, dataset, result
  config.json          the resolved training configuration
  gate.json            what the teacher-lift gate measured before step 1
  metrics.jsonl        one line per step
  heldout.jsonl        one line per held-out evaluation
  heldout_answers.jsonl  the answers of each held-out evaluation; the expert's turns stand with the first
  samples.jsonl        a few rollouts as text and tokens: kind and divergence of each token, and at the worst ones the
                       likeliest tokens of student and teacher; sums over all trajectories of those steps
  check_prompts.jsonl  a few prompts as token ids, on which `sdft merge` compares
  checkpoints/         states to go on from: `sdft train --resume`
  trackers/            what tensorboard, trackio or wandb wrote
  adapter/             the LoRA adapter (peft format, safetensors); only a finished run has one
  adapter-best/        the adapter with the lowest held-out divergence, if that is not the last one
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sdft_cli.config import TrainConfig, stored_config
from sdft_cli.errors import DataError, UsageError
from sdft_cli.places import RUN, RUNS_ROOT, meant_folder
from sdft_cli.records.folders import sha256_of
from sdft_cli.records.json_files import finite, read_json

FORMAT = "sdft-run"
AGAIN = "the run is not whole, run `sdft train` again"


@dataclass(frozen=True)
class Run:
    """A finished run on disk."""

    path: Path
    info: Mapping[str, Any]
    config: TrainConfig
    adapter: Path

    @property
    def revision(self) -> str | None:
        """The revision of its base."""
        return base_revision(self.info, self.config)


def base_revision(info: Mapping[str, Any], config: TrainConfig) -> str | None:
    """Return the revision of a run's base: the commit that was trained on, whatever the main branch holds by now.

    Of a base that is no Hub model, what the configuration says.

    Args:
        info: the run's `run.json`.
        config: the run's configuration.
    """
    commit: str | None = (info.get("base") or {}).get("commit")
    return commit or config.revision


def is_run(folder: Path) -> bool:
    """Say whether a folder is a training run."""
    return (folder / "run.json").is_file()


def read_run_json(folder: Path, name: str = "run.json") -> dict[str, Any]:
    """Read `run.json` or another JSON file that every run has.

    Raises:
        DataError: it is missing or damaged.
    """
    return read_json(folder / name, AGAIN)


def is_unfinished(folder: Path) -> bool:
    """Say whether a folder is a run that was started and not finished."""
    return is_run(folder) and read_run_json(folder).get("status") == "running"


def read_run(folder: Path, best: bool = False) -> Run:
    """Read a run folder, with its last adapter or the one that was best on held-out records.

    Raises:
        UsageError: there is no such folder; or the best adapter is asked for, and the last one is the best, or nothing
            was held out.
        DataError: a file is missing or was not written by `sdft train`.
    """
    if not folder.exists():
        near = meant_folder(folder, RUN, RUNS_ROOT, "name the folder of one.")
        raise UsageError(f"There is no run {folder}: {near}")
    info, config = read_run_json(folder), read_run_json(folder, "config.json")
    if not (folder / "adapter" / "adapter_config.json").is_file():
        raise DataError(f"{folder} is no finished run: go on with `sdft train --resume --out {folder}`.")
    if info.get("format") != FORMAT:
        raise DataError(f"{folder / 'run.json'} was not written by `sdft train`: give a run folder.")
    if not (folder / "adapter" / "adapter_model.safetensors").is_file():
        raise DataError(f"{folder / 'adapter' / 'adapter_model.safetensors'} is missing: {AGAIN}.")
    adapter = folder / ("adapter-best" if best else "adapter")
    if not adapter.is_dir():
        raise UsageError(f"{folder} has no adapter that was better than its last one: leave --best out.")
    return Run(folder, info, stored_config(config), adapter)


def is_current(folder: Path, adapter: object) -> bool:
    """Say whether an adapter that was evaluated or merged is still that of a run: after more steps it is another.

    Args:
        folder: of the run.
        adapter: what an evaluation or a certificate says of it, `name` and `sha256`; what says nothing is current.
    """
    if not isinstance(adapter, Mapping) or not isinstance(adapter.get("sha256"), str):
        return True
    weights = folder / str(adapter.get("name", "adapter")) / "adapter_model.safetensors"
    if not weights.is_file():  # where even the last one is gone, there is nothing to compare with
        return not (folder / "adapter" / weights.name).is_file()
    return bool(sha256_of(weights) == adapter["sha256"])


@dataclass(frozen=True)
class TrainedAdapter:
    """An adapter on disk: `config` is its `adapter_config.json`; `run`, what `run.json` says, if it is one of a run."""

    folder: Path
    config: Mapping[str, Any]
    run: Mapping[str, Any]

    @property
    def weights(self) -> Path:
        return self.folder / "adapter_model.safetensors"

    @property
    def name(self) -> str:
        """Its run's name, or its own folder's, without the path."""
        own = self.folder.resolve()
        return own.parent.name + ("" if own.name == "adapter" else f"/{own.name}") if self.run else own.name


def read_adapter(path: Path) -> TrainedAdapter:
    """Find the adapter of a run, or in a folder of its own; its weights are not read.

    Raises:
        UsageError: there is none.
        DataError: the run is damaged or not finished.
    """
    folder = read_run(path).adapter if is_run(path) else path
    if not all((folder / name).is_file() for name in ("adapter_config.json", "adapter_model.safetensors")):
        raise UsageError(f"{path} holds no adapter: name the folder of a run, or of an adapter in peft's format.")
    run = read_run_json(folder.parent) if is_run(folder.parent) else {}
    return TrainedAdapter(folder, read_json(folder / "adapter_config.json", "name another adapter"), run)


class JsonLines:
    """Append JSON lines, each flushed as soon as it is written."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("a", encoding="utf-8")

    @staticmethod
    def cut(path: Path, size: int) -> None:
        """Drop what was written behind the first `size` bytes, by steps that a resumed run does again.

        Raises:
            DataError: the file is shorter.
        """
        found = path.stat().st_size if path.exists() else 0
        if found < size:
            raise DataError(f"{path} has {found} bytes, its checkpoint says {size}: restore the file, or start anew.")
        if found > size:
            os.truncate(path, size)

    def write(self, document: Mapping[str, Any]) -> None:
        self._file.write(json.dumps(finite(document), ensure_ascii=False) + "\n")
        self._file.flush()

    def sync(self) -> int:
        """Bring the file to the disk; return its size in bytes."""
        self._file.flush()
        os.fsync(self._file.fileno())
        return os.fstat(self._file.fileno()).st_size

    def close(self) -> None:
        self._file.close()


@dataclass(frozen=True)
class CheckPrompt:
    """A prompt with an answer, as token ids; distributions are compared at the answer's positions."""

    prompt: list[int]
    answer: list[int]


def write_check_prompts(path: Path, prompts: Sequence[CheckPrompt]) -> None:
    """Store check prompts in a run folder."""
    lines = [json.dumps({"prompt": p.prompt, "answer": p.answer}) for p in prompts]
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def read_check_prompts(path: Path, limit: int) -> list[CheckPrompt]:
    """Read check prompts back.

    Raises:
        DataError: the file is missing, damaged or empty.
    """
    try:
        found = [CheckPrompt(**json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, ValueError, TypeError) as error:
        raise DataError(f"{path} is missing or damaged: {AGAIN}.") from error
    if not found:
        raise DataError(f"{path} is empty: {AGAIN}.")
    return found[:limit]
