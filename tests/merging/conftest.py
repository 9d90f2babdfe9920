"""Run folders, as training leaves them, without the training."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

SOURCE = {"name": "owner/sessions", "kind": "hub", "revision": "0123abc", "files": 3}
DATASET: dict[str, Any] = {
    "name": "sessions",
    "source": SOURCE,
    "caps": {"max_seq_tokens": 1024, "max_prompt_tokens": 896, "max_rollout_tokens": 128},
    "funnel": {
        "sessions": 72,
        "turns": 1234,
        "kept": 1200,
        "train": 1100,
        "validation": 100,
        "validation_sessions": 7,
        "rejected": {"duplicate": 34},
    },
    "redaction": {"enabled": True, "counts": {"email": 12}},
}


def make_run(folder: Path, model: Path, profile: str = "cpu-demo", overrides: Sequence[str] = ()) -> Path:
    """A run folder whose adapter moves the model visibly."""
    import torch

    from sdft_cli.config import load_train_config
    from sdft_cli.engine.models.adapters import lora_layers
    from sdft_cli.engine.models.load import load_backend
    from sdft_cli.records.json_files import write_json
    from sdft_cli.run_folder import FORMAT, CheckPrompt, write_check_prompts

    config = load_train_config(profile, ["lora.rank=4", "lora.alpha=8", *overrides], {"model": str(model)})
    backend = load_backend(config, "transformers", str(model))
    generator = torch.Generator().manual_seed(3)
    for layer in lora_layers(backend.model).values():
        layer.lora_B["default"].weight.data.normal_(generator=generator).mul_(1.0)
    folder.mkdir()
    backend.save_adapter(folder / "adapter")
    write_json(folder / "config.json", config.model_dump(mode="json"))
    write_json(folder / "run.json", {"format": FORMAT, "backend": "transformers", "dataset": DATASET})
    write_check_prompts(
        folder / "check_prompts.jsonl", [CheckPrompt([1, 5, 9, 7], [11, 12, 13]), CheckPrompt([1], [4])]
    )
    return folder


@pytest.fixture
def run(tiny_model: Path, tmp_path: Path) -> Path:
    return make_run(tmp_path / "run", tiny_model)
