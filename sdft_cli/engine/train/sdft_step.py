"""One optimiser step of self-distillation, from top to bottom (SDFT, arXiv 2601.19897, alg. 1).

    y ~ student(. | x)                                sample, adapter on
    q = teacher(. | x, expert turn, y_<t)             score y, the expert's turn in the prompt
    p = student(. | x, y_<t)                          score y, adapter on, with gradient
    loss = sum_t D(p_t, q_t) * weight of t            by default D = KL(p||q) and equal weights

The control arm (`objective: sft`) puts the expert's turn in the place of y, and cross-entropy in the place of D.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from sdft_cli.config import OptimSettings, TrainConfig
from sdft_cli.engine.models.adapters import EmaAdapter, Weights, weights
from sdft_cli.engine.models.backend import Backend
from sdft_cli.engine.models.interrupts import interruptible
from sdft_cli.engine.objective.loss import LossOutput, cross_entropy_loss, distillation_loss, token_log_likelihood
from sdft_cli.engine.objective.token_weights import on_policy_flags, step_seed, token_weights
from sdft_cli.engine.passes.decode import Rollout, stop_tokens
from sdft_cli.engine.passes.executors import step_backward, step_states
from sdft_cli.engine.passes.timing import Phases
from sdft_cli.engine.train.rollouts import SamplingWeights, sample_rollouts, sampler_gap
from sdft_cli.errors import DataError
from sdft_cli.prompts.chat import ChatPrompts
from sdft_cli.prompts.tool_calls import parse_turn
from sdft_cli.prompts.tool_scores import score_tool_turn
from sdft_cli.records import Record

TEACHER_WEIGHTS: dict[str, Weights] = {"base": "base", "ema": "ema", "live": "adapter"}
"""Which weights are on for each kind of teacher."""

DIVERGENCE_METRIC = {"reverse_kl": "kl_per_token", "forward_kl": "kl_per_token", "jsd": "jsd_per_token"}
"""The name of the mean divergence of a step in its metrics; which KL it is, the configuration says."""


@dataclass(frozen=True)
class Example:
    """A record as token ids: the student's prompt and the teacher's."""

    record: Record
    student: list[int]
    teacher: list[int]


@dataclass(frozen=True)
class Trajectories:
    """What a step trains on: `rollouts[i]` answers `examples[i]`; the student sampled it if `on_policy[i]`."""

    examples: list[Example]
    rollouts: list[Rollout]
    on_policy: list[bool]


@dataclass
class Scored:
    """`loss`: nats. `per_token[i]`: the divergence at each token of trajectory i up to its last one with loss, nats.

    `log_probs[i]`: the trainer's log-probabilities of the same tokens, nats; None unless they were asked for.
    """

    loss: float
    per_token: list[list[float]]
    log_probs: list[list[float]] | None


def rate_factor(optim: OptimSettings, step: int) -> float:
    """Return what the learning rate is multiplied with at a step (from 0)."""
    if step < optim.warmup_steps:
        return (step + 1) / optim.warmup_steps
    if optim.schedule == "constant":
        return 1.0
    return max(0.0, (optim.max_steps - step) / max(1, optim.max_steps - optim.warmup_steps))


def _gap(rollouts: Sequence[Rollout], log_probs: Sequence[list[float]]) -> dict[str, float]:
    """Compare sampler and trainer at the tokens that both have scored: those up to the last one with loss."""
    pairs = [
        (replace(rollout, log_probs=(rollout.log_probs or [])[: len(own)]), own)
        for rollout, own in zip(rollouts, log_probs, strict=True)
        if own
    ]
    return sampler_gap([r for r, _ in pairs], torch.tensor([x for _, own in pairs for x in own])) if pairs else {}


class Trainer:
    """Everything that one step needs; `loop.py` is the loop around it.

    `sampling` says which weights rollouts are sampled from: `merged` or `adapter` (`choose_sampling_weights`).
    """

    def __init__(
        self,
        config: TrainConfig,
        backend: Backend,
        prompts: ChatPrompts,
        accelerator: Any,
        sampling: SamplingWeights = "merged",
    ) -> None:
        self.config = config
        self.backend = backend
        self.prompts = prompts
        self.accelerator = accelerator
        self.sampling = sampling
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
        teacher = config.teacher
        is_ema = teacher.kind == "ema" and config.objective == "sdft"
        self.ema = EmaAdapter(backend.model, teacher.ema_decay) if is_ema else None

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

    def trajectories(
        self, examples: Sequence[Example], step: int, first: int, record_log_probs: bool = False
    ) -> Trajectories:
        """Return the token sequences of a step: the student's rollouts, the expert's turns, or some of each."""
        config = self.config
        share = config.distill.lambda_on_policy if config.objective == "sdft" else 0.0
        flags = on_policy_flags(share, config.seed, first, len(examples))
        times = [config.rollout.per_record if own else 1 for own in flags]
        repeated = [e for e, n in zip(examples, times, strict=True) for _ in range(n)]
        on_policy = [own for own, n in zip(flags, times, strict=True) for _ in range(n)]
        sampled = [e.student for e, own in zip(repeated, on_policy, strict=True) if own]
        rollouts: Iterator[Rollout] = iter(())
        if sampled:
            rollouts = iter(
                sample_rollouts(
                    self.backend,
                    sampled,
                    config.rollout,
                    self.stop_ids,
                    self.pad_id,
                    step_seed(config.seed, step, "rollout"),
                    self.sampling,
                    record_log_probs,
                )
            )
        return Trajectories(
            repeated,
            [
                next(rollouts) if own else Rollout(self.prompts.reference_ids(e.record), True)
                for e, own in zip(repeated, on_policy, strict=True)
            ],
            on_policy,
        )

    def backward(
        self, examples: Sequence[Example], rollouts: Sequence[Rollout], phases: Phases, want_log_probs: bool = False
    ) -> Scored:
        """Accumulate the gradient of the step's loss; tokens behind the last one with loss are not computed."""
        backend, settings = self.backend, self.config.distill
        shares = token_weights(rollouts, settings)
        answers = [r.ids[: len(share)] for r, share in zip(rollouts, shares, strict=True)]
        teacher = self._teacher_states(examples, answers, phases)
        found = Scored(0.0, [[] for _ in rollouts], [[] for _ in rollouts] if want_log_probs else None)

        def loss_of(turns: Sequence[int], states: Tensor) -> Tensor:
            targets = torch.tensor([t for i in turns for t in answers[i]], device=backend.device)
            share = torch.tensor([w for i in turns for w in shares[i]], device=backend.device)
            lengths = [len(answers[i]) for i in turns]
            taught = None if teacher is None else torch.cat([teacher[i] for i in turns])
            with phases("loss"):
                output = self._loss(states, taught, targets, share)
            found.loss += output.loss.item()
            for i, values in zip(turns, output.per_token.split(lengths), strict=True):
                found.per_token[i] = values.tolist()
            if found.log_probs is not None:
                own = token_log_likelihood(states.detach(), backend.head, targets, settings.chunk_rows)
                for i, values in zip(turns, own.split(lengths), strict=True):
                    found.log_probs[i] = values.tolist()
            return output.loss

        with interruptible():
            students = [e.student for e in examples]
            most = self.config.optim.max_tokens_per_pass
            step_backward(backend, students, answers, loss_of, self.pad_id, most, phases)
        return found

    def _teacher_states(
        self, examples: Sequence[Example], answers: list[list[int]], phases: Phases
    ) -> list[Tensor] | None:
        """Return the teacher's hidden states at each answer; None for the control arm, which has no teacher."""
        if self.config.objective == "sft":
            return None
        case = TEACHER_WEIGHTS[self.config.teacher.kind]
        prompts, most = [e.teacher for e in examples], self.config.optim.max_tokens_per_pass
        with phases("teacher"), weights(self.backend.model, case, self.ema), interruptible():
            return step_states(self.backend, prompts, answers, self.pad_id, most)

    def _loss(self, student: Tensor, teacher: Tensor | None, targets: Tensor, share: Tensor) -> LossOutput:
        settings = self.config.distill
        if teacher is None:
            return cross_entropy_loss(student, self.backend.head, targets, share, settings.chunk_rows)
        return distillation_loss(student, teacher, self.backend.head, share, settings)

    def update(self, loss: float) -> tuple[float, bool]:
        """Clip and step; return the gradient's norm before clipping, and whether there was an update.

        Nothing moves if no token had loss, or if the loss or the gradient is not finite; the learning rate's schedule
        goes on, so that step numbers and rates stay together.
        """
        limit = self.config.optim.max_grad_norm
        norm = float(self.accelerator.clip_grad_norm_(self.backend.parameters(), limit if limit else float("inf")))
        any_gradient = any(p.grad is not None for p in self.backend.parameters())
        updated = any_gradient and math.isfinite(loss) and math.isfinite(norm)
        if updated:
            self.optimizer.step()
            if self.ema:
                self.ema.update()
        self.optimizer.zero_grad(set_to_none=True)
        self.schedule.step()
        return norm, updated

    def step(self, number: int, records: Sequence[Record], first: int) -> tuple[dict[str, Any], Trajectories, Scored]:
        """Run an optimiser step; return its metrics, and what they were taken from.

        Args:
            number: of the step, from 1.
            records: the turns of the step.
            first: how many turns the steps before had.
        """
        config, phases = self.config, Phases()
        torch.manual_seed(step_seed(config.seed, number, "step"))  # for dropout
        with phases("encode"):
            examples = [self.example(record) for record in records]
        rate = self.schedule.get_last_lr()[0]
        gap_due = bool(config.rollout.gap_every) and (number - 1) % (config.rollout.gap_every or 1) == 0
        with phases("rollout"):
            found = self.trajectories(examples, number, first, gap_due)
        scored = self.backward(found.examples, found.rollouts, phases, gap_due)
        with phases("optimizer"):
            norm, updated = self.update(scored.loss)
        metrics = {
            "step": number,
            "loss": scored.loss,
            **self._rollout_metrics(found, scored),
            "grad_norm": norm,
            "updated": updated,
            "learning_rate": rate,
            **self._speed(found, phases),
        }
        return metrics, found, scored

    def _rollout_metrics(self, found: Trajectories, scored: Scored) -> dict[str, Any]:
        name = "nll_per_token" if self.config.objective == "sft" else DIVERGENCE_METRIC[self.config.distill.divergence]
        ranges = [len([w for w in share if w]) for share in token_weights(found.rollouts, self.config.distill)]
        tokens = sum(len(r.ids) for r in found.rollouts)
        own = [i for i, flag in enumerate(found.on_policy) if flag]
        valid = [self._valid_call(found.examples[i].record, found.rollouts[i]) for i in own]
        tool_turns = [flag for flag in valid if flag is not None]
        metrics: dict[str, Any] = {
            name: sum(map(sum, scored.per_token)) / max(1, sum(ranges)),
            "loss_tokens": sum(ranges),
            "rollout_tokens": tokens,
            "rollout_length": tokens / len(found.rollouts),
            "finished_share": sum(r.finished for r in found.rollouts) / len(found.rollouts),
            "on_policy_share": len(own) / len(found.on_policy),
            "tool_valid_share": sum(tool_turns) / len(tool_turns) if tool_turns else None,
        }
        if scored.log_probs is not None and own:
            metrics |= _gap([found.rollouts[i] for i in own], [scored.log_probs[i] for i in own])
        return metrics

    def _valid_call(self, record: Record, rollout: Rollout) -> bool | None:
        """Say whether a rollout is a valid call of the right tool; None where the expert called none."""
        if not record.reference.tool_calls:
            return None
        ids = rollout.ids[:-1] if rollout.finished else rollout.ids
        turn = parse_turn(self.prompts.tokenizer.decode(ids), record.tools)
        return score_tool_turn(turn, record.reference, record.tools).valid

    def _speed(self, found: Trajectories, phases: Phases) -> dict[str, Any]:
        seconds = sum(phases.seconds.values())
        tokens = sum(len(r.ids) for r in found.rollouts)
        prompts = sum(len(e.student) for e in found.examples)
        if self.config.objective == "sdft":
            prompts += tokens + sum(len(e.teacher) for e in found.examples)
        return {
            "tokens_per_second": (prompts + tokens) / seconds,
            "seconds": seconds,
            "phase_seconds": {name: round(value, 4) for name, value in phases.seconds.items()},
        }
