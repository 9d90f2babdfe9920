"""`sdft eval` as a function: models against each other on the same held-out records and the same general prompts.

All answer greedily, on the same records in the same passes; the divergence is that on rollouts that each model
samples (on-policy, the same seeds for all), against the base model with the reference in its prompt. The same settings
give the same document, and a model against itself differs by exactly 0.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import combinations
from math import isfinite
from typing import Any, Literal

from sdft_cli.config import EvalConfig
from sdft_cli.engine.score.scoring import Item, Role, choose_records, encode, group_of, plan, score_records
from sdft_cli.errors import VerificationError
from sdft_cli.evaluation.differences import differences
from sdft_cli.evaluation.document import FORMAT, of_drift, of_questions, of_records
from sdft_cli.evaluation.forgetting import BaseAnswers, ask, base_answers, drift, general_prompts, questions
from sdft_cli.evaluation.harness import Harness
from sdft_cli.prompts.answers import prose_scorer
from sdft_cli.prompts.chat import ChatPrompts
from sdft_cli.prompts.leaks import context_text, expert_text, unknown_paths
from sdft_cli.records import Record

SEEDS = 1_000_003
"""Seeds of rollouts lie this far apart for two seeds of an evaluation, so that no passes share one."""
Progress = Callable[[str, float, float], None]


@dataclass(frozen=True)
class Contender:
    """A model under test, and the base model that is its teacher; both stay loaded while it is evaluated.

    `kind`: base, tuned, merged, control, or model.
    """

    name: str
    kind: str
    student: Role
    teacher: Role


def evaluate(
    contenders: Iterable[Contender],
    records: Sequence[Record],
    prompts: ChatPrompts,
    config: EvalConfig,
    progress: Progress = lambda what, done, total: None,
    harness: Harness | None = None,
    against: Literal["all", "first"] = "all",
) -> dict[str, Any]:
    """Evaluate every contender on the same things, and compare each with those before it.

    Args:
        contenders: the first is the base (or the only model); taken one after the other, so that a generator can load
            one when it is its turn.
        records: validation records.
        harness: evaluates a contender on tasks of lm-evaluation-harness (`open_harness`).
        against: each contender is compared with all before it, or with the first only.

    Returns `{"format", "config", "records", "facts", "contenders": {name: ...}, "differences": {"a - b": ...}}`.
    """
    chosen = choose_records(records, config.limit) if config.limit else list(records)
    found: dict[str, Any] = {}
    base: BaseAnswers | None = None
    for contender in contenders:
        if base is None:
            base = _base_answers(contender, prompts, config, progress)
        found[contender.name] = {
            "kind": contender.kind,
            **_on_records(contender, chosen, prompts, config, progress),
            **_on_general(contender, base, prompts, config, progress),
        }
        if harness:
            progress(f"{contender.name}: lm-evaluation-harness", 0, 1)
            found[contender.name]["harness"] = harness(contender.student)
            progress(f"{contender.name}: lm-evaluation-harness", 1, 1)
        del contender  # frees its model before the next one is loaded
    return {
        "format": FORMAT,
        "config": config.model_dump(mode="json"),
        "records": len(chosen),
        "facts": _facts(chosen, prompts, config.max_new_tokens),
        "contenders": found,
        "differences": _differences(found, config, against, progress),
    }


def _differences(
    found: dict[str, Any], config: EvalConfig, against: Literal["all", "first"], progress: Progress
) -> dict[str, Any]:
    """Compare each contender with those before it, or with the first only."""
    pairs = [(a, b) for a, b in combinations(found, 2) if against == "all" or a == next(iter(found))]
    result = {}
    for number, (a, b) in enumerate(pairs):
        progress("intervals of the differences", number, len(pairs))
        result[f"{b} - {a}"] = differences(found[b], found[a], config.confidence, config.resamples, config.seed)
    progress("intervals of the differences", len(pairs), len(pairs))
    return result


def _caps(config: EvalConfig) -> tuple[int, int]:
    return config.max_tokens_per_pass, config.max_records_per_pass


def _on_records(
    contender: Contender, records: Sequence[Record], prompts: ChatPrompts, config: EvalConfig, progress: Progress
) -> dict[str, Any]:
    """Evaluate a contender on the held-out records."""
    items: dict[str, Item] = {}
    prose = prose_scorer()

    def told(before: int, phase: str, done: float) -> None:
        progress(f"{contender.name}: {phase}", before + done, len(records))

    passes = plan(contender.teacher.backend, records, prompts, config.max_new_tokens, *_caps(config))
    for number, rows in enumerate(passes):
        batch = encode([records[i] for i in rows], prompts)
        seed = config.seed * SEEDS + number
        cap = config.max_new_tokens
        watch = partial(told, len(items))
        models = contender.student, contender.teacher
        scored = score_records(*models, batch, prompts, cap, seed=seed, prose=prose, told=watch)
        _check_finite(contender.name, [(item.record_id, item.nll + item.kl) for item in scored])
        items.update((item.record_id, item) for item in scored)
    return of_records([items[record.record_id].to_json() for record in records])


def _check_finite(name: str, values: Sequence[tuple[str, float]]) -> None:
    """Stop at the first number that is none, before hours go into the others.

    Raises:
        VerificationError: a value is not finite.
    """
    for item, value in values:
        if not isfinite(value):
            raise VerificationError(
                f"What {name} says on {item} is not finite: its weights have diverged, or overflow in their dtype; "
                "evaluate an earlier adapter (--best), or train with dtype float32 or bfloat16."
            )


def _base_answers(base: Contender, prompts: ChatPrompts, config: EvalConfig, progress: Progress) -> BaseAnswers | None:
    """Let the first contender answer the general prompts, for all."""
    if not config.general:
        return None
    chosen = general_prompts(config.general)
    told = _counted(f"{base.name}: answers to general prompts", len(chosen), progress)
    return base_answers(base.student, prompts, chosen, config.drift_tokens, _caps(config), told)


def _counted(what: str, total: int, progress: Progress) -> Callable[[float], None]:
    """Return what tells of one part of the work, after telling that it begins."""
    progress(what, 0, total)
    return lambda done: progress(what, done, total)


def _on_general(
    contender: Contender, base: BaseAnswers | None, prompts: ChatPrompts, config: EvalConfig, progress: Progress
) -> dict[str, Any]:
    """Evaluate a contender's drift from the base, and ask it questions."""
    found: dict[str, Any] = {}
    if base is not None:
        told = _counted(f"{contender.name}: drift", len(base.prompts), progress)
        head, end = contender.teacher.backend.head, prompts.turn_end_id
        prompt_rows = [asdict(d) for d in drift(contender.student, base, head, end, _caps(config), told)]
        _check_finite(contender.name, [(row["prompt_id"], row["kl"] + row["entropy"]) for row in prompt_rows])
        found["drift"] = of_drift(prompt_rows)
    if config.questions:
        asked = questions(config.questions)
        told = _counted(f"{contender.name}: questions", len(asked), progress)
        replies = ask(contender.student, prompts, asked, config.question_tokens, _caps(config), told)
        found["questions"] = of_questions([asdict(reply) for reply in replies])
    return found


def _facts(records: Sequence[Record], prompts: ChatPrompts, max_new_tokens: int) -> dict[str, Any]:
    """What is true of the records whatever the model: what an answer could reach at most."""
    tool = [r for r in records if r.reference.tool_calls]
    back = [prompts.scores_calls(record) for record in tool]
    prompts.encoder.forget()
    syntax = prompts.syntax.syntax
    paths = [bool(unknown_paths(expert_text(r), context_text(r))) for r in records]
    return {
        "sessions": len({r.row.session_id for r in records}),
        "groups": len(set(map(group_of, records))),
        "tool_turns": len(tool),
        "turns_over_the_cap": sum(r.row.reference_tokens > max_new_tokens for r in records),
        "tool_turns_over_the_cap": sum(r.row.reference_tokens > max_new_tokens for r in tool),
        "call_syntax": syntax.name if syntax else None,
        "calls_not_scored": prompts.syntax.reason or None,
        "tool_turns_that_the_syntax_cannot_represent": back.count(False) if syntax else 0,
        "expert_unknown_path_share": sum(paths) / len(paths),
        "chrf": "sacrebleu" if prose_scorer() else "not measured: the package sacrebleu is not installed",
    }
