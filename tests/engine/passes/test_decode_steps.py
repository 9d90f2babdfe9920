from __future__ import annotations

from typing import Any

import pytest

torch = pytest.importorskip("torch")

from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402

from sdft_cli.engine.kernels.halves import reads_halves  # noqa: E402
from sdft_cli.engine.kernels.packed import MOST_ROWS  # noqa: E402
from sdft_cli.engine.models.adapters import weights  # noqa: E402
from sdft_cli.engine.models.backend import Backend  # noqa: E402
from sdft_cli.engine.models.backend_transformers import PlainModel, TransformersBackend  # noqa: E402
from sdft_cli.engine.passes import decode_steps  # noqa: E402
from sdft_cli.engine.passes.attention import SLOTS, attend_to_slots  # noqa: E402
from sdft_cli.engine.passes.decode import generate, left_padded  # noqa: E402
from sdft_cli.engine.passes.decode_steps import (  # noqa: E402
    PACKED_FROM,
    FixedStep,
    Sampling,
    SlotLayer,
    decode_in_steps,
    steps_obstacle,
)
from sdft_cli.engine.passes.start_check import base_in_halves  # noqa: E402
from sdft_cli.errors import VerificationError  # noqa: E402
from tests.engine.models.families import make_model  # noqa: E402
from tests.engine.trees import PROMPTS, as_stored, ids, make  # noqa: E402

WAYS = [
    ("llama", "none"),
    ("qwen3", "packed"),
    ("qwen2", "depth_first"),
    ("hybrid", "none"),
    ("multimodal", "depth_first"),
]
GREEDY = Sampling(None, 1.0, (), 0)


OURS = ["fixed", "growing", "packed", "halves"]
"""Kinds of step; `packed`: over a growing cache, with packed weights; `halves`: in float16, which holds them."""


def use(backend: Backend, kind: str) -> None:
    ours = kind in ("packed", "halves")
    backend.decoder, backend.packed_steps = ("growing", True) if ours else (kind, False)  # type: ignore
    backend.halves = base_in_halves(backend) if kind == "halves" else None
    assert (backend.halves is None) == (kind != "halves")


def both(backend: Backend, kind: str, *arguments: Any, **settings: Any) -> tuple[Any, Any]:
    """What `generate` decodes, and what comes of steps of our own."""
    found = []
    if kind == "halves":
        if not reads_halves():
            pytest.skip("this torch has no products with float16 weights")
        as_stored(backend)
    for decoder in ("generate", kind):
        use(backend, decoder)
        torch.manual_seed(3)
        found.append(generate(backend, *arguments, **settings))
    use(backend, "generate")
    return found[0], found[1]


def plain_log_probs(backend: Backend, prompt: list[int], answer: list[int]) -> Any:
    """From one forward pass of the model itself, in fp64."""
    with torch.no_grad():
        logits = backend.base(input_ids=torch.tensor([[*prompt, *answer]])).logits[0, len(prompt) - 1 : -1].double()
    return (logits - logits.logsumexp(-1, keepdim=True)).gather(-1, torch.tensor(answer)[:, None])[:, 0]


@pytest.mark.parametrize("ours", OURS)
@pytest.mark.parametrize(("kind", "sharing"), WAYS)
def test_greedy_tokens_are_those_of_generate_and_log_probs_those_of_a_pass(kind: str, sharing: Any, ours: str) -> None:
    backend = make(kind)
    backend.sharing = sharing
    expected, found = both(backend, ours, PROMPTS, 96, [], 0, record_log_probs=True)
    pairs = [(x, y) for a, b in zip(expected, found, strict=True) for x, y in zip(a.ids, b.ids, strict=True)]
    assert len(pairs) == 768
    assert sum(x != y for x, y in pairs) == 0
    for prompt, rollout in zip(PROMPTS, found, strict=True):
        own = torch.tensor(rollout.log_probs, dtype=torch.float64)
        assert float((own - plain_log_probs(backend, prompt, rollout.ids)).abs().max()) < 1e-5


@pytest.mark.parametrize("ours", OURS)
@pytest.mark.parametrize("case", ["adapter", "merged", "base"])
def test_samples_of_a_seed_are_those_of_generate_with_their_stops_and_padding(case: Any, ours: str) -> None:
    """Where the whole vocabulary is drawn from; the nucleus is drawn otherwise (`test_sampling.py`)."""
    backend = make("llama")
    with weights(backend.model, case):
        expected, found = both(backend, ours, PROMPTS, 40, [5, 6, 7], 0, 0.8)
        free, freely = both(backend, ours, PROMPTS, 20, [], 0, 1.0)
    assert found == expected
    assert {rollout.finished for rollout in found} == {True, False}
    assert freely == free != expected


@pytest.mark.parametrize("ours", ["packed", "halves"])
def test_packed_weights_are_those_that_are_on_and_plain_ones_are_back_afterwards(ours: str) -> None:
    backend = make("llama")
    if ours == "halves":
        if not reads_halves():
            pytest.skip("this torch has no products with float16 weights")
        as_stored(backend)
    use(backend, ours)
    found = {}
    for case in ("base", "merged", "adapter", "base"):
        with weights(backend.model, case):  # type: ignore[arg-type]
            answers = generate(backend, PROMPTS, 20, [], 0, record_log_probs=True)
            for prompt, answer in zip(PROMPTS, answers, strict=True):
                own = torch.tensor(answer.log_probs, dtype=torch.float64)
                assert float((own - plain_log_probs(backend, prompt, answer.ids)).abs().max()) < 1e-5
        found[case] = answers
        assert not any("forward" in vars(module) for module in backend.model.modules())
    assert [a.ids for a in found["merged"]] == [a.ids for a in found["adapter"]]
    assert found["merged"] != found["base"]


def test_few_tokens_and_many_rows_are_not_worth_packing(monkeypatch: pytest.MonkeyPatch) -> None:
    backend = make("llama")
    use(backend, "packed")
    packed: list[int] = []
    own = decode_steps.packed_products
    monkeypatch.setattr(
        decode_steps, "packed_products", lambda model, rows, *rest: packed.append(rows) or own(model, rows)
    )
    for prompts, tokens in (([[5, 6]] * 2, PACKED_FROM - 1), ([[5, 6]] * (MOST_ROWS + 1), 9), ([[5, 6]] * 2, 9)):
        generate(backend, prompts, tokens, [], 0)
    assert packed == [2]


@pytest.mark.parametrize("ours", OURS)
def test_answers_may_be_longer_than_what_fits_behind_the_prompt_in_a_part_of_the_buffer(ours: str) -> None:
    backend = make("hybrid")
    expected, found = both(backend, ours, [ids(SLOTS - 20, 1), ids(7, 2)], 60, [], 0)
    assert found == expected


@pytest.mark.parametrize("ours", OURS)
def test_one_token_prompts_and_one_token_answers(ours: str) -> None:
    backend = make("qwen3")
    for sharing in ("none", "packed", "depth_first"):
        backend.sharing = sharing
        expected, found = both(backend, ours, [[5], [6, 7]], 1, [], 0)
        assert found == expected
    expected, found = both(backend, ours, [[5], [5]], 9, [], 0)
    assert found == expected


@pytest.mark.parametrize("top_p", [1.0, 0.9])
@pytest.mark.parametrize("ours", [kind for kind in OURS if kind != "halves"])  # float16 does not hold such a head
def test_logits_that_are_not_finite_are_one_sentence(ours: str, top_p: float) -> None:
    backend = make("llama")
    backend.head.weight.data[:] = torch.nan
    use(backend, ours)
    with pytest.raises(VerificationError, match="not finite"):
        generate(backend, PROMPTS, 4, [], 0, 1.0, top_p)


@pytest.mark.skipif(not reads_halves(), reason="this torch has no products with float16 weights")
@pytest.mark.parametrize("case", ["adapter", "base"])
def test_a_step_has_one_product_for_layers_that_read_one_tensor(case: Any) -> None:
    """Of a Llama's layer: query, key and value; output; gate and up; down. And one for the head."""
    backend = make("llama")
    as_stored(backend)
    use(backend, "halves")
    found = {}
    for tokens in (PACKED_FROM, PACKED_FROM + 4):
        with weights(backend.model, case), torch.profiler.profile() as profile:
            generate(backend, PROMPTS, tokens, [], 0)
        counts = {event.key: event.count for event in profile.key_averages()}
        found[tokens] = counts["quantized::linear_dynamic_fp16"]
    layers = backend.base.config.get_text_config().num_hidden_layers
    assert found[PACKED_FROM + 4] - found[PACKED_FROM] == 4 * (4 * layers + 1)


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

    def runner(step: FixedStep) -> Any:
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

    decode_in_steps(backend, PROMPTS, *left_padded(PROMPTS, 0), 5, GREEDY, runner)
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
    found = steps_obstacle(TransformersBackend(PlainModel(make_model(family)), torch.device("cpu")))
    assert (found is None) if said is None else said in str(found)


def test_an_attention_of_another_kind_is_left_alone() -> None:
    backend = make("llama")
    backend.base.config._attn_implementation = "eager"
    assert "attention of type eager" in str(steps_obstacle(backend))
    backend.own_attention = "its kernels are its own"
    assert steps_obstacle(backend) == "its kernels are its own"
