"""The token autopsy: samples coloured by the loss of each token, choices at the worst, sums by kind and position."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from sdft_cli.report.run.curves import MEASURES
from sdft_cli.report.run.parts import Line, mapping, mappings, number, numbers, texts

LEVELS = (0.05, 0.25, 1.0, 2.0, 4.0)
"""Borders in nats between the six levels that a token is shown in; each has a shade and an underline of its own."""
MOST_SAMPLES, MOST_TOKENS, MOST_WORST, MOST_TOKEN = 10, 400, 16, 80
"""Samples of a page, tokens of a sample, worst tokens of a sample, and characters of a token."""
KINDS = {
    "tool": "tool name",
    "argument": "argument",
    "prose": "prose",
    "control": "control",
    "broken": "of a call that cannot be read",
}
TRAJECTORIES = {"rollouts": "the student's rollouts", "expert": "the expert's turns"}


@dataclass(frozen=True)
class Piece:
    """Some text of one level; `title` says the loss and the kind, level 0 has none."""

    text: str
    level: int
    title: str = ""


@dataclass(frozen=True)
class Choice:
    """A token that a role would have written, and its probability; `taken`: it stands there."""

    text: str
    p: str
    taken: bool


@dataclass(frozen=True)
class Worst:
    """One of the worst tokens: where, what it is, and what each role preferred: (role, p of the token, choices)."""

    at: int
    text: str
    loss: str
    kind: str
    roles: tuple[tuple[str, str, tuple[Choice, ...]], ...]


@dataclass(frozen=True)
class Sample:
    """A trajectory to read. `left_out`: tokens that are not shown; `missing`: what an older version did not record."""

    title: str
    pieces: tuple[Piece, ...]
    left_out: int
    worst: tuple[Worst, ...]
    reference: str
    missing: str


@dataclass(frozen=True)
class Group:
    """Tokens of a kind or of a position: how many, their mean loss in nats, and its share of the largest mean."""

    name: str
    tokens: int
    mean: float
    share: float


def level_of(loss: float) -> int:
    """Return the level of a token, 0 to 5."""
    return sum(loss >= border for border in LEVELS)


def _spread(count: int, most: int) -> list[int]:
    """Return at most `most` of `count` places, spread evenly, the first and the last among them."""
    if count <= most:
        return list(range(count))
    return sorted({round(i * (count - 1) / (most - 1)) for i in range(most)})


def pieces_of(tokens: Sequence[str], losses: Sequence[float], kinds: Sequence[str], measure: str) -> tuple[Piece, ...]:
    """Return tokens as pieces; neighbours of level 0 are one."""
    found: list[Piece] = []
    for i, token in enumerate(tokens):
        loss = losses[i] if i < len(losses) else 0.0
        text, level = token if len(token) <= MOST_TOKEN else f"{token[:MOST_TOKEN]}[+{len(token) - MOST_TOKEN:,}]", 0
        if token:
            level = level_of(loss)
        if level == 0 and found and found[-1].level == 0:
            found[-1] = replace(found[-1], text=found[-1].text + text)
        elif level == 0:
            found.append(Piece(text, 0))
        else:
            kind = f", {KINDS.get(kinds[i], kinds[i][:MOST_TOKEN])}" if i < len(kinds) else ""
            # A line break alone would show no colour.
            text = text.replace("\n", "\u23ce\n") if not text.strip() else text
            found.append(Piece(text, level, f"{measure} {loss:.3f} nats{kind}"))
    return tuple(found)


def _probability(value: Any) -> str:
    p = number({"p": value}, "p")
    return "-" if p is None else f"{p:.1%}" if p >= 0.001 else f"{p:.1e}"


def _role(name: str, place: Line) -> tuple[str, str, tuple[Choice, ...]] | None:
    role = mapping(place.get(name))
    choices = role.get("choices")
    if not isinstance(choices, list):
        return None
    usable = [x for x in choices if isinstance(x, list) and len(x) == 3]
    found = [Choice(str(text)[:MOST_TOKEN], _probability(p), token == place.get("token")) for token, text, p in usable]
    return name, _probability(role.get("p")), tuple(found)


def _worst(sample: Line, tokens: Sequence[str], losses: Sequence[float], kinds: Sequence[str]) -> tuple[Worst, ...]:
    """Return the worst tokens, the worst first."""
    found = []
    for place in mappings(sample.get("worst")):
        at = int(number(place, "at") if number(place, "at") is not None else -1)  # type: ignore[arg-type]
        if not 0 <= at < min(len(tokens), len(losses)):
            continue
        roles = tuple(role for name in ("student", "teacher") if (role := _role(name, place)))
        kind = KINDS.get(kinds[at], kinds[at][:MOST_TOKEN]) if at < len(kinds) else "-"
        found.append((losses[at], Worst(at + 1, tokens[at][:MOST_TOKEN], f"{losses[at]:.3f}", kind, roles)))
    found.sort(key=lambda pair: -pair[0])
    return tuple(worst for _, worst in found[:MOST_WORST])


def measure_of(sample: Line) -> str:
    """Return what the loss of a sample's tokens is, for a reader."""
    measure = sample.get("measure")
    if not isinstance(measure, str):
        return "loss"
    return MEASURES.get(measure, measure.removesuffix("_per_token").upper()[:MOST_TOKEN])


def sample_of(sample: Line) -> Sample:
    """Lay a line of `samples.jsonl` out."""
    tokens, kinds = texts(sample.get("tokens")), texts(sample.get("kinds"))
    losses = numbers(sample.get("per_token"))
    whose = "sampled by the student" if sample.get("on_policy", True) is True else "the expert's turn"
    ended = "finished" if sample.get("finished") is True else "cut off by the cap"
    missing = [name for name in ("kinds", "worst") if name not in sample]
    return Sample(
        title=f"step {sample.get('step', '?')}, record {str(sample.get('record_id', '?'))[:200]}: {whose}, "
        f"{len(tokens):,} tokens, {ended}",
        pieces=pieces_of(tokens[:MOST_TOKENS], losses, kinds, measure_of(sample)),
        left_out=max(0, len(tokens) - MOST_TOKENS),
        worst=_worst(sample, tokens, losses, kinds),
        reference=str(sample.get("reference", "")),
        missing=" and ".join(missing),
    )


def samples_of(samples: Sequence[Line]) -> list[Sample]:
    """Choose samples of a run, from the first to the last, and lay them out."""
    return [sample_of(samples[i]) for i in _spread(len(samples), MOST_SAMPLES)]


def _groups(sums: Mapping[str, list[float]], name: Any, order: Any) -> tuple[Group, ...]:
    means = {key: total / count for key, (total, count) in sums.items() if count}
    largest = max(means.values(), default=0.0) or 1.0
    return tuple(
        Group(name(key), int(sums[key][1]), means[key], max(0.0, means[key] / largest))
        for key in sorted(means, key=order)
    )


def _position(key: str) -> str:
    bin = int(key)
    low, high = (2 ** (bin - 1) + 1, 2**bin) if bin else (1, 1)
    return f"token {low:,}" if low == high else f"tokens {low:,} to {high:,}"


def _add(total: dict[str, list[float]], sums: Mapping[str, Any], known: Any) -> None:
    for key, pair in sums.items():
        values = numbers(pair)
        if len(values) == 2 and known(key):
            entry = total.setdefault(key, [0.0, 0.0])
            entry[0], entry[1] = entry[0] + values[0], entry[1] + values[1]


def sums_of(samples: Sequence[Line]) -> list[tuple[str, int, tuple[Group, ...], tuple[Group, ...]]]:
    """Add up the steps that have sums: (whose trajectories, how many, groups by kind, groups by position)."""
    found = []
    for name, told in TRAJECTORIES.items():
        kinds, positions, count = dict[str, list[float]](), dict[str, list[float]](), 0
        for sample in samples:
            sums = mapping(mapping(sample.get("sums")).get(name))
            count += int(number(sums, "trajectories") or 0)
            _add(kinds, mapping(sums.get("kinds")), lambda key: key in KINDS)
            _add(positions, mapping(sums.get("positions")), lambda key: key.isdecimal() and len(key) <= 2)
        if kinds or positions:
            by_kind = _groups(kinds, lambda key: KINDS[key], list(KINDS).index)
            found.append((told, count, by_kind, _groups(positions, _position, int)))
    return found
