"""The training loop: steps, and between them held-out evaluations, checkpoints, and reasons to stop.

After each step, in this order: its metrics are written; if it is due, the held-out evaluation; if it is due, a
checkpoint. A checkpoint remembers which of these were done and how long the files were, so a resumed run does the rest
and writes the same lines as one that was never interrupted.

Of several processes all go through the same loop; the first one writes the files and tells the observer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from sdft_cli.config import TrainConfig
from sdft_cli.engine.models.device_memory import out_of_memory_explained
from sdft_cli.engine.models.interrupts import Interrupted, check, watched_signals
from sdft_cli.engine.objective.batches import Order
from sdft_cli.engine.objective.looks import Looks
from sdft_cli.engine.remote.client import ServerError
from sdft_cli.engine.train.autopsy import Autopsy, sample_line
from sdft_cli.engine.train.checkpoints import Checkpoint, Checkpoints, read_checkpoint
from sdft_cli.engine.train.heldout import HeldOut, metrics_of
from sdft_cli.engine.train.profile import Profile
from sdft_cli.engine.train.resume_state import capture, digest, restore
from sdft_cli.engine.train.sdft_step import StepResult, Trainer
from sdft_cli.engine.train.step_metrics import step_metrics
from sdft_cli.engine.train.stop_rules import Finding, StopRules
from sdft_cli.errors import DataError, InterruptedBySignal, LostProcess, OutOfMemory, VerificationError
from sdft_cli.prompts.chat import ChatPrompts
from sdft_cli.records import Record
from sdft_cli.run_folder import CheckPrompt, JsonLines

LOGS = ("metrics.jsonl", "heldout.jsonl", "heldout_answers.jsonl", "samples.jsonl")


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
    """Where a run is. Everything here goes into its checkpoints. `measured_by`: settings of the evaluations so far."""

    step: int = 0
    evaluated: int = -1
    best_step: int | None = None
    best_kl: float | None = None
    metrics: dict[str, Any] = field(default_factory=dict)
    heldout: dict[str, Any] = field(default_factory=dict)
    measured_by: dict[str, Any] = field(default_factory=dict)


def check_records(records: Sequence[Record], config: TrainConfig) -> None:
    """Refuse records that do not fit the profile; nothing is truncated.

    Raises:
        DataError: there is no training record, one with the expert's turn is longer than a sequence may be where it is
            trained on, or as `check_lengths`.
    """
    if not records:
        raise DataError("The dataset has no training record: prepare one with more sessions.")
    check_lengths(records, config)
    over = [r.row.sequence_tokens for r in records if r.row.sequence_tokens > config.max_seq_tokens]
    if over and config.trains_on_references:
        raise DataError(
            f"{len(over)} record(s) have over {config.max_seq_tokens} tokens with the expert's turn, which this run "
            f"trains on (longest {max(over)}): prepare with --max-seq-tokens {config.max_seq_tokens}, or raise "
            "max_seq_tokens."
        )


def check_lengths(records: Sequence[Record], config: TrainConfig) -> None:
    """Refuse records, of training or held out, with a teacher prompt that is longer than the profile allows.

    Raises:
        DataError: says how many there are, and the longest.
    """
    over = [r for r in records if r.row.teacher_prompt_tokens > config.max_prompt_tokens]
    if over:
        longest = max(r.row.teacher_prompt_tokens for r in over)
        raise DataError(
            f"{len(over)} record(s) have a teacher prompt over {config.max_prompt_tokens} tokens (longest {longest}): "
            f"prepare with --max-prompt-tokens {config.max_prompt_tokens}, or raise max_prompt_tokens."
        )


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
        profile: Profile | None = None,
        log_rollout: Callable[[Mapping[str, Any], int], None] = lambda sample, step: None,
    ) -> None:
        self.trainer = trainer
        self.config = trainer.config
        self.records = records
        self.order = Order([r.row for r in records], self.config.optim, self.config.seed)
        self.looks = Looks(self.config, self.order)
        self.heldout = heldout
        self.processes = trainer.processes
        self.observer = observer or Silent()
        self.log = log
        self.log_rollout = log_rollout
        self.profile = profile
        self.folder = folder
        self._checkpoints = Checkpoints(folder, self.config.checkpoint.keep_last) if self.processes.first else None
        self.rules = StopRules(self.config.stop)
        self.progress = Progress()
        self.files: dict[str, JsonLines] = {}
        self.saved = -1

    @property
    def checkpoints(self) -> Checkpoints:
        """The checkpoints of the run; only the first process has them."""
        assert self._checkpoints is not None
        return self._checkpoints

    def resume(self) -> int:
        """Go back to the newest checkpoint that verifies; return its step, 0 if the run has none yet.

        Raises:
            DataError: every checkpoint is damaged, or the newest belongs to another run.
        """
        own = self.checkpoints.newest(self.observer.notice) if self.processes.first else None
        if own and own.state["progress"]["best_step"] == own.step:  # it may have been killed before it said so
            self.checkpoints.mark_best(own.step)
        step = self.processes.same(own.step if own else None)
        found = own if own or step is None else read_checkpoint(self.folder, step)
        offsets: Mapping[str, int] = self._restore(found) if found else {}
        for name in LOGS if self.processes.first else ():
            JsonLines.cut(self.folder / name, offsets.get(name, 0))
        return self.progress.step

    def _restore(self, found: Checkpoint) -> Mapping[str, int]:
        trainer = self.trainer
        restore(found, trainer.backend.model, trainer.optimizer, trainer.schedule, trainer.ema)
        self.progress = Progress(**found.state["progress"])
        if self.progress.measured_by in ({}, self._measures_by()):  # an old checkpoint does not say it
            self.rules.restore(found.state["stop_rules"])
        else:
            self.progress.best_step = self.progress.best_kl = None
            self.observer.notice("Held-out evaluations are others than before: the best step is looked for anew.")
        offsets: Mapping[str, int] = found.state["offsets"]
        return offsets

    def _measures_by(self) -> dict[str, Any]:
        """Return the settings without which held-out evaluations are not comparable."""
        return self.config.heldout.model_dump(mode="json", exclude={"every"})

    def save(self) -> None:
        """Write a checkpoint of the state after the last whole step, and remember the best one.

        An adapter that is not finite is not saved: it would push out the last good one. It has to be the same on all
        processes, which is looked at by `_steps`, and not here: where one was interrupted, nobody waits for another.
        """
        trainer, progress = self.trainer, self.progress
        if not all(p.isfinite().all() for p in trainer.backend.parameters()):
            self.observer.notice(f"The adapter is not finite after step {progress.step}: it is not saved.")
            return
        if not self.processes.first:
            self.saved = progress.step
            return
        tensors, rng = capture(trainer.backend.model, trainer.optimizer, trainer.schedule, trainer.ema)
        state = {
            **rng,
            "progress": vars(progress),
            "stop_rules": self.rules.state(),
            "offsets": {name: file.sync() for name, file in self.files.items()},
        }
        with self.processes.writing():
            self.checkpoints.save(progress.step, tensors, state)
            self.saved = progress.step
            if progress.best_step == progress.step:
                self.checkpoints.mark_best(progress.step)

    def run(self) -> Progress:
        """Train until `optim.max_steps`; every line of every file is flushed as it is written.

        Raises:
            InterruptedBySignal: SIGINT or SIGTERM; the state after the last whole step is saved.
            VerificationError: a stop rule ended the run; the state is saved.
            ServerError: the server that samples rollouts failed; the state after the last whole step is saved.
            OutOfMemory, LostProcess: memory did not suffice, or another process is gone; the state after the last whole
                step is saved, unless it came while weights moved.
            MachineError: the disk is full.
        """
        if self.processes.first:
            self.files = {name: JsonLines(self.folder / name) for name in LOGS}
        try:
            with watched_signals():
                try:
                    self._steps()
                except Interrupted:
                    self.processes.check()  # those that start processes end them where one is gone
                    self.trainer.optimizer.zero_grad(set_to_none=True)
                    self.save()
                    raise InterruptedBySignal(
                        f"interrupted after step {self.progress.step} of {self.config.optim.max_steps}, which is "
                        f"saved: go on with `sdft train --resume --out {self.folder}`."
                    ) from None
                except (ServerError, OutOfMemory, LostProcess):
                    if not self.trainer.moved:  # nothing of its step is in the adapter
                        self.trainer.optimizer.zero_grad(set_to_none=True)
                        self.save()
                    raise
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
                if self.processes.count > 1:
                    self.processes.agree("adapter", digest(self.trainer.backend.model))
                self.save()
            if step >= total:
                return
            check()
            self._step(step + 1)

    def _step(self, number: int) -> None:
        config = self.config
        head, looks = self.trainer.backend.head, self.looks
        autopsy = Autopsy(head, config.distill, looks.trajectory(number)) if looks.saves(number) else None
        with out_of_memory_explained(config, f"step {number}"):
            records = [self.records[i] for i in self.order.step(number)]
            look = autopsy.look if autopsy else None
            rest = look, self._coming(number), looks.compares(number)
            result = self.trainer.step(number, records, looks.first(number), *rest)
        first = self.processes.first
        metrics = self.processes.same(step_metrics(result, config, self.trainer.prompts) if first else {})
        if autopsy:
            autopsy.join(self.processes)
        self.progress.step, self.progress.metrics = number, metrics
        self.trainer.moved = False
        if first:
            self._tell_step(metrics, result, autopsy)
        if self.profile:
            self.profile.add(metrics, result.taken)
        self._act(self.rules.after_step(metrics))

    def _coming(self, number: int) -> list[Record]:
        """Return the records of the step after this one, if their rollouts are sampled meanwhile."""
        if not self.config.rollout.ahead or number >= self.config.optim.max_steps:
            return []
        return [self.records[i] for i in self.order.step(number + 1)]

    def _tell_step(self, metrics: dict[str, Any], result: StepResult, autopsy: Autopsy | None) -> None:
        self.files["metrics.jsonl"].write(metrics)
        if autopsy:
            sample = sample_line(result, autopsy, self.config, self.trainer.prompts)
            self.files["samples.jsonl"].write(sample)
            self.log_rollout(sample, result.number)
        self.log(metrics, result.number)
        self.observer.step(metrics)

    def _evaluation_due(self, step: int) -> bool:
        if self.progress.evaluated >= step or not self.heldout.on:
            return False
        return self.heldout.due(step) or step >= self.config.optim.max_steps

    def _evaluate(self, step: int) -> None:
        with out_of_memory_explained(self.config, f"the held-out evaluation after step {step}"):
            items = self.heldout.items()
        progress, metrics = self.progress, {"step": step, **metrics_of(items)}
        if self.processes.first:
            self.files["heldout.jsonl"].write(metrics)
            answers = self.heldout.answers(items, with_reference=progress.evaluated < 0)
            self.files["heldout_answers.jsonl"].write({"step": step, "answers": answers})
        progress.evaluated, progress.heldout, self.saved = step, metrics, -1
        progress.measured_by = self._measures_by()
        # Before the end of a start there was another teacher: its divergences are not comparable with later ones.
        comparable = self.config.objective == "sft" or step >= self.config.teacher.start
        if comparable and (progress.best_kl is None or metrics["kl_per_token"] < progress.best_kl):
            progress.best_kl, progress.best_step = metrics["kl_per_token"], step
        if self.processes.first:
            self.log({"heldout": metrics}, step)
            self.observer.heldout(metrics)
        self._act(self.rules.after_evaluation(metrics, comparable))

    def _act(self, findings: Sequence[Finding]) -> None:
        for finding in findings if self.processes.first else ():
            self.observer.notice(finding.message)
        stops = [finding for finding in findings if finding.action == "stop"]
        if stops:
            self.save()
            raise VerificationError(
                f"Stopped after step {self.progress.step} by the rule {stops[0].rule}: look at "
                f"{self.folder / 'metrics.jsonl'}; to go on from the last checkpoint all the same, "
                f"`sdft train --resume --out {self.folder} --set stop.{stops[0].rule}=warn`."
            )
