"""Every way to run turns gives the states and the gradient of each turn alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from sdft_cli.config import load_train_config  # noqa: E402
from sdft_cli.engine.models.backend import Backend  # noqa: E402
from sdft_cli.engine.models.load import load_backend  # noqa: E402
from sdft_cli.engine.passes.decode import generate  # noqa: E402
from sdft_cli.engine.passes.executors import answer_states, decoding_cache, plan_passes, student_passes, teacher_passes  # noqa: E402
from sdft_cli.engine.passes.timing import Phases  # noqa: E402
from tests.engine.trees import (  # noqa: E402
    ANSWERS,
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

CASES = [
    ("llama", "none"),
    ("llama", "packed"),
    ("llama", "depth_first"),
    ("qwen3", "packed"),
    ("qwen3", "depth_first"),
    ("hybrid", "none"),
    ("hybrid", "depth_first"),
    ("multimodal", "depth_first"),
]


@pytest.fixture(scope="module", params=CASES, ids="-".join)
def backend(request: pytest.FixtureRequest) -> Backend:
    kind, sharing = request.param
    found = make(kind)
    found.sharing, found.segment_tokens = sharing, 16
    return found


def turns_loss(turns: Sequence[int], states: Any) -> Any:
    """The sum of the turns' losses; the states of some turns come joined."""
    parts = states.split([len(ANSWERS[i]) for i in turns])
    return sum((leaf_loss(i, part) for i, part in zip(turns, parts, strict=True)), torch.zeros(()))


@pytest.mark.parametrize("max_tokens", [1, 100, 100_000])
def test_a_step_has_the_gradient_of_its_turns_alone(backend: Backend, max_tokens: int) -> None:
    expected = independent(backend, PROMPTS, ANSWERS)
    seen: list[int] = []

    def loss(turns: Sequence[int], states: Any) -> Any:
        seen.extend(turns)
        return turns_loss(turns, states)

    phases = Phases()
    run = lambda: go_back(student_passes(backend, PROMPTS, ANSWERS, 0, max_tokens, phases), loss)  # noqa: E731
    assert error(gradient(backend, run), expected) <= 1e-5
    assert sorted(seen) == [i for i, answer in enumerate(ANSWERS) if answer]
    walks_back = {"backward"} if backend.sharing == "depth_first" else set()
    assert phases.seconds.keys() == {"student", *walks_back}


def test_a_step_of_one_turn_and_one_without_loss(backend: Backend) -> None:
    expected = independent(backend, PROMPTS[:1], ANSWERS[:1])
    found = gradient(backend, lambda: go_back(student_passes(backend, PROMPTS[:1], ANSWERS[:1], 0, 50), turns_loss))
    assert error(found, expected) <= 1e-5
    gradient(backend, lambda: go_back(student_passes(backend, PROMPTS, ANSWERS, 0, 50), lambda t, s: torch.zeros(())))
    assert all(p.grad is None for p in backend.parameters())


@pytest.mark.parametrize("max_tokens", [1, 100, 100_000])
def test_the_states_of_a_step_are_those_of_its_turns_alone(backend: Backend, max_tokens: int) -> None:
    with torch.no_grad():
        expected = [alone(backend, x, y) for x, y in zip(PROMPTS, ANSWERS, strict=True)]
    found = teacher_passes(backend, PROMPTS, ANSWERS, 0, max_tokens)
    assert [tuple(x.shape) for x in found] == [tuple(x.shape) for x in expected]
    assert error(torch.cat(found), torch.cat(expected)) <= 1e-5
    joined = answer_states(backend, PROMPTS, ANSWERS, 0)
    assert not joined.requires_grad
    assert error(joined, torch.cat(expected)) <= 1e-5


def test_rollouts_from_a_shared_cache_are_those_of_each_prompt_alone(backend: Backend) -> None:
    prompts = [*PROMPTS, TRUNK[:2]]
    sharing = backend.sharing
    backend.sharing = "none"
    expected = [generate(backend, [p], 12, [], 0)[0].ids for p in prompts]
    backend.sharing = sharing
    for chosen in (range(len(prompts)), range(3), [8]):
        found = generate(backend, [prompts[i] for i in chosen], 12, [], 0)
        assert [rollout.ids for rollout in found] == [expected[i] for i in chosen]
    lengths = [decoding_cache(backend, rows, 12).get_seq_length() for rows in (prompts, [[5], [6, 7]])]
    assert lengths == [0 if sharing == "none" else max(map(len, prompts)) - 1, 0]  # nothing before the last token


def test_a_plan_counts_what_the_pass_will_cost(tiny_model: Path) -> None:
    found = load_backend(load_train_config("cpu-demo", ["lora.rank=4"]), "transformers", str(tiny_model))
    rows = [[1, 2, 3, 4], [1, 2, 3, 5], [1, 2, 3, 6]]
    assert plan_passes(found, rows, 6) == [[0], [1], [2]]
    for sharing in ("packed", "depth_first"):
        found.sharing = sharing  # type: ignore[assignment]
        assert plan_passes(found, rows, 6) == [[0, 1, 2]]


@pytest.mark.parametrize(("kind", "sharing"), [case for case in CASES if case[1] != "none"])
def test_bf16_stays_within_its_rounding(kind: str, sharing: Any) -> None:
    """A shared step is no further from the fp32 gradient than independent turns in bf16 are, up to a fifth."""
    exact = independent(make(kind), PROMPTS, ANSWERS)
    half = make(kind, torch.bfloat16)
    plain = error(independent(half, PROMPTS, ANSWERS), exact)
    half.sharing, half.segment_tokens = sharing, 16
    ours = gradient(half, lambda: go_back(student_passes(half, PROMPTS, ANSWERS, 0, 100_000), turns_loss))
    assert error(ours, exact) <= 1.2 * plain


@pytest.mark.slow
@pytest.mark.parametrize("sharing", ["packed", "depth_first"])
def test_smollm2(smollm2: Path, sharing: Any) -> None:
    found = load_backend(load_train_config("cpu-demo", ["lora.rank=4"]), "transformers", str(smollm2))
    torch.manual_seed(1)
    for p in found.parameters():
        p.data.add_(torch.randn_like(p) * 0.02)
    prompts = [TRUNK[:60], TRUNK, [*TRUNK[:40], *ids(9, 1)], ids(3, 2)]
    answers = [ids(n, 30 + n) for n in (8, 20, 1, 4)]
    expected = independent(found, prompts, answers, lambda i, s: leaf_loss(i + 2, s))

    def loss(turns: Sequence[int], states: Any) -> Any:
        parts = states.split([len(answers[i]) for i in turns])
        return sum(leaf_loss(i + 2, part) for i, part in zip(turns, parts, strict=True))

    found.sharing, found.segment_tokens = sharing, 32
    assert (
        error(gradient(found, lambda: go_back(student_passes(found, prompts, answers, 0, 1000), loss)), expected)
        <= 1e-5
    )
