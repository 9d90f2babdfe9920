from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from hypothesis import HealthCheck, example, given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

from sdft_cli.config import DistillSettings, load_train_config  # noqa: E402
from sdft_cli.engine.models.adapters import EmaAdapter, weights  # noqa: E402
from sdft_cli.engine.models.backend import Backend  # noqa: E402
from sdft_cli.engine.models.load import load_backend  # noqa: E402
from sdft_cli.engine.objective.loss import distillation_loss  # noqa: E402
from sdft_cli.engine.passes import attention  # noqa: E402
from sdft_cli.engine.passes.decode import generate, left_padded  # noqa: E402
from sdft_cli.engine.passes.depth_first import (  # noqa: E402
    depth_first_obstacle,
    depth_first_passes,
    depth_first_states,
    forked_cache,
)
from sdft_cli.errors import UsageError  # noqa: E402
from tests.engine.trees import (  # noqa: E402
    ANSWERS,
    HIDDEN,
    KINDS,
    PROMPTS,
    TRUNK,
    alone,
    error,
    go_back,
    gradient,
    ids,
    independent,
    leaf_loss,
    make,
)


def backward(backend: Backend, prompts: Any, answers: Any, loss: Any, *sizes: int) -> None:
    go_back(depth_first_passes(backend, prompts, answers, *sizes), lambda turns, states: loss(turns[0], states))


@pytest.fixture(scope="module", params=KINDS)
def backend(request: pytest.FixtureRequest) -> Backend:
    return make(request.param)


@pytest.mark.parametrize(("segment", "shortest"), [(3, 2), (17, 2), (64, 16), (1000, 16)])
def test_the_gradient_is_that_of_independent_turns(backend: Backend, segment: int, shortest: int) -> None:
    expected = independent(backend, PROMPTS, ANSWERS)
    found = gradient(backend, lambda: backward(backend, PROMPTS, ANSWERS, leaf_loss, segment, shortest))
    assert expected.norm() > 0
    assert error(found, expected) <= 1e-5


@pytest.mark.parametrize("block", [1, 5, 16])
def test_attention_in_blocks_changes_nothing(backend: Backend, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = independent(backend, PROMPTS, ANSWERS)
    monkeypatch.setattr(attention, "PATH_BLOCK", block)
    found = gradient(backend, lambda: backward(backend, PROMPTS, ANSWERS, leaf_loss, 33, 4))
    assert error(found, expected) <= 1e-5


@pytest.mark.parametrize("turn", [0, 2, 4])
def test_a_single_turn(backend: Backend, turn: int) -> None:
    prompts, answers = [PROMPTS[turn]], [ANSWERS[turn]]
    expected = independent(backend, prompts, answers)
    for segment in (3, 16, 1000):
        found = gradient(backend, lambda s=segment: backward(backend, prompts, answers, leaf_loss, s))
        assert error(found, expected) <= 1e-5


def test_gradients_add_to_those_before_and_no_loss_leaves_none(backend: Backend) -> None:
    def none(index: int, states: Any) -> Any:
        return torch.zeros(())

    gradient(backend, lambda: backward(backend, PROMPTS, ANSWERS, none, 16, 2))
    assert all(p.grad is None for p in backend.parameters())
    backward(backend, [], [], none, 16)
    backward(backend, [[5, 6]], [[]], none, 16)
    once = gradient(backend, lambda: backward(backend, PROMPTS, ANSWERS, leaf_loss, 16, 2))
    backward(backend, PROMPTS, ANSWERS, leaf_loss, 16, 2)
    twice = torch.cat([p.grad.flatten() for p in backend.parameters()])
    assert error(twice, 2 * once) <= 1e-6


def test_states_are_those_of_each_sequence_alone(backend: Backend) -> None:
    with torch.no_grad():
        expected = torch.cat([alone(backend, x, y) for x, y in zip(PROMPTS, ANSWERS, strict=True)])
    for segment in (5, 16, 1000):
        found = depth_first_states(backend, PROMPTS, ANSWERS, segment)
        assert not found.requires_grad
        assert found.shape == expected.shape
        assert error(found, expected) <= 1e-5
    assert depth_first_states(backend, [[5]], [[]], 16).shape == (0, HIDDEN)


@pytest.mark.parametrize("teacher", ["base", "ema"])
def test_distillation_from_the_teacher_with_its_own_prompts(backend: Backend, teacher: Any) -> None:
    """A whole step: teacher and student depth-first, the loss of the trainer, against the same turn by turn."""
    ema = EmaAdapter(backend.model, 0.5)
    for tensor in ema.tensors.values():
        tensor.mul_(0.5)
    shown = [[*x, *ids(6, 90 + i)] for i, x in enumerate(PROMPTS[:7])]
    prompts, answers = PROMPTS[:7], ANSWERS[:7]
    lengths = [len(y) for y in answers]

    def loss_against(targets: Any) -> Any:
        def loss(index: int, states: Any) -> Any:
            share = torch.full((len(states),), 1 / sum(lengths))
            return distillation_loss(states, targets[index], backend.head, share, DistillSettings()).loss

        return loss

    with weights(backend.model, teacher, ema):
        plain = [alone(backend, x, y) for x, y in zip(shown, answers, strict=True)]
        ours = depth_first_states(backend, shown, answers, 16).split(lengths)
    expected = independent(backend, prompts, answers, loss_against(plain))
    found = gradient(backend, lambda: backward(backend, prompts, answers, loss_against(ours), 16, 4))
    assert error(found, expected) <= 2e-5  # the teacher's rounding comes on top of the student's


TREES = st.lists(
    st.tuples(st.integers(0, 40), st.integers(1, 40), st.integers(0, 3), st.integers(1, 12)), min_size=1, max_size=5
)


@pytest.fixture(scope="module")
def llama() -> Backend:
    return make("llama")


@pytest.fixture(scope="module")
def hybrid() -> Backend:
    return make("hybrid")


@pytest.mark.parametrize("kind", ["llama", "hybrid"])
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@example(tree=[(0, 9, 0, 1), (7, 2, 0, 1), (7, 2, 0, 1)], segment=3, shortest=8)
@given(tree=TREES, segment=st.integers(3, 20), shortest=st.integers(2, 8))
def test_random_trees(
    kind: str, tree: list[tuple[int, int, int, int]], segment: int, shortest: int, request: pytest.FixtureRequest
) -> None:
    """Each prompt takes some tokens of the one before it, and goes on with few distinct tokens; lengths 1 to 40."""
    found_backend: Backend = request.getfixturevalue(kind)
    prompts: list[list[int]] = []
    answers = []
    for i, (shared, length, start, answer) in enumerate(tree):
        last = prompts[-1] if prompts else []
        prompts.append([*last[:shared], *(3 + (start + j) % 4 for j in range(length))][:40])
        answers.append(ids(answer, i))
    expected = independent(found_backend, prompts, answers, lambda i, s: leaf_loss(i + 2, s))
    found = gradient(
        found_backend,
        lambda: backward(found_backend, prompts, answers, lambda i, s: leaf_loss(i + 2, s), segment, shortest),
    )
    assert error(found, expected) <= 1e-5


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"layer_types": ["sliding_attention", "full_attention"]}, "sliding_attention layers"),
        ({"layer_types": ["linear_attention", "full_attention"]}, "no gated delta rule"),
        ({"sliding_window": 128}, "sliding window"),
        ({"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}}, "positions of type dynamic"),
        ({"attention_dropout": 0.1}, "dropout"),
    ],
)
def test_models_that_cannot_run_depth_first_are_refused(change: dict[str, Any], why: str) -> None:
    backend = make("llama")
    for key, value in change.items():
        setattr(backend.base.config, key, value)
    assert why in str(depth_first_obstacle(backend))
    with pytest.raises(UsageError, match=f"cannot run depth-first: .*{why}.*; use prefix_sharing=none"):
        backward(backend, [[5, 6]], [[7]], leaf_loss, 16)


def test_dropout_of_the_adapter_is_refused(tiny_model: Path) -> None:
    backend = load_backend(load_train_config("cpu-demo", ["lora.dropout=0.1"]), "transformers", str(tiny_model))
    assert "dropout" in str(depth_first_obstacle(backend))
    with pytest.raises(UsageError, match="dropout"):
        depth_first_states(backend, [[5, 6]], [[7]], 16)


def test_gradient_checkpointing_and_train_mode_change_nothing(tiny_model: Path) -> None:
    """Checkpointing takes the cache away in train mode; the pass runs in eval mode and puts train mode back."""
    config = load_train_config("cpu-demo", ["gradient_checkpointing=true", "lora.rank=4"])
    backend = load_backend(config, "transformers", str(tiny_model))
    torch.manual_seed(1)
    for p in backend.parameters():
        p.data.add_(torch.randn_like(p) * 0.1)
    modes = [module.training for module in backend.model.modules()]
    assert any(modes)
    expected = independent(backend, PROMPTS, ANSWERS)
    found = gradient(backend, lambda: backward(backend, PROMPTS, ANSWERS, leaf_loss, 16, 4))
    assert [module.training for module in backend.model.modules()] == modes
    assert error(found, expected) <= 1e-5


def decode_from(backend: Backend, prompts: list[list[int]], cache: Any) -> list[list[int]]:
    from transformers import GenerationConfig

    inputs, mask = left_padded(prompts, 0)
    config = GenerationConfig(max_new_tokens=12, do_sample=False, pad_token_id=0, use_cache=True)
    output = backend.model.generate(
        input_ids=inputs, attention_mask=mask, past_key_values=cache, generation_config=config
    )
    return output[:, inputs.shape[1] :].tolist()  # type: ignore[no-any-return]


def test_rollouts_from_a_forked_cache_are_those_of_each_prompt_alone(backend: Backend) -> None:
    prompts = [*PROMPTS, TRUNK[:2]]
    expected = [generate(backend, [p], 12, [], 0)[0].ids for p in prompts]
    for chosen in (range(len(prompts)), range(3), [8]):  # batches of other sizes, one after the other
        some = [prompts[i] for i in chosen]
        assert decode_from(backend, some, forked_cache(backend, some, 16)) == [expected[i] for i in chosen]
    assert len({tuple(e) for e in expected}) > 3


@pytest.mark.slow
def test_smollm2(smollm2: Path) -> None:
    backend = load_backend(load_train_config("cpu-demo", ["lora.rank=4"]), "transformers", str(smollm2))
    torch.manual_seed(1)
    for p in backend.parameters():
        p.data.add_(torch.randn_like(p) * 0.02)
    prompts = [TRUNK[:60], TRUNK, [*TRUNK[:40], *ids(9, 1)], ids(3, 2)]
    answers = [ids(n, 30 + n) for n in (8, 20, 1, 4)]
    loss: Any = lambda i, s: leaf_loss(i + 2, s)  # noqa: E731
    expected = independent(backend, prompts, answers, loss)
    found = gradient(backend, lambda: backward(backend, prompts, answers, loss, 32))
    assert error(found, expected) <= 1e-5
