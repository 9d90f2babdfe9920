from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from accelerate import Accelerator  # noqa: E402

from sdft_cli.config import load_train_config  # noqa: E402
from sdft_cli.engine.models.device_memory import out_of_memory_explained, what_to_lower  # noqa: E402
from sdft_cli.engine.models.load import load_backend  # noqa: E402
from sdft_cli.engine.train.rehearsal import longest_step, rehearse  # noqa: E402
from sdft_cli.engine.train.sdft_step import Example, Trainer  # noqa: E402
from sdft_cli.errors import MachineError  # noqa: E402
from sdft_cli.prompts.chat import open_prompts  # noqa: E402
from sdft_cli.records import Dataset  # noqa: E402

OWN = "distill.lambda_on_policy=1"


def test_the_longest_step_holds_the_longest_prompts(tiny_data: Dataset) -> None:
    records = [
        replace(r, row=replace(r.row, teacher_prompt_tokens=100 + i % 4, prompt_tokens=i))
        for i, r in enumerate(tiny_data.train)
    ]
    of_three, of_five = (load_train_config("cpu-demo", [f"optim.turns_per_step={n}", OWN]) for n in (3, 5))
    found = [(r.row.teacher_prompt_tokens, r.row.prompt_tokens) for r in longest_step(records, of_three)]
    assert found == sorted(((100 + i % 4, i) for i in range(len(records))), reverse=True)[:3]
    assert len(longest_step(records[:2], of_five)) == 5  # a dataset that is smaller than a step repeats


@pytest.mark.parametrize(
    ("settings", "answers"),
    [
        ([OWN], [4, 4]),  # rollouts at their cap
        ([], [9, 7]),  # some steps are off-policy
        ([OWN, "teacher.start=5"], [9, 7]),
        ([OWN, "distill.lambda_start=0.5"], [9, 7]),
        (["objective=sft"], [9, 7]),
        (["rollout.max_new_tokens=8"], [9, 8]),
        (["rollout.max_new_tokens=8", "objective=sft"], [9, 7]),
        (["rollout.max_new_tokens=8", "distill.lambda_on_policy=0"], [9, 7]),
    ],
)
def test_answers_are_as_long_as_they_may_become(
    settings: list[str], answers: list[int], tiny_model: Path, tiny_data: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Turns of the expert may be longer than the cap on rollouts, and with them another record is the longest."""
    config = load_train_config(
        "cpu-demo", ["lora.rank=4", "rollout.max_new_tokens=4", "optim.turns_per_step=2", *settings]
    )
    trainer = Trainer(
        config,
        load_backend(config, "transformers", str(tiny_model)),
        open_prompts(str(tiny_model), tiny_data.manifest),
        Accelerator(cpu=True),
    )
    alike = [r for r in tiny_data.train if len(trainer.prompts.reference_ids(r)) > 3][:2]
    records = [replace(r, row=replace(r.row, reference_tokens=n)) for r, n in zip(alike, (7, 9), strict=True)]
    seen: list[int] = []
    monkeypatch.setattr(trainer, "example", lambda r: Example(r, [1] * 20, [1] * 30))
    monkeypatch.setattr(trainer, "backward", lambda _, rollouts, __: seen.extend(len(y.ids) for y in rollouts))
    for record in records:
        object.__setattr__(record.row, "teacher_prompt_tokens", 30)
    rehearse(trainer, records)
    assert sorted(seen, reverse=True) == answers


@pytest.mark.parametrize("settings", [[], ["objective=sft"], ["rollout.per_record=2"], ["teacher.kind=ema"]])
def test_it_leaves_no_trace(settings: list[str], tiny_model: Path, tiny_data: Dataset) -> None:
    config = load_train_config("cpu-demo", ["lora.rank=4", "rollout.max_new_tokens=4", *settings])
    backend = load_backend(config, "transformers", str(tiny_model))
    trainer = Trainer(config, backend, open_prompts(str(tiny_model), tiny_data.manifest), Accelerator(cpu=True))
    before = {name: p.detach().clone() for name, p in backend.model.named_parameters()}
    generator = torch.get_rng_state()
    sentence = rehearse(trainer, tiny_data.train)
    longest = max(r.row.teacher_prompt_tokens for r in tiny_data.train)
    assert f"prompts of up to {longest} tokens" in sentence
    assert torch.equal(torch.get_rng_state(), generator)
    for name, p in backend.model.named_parameters():
        assert torch.equal(p, before[name])
        assert p.grad is None
    assert not trainer.optimizer.state
    assert trainer.schedule.get_last_lr()[0] == pytest.approx(config.optim.learning_rate / config.optim.warmup_steps)


def test_an_allocation_that_fails_is_one_sentence_with_what_to_lower() -> None:
    config = load_train_config("cpu-demo", ["rollout.weights=merged", "optim.max_tokens_per_pass=2048"])
    expected = pytest.raises(MachineError, match="Out of memory in step 3: lower or set, in this order")
    with expected as found, out_of_memory_explained(config, "step 3"):
        torch.empty(2**50)
    for name in ("optim.max_tokens_per_pass (now 2048)", "gradient_checkpointing", "rollout.weights to adapter"):
        assert name in str(found.value)
    assert str(found.value).index("optim.max_tokens_per_pass") < str(found.value).index("max_prompt_tokens")
    target = what_to_lower(load_train_config("qwen3.5-9b-64k"))
    assert "gradient_checkpointing" not in target
    assert "segment_tokens (now 2048)" in target
    for useless in ("prefix_sharing=none", "prefix_sharing=packed", "segment_tokens=256"):
        assert "segment_tokens" not in what_to_lower(load_train_config("qwen3.5-9b-64k", [useless]))


def test_other_errors_pass() -> None:
    with pytest.raises(RuntimeError, match="another"), out_of_memory_explained(load_train_config("cpu-demo"), "x"):
        raise RuntimeError("another")
