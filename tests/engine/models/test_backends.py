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
from sdft_cli.engine.models import load as backend  # noqa: E402
from sdft_cli.errors import MachineError, UsageError  # noqa: E402

ROOT = Path(__file__).resolve().parents[3]


def probe(name: str, model: Path, folder: Path) -> dict[str, Any]:
    """Run the probe in an empty working folder and an empty home; both must stay empty but for the cache."""
    work, home = folder / f"work-{name}", folder / f"home-{name}"
    work.mkdir()
    home.mkdir()
    hidden = ("XDG_CACHE_HOME", "SDFT_CACHE", "UNSLOTH_COMPILE_LOCATION", "HF_HOME")
    environment = {key: value for key, value in os.environ.items() if key not in hidden}
    done = subprocess.run(
        [sys.executable, "-m", "tests.engine.models.parity_probe", name, str(model), str(folder / "adapters")],
        cwd=work,
        env={**environment, "PYTHONPATH": str(ROOT), "HOME": str(home), "TMPDIR": str(folder)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert not list(work.iterdir())
    assert {p.name for p in home.iterdir()} <= {".cache"}
    return json.loads(done.stdout.strip().splitlines()[-1])  # type: ignore[no-any-return]


def merged(model: Path, adapter: Path, out: Path) -> dict[str, Any]:
    """Base + adapter in fp32, by the code of `sdft merge`."""
    from safetensors.torch import load_file

    from sdft_cli.merging.adapter import Adapter
    from sdft_cli.merging.weights import base_shards, merge_weights

    out.mkdir()
    merge_weights(model, Adapter(adapter), out, torch.float32)
    (shard,) = base_shards(model)
    found = load_file(out / shard.name)
    return {name: found[name] for name in Adapter(adapter).names}


@pytest.mark.slow
@pytest.mark.skipif(not backend.has_package("unsloth"), reason="unsloth is not installed")
def test_both_backends_are_the_same_model(smollm2: Path, tmp_path: Path) -> None:
    """Loss, gradient, greedy tokens, and the merged weights after three steps.

    What may differ is the order of sums in fp32, 1e-6 relative. Adam divides by the gradient's own size, so an element
    whose gradient is about zero may step the other way; the sum over a weight's elements stays within 1e-3.
    """
    plain, fast = probe("transformers", smollm2, tmp_path), probe("unsloth", smollm2, tmp_path)
    assert (plain["backend"], fast["backend"]) == ("transformers", "unsloth")
    assert plain["losses"][0] > 0.01
    assert fast["losses"] == pytest.approx(plain["losses"], rel=1e-4)
    assert len(set(plain["losses"])) == len(plain["losses"]) == 3
    assert plain["grads"].keys() == fast["grads"].keys()
    for name, norm in plain["grads"].items():
        assert fast["grads"][name] == pytest.approx(norm, rel=1e-3, abs=1e-7), name
    assert plain["tokens"] == fast["tokens"]
    for case in ("adapter", "merged"):
        assert plain["tokens"][f"{case}, batch"] == plain["tokens"][f"{case}, single"]
    from safetensors.torch import load_file

    base = load_file(smollm2 / "model.safetensors")
    one, other = (
        merged(smollm2, tmp_path / "adapters" / name, tmp_path / f"merged-{name}")
        for name in ("transformers", "unsloth")
    )
    assert one.keys() == other.keys()
    assert len(one) == 30 * 7
    for name, weight in one.items():
        delta = weight.double() - base[name].double()
        assert delta.norm() > 0
        assert (other[name].double() - weight.double()).norm() <= 1e-3 * delta.norm(), name


def test_the_choice_of_backend_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend, "has_package", lambda name: False)
    assert backend.choose_backend("auto", "llama") == ("transformers", "unsloth is not installed")
    with pytest.raises(MachineError, match="--backend transformers"):
        backend.choose_backend("unsloth", "llama")
    monkeypatch.setattr(backend, "has_package", lambda name: True)
    assert backend.choose_backend("auto", "llama") == ("unsloth", "it is installed and supports llama")
    assert backend.choose_backend("auto", "mamba")[0] == "transformers"
    assert backend.choose_backend("transformers", "llama") == ("transformers", "as asked")


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_the_target_profile_names_what_it_needs() -> None:
    with pytest.raises(MachineError, match=r"needs a CUDA GPU with at least 70 GB .* try --profile cpu-demo"):
        backend.check_machine(load_train_config("qwen3.5-9b-64k"))
    backend.check_machine(load_train_config("qwen3.5-9b-64k", ["min_gpu_gb=null"]))


def test_models_are_found_or_refused_by_name(tmp_path: Path) -> None:
    from sdft_cli.engine.models.names import resolve_model

    assert resolve_model("owner/name") == "owner/name"
    with pytest.raises(UsageError, match=r"no alias: the aliases are smollm2-135m"):
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


def test_the_type_of_a_model_is_read_without_transformers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a library which patches transformers can be imported first."""
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    code = (
        "import sys\n"
        "from sdft_cli.engine.models.load import choose_library\n"
        f"print(choose_library('transformers', {str(tmp_path)!r}, None), 'transformers' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "('transformers', 'as asked') False"
    for text in ("{}", "[]", "no json"):
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(UsageError, match=r"no config\.json that transformers knows: give a model folder"):
            backend.model_type_of(str(tmp_path), None)
    with pytest.raises(MachineError, match="could not be loaded from the Hub"):
        backend.model_type_of("nobody/nothing", None)
