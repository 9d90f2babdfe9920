"""Which wording and which divergence would teach these records best, measured before any step (`sdft gate`)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sdft_cli.config import TrainConfig
from sdft_cli.engine.models.backend import Backend
from sdft_cli.engine.score.alignment import Alignment, alignments
from sdft_cli.engine.score.gate import Progress, run_gate
from sdft_cli.engine.score.scoring import Role, decode, encode
from sdft_cli.engine.score.verdict import GateResult
from sdft_cli.intervals import Interval, session_interval
from sdft_cli.prompts.chat import ChatPrompts
from sdft_cli.records import Record


@dataclass(frozen=True)
class Ranked:
    """A wording with a divergence: what the gate found of the wording, and where the pair's gradient points."""

    template: str
    divergence: str
    gate: GateResult
    alignment: Interval

    @property
    def teacher_nll(self) -> float:
        """Nats per token of the expert's turns under the teacher; infinite where the gate could not score them."""
        items = self.gate.items
        return sum(i.nll_with for i in items) / sum(i.reference_tokens for i in items) if items else math.inf

    def to_json(self) -> dict[str, Any]:
        """Return it as a JSON object; the gate's records are left out."""
        gate = self.gate.to_json()
        del gate["items"], gate["settings"]
        return {
            "template": self.template,
            "divergence": self.divergence,
            "alignment": self.alignment.to_json(),
            "gate": gate,
        }


def rank(
    backend: Backend,
    wordings: Mapping[str, ChatPrompts],
    divergences: Sequence[str],
    records: Sequence[Record],
    config: TrainConfig,
    split: str,
    progress: Callable[[str], Progress],
) -> list[Ranked]:
    """Return every wording with every divergence, the best first.

    Those whose wording passes the gate come before the others. Then comes the wording whose teacher finds the expert's
    turns likelier, since a student becomes what its teacher is (`docs/learning.md` compares that with results); of one
    wording, the divergence of the larger alignment, which looks at first steps only (`alignment.py`).

    Args:
        backend: with a fresh adapter; it runs turns padded or packed.
        wordings: name -> the prompts with this wording of the teacher's.
        divergences: of `choices.DIVERGENCES`.
        records: what `gate_records` chose, of `split`.
        config: the gate's settings, those of the objective, caps on passes, and the seed.
        progress: makes what is told how far the work on a wording is, of the wording's name.

    Raises:
        VerificationError: as `run_gate`.
    """
    most, most_decoded = config.optim.max_tokens_per_pass, config.rollout.max_tokens_per_pass
    gates = {
        name: run_gate(
            backend,
            prompts,
            records,
            config.gate,
            max_tokens_per_pass=most,
            max_decode_tokens=most_decoded,
            seed=config.seed,
            split=split,
            progress=progress(name),
        )
        for name, prompts in wordings.items()
    }
    encoded = {name: encode(records, prompts) for name, prompts in wordings.items()}
    any_prompts = next(iter(wordings.values()))
    students = [e.student for e in next(iter(encoded.values()))]
    length = min(config.gate.max_new_tokens, config.rollout.max_new_tokens)
    # A fresh adapter adds nothing, so these are the student's own answers.
    rollouts = decode(Role(backend, "base", "base"), students, any_prompts, length, most_decoded, config.seed)
    objectives = {name: config.distill.model_copy(update={"divergence": name}) for name in divergences}
    found = alignments(backend, encoded, rollouts, objectives, any_prompts.turn_end_id, most, progress("all wordings"))
    ranked = [Ranked(name, key, gates[name], _interval(one, config)) for (name, key), one in found.items()]
    return sorted(ranked, key=lambda one: (not one.gate.passed, one.teacher_nll, -one.alignment.value))


def _interval(found: Alignment, config: TrainConfig) -> Interval:
    """Return the alignment with its interval over groups of sessions, taking the sizes of both gradients as known."""
    values = [part * len(found.parts) for part in found.parts.values()]
    settings = config.gate
    even = [1.0] * len(values)
    return session_interval(values, even, list(found.parts), settings.confidence, settings.resamples, config.seed)
