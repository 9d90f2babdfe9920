"""TRL's trainer, as the benchmarks set it, and this engine compute the same loss and gradient on the same rollouts."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("trl.experimental.sdft", reason="trl with SDFTTrainer is not installed")

from benchmarks import engine_side, trl_side  # noqa: E402
from benchmarks.turns import write_turns  # noqa: E402
from sdft_cli.engine.passes.decode import Rollout  # noqa: E402
from sdft_cli.engine.passes.timing import Phases  # noqa: E402
from sdft_cli.engine.train.sdft_step import Example  # noqa: E402

TURNS, LENGTH = 4, 6


@pytest.fixture(scope="module")
def job(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("trl")
    data, _ = write_turns(folder, str(tiny_model), None, TURNS, 400)
    return {
        "data": str(data),
        "model": str(tiny_model),
        "turns": TURNS,
        "batch": 2,
        "decoded": TURNS,
        "rollout_tokens": LENGTH,
        "lora_rank": 4,
        "dtype": "float32",
        "threads": 1,
    }


def lora_tensors(model: Any) -> dict[str, Any]:
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def test_alpha_one_is_the_divergence_from_student_to_teacher() -> None:
    from trl.experimental.sdft.loss_utils import compute_full_logit_self_distillation_loss as loss

    p, q = (0.7, 0.2, 0.1), (0.2, 0.5, 0.3)
    student, teacher = (torch.tensor([[math.log(x) for x in d]]) for d in (p, q))
    expected = sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
    other = sum(b * math.log(b / a) for a, b in zip(p, q, strict=True))
    assert loss(student, teacher, distillation_alpha=1.0).item() == pytest.approx(expected, rel=1e-5)
    assert loss(student, teacher, distillation_alpha=0.0).item() == pytest.approx(other, rel=1e-5)
    assert abs(expected - other) > 0.01


@pytest.mark.slow
@pytest.mark.parametrize("variant", list(engine_side.VARIANTS))
def test_loss_and_gradient_are_the_same_on_the_same_rollouts(job: dict[str, Any], variant: str) -> None:
    theirs, _, records, rows = trl_side.open_trainer(job)
    ours, _, _ = engine_side.open_trainer(job, variant)
    own, other = lora_tensors(ours.backend.model), lora_tensors(theirs.model)
    assert own.keys() == other.keys()
    generator = torch.Generator().manual_seed(1)
    for name, parameter in own.items():
        parameter.data.normal_(generator=generator).mul_(0.2)
        other[name].data.copy_(parameter.data)

    theirs.model.train()
    theirs.current_gradient_accumulation_steps = TURNS // job["batch"]
    total = 0.0
    for _ in range(theirs.current_gradient_accumulation_steps):
        batch = theirs._prepare_inputs(rows)
        loss = theirs.compute_loss(theirs.model, batch)
        loss.backward()
        total += loss.item()
        theirs._step += 1

    completions = torch.cat([part["completion_ids"] for part in theirs._buffered_inputs])
    assert completions.shape == (TURNS, LENGTH)
    students, teachers = trl_side.prompt_ids(theirs, rows)
    examples = [Example(*parts) for parts in zip(records, students, teachers, strict=True)]
    scored = ours.backward(examples, [Rollout(ids, False) for ids in completions.tolist()], Phases())

    assert total > 0.1
    assert scored.loss == pytest.approx(total, abs=1e-4)
    for name, parameter in own.items():
        difference = (parameter.grad - other[name].grad).norm()
        assert difference <= 1e-4 * other[name].grad.norm() + 1e-7, name


@pytest.mark.slow
def test_recast_prompts_end_in_a_user_turn_and_are_as_long_as_ours(job: dict[str, Any]) -> None:
    trainer, _, records, rows = trl_side.open_trainer(job)
    students, teachers = trl_side.prompt_ids(trainer, rows)
    trl_side.check_lengths(records, students, teachers)
    assert {row["prompt"][-1]["role"] for row in rows} == {"user"}
    assert "tool" in {record.context[-1].role for record in records}
    # Only the role of the last message and the joint before the teacher's message differ.
    tool, user = (len(trainer.processing_class.encode(role)) for role in ("tool", "user"))
    for record, student in zip(records, students, strict=True):
        shorter = tool - user if record.context[-1].role == "tool" else 0
        assert len(student) == record.row.prompt_tokens - shorter


@pytest.mark.slow
@pytest.mark.parametrize("decoded", [2, TURNS])
def test_a_measured_step_of_each_side(job: dict[str, Any], decoded: int) -> None:
    theirs = trl_side.step({**job, "decoded": decoded})
    ours = engine_side.step({**job, "side": "engine, packed"})
    for found in (theirs, ours):
        assert 0 < found["rollout_seconds"] < found["seconds"]
        assert found["kl_per_token"] > 0
        assert len(found["student_prompt_tokens"]) == TURNS


def test_a_prompt_that_was_cut_is_noticed(job: dict[str, Any]) -> None:
    whole = [[5, 6, 7]] * TURNS
    found = {
        "completion_ids": torch.ones(TURNS, LENGTH, dtype=torch.long),
        "prompt_ids": torch.tensor(whole),
        "teacher_input_ids": torch.tensor([[5, 6, 7] + [1] * LENGTH] * TURNS),
    }
    trl_side.check_step(job, [found], whole, whole)
    with pytest.raises(SystemExit, match="uncut"):
        trl_side.check_step(job, [{**found, "prompt_ids": torch.tensor([[6, 7]] * TURNS)}], whole, whole)
    with pytest.raises(SystemExit, match="shape"):
        trl_side.check_step(job, [{**found, "completion_ids": torch.ones(TURNS, 3)}], whole, whole)
