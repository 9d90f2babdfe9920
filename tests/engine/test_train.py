from __future__ import annotations

import json
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from accelerate import Accelerator  # noqa: E402
from safetensors.torch import load_file  # noqa: E402

from sdft_cli.config import PrepareConfig, TrainConfig, load_train_config  # noqa: E402
from sdft_cli.engine.backend import load_backend  # noqa: E402
from sdft_cli.engine.rollout import Rollout  # noqa: E402
from sdft_cli.engine.train import Phases, Trainer, check_records, rate_factor, record_order, train  # noqa: E402
from sdft_cli.errors import DataError  # noqa: E402
from sdft_cli.prepare.pipeline import manifest_of, prepare, write  # noqa: E402
from sdft_cli.prepare.workers import Job  # noqa: E402
from sdft_cli.prompts.chat import ChatPrompts, load_tokenizer, open_prompts  # noqa: E402
from sdft_cli.prompts.teacher import load_teacher_template  # noqa: E402
from sdft_cli.records import Dataset, read_dataset  # noqa: E402
from sdft_cli.traces.examples import write_examples  # noqa: E402
from sdft_cli.traces.source import resolve_source  # noqa: E402

FAST = [
    "optim.learning_rate=1e-3",
    "lora.rank=4",
    "rollout.max_new_tokens=4",
    "optim.records_per_step=3",
    "optim.max_steps=2",
]


@pytest.fixture(scope="module")
def data(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    folder = tmp_path_factory.mktemp("data")
    write_examples(folder / "sessions", 6)
    source = resolve_source(str(folder / "sessions"))
    config = PrepareConfig(source=str(folder / "sessions"), model=str(tiny_model), redact=False)
    prompts = ChatPrompts(load_tokenizer(tiny_model), load_teacher_template())
    found = prepare(source, Job(config, prompts, None))
    return read_dataset(write(found, manifest_of(config, source, prompts, found), folder / "d", ""))


def trainer(tiny_model: Path, data: Dataset, *overrides: str) -> Trainer:
    config: TrainConfig = load_train_config("cpu-demo", [*FAST, *overrides])
    backend = load_backend(config, "transformers", str(tiny_model))
    return Trainer(config, backend, open_prompts(str(tiny_model), data.manifest), Accelerator(cpu=True))


def gradient(found: Trainer) -> Any:
    return torch.cat([p.grad.flatten() for p in found.backend.parameters() if p.grad is not None])


def test_a_run_writes_what_it_promises_and_repeats_bit_for_bit(tiny_model: Path, data: Dataset, tmp_path: Path) -> None:
    adapters = []
    for name in ("a", "b"):
        folder = tmp_path / name
        folder.mkdir()
        train(trainer(tiny_model, data), data.train, folder)
        adapters.append(load_file(folder / "adapter" / "adapter_model.safetensors"))
        lines = [json.loads(x) for x in (folder / "metrics.jsonl").read_text().splitlines()]
        assert [x["step"] for x in lines] == [1, 2]
        assert lines[0]["learning_rate"] == pytest.approx(1e-3 / 5)
        assert lines[1]["learning_rate"] == pytest.approx(2e-3 / 5)
        keys = {"loss", "kl_per_token", "rollout_length", "tokens_per_second", "phase_seconds", "grad_norm"}
        assert keys <= set(lines[0])
        assert {"rollout", "teacher", "student", "loss", "backward"} <= set(lines[0]["phase_seconds"])
        samples = [json.loads(x) for x in (folder / "samples.jsonl").read_text().splitlines()]
        assert samples[0].keys() == {"step", "record_id", "rollout", "reference"}
    assert adapters[0].keys() == adapters[1].keys()
    assert all(torch.equal(adapters[0][k], adapters[1][k]) for k in adapters[0])
    assert any(t.abs().max() > 0 for k, t in adapters[0].items() if "lora_B" in k)


def test_passes_of_any_size_give_the_gradient_of_the_whole_step(tiny_model: Path, data: Dataset) -> None:
    gradients, losses = [], []
    for tokens, packed in ((1, False), (600, False), (100_000, False), (1, True), (600, True), (100_000, True)):
        found = trainer(tiny_model, data, f"optim.max_tokens_per_pass={tokens}")
        found.backend.packed = packed
        torch.manual_seed(1)
        for p in found.backend.parameters():
            p.data.add_(torch.randn_like(p) * 0.1)
        examples = [found.example(r) for r in data.train[:3]]
        rollouts = [Rollout([7, 8, 9], False), Rollout([10, 2], True), Rollout([11, 12, 13, 14], False)]
        losses.append(found.backward(examples, rollouts, Phases()))
        gradients.append(gradient(found))
    assert losses[1:] == pytest.approx([losses[0]] * 5, rel=1e-5)
    for other in gradients[1:]:
        assert (other - gradients[0]).norm() <= 1e-5 * gradients[0].norm()


def test_lambda_zero_trains_on_the_experts_tokens(tiny_model: Path, data: Dataset) -> None:
    found = trainer(tiny_model, data, "distill.lambda_on_policy=0")
    examples = [found.example(r) for r in data.train[:3]]
    rollouts, on_policy = found.trajectories(examples, 1)
    assert on_policy == [False] * 3
    assert [r.ids for r in rollouts] == [found.prompts.reference_ids(e.record) for e in examples]


def test_a_step_lowers_the_divergence_on_its_own_rollouts(tiny_model: Path, data: Dataset) -> None:
    found = trainer(tiny_model, data, "optim.warmup_steps=0", "optim.learning_rate=0.01")
    examples = [found.example(r) for r in data.train[:3]]
    rollouts, _ = found.trajectories(examples, 1)
    losses = []
    for _ in range(8):
        losses.append(found.backward(examples, rollouts, Phases()))
        found.update()
    assert losses[-1] < 0.5 * losses[0]


def test_gradient_checkpointing_changes_nothing(tiny_model: Path, data: Dataset) -> None:
    gradients = []
    for flag in ("true", "false"):
        found = trainer(tiny_model, data, f"gradient_checkpointing={flag}")
        examples = [found.example(r) for r in data.train[:2]]
        rollouts, _ = found.trajectories(examples, 1)
        found.backward(examples, rollouts, Phases())
        gradients.append(gradient(found))
    assert torch.allclose(*gradients, atol=1e-7)


def test_order_is_a_permutation_per_epoch_that_depends_on_the_seed() -> None:
    order = list(islice(record_order(10, 0), 20))
    assert sorted(order[:10]) == sorted(order[10:]) == list(range(10))
    assert order[:10] != order[10:]
    assert order == list(islice(record_order(10, 0), 20))
    assert order != list(islice(record_order(10, 1), 20))


def test_records_that_do_not_fit_are_refused(data: Dataset) -> None:
    with pytest.raises(DataError, match="no training record"):
        check_records([], load_train_config("cpu-demo"))
    with pytest.raises(DataError, match="over 10 tokens"):
        check_records(data.train, load_train_config("cpu-demo", ["max_prompt_tokens=10"]))


def test_the_rate_rises_then_stays_or_falls() -> None:
    def factors(schedule: str) -> list[float]:
        optim = load_train_config(
            "cpu-demo", ["optim.warmup_steps=2", "optim.max_steps=6", f"optim.schedule={schedule}"]
        ).optim
        return [rate_factor(optim, step) for step in range(7)]

    assert factors("constant") == [0.5, 1, 1, 1, 1, 1, 1]
    assert factors("linear") == [0.5, 1, 1, 0.75, 0.5, 0.25, 0]


def test_a_record_that_was_counted_otherwise_is_refused(tiny_model: Path, data: Dataset) -> None:
    found = trainer(tiny_model, data)
    record = data.train[0]
    wrong = replace(record, row=replace(record.row, prompt_tokens=record.row.prompt_tokens + 1))
    with pytest.raises(DataError, match="run `sdft prepare` again"):
        found.example(wrong)
