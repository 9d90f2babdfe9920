from __future__ import annotations

from typing import Any

import pytest

torch = pytest.importorskip("torch")

from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402

from sdft_cli.engine.models.adapters import weights  # noqa: E402
from sdft_cli.engine.models.backend import Backend  # noqa: E402
from sdft_cli.engine.models.backend_transformers import PlainModel, TransformersBackend  # noqa: E402
from sdft_cli.engine.passes.attention import SLOTS, attend_to_slots  # noqa: E402
from sdft_cli.engine.passes.decode import generate, left_padded, seeded  # noqa: E402
from sdft_cli.engine.passes.decode_static import (  # noqa: E402
    Sampling,
    SlotLayer,
    StaticStep,
    static_decode,
    static_obstacle,
)
from sdft_cli.errors import VerificationError  # noqa: E402
from tests.engine.models.families import make_model  # noqa: E402
from tests.engine.trees import PROMPTS, ids, make  # noqa: E402

WAYS = [
    ("llama", "none"),
    ("qwen3", "packed"),
    ("qwen2", "depth_first"),
    ("hybrid", "none"),
    ("multimodal", "depth_first"),
]
GREEDY = Sampling(None, 1.0, (), 0)


def both(backend: Backend, *arguments: Any, **settings: Any) -> tuple[Any, Any]:
    """What `generate` decodes, and what comes over fixed buffers."""
    found = []
    for graphs in (False, True):
        backend.graphs = graphs
        with seeded(3):
            found.append(generate(backend, *arguments, **settings))
    backend.graphs = False
    return found[0], found[1]


def plain_log_probs(backend: Backend, prompt: list[int], answer: list[int]) -> Any:
    """From one forward pass of the model itself, in fp64."""
    with torch.no_grad():
        logits = backend.base(input_ids=torch.tensor([[*prompt, *answer]])).logits[0, len(prompt) - 1 : -1].double()
    return (logits - logits.logsumexp(-1, keepdim=True)).gather(-1, torch.tensor(answer)[:, None])[:, 0]


@pytest.mark.parametrize(("kind", "sharing"), WAYS)
def test_greedy_tokens_are_those_of_generate_and_log_probs_those_of_a_pass(kind: str, sharing: Any) -> None:
    backend = make(kind)
    backend.sharing = sharing
    expected, found = both(backend, PROMPTS, 96, [], 0, record_log_probs=True)
    pairs = [(x, y) for a, b in zip(expected, found, strict=True) for x, y in zip(a.ids, b.ids, strict=True)]
    assert len(pairs) == 768
    assert sum(x != y for x, y in pairs) == 0
    for prompt, rollout in zip(PROMPTS, found, strict=True):
        own = torch.tensor(rollout.log_probs, dtype=torch.float64)
        assert float((own - plain_log_probs(backend, prompt, rollout.ids)).abs().max()) < 1e-5


@pytest.mark.parametrize("case", ["adapter", "merged", "base"])
def test_samples_of_a_seed_are_those_of_generate_with_their_stops_and_padding(case: Any) -> None:
    backend = make("llama")
    with weights(backend.model, case):
        expected, found = both(backend, PROMPTS, 40, [5, 6, 7], 0, 0.8, 0.95)
        free, freely = both(backend, PROMPTS, 20, [], 0, 1.0)
    assert found == expected
    assert {rollout.finished for rollout in found} == {True, False}
    assert freely == free != expected


def test_answers_may_be_longer_than_what_fits_behind_the_prompt_in_a_part_of_the_buffer() -> None:
    backend = make("hybrid")
    expected, found = both(backend, [ids(SLOTS - 20, 1), ids(7, 2)], 60, [], 0)
    assert found == expected


def test_one_token_prompts_and_one_token_answers() -> None:
    backend = make("qwen3")
    for sharing in ("none", "packed", "depth_first"):
        backend.sharing = sharing
        expected, found = both(backend, [[5], [6, 7]], 1, [], 0)
        assert found == expected
    expected, found = both(backend, [[5], [5]], 9, [], 0)
    assert found == expected


def test_logits_that_are_not_finite_are_one_sentence() -> None:
    backend = make("llama")
    backend.head.weight.data[:] = torch.nan
    backend.graphs = True
    with pytest.raises(VerificationError, match="not finite"):
        generate(backend, PROMPTS, 4, [], 0, 1.0)


class ReadsNothing(TorchDispatchMode):
    """Refuses what a CUDA graph cannot hold: results on which Python decides, shapes that depend on data."""

    HELD = ("_local_scalar_dense", "nonzero", "equal", "masked_select", "unique", "lift_fresh", "bincount")

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        assert not name.startswith(self.HELD), name
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3", "hybrid", "multimodal"])
@torch.no_grad()
def test_a_step_reads_nothing_from_the_device_and_its_tensors_stay_where_they_are(kind: str) -> None:
    backend = make(kind)
    steps = 0

    def runner(step: StaticStep) -> Any:
        where = step.addresses()
        assert len(where) == 2 * backend.base.config.get_text_config().num_hidden_layers

        def run() -> Any:
            nonlocal steps
            steps += 1
            own = [step.token.data_ptr(), step.slot.data_ptr(), step.position.data_ptr(), step.seen.data_ptr()]
            with ReadsNothing():
                logits = step()
            assert step.addresses() == where
            assert own == [step.token.data_ptr(), step.slot.data_ptr(), step.position.data_ptr(), step.seen.data_ptr()]
            return logits

        return run

    static_decode(backend, PROMPTS, *left_padded(PROMPTS, 0), 5, GREEDY, runner)
    assert steps == 4
    with pytest.raises(AssertionError, match="_local_scalar_dense"), ReadsNothing():
        bool(torch.ones(2).any())


def test_what_was_never_written_has_no_say() -> None:
    keys, values = (torch.full((1, 2, SLOTS, 4), torch.nan) for _ in "kv")
    keys[:, :, :3] = values[:, :, :3] = 1.0
    layer = SlotLayer((keys, values), 3, torch.tensor([3]))
    layer.update(torch.ones(1, 2, 1, 4), torch.full((1, 2, 1, 4), 2.0))
    assert layer.get_seq_length() == SLOTS
    mask = (torch.arange(SLOTS) < 4).view(1, 1, 1, -1)
    found, _ = attend_to_slots(None, torch.ones(1, 2, 1, 4), layer.keys, layer.values, mask)
    assert torch.allclose(found, torch.full_like(found, 1.25))


@pytest.mark.parametrize("heads", [2, 6])
def test_attention_to_slots_is_softmax_over_those_that_are_seen(heads: int) -> None:
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(3, heads, 1, 8, generator=generator)
    key, value = (torch.randn(3, 2, 3 * SLOTS, size, generator=generator) for size in (8, 5))
    mask = torch.rand(3, 1, 1, 3 * SLOTS, generator=generator) < 0.3
    found, _ = attend_to_slots(None, query, key, value, mask, scaling=0.3)
    assert found.shape == (3, 1, heads, 5)
    for row in range(3):
        for head in range(heads):
            seen = mask[row, 0, 0]
            k, v = (x[row, head * 2 // heads, seen].double() for x in (key, value))
            expected = (0.3 * k @ query[row, head, 0].double()).softmax(0) @ v
            assert torch.allclose(found[row, 0, head].double(), expected, atol=1e-6)
    assert torch.equal(found, attend_to_slots(None, query, key, value, mask, scaling=0.3)[0])
    standard, _ = attend_to_slots(None, query, key, value, mask)
    assert torch.allclose(standard, attend_to_slots(None, query, key, value, mask, scaling=8**-0.5)[0])


@pytest.mark.parametrize(
    ("family", "said"), [("granite", None), ("gemma2", "sliding_attention layers"), ("falcon_h1", "hybrid layers")]
)
def test_families_are_decoded_this_way_if_their_layers_keep_all_keys_or_a_state(family: str, said: str | None) -> None:
    found = static_obstacle(TransformersBackend(PlainModel(make_model(family)), torch.device("cpu")))
    assert (found is None) if said is None else said in str(found)


def test_an_attention_of_another_kind_is_left_alone() -> None:
    backend = make("llama")
    backend.base.config._attn_implementation = "eager"
    assert "attention of type eager" in str(static_obstacle(backend))
    backend.own_attention = "its kernels are its own"
    assert static_obstacle(backend) == "its kernels are its own"
