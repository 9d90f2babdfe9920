from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from accelerate import Accelerator  # noqa: E402

from sdft_cli.config import TrainConfig, load_train_config  # noqa: E402
from sdft_cli.engine.models.adapters import EmaAdapter, weights  # noqa: E402
from sdft_cli.engine.models.load import load_backend  # noqa: E402
from sdft_cli.engine.objective.formula import token_weights  # noqa: E402
from sdft_cli.engine.passes.decode import Rollout  # noqa: E402
from sdft_cli.engine.passes.timing import Phases  # noqa: E402
from sdft_cli.engine.train.sdft_step import Trainer, teacher_weights  # noqa: E402
from sdft_cli.engine.train.step_metrics import step_metrics  # noqa: E402
from sdft_cli.errors import DataError  # noqa: E402
from sdft_cli.prompts.chat import open_prompts  # noqa: E402
from sdft_cli.records import Dataset  # noqa: E402

FAST = [
    "optim.learning_rate=1e-3",
    "lora.rank=4",
    "rollout.max_new_tokens=4",
    "optim.turns_per_step=3",
    "optim.max_steps=2",
    "distill.divergence=reverse_kl",
    "distill.lambda_on_policy=1",
]
ROLLOUTS = [Rollout([7, 8, 9], False), Rollout([10, 2], True), Rollout([11, 12, 13, 14], False)]


def trainer(model: Any, data: Dataset, *overrides: str) -> Trainer:
    config: TrainConfig = load_train_config("cpu-demo", [*FAST, *overrides])
    backend = load_backend(config, "transformers", str(model))
    return Trainer(config, backend, open_prompts(str(model), data.manifest), Accelerator(cpu=True))


def moved(found: Trainer) -> Trainer:
    """Give the adapter some weights."""
    torch.manual_seed(1)
    for p in found.backend.parameters():
        p.data.add_(torch.randn_like(p) * 0.1)
    return found


def gradient(found: Trainer) -> Any:
    return torch.cat([p.grad.flatten() for p in found.backend.parameters() if p.grad is not None])


def log_softmax_at(found: Trainer, prompt: list[int], answer: list[int]) -> Any:
    """The plain way: the whole model on one sequence, full logits; (|answer|, V) log-probabilities."""
    ids = torch.tensor([[*prompt, *answer]])
    logits = found.backend.model(input_ids=ids).logits[0, len(prompt) - 1 : -1].float()
    return logits.log_softmax(-1)


@pytest.mark.parametrize("sharing", ["none", "packed", "depth_first"])
def test_passes_of_any_size_give_the_gradient_of_the_whole_step(
    tiny_model: Any, tiny_data: Dataset, sharing: Any
) -> None:
    gradients, losses = [], []
    for tokens in (1, 600, 100_000):
        found = moved(trainer(tiny_model, tiny_data, f"optim.max_tokens_per_pass={tokens}"))
        found.backend.sharing = sharing
        found.backend.segment_tokens = 64
        examples = [found.example(r) for r in tiny_data.train[:3]]
        losses.append(found.backward(examples, ROLLOUTS, Phases()).loss)
        gradients.append(gradient(found))
    assert losses[1:] == pytest.approx([losses[0]] * 2, rel=1e-5)
    for other in gradients[1:]:
        assert (other - gradients[0]).norm() <= 1e-5 * gradients[0].norm()


@pytest.mark.parametrize(("kind", "decoder"), [("medium", "growing"), ("medium", "generate"), ("highest", "growing")])
def test_products_of_a_step_are_of_the_chosen_kind_and_those_of_decoding_steps_exact(
    tiny_model: Any, tiny_data: Dataset, kind: Any, decoder: Any
) -> None:
    found = trainer(tiny_model, tiny_data)
    found.backend.products, found.backend.decoder = kind, decoder
    seen: set[tuple[bool, str]] = set()

    def watch(_: Any, inputs: Any) -> None:
        seen.add((inputs[0].shape[1] == 1, torch.get_float32_matmul_precision()))

    watched = found.backend.trunk.layers[0].mlp.register_forward_pre_hook(watch)
    found.step(1, tiny_data.train[:3], 0)
    watched.remove()
    assert seen == {(False, kind), (True, "highest" if decoder == "growing" else kind)}
    assert torch.get_float32_matmul_precision() == "highest"


SETTINGS = [
    [],
    ["distill.average=sequences"],
    ["distill.skip_first_tokens=1", "distill.max_loss_tokens=2"],
    ["distill.truncated_rollouts=mask"],
    ["distill.divergence=forward_kl", "distill.kl_temperature=1.5"],
    ["distill.divergence=jsd", "distill.jsd_beta=0.3"],
    ["distill.divergence=mixed_kl", "distill.kl_mix=0.3", "distill.token_weights=prefix", "distill.prefix_gain=2"],
    ["objective=sft", "distill.average=sequences"],
    ["teacher.kind=ema"],
    ["teacher.kind=live"],
]


@pytest.mark.parametrize("settings", SETTINGS, ids=lambda s: " ".join(s) or "default")
def test_loss_and_gradient_are_those_of_the_plain_formula(
    settings: list[str], tiny_model: Any, tiny_data: Dataset
) -> None:
    found = moved(trainer(tiny_model, tiny_data, *settings))
    config = found.config
    examples = [found.example(r) for r in tiny_data.train[:3]]
    scored = found.backward(examples, ROLLOUTS, Phases())
    ours = gradient(found)
    found.optimizer.zero_grad()

    teacher_case = {"base": "base", "ema": "ema", "live": "adapter"}[config.teacher.kind]
    temperature, total = config.distill.kl_temperature, torch.zeros(())
    for example, rollout, share in zip(examples, ROLLOUTS, token_weights(ROLLOUTS, config.distill), strict=True):
        p = (log_softmax_at(found, example.student, rollout.ids) / temperature).log_softmax(-1)
        with weights(found.backend.model, teacher_case, found.ema):
            q = (log_softmax_at(found, example.teacher, rollout.ids) / temperature).log_softmax(-1)
        if config.objective == "sft":
            values = -p.gather(-1, torch.tensor(rollout.ids)[:, None])[:, 0]
        elif config.distill.divergence == "reverse_kl":
            values = (p.exp() * (p - q)).sum(-1)
        elif config.distill.divergence == "forward_kl":
            values = (q.exp() * (q - p)).sum(-1)
        elif config.distill.divergence == "mixed_kl":
            values = ((0.3 * q.exp() - 0.7 * p.exp()) * (q - p)).sum(-1)
            at = torch.tensor(rollout.ids)[:, None]
            gaps = (q - p).gather(-1, at)[:, 0].abs().tolist()
            factors = [1 + 2 * (1 - sum(gaps[:t]) / sum(gaps)) for t in range(len(gaps))]
            share = [f * sum(share) / sum(factors) for f in factors]
        else:
            beta = config.distill.jsd_beta
            m = (beta * q.exp() + (1 - beta) * p.exp()).log()
            values = beta * (q.exp() * (q - m)).sum(-1) + (1 - beta) * (p.exp() * (p - m)).sum(-1)
        total = total + sum(w * v for w, v in zip(share, values, strict=False))
    total.backward()
    plain = gradient(found)
    assert scored.loss == pytest.approx(total.item(), rel=1e-5, abs=1e-7)
    assert (ours - plain).norm() <= 1e-5 * plain.norm() + 1e-7


def test_lambda_zero_and_the_control_arm_never_sample(
    tiny_model: Any, tiny_data: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    for settings in ("distill.lambda_on_policy=0", "objective=sft"):
        found = trainer(tiny_model, tiny_data, settings)
        monkeypatch.setattr(found.backend.model, "generate", None)  # calling it would raise
        result = found.step(1, tiny_data.train[:3], 0)
        metrics, trajectories = step_metrics(result, found.config, found.prompts), result.taken
        assert metrics["on_policy_share"] == 0
        expected = [found.prompts.reference_ids(e.record) for e in trajectories.examples]
        assert [r.ids for r in trajectories.rollouts] == expected


def test_both_arms_see_the_same_records_in_the_same_order(tiny_model: Any, tiny_data: Dataset) -> None:
    seen = []
    for settings in ([], ["objective=sft"]):
        found = trainer(tiny_model, tiny_data, *settings)
        taken = found.step(1, tiny_data.train[:3], 0).taken
        seen.append([e.record.record_id for e in taken.examples])
    assert seen[0] == seen[1]


def test_several_rollouts_of_a_record_are_different_ones(tiny_model: Any, tiny_data: Dataset) -> None:
    found = trainer(tiny_model, tiny_data, "rollout.per_record=4", "rollout.max_new_tokens=8")
    trajectories = found.sample([found.example(r) for r in tiny_data.train[:2]], 1, 0)
    names = [e.record.record_id for e in trajectories.examples]
    assert names == [r.record_id for r in tiny_data.train[:2] for _ in range(4)]
    assert len({tuple(r.ids) for r in trajectories.rollouts[:4]}) > 1


def test_the_averaged_teacher_follows_by_its_decay(tiny_model: Any, tiny_data: Dataset) -> None:
    found = trainer(tiny_model, tiny_data, "teacher.kind=ema", "teacher.ema_decay=0.75")
    assert isinstance(found.ema, EmaAdapter)
    name, parameter = next((n, p) for n, p in found.ema.parameters.items() if "lora_A" in n)
    start = parameter.detach().clone()
    for number in (1, 2):
        before = found.ema.tensors[name].clone()
        found.step(number, tiny_data.train[:3], 3 * (number - 1))
        assert torch.allclose(found.ema.tensors[name], 0.75 * before + 0.25 * parameter, atol=1e-7)
    assert not torch.equal(parameter, start)


def test_a_step_lowers_the_divergence_on_its_own_rollouts(tiny_model: Any, tiny_data: Dataset) -> None:
    found = trainer(tiny_model, tiny_data, "optim.warmup_steps=0", "optim.learning_rate=0.01", "optim.max_steps=8")
    step = found.sample([found.example(r) for r in tiny_data.train[:3]], 1, 0)
    losses = []
    for _ in range(8):
        losses.append(found.backward(step.examples, step.rollouts, Phases()).loss)
        found.update(losses[-1])
    assert losses[-1] < 0.5 * losses[0]


def test_gradient_checkpointing_changes_nothing(tiny_model: Any, tiny_data: Dataset) -> None:
    gradients = []
    for flag in ("true", "false"):
        found = trainer(tiny_model, tiny_data, f"gradient_checkpointing={flag}")
        step = found.sample([found.example(r) for r in tiny_data.train[:2]], 1, 0)
        found.backward(step.examples, step.rollouts, Phases())
        gradients.append(gradient(found))
    assert torch.allclose(*gradients, atol=1e-7)


def test_nothing_moves_without_loss_tokens_or_with_a_loss_that_is_not_finite(
    tiny_model: Any, tiny_data: Dataset
) -> None:
    found = trainer(tiny_model, tiny_data, "distill.skip_first_tokens=50")
    before = [p.detach().clone() for p in found.backend.parameters()]
    metrics = step_metrics(found.step(1, tiny_data.train[:3], 0), found.config, found.prompts)
    assert (metrics["updated"], metrics["loss_tokens"], metrics["loss"]) == (False, 0, 0.0)
    found = trainer(tiny_model, tiny_data)
    step = found.sample([found.example(r) for r in tiny_data.train[:2]], 1, 0)
    found.backward(step.examples, step.rollouts, Phases())
    assert found.update(math.nan)[1] is False
    for p, old in zip(found.backend.parameters(), before, strict=True):
        assert torch.equal(p, old)
    assert not found.optimizer.state


def test_after_a_start_on_the_experts_turns_the_adapter_as_it_was_then_teaches(
    tiny_model: Any, tiny_data: Dataset
) -> None:
    start = ["teacher.start=2", "optim.max_steps=4", "optim.warmup_steps=0", "rollout.start_tokens=2"]
    start += ["rollout.grow_steps=2"]
    found = trainer(tiny_model, tiny_data, *start)
    plain = trainer(tiny_model, tiny_data, "objective=sft", *start[1:3])
    assert teacher_weights(found.config.teacher) == "ema"
    assert found.ema is not None
    for number in (1, 2):
        results = [t.step(number, tiny_data.train[:3], 3 * (number - 1)) for t in (found, plain)]
        metrics = [step_metrics(result, found.config, found.prompts) for result in results]
        assert metrics[0]["nll_per_token"] == metrics[1]["nll_per_token"] == pytest.approx(metrics[0]["loss"], rel=1e-6)
        assert "kl_per_token" not in metrics[0]
        assert metrics[0]["on_policy_share"] == 0
    own = dict(plain.backend.model.named_parameters())
    for name, parameter in found.ema.parameters.items():
        assert torch.equal(parameter, own[name])
        assert torch.equal(found.ema.tensors[name], parameter)
    frozen = {name: tensor.clone() for name, tensor in found.ema.tensors.items()}
    for number, cap in ((3, 2), (4, 3)):
        result = found.step(number, tiny_data.train[:3], 3 * (number - 1))
        metrics = [step_metrics(result, found.config, found.prompts)]
        assert "kl_per_token" in metrics[0]
        assert (metrics[0]["on_policy_share"], max(len(r.ids) for r in result.taken.rollouts)) == (1, cap)
    assert all(torch.equal(found.ema.tensors[name], tensor) for name, tensor in frozen.items())
    assert not all(torch.equal(parameter, frozen[name]) for name, parameter in found.ema.parameters.items())
    # The frozen adapter is what scores: swapped in by hand, as a live teacher, it has the same states.
    examples = [found.example(r) for r in tiny_data.train[:2]]
    answers = [r.ids for r in ROLLOUTS[:2]]
    states = found.teacher_states(examples, answers, Phases())
    for name, parameter in found.ema.parameters.items():
        parameter.data = frozen[name]
    live = trainer(tiny_model, tiny_data, "teacher.kind=live")
    live.backend = found.backend
    for ours, expected in zip(states, live.teacher_states(examples, answers, Phases()), strict=True):
        assert torch.equal(ours, expected)


def test_the_teacher_has_no_dropout(tiny_model: Any, tiny_data: Dataset) -> None:
    """Scored twice it says the same; the student, which has it, does not. Modes are as before."""
    found = trainer(tiny_model, tiny_data, "lora.dropout=0.3", "teacher.kind=live")
    for p in found.backend.parameters():
        p.data.add_(torch.randn_like(p) * 0.1)
    examples = [found.example(record) for record in tiny_data.train[:2]]
    answers = [[7, 8, 9], [10, 11]]
    modes = [module.training for module in found.backend.model.modules()]
    twice = [found.teacher_states(examples, answers, Phases()) for _ in range(2)]
    assert all(torch.equal(a, b) for a, b in zip(*twice, strict=True))
    assert [module.training for module in found.backend.model.modules()] == modes
    rollouts = [Rollout(ids, False) for ids in answers]
    once, again = (found.backward(examples, rollouts, Phases()).loss for _ in range(2))
    assert once != again


def test_an_averaged_teacher_starts_from_the_end_of_the_start(tiny_model: Any, tiny_data: Dataset) -> None:
    settings = ["teacher.kind=ema", "teacher.ema_decay=0.75", "teacher.start=1", "optim.warmup_steps=0"]
    found = trainer(tiny_model, tiny_data, *settings)
    assert found.ema is not None
    found.step(1, tiny_data.train[:3], 0)
    name, parameter = next((n, p) for n, p in found.ema.parameters.items() if "lora_B" in n)
    after_start = parameter.detach().clone()
    assert after_start.any()
    found.step(2, tiny_data.train[:3], 3)
    assert torch.allclose(found.ema.tensors[name], 0.75 * after_start + 0.25 * parameter, atol=1e-7)


def test_a_record_that_was_counted_otherwise_is_refused(tiny_model: Any, tiny_data: Dataset) -> None:
    found = trainer(tiny_model, tiny_data)
    record = tiny_data.train[0]
    wrong = replace(record, row=replace(record.row, prompt_tokens=record.row.prompt_tokens + 1))
    with pytest.raises(DataError, match="run `sdft prepare` again"):
        found.example(wrong)
