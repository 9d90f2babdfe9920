"""The training loop: steps, and between them held-out evaluations, checkpoints, and reasons to stop.

After each step, in this order: its metrics are written; if it is due, the held-out evaluation; if it is due, a
checkpoint. A checkpoint remembers which of these were done and how long the files were, so a resumed run does the rest
and writes the same lines as one that was never interrupted.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

<<<<<<< HEAD
from sdft_cli.config import TrainConfig
from sdft_cli.engine.checkpoints import Checkpoint, Checkpoints
from sdft_cli.engine.heldout import HeldOut
from sdft_cli.engine.interrupts import Interrupted, check, watched_signals
from sdft_cli.engine.memory import out_of_memory_explained
from sdft_cli.engine.objective import batch_of_step
=======
import torch

from sdft_cli.config import OptimSettings, TrainConfig
from sdft_cli.engine.adapters import weights
from sdft_cli.engine.backend import Backend
from sdft_cli.engine.forward import plan_passes, response_states
from sdft_cli.engine.loss import distillation_loss
from sdft_cli.engine.rollout import Rollout, sample_rollouts, stop_tokens
>>>>>>> h-loss
from sdft_cli.engine.runs import CheckPrompt, JsonLines
from sdft_cli.engine.state import capture, restore
from sdft_cli.engine.stop_rules import Finding, StopRules
from sdft_cli.engine.trainer import Scored, Trainer, Trajectories
from sdft_cli.errors import DataError, InterruptedBySignal, VerificationError
from sdft_cli.prompts.chat import ChatPrompts
from sdft_cli.records import Record

LOGS = ("metrics.jsonl", "heldout.jsonl", "samples.jsonl")


class Observer(Protocol):
    """What is told about a run as it happens."""

    def step(self, metrics: Mapping[str, Any]) -> None: ...
    def heldout(self, metrics: Mapping[str, Any]) -> None: ...
    def notice(self, text: str) -> None: ...


class Silent:
    """An observer that shows nothing."""

    def step(self, metrics: Mapping[str, Any]) -> None:
        pass

    def heldout(self, metrics: Mapping[str, Any]) -> None:
        pass

    def notice(self, text: str) -> None:
        pass


@dataclass
class Progress:
    """Where a run is. Everything here goes into its checkpoints."""

    step: int = 0
    evaluated: int = -1
    best_step: int | None = None
    best_kl: float | None = None
    metrics: dict[str, Any] = field(default_factory=dict)
    heldout: dict[str, Any] = field(default_factory=dict)


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


<<<<<<< HEAD
=======
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


>>>>>>> h-loss
CHECK_PROMPTS, CHECK_ANSWER_TOKENS = 8, 64
"""How much of the data `sdft merge` compares on: the shortest prompts, the first tokens of the expert's turns."""


def check_prompts(records: Sequence[Record], prompts: ChatPrompts) -> list[CheckPrompt]:
    """Choose the prompts on which a merge of this run will be compared with its adapter."""
    shortest = sorted(records, key=lambda r: (r.row.prompt_tokens, r.record_id))[:CHECK_PROMPTS]
    return [CheckPrompt(prompts.student_ids(r), prompts.reference_ids(r)[:CHECK_ANSWER_TOKENS]) for r in shortest]


class Loop:
    """A run in its folder: the trainer, what is measured beside it, and where it is."""

    def __init__(
        self,
        trainer: Trainer,
        records: Sequence[Record],
        folder: Path,
        heldout: HeldOut,
        observer: Observer | None = None,
        log: Callable[[Mapping[str, Any], int], None] = lambda metrics, step: None,
    ) -> None:
        self.trainer = trainer
        self.config = trainer.config
        self.records = records
        self.heldout = heldout
        self.observer = observer or Silent()
        self.log = log
        self.folder = folder
        self.checkpoints = Checkpoints(folder / "checkpoints", self.config.checkpoint.keep_last)
        self.rules = StopRules(self.config.stop)
        self.progress = Progress()
        self.files: dict[str, JsonLines] = {}
        self.saved = -1

    def resume(self) -> int:
        """Go back to the newest checkpoint that verifies; return its step, 0 if the run has none yet.

        Raises:
            DataError: every checkpoint is damaged, or the newest belongs to another run.
        """
        found = self.checkpoints.newest(self.observer.notice)
        if found is None:
            offsets: Mapping[str, int] = {}
        else:
            offsets = self._restore(found)
        for name in LOGS:
            JsonLines.cut(self.folder / name, offsets.get(name, 0))
        return self.progress.step

    def _restore(self, found: Checkpoint) -> Mapping[str, int]:
        trainer = self.trainer
        restore(found, trainer.backend.model, trainer.optimizer, trainer.schedule, trainer.ema)
        self.progress = Progress(**found.state["progress"])
        self.rules.restore(found.state["stop_rules"])
        offsets: Mapping[str, int] = found.state["offsets"]
        return offsets

    def save(self) -> None:
        """Write a checkpoint of the state after the last whole step, and remember the best one.

        An adapter that is not finite is not saved: it would push out the last good one.
        """
        trainer, progress = self.trainer, self.progress
        if not all(p.isfinite().all() for p in trainer.backend.parameters()):
            self.observer.notice(f"The adapter is not finite after step {progress.step}: it is not saved.")
            return
        tensors, rng = capture(trainer.backend.model, trainer.optimizer, trainer.schedule, trainer.ema)
        state = {
            **rng,
            "progress": vars(progress),
            "stop_rules": self.rules.state(),
            "offsets": {name: file.sync() for name, file in self.files.items()},
        }
        self.checkpoints.save(progress.step, tensors, state)
        self.saved = progress.step
        if progress.best_step == progress.step:
            self.checkpoints.mark_best(progress.step)

    def run(self) -> Progress:
        """Train until `optim.max_steps`; every line of every file is flushed as it is written.

        Raises:
            InterruptedBySignal: SIGINT or SIGTERM; the state after the last whole step is saved.
            VerificationError: a stop rule ended the run; the state is saved.
            MachineError: out of memory, or the disk is full.
        """
        self.files = {name: JsonLines(self.folder / name) for name in LOGS}
        try:
            with watched_signals():
                try:
                    self._steps()
                except Interrupted:
                    self.trainer.optimizer.zero_grad(set_to_none=True)
                    self.save()
                    raise InterruptedBySignal(
                        f"interrupted after step {self.progress.step} of {self.config.optim.max_steps}, which is "
                        f"saved: go on with `sdft train --resume --out {self.folder}`."
                    ) from None
        finally:
            for file in self.files.values():
                file.close()
        return self.progress

    def _steps(self) -> None:
        progress, total = self.progress, self.config.optim.max_steps
        self.saved = progress.step if progress.step else -1
        while True:
            step = progress.step
            if self._evaluation_due(step):
                self._evaluate(step)
            due = step % self.config.checkpoint.every == 0 or step >= total or progress.best_step == step
            if due and step and step != self.saved:
                self.save()
            if step >= total:
                return
            check()
            self._step(step + 1)

    def _step(self, number: int) -> None:
        config = self.config
        indices = batch_of_step(len(self.records), config.seed, number, config.optim.records_per_step)
        with out_of_memory_explained(config, f"step {number}"):
            metrics, found, scored = self.trainer.step(number, [self.records[i] for i in indices])
        self.files["metrics.jsonl"].write(metrics)
        if number == 1 or number % config.samples_every == 0 or number == config.optim.max_steps:
            self.files["samples.jsonl"].write(self._sample(number, found, scored))
        self.progress.step, self.progress.metrics = number, metrics
        self.log(metrics, number)
        self.observer.step(metrics)
        self._act(self.rules.after_step(metrics))

    def _evaluation_due(self, step: int) -> bool:
        every = self.config.heldout.every
        if every is None or not self.heldout.records or self.progress.evaluated >= step:
            return False
        return step % every == 0 or step >= self.config.optim.max_steps

    def _evaluate(self, step: int) -> None:
        with out_of_memory_explained(self.config, f"the held-out evaluation after step {step}"):
            metrics = {"step": step, **self.heldout.measure()}
        self.files["heldout.jsonl"].write(metrics)
        progress = self.progress
        progress.evaluated, progress.heldout, self.saved = step, metrics, -1
        if progress.best_kl is None or metrics["kl_per_token"] < progress.best_kl:
            progress.best_kl, progress.best_step = metrics["kl_per_token"], step
        self.log({"heldout": metrics}, step)
        self.observer.heldout(metrics)
        self._act(self.rules.after_evaluation(metrics))

    def _act(self, findings: Sequence[Finding]) -> None:
        for finding in findings:
            self.observer.notice(finding.message)
        stops = [finding for finding in findings if finding.action == "stop"]
        if stops:
            self.save()
            raise VerificationError(
                f"Stopped after step {self.progress.step} by the rule {stops[0].rule}: look at "
                f"{self.folder / 'metrics.jsonl'}; to go on from the last checkpoint all the same, "
                f"`sdft train --resume --out {self.folder} --set stop.{stops[0].rule}=warn`."
            )

    def _sample(self, number: int, found: Trajectories, scored: Scored) -> dict[str, Any]:
        prompts = self.trainer.prompts
        rollout, example = found.rollouts[0], found.examples[0]
        return {
            "step": number,
            "record_id": example.record.record_id,
            "on_policy": found.on_policy[0],
            "finished": rollout.finished,
            "rollout": prompts.tokenizer.decode(rollout.ids),
            "reference": prompts.reference_text(example.record.reference),
            "tokens": [prompts.tokenizer.decode([i]) for i in rollout.ids],
            "per_token": [round(value, 6) for value in scored.per_token[0]],
        }
