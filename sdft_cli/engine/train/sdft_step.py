"""One optimiser step of self-distillation, from top to bottom (SDFT, arXiv 2601.19897, alg. 1).

    y ~ student(. | x)                        sample, adapter on                     Trainer.sample
    q = teacher(. | x, expert turn, y_<t)     score y, the expert's turn in view     Trainer.teacher_states
    p = student(. | x, y_<t)                  score y, adapter on, with gradient     Trainer.backward
    loss = sum_t w_t D(p_t, q_t)              D = KL(p||q), equal w_t by default     Trainer.loss
    backward, clip, AdamW                                                            Trainer.update

With several processes, each samples and scores a share of the turns; numbers and gradient are joined (`scores.py`).
The control arm (`objective: sft`) puts the expert's turn in the place of y, and cross-entropy in the place of D; so do
the first steps with `teacher.start`, behind which the adapter is copied: the copy is the teacher's from then on.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sdft_cli.config import TeacherSettings, TrainConfig
from sdft_cli.engine.kernels.products import products
from sdft_cli.engine.models import adapters
from sdft_cli.engine.models.backend import Backend
from sdft_cli.engine.models.interrupts import interruptible
from sdft_cli.engine.models.modes import without_dropout
from sdft_cli.engine.objective.batches import step_seed
from sdft_cli.engine.objective.formula import token_weights
from sdft_cli.engine.objective.importance import is_weighed, weighed
from sdft_cli.engine.objective.loss import LossOutput, cross_entropy_loss, distillation_loss, token_log_likelihood
from sdft_cli.engine.objective.schedules import adamw, objective_at
from sdft_cli.engine.objective.weights import Answers
from sdft_cli.engine.parallel.processes import ALONE, Processes
from sdft_cli.engine.passes.decode import Rollout, stop_tokens
from sdft_cli.engine.passes.executors import student_passes, teacher_passes
from sdft_cli.engine.passes.timing import Phases
from sdft_cli.engine.remote.sampler import RemoteSampler
from sdft_cli.engine.train.rollouts import sample_wanted, wanted_at
from sdft_cli.engine.train.scores import Scored, add_gradients, joined
from sdft_cli.errors import DataError
from sdft_cli.prompts.chat import ChatPrompts
from sdft_cli.records import Record

Watch = Callable[[Sequence[int], Sequence[int], Tensor, Tensor, Tensor | None, Tensor], None]


def teacher_weights(teacher: TeacherSettings) -> adapters.Weights:
    """Return which weights are on while the teacher scores; `ema` holds a frozen adapter, too."""
    return "ema" if teacher.keeps_adapter else "adapter" if teacher.wears_adapter else "base"


@dataclass(frozen=True)
class Example:
    """A record as token ids: the student's prompt x, and the teacher's, which holds the expert's turn too."""

    record: Record
    student: list[int]
    teacher: list[int]


@dataclass(frozen=True)
class Trajectories:
    """What a step trains on: `rollouts[i]` answers `examples[i]`; the student sampled it if `on_policy[i]`."""

    examples: list[Example]
    rollouts: list[Rollout]
    on_policy: list[bool]


@dataclass(frozen=True)
class StepResult:
    """What a step did: what it minimised, what it trained on, what it found, the update, the seconds of each phase."""

    number: int
    objective: str
    taken: Trajectories
    scored: Scored
    grad_norm: float
    updated: bool
    learning_rate: float
    seconds: dict[str, float]


class Trainer:
    """Everything that one step needs; `loop.py` is the loop around it.

    `sampling` says which weights sample rollouts here (`choose_sampling_weights`); `remote` samples them elsewhere.
    """

    def __init__(
        self,
        config: TrainConfig,
        backend: Backend,
        prompts: ChatPrompts,
        accelerator: Any,
        sampling: adapters.SamplingWeights = "merged",
        processes: Processes = ALONE,
    ) -> None:
        self.config = config
        self.backend = backend
        self.prompts = prompts
        self.accelerator = accelerator
        self.sampling, self.processes = sampling, processes
        self.remote: RemoteSampler | None = None
        self.pad_id, self.stop_ids = prompts.turn_end_id, stop_tokens(backend, prompts.turn_end_ids)
        self.optimizer, self.schedule = accelerator.prepare(*adamw(backend.parameters(), config.optim))
        keeps = config.teacher.keeps_adapter and config.objective == "sdft"
        decay = config.teacher.ema_decay if config.teacher.kind == "ema" else 1.0
        self.ema = adapters.EmaAdapter(backend.model, decay) if keeps else None
        self.moved = False  # weights did, in a step that is not over yet

    def step(
        self,
        number: int,
        records: Sequence[Record],
        first: int,
        watch: Watch | None = None,
        coming: Sequence[Record] = (),
        compare_sampler: bool = False,
    ) -> StepResult:
        """Run an optimiser step.

        Args:
            number: of the step, from 1.
            records: the turns of the step.
            first: how many turns the steps before had, without those of `teacher.start`.
            watch: told of each pass, after its loss: turns, lengths, tokens, states of student and teacher, losses.
            coming: the turns of the next step, whose rollouts are sampled elsewhere meanwhile.
            compare_sampler: the student's rollouts have log-probabilities of the sampler and of the trainer.
        """
        phases = Phases()
        torch.manual_seed(step_seed(self.config.seed, number, "step"))  # for dropout
        with phases("encode"):
            examples = [self.example(record) for record in records]
        objective = objective_at(self.config, number)
        with products(self.backend.products):
            with phases("rollout"):
                taken = self.sample(examples, number, first, compare_sampler)
                if self.remote and coming:
                    prompts = [self.example(record).student for record in coming]
                    self.remote.begin(wanted_at(self.config, prompts, number + 1, first + len(records))[0], number - 1)
            how = phases, compare_sampler, taken.on_policy, objective, watch
            scored = self.backward(taken.examples, taken.rollouts, *how)
        if self.processes.count > 1:
            with phases("processes"):
                scored = joined(scored, self.processes)
                add_gradients(self.backend.parameters(), self.processes)
        rate = self.schedule.get_last_lr()[0]
        with phases("optimizer"):
            norm, updated = self.update(scored.loss)
        if self.ema and number == self.config.teacher.start:
            self.ema.restart()
        return StepResult(number, objective, taken, scored, norm, updated, rate, dict(phases.seconds))

    def example(self, record: Record) -> Example:
        """Encode both prompts of a record.

        Raises:
            DataError: they have other lengths than `sdft prepare` counted, so the caps may not hold.
        """
        example = Example(record, self.prompts.student_ids(record), self.prompts.teacher_ids(record))
        self.prompts.encoder.forget()
        counted, expected = (len(example.student), len(example.teacher)), record.row
        if counted != (expected.prompt_tokens, expected.teacher_prompt_tokens):
            raise DataError(
                f"Record {record.record_id} has prompts of {counted[0]} and {counted[1]} tokens, the dataset says "
                f"{expected.prompt_tokens} and {expected.teacher_prompt_tokens}: run `sdft prepare` again."
            )
        return example

    def sample(
        self, examples: Sequence[Example], step: int, first: int, record_log_probs: bool = False
    ) -> Trajectories:
        """Return the trajectories of a step: y ~ student(. | x), the expert's turns, or some of each (lambda)."""
        wanted, turns = wanted_at(self.config, [e.student for e in examples], step, first)
        here = (self.backend, wanted, self.stop_ids, self.pad_id, self.sampling, record_log_probs, self.processes)
        rollouts = iter(self.remote.sample(wanted) if self.remote else sample_wanted(*here))
        repeated, on_policy = [examples[i] for i, _ in turns], [own for _, own in turns]
        answers = [
            next(rollouts) if own else Rollout(self.prompts.reference_ids(e.record), True)
            for e, own in zip(repeated, on_policy, strict=True)
        ]
        return Trajectories(repeated, answers, on_policy)

    def backward(
        self,
        examples: Sequence[Example],
        rollouts: Sequence[Rollout],
        phases: Phases,
        want_log_probs: bool = False,
        on_policy: Sequence[bool] | None = None,
        objective: str | None = None,
        watch: Watch | None = None,
    ) -> Scored:
        """Accumulate the gradient of sum_t w_t D(p_t, q_t) over the tokens of all rollouts; return what was found.

        Each of several processes goes over a share of them, and what it returns is empty elsewhere (`scores.joined`).
        `on_policy`: which rollouts the student sampled; None: all. `objective`: None: that of the run.
        `watch`: as in `step`.
        """
        sampled = on_policy or [True] * len(rollouts)
        weights = token_weights(rollouts, self.config.distill)  # w_t: which y_t count, and how much
        # Nothing behind a trajectory's last token with loss is computed.
        answers = [y.ids[: len(w)] for y, w in zip(rollouts, weights, strict=True)]
        stale = any(is_weighed(y, self.config.rollout) for y in rollouts)
        want_log_probs = want_log_probs or stale
        scored = Scored(0.0, [[] for _ in answers], [[] for _ in answers] if want_log_probs else None)
        is_sft = (objective or self.config.objective) == "sft"
        rows = [[*e.student, *y] for e, y in zip(examples, answers, strict=True)]
        mine = self.processes.mine(rows, self.backend.sharing != "none")
        if not mine:
            return scored
        examples, own_answers = [examples[i] for i in mine], [answers[i] for i in mine]
        teacher = None if is_sft else dict(zip(mine, self.teacher_states(examples, own_answers, phases), strict=True))
        prompts, most = [e.student for e in examples], self.config.optim.max_tokens_per_pass
        passes = student_passes(self.backend, prompts, own_answers, self.pad_id, most, phases)
        with interruptible(), closing(passes):
            for places, student in passes:  # hidden states (sum |y|, H) that predict the answers of a few turns
                turns = [mine[i] for i in places]
                y, w = (self._joined(rows, turns) for rows in (answers, weights))
                chosen = Answers(y, [len(answers[i]) for i in turns], [sampled[i] for i in turns])
                with phases("loss"):
                    own = self.log_probs(student, y) if want_log_probs else None
                    if stale and own is not None:
                        w = weighed(w, own, [rollouts[i] for i in turns], chosen.lengths, self.config.rollout)
                    q = None if teacher is None else torch.cat([teacher[i] for i in turns])
                    output = self.loss(student, q, chosen, w)
                    if watch:
                        watch(turns, chosen.lengths, y, student, q, output.per_token)
                if output.loss.requires_grad:
                    with phases("backward"):
                        output.loss.backward()  # type: ignore[no-untyped-call]
                scored.note(turns, chosen.lengths, output, own)
        return scored

    def teacher_states(
        self, examples: Sequence[Example], answers: Sequence[Sequence[int]], phases: Phases
    ) -> list[Tensor]:
        """Return the teacher's hidden states (|y_i|, H) that predict each answer."""
        case = teacher_weights(self.config.teacher)
        prompts, most = [e.teacher for e in examples], self.config.optim.max_tokens_per_pass
        on = adapters.weights(self.backend.model, case, self.ema), without_dropout(self.backend.model)
        with phases("teacher"), on[0], on[1], interruptible():
            return teacher_passes(self.backend, prompts, answers, self.pad_id, most)

    def loss(self, student: Tensor, teacher: Tensor | None, answers: Answers, token_weights: Tensor) -> LossOutput:
        """Return sum_t w_t D(p_t, q_t) for hidden states (N, H); of the control arm, sum_t w_t (-log p_t(y_t))."""
        head, settings = self.backend.head, self.config.distill
        if teacher is None:
            return cross_entropy_loss(student, head, answers.tokens, token_weights, settings.chunk_rows)
        return distillation_loss(student, teacher, head, token_weights, settings, answers)

    def log_probs(self, student: Tensor, targets: Tensor) -> Tensor:
        """Return log p_t(y_t) in nats (N,), detached, to compare with the sampler's."""
        return token_log_likelihood(student, self.backend.head, targets, self.config.distill.chunk_rows)

    def update(self, loss: float) -> tuple[float, bool]:
        """Clip and step; return the gradient's norm before clipping, and whether there was an update.

        Nothing moves if no token had loss, or if the loss or the gradient is not finite; the learning rate's schedule
        goes on, so that step numbers and rates stay together.
        """
        limit = self.config.optim.max_grad_norm
        norm = float(self.accelerator.clip_grad_norm_(self.backend.parameters(), limit if limit else float("inf")))
        updated = math.isfinite(loss + norm) and any(p.grad is not None for p in self.backend.parameters())
        self.moved = True
        if updated:
            self.optimizer.step()
            if self.ema:
                self.ema.update()
        self.optimizer.zero_grad(set_to_none=True)
        self.schedule.step()
        return norm, updated

    def _joined(self, rows: Sequence[Sequence[Any]], turns: Sequence[int]) -> Tensor:
        """Return the values of some turns behind each other, (N,)."""
        return torch.tensor([value for i in turns for value in rows[i]], device=self.backend.device)
