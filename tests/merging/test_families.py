"""Adapters by plain peft on tiny models of many families: the merged checkpoint is base + adapter for transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
peft = pytest.importorskip("peft")

from sdft_cli.engine.models.backend_transformers import load_model  # noqa: E402
from sdft_cli.engine.models.disk_names import DiskNames, check_mergeable, unloaded  # noqa: E402
from sdft_cli.engine.models.targets import target_pattern  # noqa: E402
from sdft_cli.merging.adapter import Adapter  # noqa: E402
from sdft_cli.merging.tensor_check import certify  # noqa: E402
from sdft_cli.merging.weights import copy_companions, merge_weights  # noqa: E402
from tests.merging.families import FAMILIES, save  # noqa: E402

CPU = torch.device("cpu")
IDS = torch.tensor([[1, 17, 40, 9, 33, 8, 61, 22]])


def adapted(base: Path, folder: Path, **settings: Any) -> Any:
    """Put an adapter by plain peft on a base, with random numbers everywhere, and save it; return the peft model."""
    model = load_model(str(base), torch.float32, CPU)
    found = peft.get_peft_model(model, peft.LoraConfig(r=4, lora_alpha=8, task_type="CAUSAL_LM", **settings))
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for name, parameter in found.named_parameters():
            if parameter.requires_grad and "magnitude" not in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)
            elif parameter.requires_grad:
                parameter.mul_(1 + 0.2 * torch.rand(parameter.shape, generator=generator))
    found.eval().save_pretrained(folder)
    return found


def merged(base: Path, adapter: Path, out: Path, dtype: Any = torch.float32) -> Any:
    """Merge as `sdft merge` does; the certificate of the tensors has to pass. Return it."""
    names = DiskNames(base)
    out.mkdir()
    merge_weights(base, Adapter(adapter, names), out, dtype, names)
    copy_companions(base, out, str(dtype).removeprefix("torch."))
    found = certify(base, adapter, out, dtype, names)
    assert found.failures == []
    return found


@torch.no_grad()
def logits(model: Any) -> Any:
    return model(input_ids=IDS).logits.double()


def agree(out: Path, model: Any) -> None:
    """The checkpoint, loaded by transformers, is the peft model: logits, and every weight of peft's own merge."""
    alone = load_model(str(out), torch.float32, CPU)
    expected = logits(model)
    assert (logits(alone) - expected).abs().max() < 1e-4 * (1 + expected.abs().max())
    with model.disable_adapter():
        assert (logits(model) - expected).abs().max() > 1e-2
    whole = model.merge_and_unload().state_dict()
    found = alone.state_dict()
    assert found.keys() == whole.keys()
    for name, tensor in whole.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", [name for name in FAMILIES if name != "gpt2"])  # which is not trained here
def test_a_merged_checkpoint_is_base_and_adapter(tmp_path: Path, family: str) -> None:
    base = save(family, tmp_path / "base")
    targets = FAMILIES[family]
    check_mergeable(DiskNames(base), targets)
    model = adapted(base, tmp_path / "adapter", target_modules=target_pattern(unloaded(base), targets))
    found = merged(base, tmp_path / "adapter", tmp_path / "out")
    assert len(found.adapted) == sum(1 for name, _ in model.named_modules() if name.endswith(".lora_A"))
    agree(tmp_path / "out", model)
