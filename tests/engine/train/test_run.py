from __future__ import annotations

import shutil
from pathlib import Path

import pytest

pytest.importorskip("torch")

from safetensors.torch import load_file, save_file

from sdft_cli.config import load_train_config
from sdft_cli.engine.train.run import Job, load, on_its_base
from sdft_cli.errors import UsageError
from sdft_cli.records import Dataset
from sdft_cli.records.json_files import write_json
from tests.engine.prepared import prepared


def test_a_resumed_run_goes_on_with_the_commit_of_its_base(tmp_path: Path) -> None:
    config = load_train_config("cpu-demo", (), {"model": "o/m"})
    job = Job(config, Dataset(tmp_path / "data", {}, {}, [], [], []), tmp_path, resume=True)
    write_json(tmp_path / "run.json", {"base": {"commit": "1111"}})
    assert on_its_base(job).config == config.model_copy(update={"revision": "1111"})
    write_json(tmp_path / "run.json", {"base": {"config.json": "x"}})  # a folder
    assert on_its_base(job) == job


@pytest.mark.parametrize(
    ("targets", "sentence"),
    [
        ("lm_head", "lm_head is the output head, which the loss reads without an adapter"),
        ("q_proj, embed_tokens", "embed_tokens is the token embedding"),
        ("up_proj", r"up_proj could be trained and not merged \(No tensor"),
    ],
)
def test_targets_that_could_not_be_merged_are_refused_before_loading(
    tiny_model: Path, tmp_path: Path, targets: str, sentence: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a base whose files hold no tensor for one of the modules."""
    import sdft_cli.engine.models.load as loading

    base = tmp_path / "base"
    shutil.copytree(tiny_model, base)
    tensors = load_file(base / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, base / "model.safetensors", metadata={"format": "pt"})
    monkeypatch.setattr(loading, "load_backend", lambda *_: pytest.fail("the weights were loaded"))
    data = prepared(tiny_model, tmp_path, 12, 0.3)
    settings = [f"lora.target_modules=[{targets}]", "backend=transformers"]
    config = load_train_config("cpu-demo", settings, {"model": str(base)})
    with pytest.raises(UsageError, match=sentence):
        load(Job(config, data, tmp_path / "run"), lambda text: None)
