"""The token autopsy of a step whose sample is kept: what student and teacher would have written at the worst tokens.

It looks at one trajectory, the first that the student sampled, while the loss is computed, at the hidden states that
the loss is of: nothing is run again but the output head, on a few rows. Other steps have none of it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from sdft_cli.choices import DIVERGENCES
from sdft_cli.config import DistillSettings, TrainConfig
from sdft_cli.engine.models.head import Head
from sdft_cli.engine.objective.formula import loss_range
from sdft_cli.engine.parallel.processes import Processes
from sdft_cli.engine.train.sdft_step import StepResult
from sdft_cli.prompts.chat import ChatPrompts
from sdft_cli.prompts.token_kinds import Kind, token_kinds, token_pieces

WORST, CHOICES = 16, 5
"""How many tokens of a sample are looked at, and how many choices of each role are kept there."""
Choices = list[tuple[int, float]]
"""(token id, probability), the likeliest first."""


@dataclass
class Autopsy:
    """Looks at trajectory `place` of a step. `worst`: what was found, in the order of the tokens.

    Distributions are those that the loss compares: at `kl_temperature`, over the whole vocabulary. In the control arm
    there is no teacher, and the student's is at temperature 1.
    """

    head: Head
    settings: DistillSettings
    place: int = 0
    worst: list[dict[str, Any]] = field(default_factory=list)

    @torch.no_grad()
    def look(
        self,
        turns: Sequence[int],
        lengths: Sequence[int],
        tokens: Tensor,
        student: Tensor,
        teacher: Tensor | None,
        per_token: Tensor,
    ) -> None:
        """Look at a pass over some turns: its tensors hold the rows of these, `lengths` of them, behind each other.

        Args:
            turns: which trajectories of the step.
            lengths: their tokens in this pass.
            tokens: (N,) ids.
            student, teacher: (N, H) hidden states that predict them.
            per_token: (N,) the loss at each, nats.
        """
        if self.place not in turns:
            return
        at = turns.index(self.place)
        start = sum(lengths[:at])
        own = slice(start, start + lengths[at])
        losses = per_token[own]
        places = losses.topk(min(WORST, int((losses > 0).sum()))).indices.sort().values
        chosen = tokens[own][places]
        roles = {"student": self._choices(student[own][places], chosen, teacher is not None)}
        if teacher is not None:
            roles["teacher"] = self._choices(teacher[own][places], chosen, True)
        self.worst = [
            {"at": at, **{role: choices[i] for role, choices in roles.items()}} for i, at in enumerate(places.tolist())
        ]

    def join(self, processes: Processes) -> None:
        """Take over what the process saw that had the trajectory."""
        self.worst = next((worst for worst in processes.gather(self.worst) if worst), [])

    def _choices(self, states: Tensor, chosen: Tensor, tempered: bool) -> list[dict[str, Any]]:
        """Return, for each state (R, H), the probability of the chosen token and the likeliest tokens."""
        logits = self.head.logits(states) / (self.settings.kl_temperature if tempered else 1.0)
        p = logits.softmax(-1)
        best = p.topk(min(CHOICES, p.shape[-1]))
        own = p.gather(-1, chosen.unsqueeze(-1)).squeeze(-1)
        rows = zip(own.tolist(), best.indices.tolist(), best.values.tolist(), strict=True)
        return [{"p": x, "choices": list(zip(ids, values, strict=True))} for x, ids, values in rows]


def sample_line(step: StepResult, autopsy: Autopsy, config: TrainConfig, prompts: ChatPrompts) -> dict[str, Any]:
    """Return the line of `samples.jsonl` of a step: one trajectory token by token, and sums over all of them."""
    taken, place = step.taken, autopsy.place
    rollout, example = taken.rollouts[place], taken.examples[place]
    pieces, kinds = _pieces_and_kinds(step, place, prompts)
    measure = "nll_per_token" if step.objective == "sft" else DIVERGENCES[config.distill.divergence].metric
    return {
        "step": step.number,
        "record_id": example.record.record_id,
        "on_policy": taken.on_policy[place],
        "finished": rollout.finished,
        "rollout": prompts.tokenizer.decode(rollout.ids),
        "reference": prompts.reference_text(example.record.reference),
        "measure": measure,
        "tokens": pieces,
        "kinds": kinds,
        "first_with_loss": loss_range(rollout, config.distill).start,
        "per_token": [round(value, 6) for value in step.scored.per_token[place]],
        "worst": [_told(place, rollout.ids, prompts) for place in autopsy.worst],
        "sums": _sums(step, config, prompts),
    }


def _pieces_and_kinds(step: StepResult, i: int, prompts: ChatPrompts) -> tuple[list[str], list[Kind]]:
    rollout, tools = step.taken.rollouts[i], step.taken.examples[i].record.tools
    pieces = token_pieces(prompts.tokenizer, rollout.ids)
    special = set(prompts.tokenizer.all_special_ids)
    last = len(rollout.ids) - 1 if rollout.finished else -1
    # The text that is parsed is the answer's without the token that ended it, as for its score.
    text = "".join(pieces[:-1] if rollout.finished else pieces)
    control = [token in special or at == last for at, token in enumerate(rollout.ids)]
    return pieces, token_kinds(pieces, prompts.parse(text, tools), control)


def _told(place: Mapping[str, Any], ids: Sequence[int], prompts: ChatPrompts) -> dict[str, Any]:
    """Write a worst token for a reader: its id, and the text of each choice."""

    def of(role: Mapping[str, Any]) -> dict[str, Any]:
        choices = [[token, _word(token, prompts), round(p, 6)] for token, p in role["choices"]]
        return {"p": round(role["p"], 6), "choices": choices}

    roles = {name: of(place[name]) for name in ("student", "teacher") if name in place}
    return {"at": place["at"], "token": ids[place["at"]], **roles}


def _word(token: int, prompts: ChatPrompts) -> str:
    """Return a token alone as text; one that is no text alone, as the tokenizer writes it in its own files."""
    text = str(prompts.tokenizer.decode([token], skip_special_tokens=False, clean_up_tokenization_spaces=False))
    return text if text and "\ufffd" not in text else str(prompts.tokenizer.convert_ids_to_tokens(token))


def _sums(step: StepResult, config: TrainConfig, prompts: ChatPrompts) -> dict[str, Any]:
    """Return the loss of all tokens of a step, nats, and how many: by kind, and by position in the turn.

    Kinds of trajectories apart: `rollouts` are the student's, `expert` are the expert's turns. Position b holds the
    tokens from 2^(b-1) to 2^b - 1 behind the first, b = 0 the first.
    """
    found: dict[str, Any] = {}
    for i, own in enumerate(step.taken.on_policy):
        name = "rollouts" if own else "expert"
        sums = found.setdefault(name, {"trajectories": 0, "kinds": defaultdict(_none), "positions": defaultdict(_none)})
        sums["trajectories"] += 1
        values, kinds = step.scored.per_token[i], _pieces_and_kinds(step, i, prompts)[1]
        for at in range(min(loss_range(step.taken.rollouts[i], config.distill).start, len(values)), len(values)):
            for part, key in (("kinds", kinds[at]), ("positions", at.bit_length())):
                sums[part][key][0] += values[at]
                sums[part][key][1] += 1
    return {
        name: {
            "trajectories": sums["trajectories"],
            "kinds": {kind: [round(total, 6), count] for kind, (total, count) in sorted(sums["kinds"].items())},
            "positions": {str(bin): [round(x, 6), n] for bin, (x, n) in sorted(sums["positions"].items())},
        }
        for name, sums in found.items()
    }


def _none() -> list[float]:
    return [0.0, 0]
