"""Launches in closed form against the operations that torch dispatches in the engine's own passes."""

from __future__ import annotations

from typing import Any

import pytest

torch = pytest.importorskip("torch")

from sdft_cli.config import load_train_config  # noqa: E402
from sdft_cli.engine.models.adapters import weights  # noqa: E402
from sdft_cli.engine.models.backend_transformers import TransformersBackend, attach_lora  # noqa: E402
from sdft_cli.engine.passes.depth_first import _Boundary, _Walker  # noqa: E402
from sdft_cli.engine.plan.launches import backward_launches, decode_launches, forward_launches  # noqa: E402
from sdft_cli.engine.plan.model_shape import shape_of  # noqa: E402
from sdft_cli.engine.train.rollouts import sample_rollouts  # noqa: E402
from tests.engine.models.families import make_config  # noqa: E402
from tests.engine.plan.counted import Launches, fused  # noqa: E402

SEGMENT = 64


def qwen35() -> Any:
    """Full attention and gated delta layers as the target has them: one of four attends."""
    from transformers import Qwen3_5Config

    rope = {"rope_type": "default", "rope_theta": 1e7, "partial_rotary_factor": 0.25, "mrope_section": [2, 1, 1]}
    text = {
        "vocab_size": 512,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 4,
        "linear_key_head_dim": 16,
        "linear_value_head_dim": 16,
        "full_attention_interval": 4,
        "eos_token_id": 3,
        "rope_parameters": {**rope, "mrope_interleaved": True},
    }
    vision = {"depth": 1, "hidden_size": 32, "intermediate_size": 64, "num_heads": 4, "out_hidden_size": 64}
    return Qwen3_5Config(text_config=text, vision_config=vision, tie_word_embeddings=False)


def loaded(model_config: Any, dtype: Any) -> tuple[TransformersBackend, Any]:
    from sdft_cli.engine.models.backend_transformers import model_class

    profile = "qwen3.5-9b-64k" if model_config.model_type == "qwen3_5" else "cpu-demo"
    config = load_train_config(profile, ["lora.rank=4", "lora.alpha=8", f"segment_tokens={SEGMENT}"])
    torch.manual_seed(0)
    base = model_class(model_config).from_config(model_config).to(dtype).eval().requires_grad_(False)
    backend = TransformersBackend(attach_lora(base, config).eval(), torch.device("cpu"))
    backend.sharing, backend.segment_tokens = "depth_first", SEGMENT
    return backend, config


def counted(backend: TransformersBackend, config: Any, counter: Launches) -> dict[str, float]:
    """Operations of the second segment of a path, forward and backward, and of a step of decoding."""
    ids = list(range(10, 200))
    found = {"base": _segment(backend, ids, counter), **_with_gradient(backend, ids, counter)}
    for case in ("adapter", "merged"):
        few, more = (_decoded(backend, ids, config, case, n, counter) for n in (3, 6))
        found[f"decode {case}"] = (more - few) / 3
    return found


def _segment(backend: TransformersBackend, ids: list[int], counter: Launches) -> int:
    walker = _Walker(backend, [ids], gradients=False)
    with backend.decoding(), weights(backend.model, "base"):
        before = walker.extend(0, (0, SEGMENT), _Boundary(0))[1]
        return counter.of(lambda: walker.extend(0, (SEGMENT, 2 * SEGMENT), before))


def _with_gradient(backend: TransformersBackend, ids: list[int], counter: Launches) -> dict[str, float]:
    walker, span, kept = _Walker(backend, [ids], gradients=True), (SEGMENT, 2 * SEGMENT), []
    with backend.decoding(), weights(backend.model, "adapter"):
        before = walker.extend(0, (0, SEGMENT), _Boundary(0))[1]
        forward = counter.of(lambda: kept.append(walker.record(0, span, before)))
        states = walker.path.states()
        after = _Boundary(span[1], states, [torch.ones_like(x) for x in states])
        hidden = (kept[0].hidden, torch.ones_like(kept[0].hidden))
        return {"adapter": forward, "backward": counter.of(lambda: walker.back(kept[0], before, after, hidden))}


def _decoded(
    backend: TransformersBackend, ids: list[int], config: Any, case: Any, tokens: int, counter: Launches
) -> int:
    # The nucleus of a random model holds most words; of a trained one, few, which are found at once.
    settings = config.rollout.model_copy(update={"max_new_tokens": tokens, "top_p": 0.05})
    return counter.of(lambda: sample_rollouts(backend, [ids], settings, [], 0, 0, case))


@pytest.mark.parametrize(
    ("family", "dtype"),
    [("llama", "bfloat16"), ("qwen3", "float32"), ("qwen3_5", "bfloat16"), ("qwen3_5", "float32")],
)
def test_launches_are_those_that_torch_dispatches(family: str, dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model_config = qwen35() if family == "qwen3_5" else make_config(family, num_hidden_layers=4, vocab_size=512)
    if family == "qwen3":
        model_config.layer_types = ["full_attention"] * 4
    if family == "qwen3_5":
        from transformers.models.qwen3_5 import modeling_qwen3_5

    counter, size = Launches(), 2 if dtype == "bfloat16" else 4
    if family == "qwen3_5":
        monkeypatch.setattr(modeling_qwen3_5, "torch_chunk_gated_delta_rule", fused(counter, (8, 10)))
        monkeypatch.setattr(modeling_qwen3_5, "torch_recurrent_gated_delta_rule", fused(counter, (1, 0)))
    backend, config = loaded(model_config, getattr(torch, dtype))
    shape, real = shape_of(model_config, config), counted(backend, config, counter)
    predicted = {
        "base": forward_launches(shape, SEGMENT, size, False, True),
        "adapter": forward_launches(shape, SEGMENT, size, True, True),
        "backward": backward_launches(shape, SEGMENT, size, True),
        "decode adapter": decode_launches(shape, size, True, True),
        "decode merged": decode_launches(shape, size, False, True),
    }
    found = {name: launches.own + launches.adapter for name, launches in predicted.items()}
    assert found == pytest.approx(real, rel=0.06)


def test_without_fused_kernels_there_are_more() -> None:
    backend, config = loaded(qwen35(), torch.bfloat16)
    shape = shape_of(qwen35(), config)
    real = counted(backend, config, Launches())
    assert forward_launches(shape, SEGMENT, 2, False, False).own == pytest.approx(real["base"], rel=0.15)
    assert decode_launches(shape, 2, False, False).own == pytest.approx(real["decode merged"], rel=0.1)
