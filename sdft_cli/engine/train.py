"""Self-distillation fine-tuning, from top to bottom.

One optimiser step (SDFT, arXiv 2601.19897, alg. 1; here with a fixed base as teacher):

    y ~ student(. | x)                                sample, adapter on
    q = teacher(. | x, expert turn, y_<t)             score y, adapter off, the expert's turn in the prompt
    p = student(. | x, y_<t)                          score y, adapter on, with gradient
    loss = sum_t KL(p_t || q_t) / tokens of the step
"""

from __future__ import annotations

import random
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from sdft_cli.config import OptimSettings, TrainConfig
from sdft_cli.engine.adapters import weights
from sdft_cli.engine.backend import Backend
from sdft_cli.engine.forward import plan_passes, response_states
from sdft_cli.engine.loss import distillation_loss
from sdft_cli.engine.rollout import Rollout, sample_rollouts, stop_tokens
from sdft_cli.engine.runs import CheckPrompt, JsonLines
from sdft_cli.errors import DataError
from sdft_cli.prompts.chat import ChatPrompts
from sdft_cli.records import Record


@dataclass(frozen=True)
class Example:
    """A record as token ids: both prompts, and the trajectory if it is the expert's own."""

    record: Record
    student: list[int]
    teacher: list[int]


class Phases:
    """Seconds spent in each phase of a step."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.seconds[name] += time.perf_counter() - start


def record_order(count: int, seed: int) -> Iterator[int]:
    """Yield record indices without end: each epoch is a fresh permutation that depends on the seed only."""
    epoch = 0
    while True:
        order = list(range(count))
        random.Random(f"{seed}:{epoch}").shuffle(order)
        yield from order
        epoch += 1


def rate_factor(optim: OptimSettings, step: int) -> float:
    """Return what the learning rate is multiplied with at a step (from 0)."""
    if step < optim.warmup_steps:
        return (step + 1) / optim.warmup_steps
    if optim.schedule == "constant":
        return 1.0
    return max(0.0, (optim.max_steps - step) / max(1, optim.max_steps - optim.warmup_steps))


def check_records(records: Sequence[Record], config: TrainConfig) -> None:
    """Refuse records that do not fit the profile; nothing is truncated.

    Raises:
        DataError: there is no training record, or some are longer than the profile allows.
    """
    if not records:
        raise DataError("The dataset has no training record: prepare one with more sessions.")
    over = [r for r in records if r.row.teacher_prompt_tokens > config.max_prompt_tokens]
    if over:
        longest = max(r.row.teacher_prompt_tokens for r in over)
        raise DataError(
            f"{len(over)} record(s) have a teacher prompt over {config.max_prompt_tokens} tokens (longest {longest}): "
            f"prepare with --max-prompt-tokens {config.max_prompt_tokens}, or raise max_prompt_tokens."
        )


class Trainer:
    """Everything that one step needs. `train` below is the loop."""

    def __init__(self, config: TrainConfig, backend: Backend, prompts: ChatPrompts, accelerator: Any) -> None:
        self.config = config
        self.backend = backend
        self.prompts = prompts
        self.accelerator = accelerator
        self.pad_id = prompts.turn_end_id
        self.stop_ids = stop_tokens(backend, prompts.turn_end_id)
        optim = config.optim
        optimizer = torch.optim.AdamW(
            backend.parameters(),
            lr=optim.learning_rate,
            betas=optim.betas,
            eps=optim.eps,
            weight_decay=optim.weight_decay,
        )
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: rate_factor(optim, step))
        backend.model, self.optimizer, self.schedule = accelerator.prepare(backend.model, optimizer, schedule)

    def example(self, record: Record) -> Example:
        """Encode both prompts of a record.

        Raises:
            DataError: they have other lengths than `sdft prepare` counted, so the caps may not hold.
        """
        found = Example(record, self.prompts.student_ids(record), self.prompts.teacher_ids(record))
        self.prompts.encoder.forget()
        counted, expected = (len(found.student), len(found.teacher)), record.row
        if counted != (expected.prompt_tokens, expected.teacher_prompt_tokens):
            raise DataError(
                f"Record {record.record_id} has prompts of {counted[0]} and {counted[1]} tokens, the dataset says "
                f"{expected.prompt_tokens} and {expected.teacher_prompt_tokens}: run `sdft prepare` again."
            )
        return found

    def trajectories(self, examples: Sequence[Example], step: int) -> tuple[list[Rollout], list[bool]]:
        """Return the tokens to train on, and which of them the student sampled itself."""
        draw = random.Random(f"{self.config.seed}:{step}:lambda")
        on_policy = [draw.random() < self.config.distill.lambda_on_policy for _ in examples]
        sampled = [e for e, own in zip(examples, on_policy, strict=True) if own]
        rollouts: Iterator[Rollout] = iter(())
        if sampled:
            seed = random.Random(f"{self.config.seed}:{step}:rollout").getrandbits(63)
            prompts = [e.student for e in sampled]
            rollouts = iter(
                sample_rollouts(self.backend, prompts, self.config.rollout, self.stop_ids, self.pad_id, seed)
            )
        return [
            next(rollouts) if own else Rollout(self.prompts.reference_ids(e.record), True)
            for e, own in zip(examples, on_policy, strict=True)
        ], on_policy

    def backward(self, examples: Sequence[Example], rollouts: Sequence[Rollout], phases: Phases) -> float:
        """Accumulate the gradient of the step's mean KL; return its value (nats per token)."""
        tokens = sum(len(r.ids) for r in rollouts)
        distill = self.config.distill
        longest = [[*max(e.student, e.teacher, key=len), *r.ids] for e, r in zip(examples, rollouts, strict=True)]
        total = 0.0
        for rows in plan_passes(self.backend, longest, self.config.optim.max_tokens_per_pass):
            batch = [examples[i] for i in rows]
            answers = [rollouts[i].ids for i in rows]
            with phases("teacher"), weights(self.backend.model, "base"):
                teacher = response_states(self.backend, [e.teacher for e in batch], answers, self.pad_id)
            with phases("student"):
                student = response_states(self.backend, [e.student for e in batch], answers, self.pad_id)
            with phases("loss"):
                share = torch.full((len(student),), 1.0 / tokens, device=student.device)
                output = distillation_loss(student, teacher, self.backend.head, share, distill)
            with phases("backward"):
                self.accelerator.backward(output.loss)
            total += output.loss.item()
        return total

    def update(self) -> float:
        """Clip, step, and return the gradient's norm before clipping."""
        limit = self.config.optim.max_grad_norm
        norm = self.accelerator.clip_grad_norm_(self.backend.parameters(), limit if limit else float("inf"))
        self.optimizer.step()
        self.schedule.step()
        self.optimizer.zero_grad(set_to_none=True)
        return float(norm)

    def step(self, number: int, records: Sequence[Record]) -> tuple[dict[str, Any], list[Example], list[Rollout]]:
        """Run optimiser step `number` (from 1) on these records; return its metrics, examples and rollouts."""
        phases = Phases()
        with phases("encode"):
            examples = [self.example(record) for record in records]
        rate = self.schedule.get_last_lr()[0]
        with phases("rollout"):
            rollouts, on_policy = self.trajectories(examples, number)
        loss = self.backward(examples, rollouts, phases)
        with phases("optimizer"):
            norm = self.update()
        seconds = sum(phases.seconds.values())
        tokens = sum(len(r.ids) for r in rollouts)
        prompt_tokens = sum(len(e.student) + len(e.teacher) for e in examples)
        metrics = {
            "step": number,
            "loss": loss,
            "kl_per_token": loss,
            "rollout_tokens": tokens,
            "rollout_length": tokens / len(rollouts),
            "finished_share": sum(r.finished for r in rollouts) / len(rollouts),
            "on_policy_share": sum(on_policy) / len(on_policy),
            "grad_norm": norm,
            "learning_rate": rate,
            "tokens_per_second": (prompt_tokens + 2 * tokens) / seconds,
            "seconds": seconds,
            "phase_seconds": {name: round(value, 4) for name, value in phases.seconds.items()},
        }
        return metrics, examples, rollouts


CHECK_PROMPTS, CHECK_ANSWER_TOKENS = 8, 64
"""How much of the data `sdft merge` compares on: the shortest prompts, the first tokens of the expert's turns."""


def check_prompts(records: Sequence[Record], prompts: ChatPrompts) -> list[CheckPrompt]:
    """Choose the prompts on which a merge of this run will be compared with its adapter."""
    shortest = sorted(records, key=lambda r: (r.row.prompt_tokens, r.record_id))[:CHECK_PROMPTS]
    return [CheckPrompt(prompts.student_ids(r), prompts.reference_ids(r)[:CHECK_ANSWER_TOKENS]) for r in shortest]


def train(
    trainer: Trainer,
    records: Sequence[Record],
    folder: Path,
    report: Callable[[dict[str, Any]], None] = lambda metrics: None,
) -> dict[str, Any]:
    """Train for `optim.max_steps` steps, write metrics, samples and the adapter into `folder`.

    Returns the last step's metrics. Raises `DataError` as `check_records` does.
    """
    config = trainer.config
    check_records(records, config)
    order = record_order(len(records), config.seed)
    metrics_file, samples_file = JsonLines(folder / "metrics.jsonl"), JsonLines(folder / "samples.jsonl")
    metrics: dict[str, Any] = {}
    try:
        for number in range(1, config.optim.max_steps + 1):
            batch = [records[next(order)] for _ in range(config.optim.records_per_step)]
            metrics, examples, rollouts = trainer.step(number, batch)
            metrics_file.write(metrics)
            if number == 1 or number % config.samples_every == 0 or number == config.optim.max_steps:
                samples_file.write(
                    {
                        "step": number,
                        "record_id": examples[0].record.record_id,
                        "rollout": trainer.prompts.tokenizer.decode(rollouts[0].ids),
                        "reference": trainer.prompts.reference_text(examples[0].record.reference),
                    }
                )
            report(metrics)
    finally:
        metrics_file.close()
        samples_file.close()
    trainer.backend.save_adapter(folder / "adapter")
    return metrics
