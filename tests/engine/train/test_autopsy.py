"""What a kept sample says, against the whole model on one sequence and full softmaxes."""

from __future__ import annotations

from typing import Any

import pytest

torch = pytest.importorskip("torch")

from sdft_cli.engine.models.adapters import weights  # noqa: E402
from sdft_cli.engine.passes.decode import Rollout  # noqa: E402
from sdft_cli.engine.passes.timing import Phases  # noqa: E402
from sdft_cli.engine.train.autopsy import CHOICES, Autopsy, sample_line  # noqa: E402
from sdft_cli.records import Dataset  # noqa: E402
from tests.engine.train.test_sdft_step import ROLLOUTS, log_softmax_at, moved, trainer  # noqa: E402


def look(found: Any, rollouts: list[Rollout], data: Dataset, objective: str | None = None) -> tuple[Autopsy, Any, Any]:
    examples = [found.example(r) for r in data.train[: len(rollouts)]]
    autopsy = Autopsy(found.backend.head, found.config.distill)
    scored = found.backward(examples, rollouts, Phases(), objective=objective, watch=autopsy.look)
    return autopsy, scored, examples


@pytest.mark.parametrize("sharing", ["none", "packed", "depth_first"])
def test_choices_are_those_of_full_distributions_at_the_worst_tokens(
    sharing: Any, tiny_model: Any, tiny_data: Dataset
) -> None:
    """Also where the first trajectory is not the first of its pass."""
    found = moved(trainer(tiny_model, tiny_data, "distill.kl_temperature=1.5", "optim.max_tokens_per_pass=600"))
    found.backend.sharing, found.backend.segment_tokens = sharing, 64
    autopsy, scored, examples = look(found, ROLLOUTS, tiny_data)
    ids = ROLLOUTS[0].ids
    assert [place["at"] for place in autopsy.worst] == [0, 1, 2]
    with torch.no_grad():
        own = log_softmax_at(found, examples[0].student, ids)
        with weights(found.backend.model, "base"):
            other = log_softmax_at(found, examples[0].teacher, ids)
    for role, log_p in (("student", own), ("teacher", other)):
        p = (log_p / 1.5).softmax(-1)
        for place in autopsy.worst:
            row = p[place["at"]]
            assert place[role]["p"] == pytest.approx(float(row[ids[place["at"]]]), rel=1e-4)
            tokens, values = zip(*place[role]["choices"], strict=True)
            assert list(values) == pytest.approx(row.topk(CHOICES).values.tolist(), rel=1e-4)
            assert [float(row[token]) for token in tokens] == pytest.approx(list(values), rel=1e-4)
    kl = (p_s := (own / 1.5).softmax(-1)) * (p_s.log() - (other / 1.5).log_softmax(-1))
    assert scored.per_token[0] == pytest.approx(kl.sum(-1).tolist(), rel=1e-3)


def test_the_worst_are_the_largest_losses(tiny_model: Any, tiny_data: Dataset, monkeypatch: Any) -> None:
    monkeypatch.setattr("sdft_cli.engine.train.autopsy.WORST", 2)
    found = moved(trainer(tiny_model, tiny_data))
    rollout = Rollout([11, 12, 13, 14, 15, 16], False)
    autopsy, scored, _ = look(found, [rollout], tiny_data)
    losses = scored.per_token[0]
    assert [x["at"] for x in autopsy.worst] == sorted(sorted(range(6), key=lambda i: -losses[i])[:2])


def test_watching_changes_no_bit_and_the_control_arm_has_no_teacher(tiny_model: Any, tiny_data: Dataset) -> None:
    losses = []
    for watch in (False, True):
        found = moved(trainer(tiny_model, tiny_data))
        examples = [found.example(r) for r in tiny_data.train[:3]]
        autopsy = Autopsy(found.backend.head, found.config.distill)
        scored = found.backward(examples, ROLLOUTS, Phases(), watch=autopsy.look if watch else None)
        grads = [p.grad.clone() for p in found.backend.parameters() if p.grad is not None]
        losses.append((scored.loss, grads))
    assert losses[0][0] == losses[1][0]
    assert all(torch.equal(a, b) for a, b in zip(losses[0][1], losses[1][1], strict=True))
    autopsy, scored, _ = look(found, ROLLOUTS, tiny_data, objective="sft")
    assert all("teacher" not in place for place in autopsy.worst)
    assert [-torch.tensor(place["student"]["p"]).log() for place in autopsy.worst] == pytest.approx(
        [scored.per_token[0][place["at"]] for place in autopsy.worst], rel=1e-4
    )


@pytest.mark.parametrize("which", [0, 1])
def test_a_line_of_samples_says_what_kind_of_trajectory_and_adds_up_the_step(
    tiny_model: Any, tiny_data: Dataset, which: int
) -> None:
    """The second record is the expert's turn; the first token of each trajectory has no loss."""
    settings = ["distill.lambda_on_policy=0.5", "distill.lambda_by=turn", "distill.skip_first_tokens=1"]
    found = moved(trainer(tiny_model, tiny_data, *settings))
    autopsy = Autopsy(found.backend.head, found.config.distill, which)
    result = found.step(1, tiny_data.train[:4], 0, autopsy.look)
    line = sample_line(result, autopsy, found.config, found.prompts)
    assert line["on_policy"] is result.taken.on_policy[which]
    assert line["measure"] == "kl_per_token"
    assert line["first_with_loss"] == 1
    assert len(line["tokens"]) == len(line["kinds"]) == len(result.taken.rollouts[which].ids)
    assert "".join(line["tokens"]) == line["rollout"]
    for place in line["worst"]:
        assert place["token"] == result.taken.rollouts[which].ids[place["at"]]
        assert all(isinstance(text, str) for _, text, _ in place["teacher"]["choices"])
    assert set(line["sums"]) == {"rollouts", "expert"}
    for name, own in (("rollouts", True), ("expert", False)):
        sums = line["sums"][name]
        values = [x for x, flag in zip(result.scored.per_token, result.taken.on_policy, strict=True) if flag is own]
        assert sums["trajectories"] == len(values) == 2
        for part in ("kinds", "positions"):
            assert sum(total for total, _ in sums[part].values()) == pytest.approx(sum(map(sum, values)), abs=1e-4)
            assert sum(count for _, count in sums[part].values()) == sum(len(x) - 1 for x in values)
        assert sums["positions"]["1"] == pytest.approx([sum(x[1] for x in values), 2], abs=1e-5)
        assert sums["positions"]["2"][0] == pytest.approx(sum(sum(x[2:4]) for x in values), abs=1e-5)
        assert "0" not in sums["positions"]
    assert "control" in line["sums"]["expert"]["kinds"]  # the token that ends the turn
