"""`sdft eval` as a function: base against tuned on the validation records.

Both are measured on the same records with the same seeds: the answers are decoded greedily from each model, the
divergence is measured on each model's own answer (on-policy), against the base model with the reference in its prompt.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

<<<<<<< HEAD
from sdft_cli.config import DistillSettings, EvalConfig
from sdft_cli.engine.adapters import weights
from sdft_cli.engine.backend import Backend
from sdft_cli.engine.forward import plan_passes, response_states
from sdft_cli.engine.loss import distillation_loss, token_log_likelihood
from sdft_cli.engine.rollout import Rollout, generate, stop_tokens
from sdft_cli.evaluate.tool_metrics import score_tool_turn
=======
from sdft_cli.config import EvalConfig
from sdft_cli.engine.backend import Backend
from sdft_cli.engine.measure import Item, Role, encode, measure, plan, summarise
>>>>>>> h-measure
from sdft_cli.prompts.chat import ChatPrompts
from sdft_cli.records import Record


@dataclass(frozen=True)
class Contender:
    """A model under test: a backend whose adapter is on or off, or a model without one."""

    name: str
    backend: Backend
    adapter: bool

<<<<<<< HEAD
    @contextmanager
    def weights(self) -> Iterator[None]:
        """Switch this contender's weights on, without gradient."""
        with weights(self.backend.model, "adapter" if self.adapter else "base"):
            yield

    @contextmanager
    def sampling(self) -> Iterator[None]:
        """The same weights, arranged for fast decoding."""
        with weights(self.backend.model, "merged" if self.adapter else "base"):
            yield


@dataclass(frozen=True)
class Item:
    """What was measured on one record. Sums are over tokens, in nats."""

    record_id: str
    session_id: str
    is_tool_turn: bool
    kl: float
    rollout_tokens: int
    finished: bool
    nll: float
    reference_tokens: int
    parsed: bool
    named: bool
    valid: bool
    calls_unasked: bool
    text: str


def summarise(items: Sequence[Item]) -> dict[str, Any]:
    """Average the items of one contender; shares of tool turns are None where there is no tool turn."""
    tool = [item for item in items if item.is_tool_turn]
    prose = [item for item in items if not item.is_tool_turn]

    def share(flags: Sequence[bool]) -> float | None:
        return sum(flags) / len(flags) if flags else None

    return {
        "records": len(items),
        "tool_turns": len(tool),
        "kl_per_token": sum(i.kl for i in items) / max(1, sum(i.rollout_tokens for i in items)),
        "expert_nll_per_token": sum(i.nll for i in items) / max(1, sum(i.reference_tokens for i in items)),
        "rollout_length": sum(i.rollout_tokens for i in items) / max(1, len(items)),
        "finished_share": share([i.finished for i in items]),
        "tool_parsed_share": share([i.parsed for i in tool]),
        "tool_named_share": share([i.named for i in tool]),
        "tool_valid_share": share([i.valid for i in tool]),
        "unasked_call_share": share([i.calls_unasked for i in prose]),
    }


def _measure(
    contender: Contender, teacher: Contender, records: Sequence[Record], prompts: ChatPrompts, config: EvalConfig
) -> list[Item]:
    pad = prompts.turn_end_id
    backend = contender.backend
    students = [prompts.student_ids(r) for r in records]
    references = [prompts.reference_ids(r) for r in records]
    stops = stop_tokens(backend, prompts.turn_end_id)
    with contender.sampling():
        answers = generate(backend, students, config.max_new_tokens, stops, pad)
    with contender.weights():
        own = response_states(backend, students, [a.ids for a in answers], pad)
        expert = response_states(backend, students, references, pad)
    with teacher.weights():
        scored = response_states(
            teacher.backend, [prompts.teacher_ids(r) for r in records], [a.ids for a in answers], pad
        )
    prompts.encoder.forget()
    everywhere = torch.ones(len(own), device=own.device)
    kl = distillation_loss(own, scored, backend.head, everywhere, DistillSettings()).per_token
    targets = torch.tensor([i for ids in references for i in ids], device=expert.device)
    likelihood = token_log_likelihood(expert, backend.head, targets)
    return [
        _item(record, answer, float(k.sum()), -float(n.sum()), len(reference), prompts)
        for record, answer, reference, k, n in zip(
            records,
            answers,
            references,
            kl.split([len(a.ids) for a in answers]),
            likelihood.split([len(r) for r in references]),
            strict=True,
        )
    ]


def _item(record: Record, answer: Rollout, kl: float, nll: float, reference_tokens: int, prompts: ChatPrompts) -> Item:
    ids = answer.ids[:-1] if answer.finished else answer.ids
    text = prompts.tokenizer.decode(ids)
    turn = parse_turn(text, record.tools)
    expert = record.reference
    score = score_tool_turn(turn, expert, record.tools) if expert.tool_calls else None
    return Item(
        record_id=record.record_id,
        session_id=record.row.session_id,
        is_tool_turn=score is not None,
        kl=kl,
        rollout_tokens=len(answer.ids),
        finished=answer.finished,
        nll=nll,
        reference_tokens=reference_tokens,
        parsed=score is not None and score.parsed,
        named=score is not None and score.named,
        valid=score is not None and score.valid,
        calls_unasked=score is None and bool(turn.calls or turn.errors),
        text=text,
    )
=======
    @property
    def role(self) -> Role:
        """Its weights: the adapter's, decoded from a merged copy for speed, or the base's."""
        return Role(self.backend, "adapter", "merged") if self.adapter else Role(self.backend, "base", "base")
>>>>>>> h-measure


def evaluate(
    contenders: Sequence[Contender],
    teacher: Contender,
    records: Sequence[Record],
    prompts: ChatPrompts,
    config: EvalConfig,
    progress: Callable[[str, int, int], None] = lambda what, done, total: None,
) -> dict[str, Any]:
    """Measure every contender on the same records.

    Args:
        contenders: e.g. base and tuned.
        teacher: the base model; it sees the expert's turn.
        records: validation records.

    Returns `{"contenders": {name: {"summary": ..., "items": [...]}}, "records": n}`; the same seed gives the same
    document.
    """
    chosen = list(records[: config.limit] if config.limit else records)
    passes = plan(
        teacher.backend,
        chosen,
        prompts,
        config.max_new_tokens,
        config.max_tokens_per_pass,
        config.max_records_per_pass,
    )
    found: dict[str, Any] = {}
    for contender in contenders:
        torch.manual_seed(config.seed)
        items: dict[str, Item] = {}
        for rows in passes:
            progress(f"Measuring {contender.name}", len(items), len(chosen))
            batch = encode([chosen[i] for i in rows], prompts)
            measured = measure(contender.role, teacher.role, batch, prompts, config.max_new_tokens)
            items.update((i.record_id, i) for i in measured)
        progress(f"Measuring {contender.name}", len(items), len(chosen))
        ordered = [items[r.record_id] for r in chosen]
        found[contender.name] = {"summary": summarise(ordered), "items": [asdict(i) for i in ordered]}
    return {"records": len(chosen), "config": config.model_dump(), "contenders": found}
