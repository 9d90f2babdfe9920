"""The run folder: what a training run leaves behind, and where merge and eval read it from.

my-run/
  run.json             format, sdft version, backend and why, model, dataset fingerprint, result
  config.json          the resolved training configuration
  metrics.jsonl        one line per step
  samples.jsonl        a few sampled rollouts as text
  check_prompts.jsonl  a few prompts as token ids, on which `sdft merge` compares
  adapter/             the LoRA adapter (peft format, safetensors)
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sdft_cli.config import TrainConfig, build
from sdft_cli.errors import DataError

FORMAT = "sdft-run"


@dataclass(frozen=True)
class Run:
    """A finished run on disk."""

    path: Path
    info: Mapping[str, Any]
    config: TrainConfig

    @property
    def adapter(self) -> Path:
        return self.path / "adapter"


def is_run(folder: Path) -> bool:
    """Say whether a folder is a training run."""
    return (folder / "run.json").is_file()


def read_run(folder: Path) -> Run:
    """Read a run folder.

    Raises:
        DataError: a file is missing or was not written by `sdft train`.
    """
    documents = {}
    for name in ("run.json", "config.json", "adapter/adapter_config.json"):
        path = folder / name
        if not path.is_file():
            raise DataError(f"{path} is missing: {folder} is no finished run; run `sdft train` again.")
        try:
            documents[name] = json.loads(path.read_bytes())
        except ValueError as error:
            raise DataError(f"{path} is not valid JSON: run `sdft train` again.") from error
    info = documents["run.json"]
    if not isinstance(info, dict) or info.get("format") != FORMAT:
        raise DataError(f"{folder / 'run.json'} was not written by `sdft train`: give a run folder.")
    if not (folder / "adapter" / "adapter_model.safetensors").is_file():
        raise DataError(f"{folder / 'adapter' / 'adapter_model.safetensors'} is missing: run `sdft train` again.")
    return Run(folder, info, build(TrainConfig, documents["config.json"]))


def write_json(path: Path, document: Any) -> None:
    """Write a JSON document, readable and with sorted keys."""
    path.write_text(json.dumps(document, indent=2, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")


class JsonLines:
    """Append JSON lines, each flushed as soon as it is written."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("a", encoding="utf-8")

    def write(self, document: Mapping[str, Any]) -> None:
        self._file.write(json.dumps(document, ensure_ascii=False) + "\n")
        self._file.flush()

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
        DataError: the file is missing or empty.
    """
    if not path.is_file():
        raise DataError(f"{path} is missing: the run is incomplete; run `sdft train` again.")
    found = [CheckPrompt(**json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines()]
    if not found:
        raise DataError(f"{path} is empty: the run is incomplete; run `sdft train` again.")
    return found[:limit]
