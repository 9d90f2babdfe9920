from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from sdft_cli.config import load_train_config  # noqa: E402
from sdft_cli.engine import backend  # noqa: E402
from sdft_cli.errors import MachineError, UsageError  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]


def probe(name: str, model: Path, folder: Path) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-m", "tests.engine.parity_probe", name, str(model)],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.strip().splitlines()[-1])  # type: ignore[no-any-return]


@pytest.mark.slow
@pytest.mark.skipif(not backend.has_unsloth(), reason="unsloth is not installed")
def test_both_backends_give_the_same_loss_and_gradient(smollm2: Path, tmp_path: Path) -> None:
    plain, fast = probe("transformers", smollm2, tmp_path), probe("unsloth", smollm2, tmp_path)
    assert (plain["backend"], fast["backend"]) == ("transformers", "unsloth")
    assert plain["loss"] > 0.01
    assert abs(plain["loss"] - fast["loss"]) < 1e-3 * plain["loss"]
    assert plain["grads"].keys() == fast["grads"].keys()
    for name, norm in plain["grads"].items():
        assert fast["grads"][name] == pytest.approx(norm, rel=1e-2, abs=1e-6), name
    assert not list(tmp_path.iterdir())  # no compiled cache in the working folder


def test_the_choice_of_backend_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend, "has_unsloth", lambda: False)
    assert backend.choose_backend("auto", "llama") == ("transformers", "unsloth is not installed")
    with pytest.raises(MachineError, match="--backend transformers"):
        backend.choose_backend("unsloth", "llama")
    monkeypatch.setattr(backend, "has_unsloth", lambda: True)
    assert backend.choose_backend("auto", "llama") == ("unsloth", "it is installed and supports llama")
    assert backend.choose_backend("auto", "mamba")[0] == "transformers"
    assert backend.choose_backend("transformers", "llama") == ("transformers", "as asked")


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_the_target_profile_names_what_it_needs() -> None:
    with pytest.raises(MachineError, match=r"needs a CUDA GPU with at least 70 GB .* try --profile cpu-demo"):
        backend.check_machine(load_train_config("qwen3.5-9b-64k"))


def test_models_are_found_or_refused_by_name(tmp_path: Path) -> None:
    from sdft_cli.engine.models import resolve_model

    assert resolve_model("owner/name") == "owner/name"
    with pytest.raises(UsageError, match=r"no alias \(smollm2-135m\)"):
        resolve_model("nonsense")
    with pytest.raises(UsageError, match=r"holds no config\.json"):
        resolve_model(str(tmp_path))


def test_the_packaged_model_is_converted_faithfully(smollm2: Path) -> None:
    from safetensors import safe_open
    from transformers import AutoConfig, GenerationConfig

    source = json.loads((smollm2 / "sdft-source.json").read_text())
    assert source["file"] == "SmolLM2-135M-Instruct.Q4_1.gguf"
    assert len(source["sha256"]) == 64
    assert AutoConfig.from_pretrained(smollm2).eos_token_id == 2
    assert GenerationConfig.from_pretrained(smollm2).eos_token_id == 2
    with safe_open(smollm2 / "model.safetensors", "pt") as file:
        assert {file.get_tensor(n).dtype for n in file.keys()} == {torch.bfloat16}  # noqa: SIM118
