from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from sdft_cli.config import load_train_config  # noqa: E402
from sdft_cli.engine.plan import memory as module  # noqa: E402
from sdft_cli.engine.plan.memory import Lengths, packed_room, step_memory  # noqa: E402
from sdft_cli.engine.plan.model_shape import shape_of  # noqa: E402
from sdft_cli.records import RecordRow  # noqa: E402
from tests.engine.trees import make  # noqa: E402


def test_memory_is_compared_with_what_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    llama = make("llama")
    config = load_train_config("cpu-demo", ["lora.rank=4", "optim.max_tokens_per_pass=5000"])
    rows = [RecordRow("s/0", "s", 0, 900, 1000, 5, False), RecordRow("s/1", "s", 1, 2000, 2100, 5, False)]
    monkeypatch.setattr(module, "free_memory", lambda device: 10**12)
    assert packed_room(llama, rows, config) is None
    monkeypatch.setattr(module, "free_memory", lambda device: None)
    assert packed_room(llama, rows, config) is None
    monkeypatch.setattr(module, "free_memory", lambda device: 10**6)
    assert "a packed pass of 5000 tokens takes" in str(packed_room(llama, rows, config))
    one = load_train_config("cpu-demo", ["lora.rank=4", "optim.turns_per_step=1", "optim.max_tokens_per_pass=5000"])
    assert "a packed pass of 2156 tokens takes" in str(packed_room(llama, rows, one))  # 2,100 and 56 of the rollout


def test_a_packed_pass_has_no_mask_and_keeps_no_repeated_keys() -> None:
    config = load_train_config("cpu-demo", ["lora.rank=4", "optim.max_tokens_per_pass=512"])
    shape = shape_of(make("llama").base.config, config)
    step = [Lengths(200, 230, 20)] * 2
    packed, padded = (
        {phase.name: phase for phase in step_memory(step, shape, config, kind).phases} for kind in ("packed", "none")
    )
    assert not any(phase.parts.get("attention mask") for phase in packed.values())
    name = "student and backward"  # 2 x 220 tokens, which need no padding
    assert packed[name].parts["kept activations"] == padded[name].parts["kept activations"]
    assert packed["optimizer"] == padded["optimizer"]
