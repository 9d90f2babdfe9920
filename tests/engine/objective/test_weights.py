from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

torch = pytest.importorskip("torch")

from sdft_cli.config import DistillSettings  # noqa: E402
from sdft_cli.engine.objective.formula import token_weights  # noqa: E402
from sdft_cli.engine.objective.weights import Answers, prefix, reweighted  # noqa: E402
from sdft_cli.engine.passes.decode import Rollout  # noqa: E402


def test_prefix_weights_by_hand() -> None:
    """Gaps 1, 0, 3: nothing, a quarter, a quarter of them lie before the tokens; g = 0.5."""
    p, q = torch.tensor([-1.0, -2.0, -4.0]), torch.tensor([-2.0, -2.0, -1.0])
    settings = DistillSettings(token_weights="prefix")
    assert prefix(p, q, settings).tolist() == pytest.approx([1.5, 1.375, 1.375])
    assert prefix(p, p, settings).tolist() == [1.5, 1.5, 1.5]
    half, factors = torch.tensor([0.1, 0.1, 0.1, 0.4]), [1.5, 1.375, 1.375]
    answers = Answers(torch.zeros(4, dtype=torch.long), [3, 1], [True, True])
    found = reweighted(half, torch.cat([p, p[:1]]), torch.cat([q, q[:1]]), answers, settings)
    assert found.tolist() == pytest.approx([0.3 * f / sum(factors) for f in factors] + [0.4])


def test_the_experts_turns_and_tokens_without_loss_keep_their_weights() -> None:
    p, q = torch.tensor([-9.0, -1.0, -4.0]), torch.tensor([-2.0, -3.0, -1.0])
    settings = DistillSettings(token_weights="prefix", prefix_gain=1.0)
    weights = torch.tensor([0.0, 0.5, 0.5])
    own = reweighted(weights, p, q, Answers(torch.zeros(3), [3], [False]), settings)
    assert torch.equal(own, weights)
    # Gaps 2 and 3: factors 2 and 2 - 2/5; the token without loss, with its gap of 7, counts for nothing.
    found = reweighted(weights, p, q, Answers(torch.zeros(3), [3], [True]), settings)
    assert found.tolist() == pytest.approx([0.0, 2 / 3.6, 1.6 / 3.6])


@given(
    st.lists(st.lists(st.tuples(st.floats(-30, 0), st.floats(-30, 0)), min_size=1, max_size=9), min_size=1, max_size=4),
    st.floats(0, 4),
    st.sampled_from(["tokens", "sequences"]),
)
def test_prefix_weights_fall_and_each_trajectory_keeps_its_sum(
    rows: list[list[tuple[float, float]]], gain: float, average: str
) -> None:
    settings = DistillSettings.model_validate({"token_weights": "prefix", "prefix_gain": gain, "average": average})
    rollouts = [Rollout([0] * len(row), True) for row in rows]
    weights = torch.tensor([w for share in token_weights(rollouts, settings) for w in share], dtype=torch.float64)
    p, q = torch.tensor([pair for row in rows for pair in row], dtype=torch.float64).T
    lengths = list(map(len, rows))
    answers = Answers(torch.zeros(len(p)), lengths, [True] * len(rows))
    found = reweighted(weights, p, q, answers, settings)
    for old, new in zip(weights.split(lengths), found.split(lengths), strict=True):
        assert new.sum().item() == pytest.approx(old.sum().item())
        assert (new.diff() <= 1e-12).all()
        assert new[0] <= (1 + gain) * new[-1] + 1e-12
