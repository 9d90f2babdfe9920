"""The operations of a step, against what really runs: tokens through the trunk, and pairs through attention."""

from __future__ import annotations

from typing import Any

import pytest

torch = pytest.importorskip("torch")

from sdft_cli.config import load_train_config  # noqa: E402
from sdft_cli.engine.models.backend import Backend  # noqa: E402
from sdft_cli.engine.passes.executors import decoding_cache, student_passes, teacher_passes  # noqa: E402
from sdft_cli.engine.plan.flops import backward_flops, forward_flops, head_flops  # noqa: E402
from sdft_cli.engine.plan.model_shape import shape_of  # noqa: E402
from sdft_cli.engine.plan.work import Work, passes_work, prefill_work, step_operations  # noqa: E402
from tests.engine.trees import ANSWERS, PROMPTS, go_back, make  # noqa: E402


class Counter:
    """Counts what runs: tokens of the trunk's passes, and pairs of its attention layers, with gradient and in all."""

    def __init__(self, backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
        self.found = {"tokens": 0.0, "pairs": 0.0, "tokens_back": 0.0, "pairs_back": 0.0}
        config = backend.base.config.get_text_config()
        kinds = getattr(config, "layer_types", None) or ["full_attention"] * config.num_hidden_layers
        per_layer = config.num_attention_heads * sum(kind == "full_attention" for kind in kinds)
        trunk = type(backend.trunk)
        forward, attention = trunk.forward, torch.nn.functional.scaled_dot_product_attention

        def counted(module: Any, *arguments: Any, input_ids: Any = None, **rest: Any) -> Any:
            self._add("tokens", input_ids.numel())
            return forward(module, *arguments, input_ids=input_ids, **rest)

        def attend(query: Any, key: Any, value: Any, *arguments: Any, is_causal: bool = False, **rest: Any) -> Any:
            batch, heads, queries, _ = query.shape
            pairs = queries * (queries + 1) / 2 if is_causal else queries * key.shape[2]
            self._add("pairs", batch * heads * pairs / per_layer)
            return attention(query, key, value, *arguments, is_causal=is_causal, **rest)

        monkeypatch.setattr(trunk, "forward", counted)
        monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", attend)

    def _add(self, name: str, value: float) -> None:
        self.found[name] += value
        if torch.is_grad_enabled():
            self.found[f"{name}_back"] += value

    @property
    def work(self) -> Work:
        return Work(*(round(self.found[name], 6) for name in ("tokens", "pairs", "tokens_back", "pairs_back")))


@pytest.mark.parametrize(
    ("kind", "sharing"),
    [("llama", "none"), ("llama", "packed"), ("llama", "depth_first"), ("hybrid", "depth_first")],
)
@pytest.mark.parametrize("max_tokens", [1, 100, 100_000])
def test_counted_is_what_runs(kind: str, sharing: Any, max_tokens: int, monkeypatch: pytest.MonkeyPatch) -> None:
    backend = make(kind)
    backend.sharing, backend.segment_tokens = sharing, 16
    config = load_train_config("cpu-demo", [f"optim.max_tokens_per_pass={max_tokens}"])

    teacher = Counter(backend, monkeypatch)
    teacher_passes(backend, PROMPTS, ANSWERS, 0, max_tokens)
    monkeypatch.undo()
    assert teacher.work == passes_work(backend, PROMPTS, ANSWERS, config, gradient=False)
    assert teacher.work.forward_tokens > 0 == teacher.work.backward_tokens

    student = Counter(backend, monkeypatch)
    go_back(student_passes(backend, PROMPTS, ANSWERS, 0, max_tokens), lambda turns, states: states.sum())
    monkeypatch.undo()
    assert student.work == passes_work(backend, PROMPTS, ANSWERS, config, gradient=True)
    assert student.work.backward_tokens > 0

    if sharing != "none":
        prefill = Counter(backend, monkeypatch)
        with torch.no_grad():
            decoding_cache(backend, PROMPTS, 4)
        monkeypatch.undo()
        assert prefill.work == prefill_work(backend, PROMPTS)


def test_a_step_by_phase() -> None:
    backend = make("llama")
    config = load_train_config("cpu-demo", ["optim.max_tokens_per_pass=1", "lora.rank=4"])
    shape = shape_of(backend.base.config, config)
    prompts, answers = [[5, 6, 7], [5, 6, 8, 9]], [[1, 2], [3]]
    shown = [[*x, 10] for x in prompts]
    found = step_operations(backend, shape, config, prompts, shown, answers, [True, False], merged=True)
    assert found["teacher"] == forward_flops(shape, 6 + 6, 21 + 21, adapter=False)
    assert found["student"] == forward_flops(shape, 5 + 5, 15 + 15, adapter=True)
    assert found["backward"] == backward_flops(shape, 5 + 5, 15 + 15)
    assert found["loss"] == 3 * head_flops(shape, 3)
    # The first turn was sampled: two tokens of prefill, then two that see 4 and 5 tokens.
    rollout = forward_flops(shape, 2, 3, adapter=False) + forward_flops(shape, 2, 4 + 5, adapter=False)
    assert found["rollout"] == rollout + head_flops(shape, 2)
    sft = config.model_copy(update={"objective": "sft"})
    found = step_operations(backend, shape, sft, prompts, shown, answers, [False, False], merged=True)
    assert found.keys() == {"student", "backward", "loss"}
    assert found["loss"] == 2 * head_flops(shape, 3)
