"""The plan's seconds against those that were measured on an H100: the tables of docs/gpu.md, without autocast."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from sdft_cli.config import load_train_config, with_settings  # noqa: E402
from sdft_cli.engine.passes.depth_first_order import Enter, Tail, walk  # noqa: E402
from sdft_cli.engine.plan.cards import find_gpu  # noqa: E402
from sdft_cli.engine.plan.memory import Lengths  # noqa: E402
from sdft_cli.engine.plan.model_shape import Shape  # noqa: E402
from sdft_cli.engine.plan.passes import Pass, scoring, training  # noqa: E402
from sdft_cli.engine.plan.speed import Engine, Speed  # noqa: E402
from tests.engine.plan.nine import nine_shape  # noqa: E402

CONFIG = load_train_config("qwen3.5-9b-64k")
Ids = list[int]
Turn = tuple[Ids, Ids, Ids]
"""Prompts of student and teacher, and an answer."""


@pytest.fixture(scope="module")
def shape() -> Shape:
    return nine_shape()


def ids(count: int, seed: int) -> Ids:
    return random.Random(seed).choices(range(10, 240_000), k=count)


def turn(prompt: int, answer: int) -> Turn:
    return ids(prompt, 1), [*ids(prompt, 1), *ids(400, 2)], ids(answer, 3)


def session() -> list[Turn]:
    """16 turns up to 16k, each prompt beginning with the one before, as `benchmarks/gpu_check.py` makes them."""
    whole = ids(16_384, 4)
    students = [[*whole[: 1024 * (i + 1)], *ids(12, 50 + i)] for i in range(16)]
    return [(s, [*s[:-4], *ids(400, 100 + i)], ids(256, 200 + i)) for i, s in enumerate(students)]


def shared(turns: Sequence[Turn]) -> Iterator[Pass]:
    """The passes of a depth-first step over these turns, by their own tokens."""
    for role, gradient in ((1, False), (0, True)):
        rows = [[*one[role], *one[2][:-1]] for one in turns]
        for event in walk(rows, [len(one[role]) - 1 for one in turns], CONFIG.segment_tokens):
            spans = [event.span] if isinstance(event, Enter) else event.spans if isinstance(event, Tail) else []
            last = spans[-1] if isinstance(event, Tail) else None
            for start, stop in spans:
                size = stop - start, (start + stop + 1) / 2 * (stop - start)
                yield Pass("forward", *size, gradient)
                if gradient and (start, stop) != last:
                    yield Pass("again", *size, True)
                if gradient:
                    yield Pass("backward", *size, True, back=True)


def plain(turns: Sequence[Turn]) -> Iterator[Pass]:
    """The passes of these turns one after the other, padded, with gradient checkpointing."""
    for student, teacher, answer in turns:
        yield from scoring("teacher", [len(teacher) + len(answer)], False, "none", CONFIG)
        yield from training([len(student) + len(answer)], "none", CONFIG)


def seconds(shape: Shape, passes: Iterator[Pass], answers: int) -> float:
    speed = Speed(shape, CONFIG, find_gpu("h100-80gb"), Engine(autocast=False))
    return sum(map(speed.pass_seconds, passes)) + speed.head_seconds(answers)


def of_session(*places: int) -> list[Turn]:
    turns = session()
    return [turns[i] for i in places]


FOUR = (0, 5, 10, 15)
MEASURED: list[tuple[str, float, Any, bool]] = [
    ("1 turn, 3,696 + 64 tokens", 1.80, [[turn(3_696, 64)]], True),
    ("1 turn, 15,984 + 512 tokens", 6.45, [[turn(15_984, 512)]], True),
    ("1 turn, 56,944 + 512 tokens", 22.4, [[turn(56_944, 512)]], True),
    ("16 turns of one session", 18.8, [session()], True),
    ("4 of these turns", 8.37, [of_session(*FOUR)], True),
    ("these 4, one after the other", 13.6, [of_session(i) for i in FOUR], True),
    ("15,984 + 512, nothing shared", 4.41, [[turn(15_984, 512)]], False),
    ("these 4, nothing shared", 10.2, [of_session(i) for i in FOUR], False),
]


@pytest.mark.parametrize("row", MEASURED, ids=lambda row: row[0])
def test_steps_take_what_was_measured(row: tuple[str, float, list[list[Turn]], bool], shape: Shape) -> None:
    _, measured, steps, depth_first = row
    run = shared if depth_first else plain
    found = sum(seconds(shape, run(turns), sum(len(one[2]) for one in turns)) for turns in steps)
    print(f"plan {found:.2f} s, measured {measured:.2f} s")
    assert found == pytest.approx(measured, rel=0.2)


@pytest.mark.parametrize(
    ("measured", "merged", "prompt", "rows"),
    [(79.8, False, 16_384, 1), (74.6, True, 16_384, 1), (68.3, True, 16_384, 8), (70.2, True, 57_344, 1)],
)
def test_decoding_takes_what_was_measured(measured: float, merged: bool, prompt: int, rows: int, shape: Shape) -> None:
    together = with_settings(CONFIG, {"rollout.max_tokens_per_pass": 10**6})
    speed = Speed(shape, together, find_gpu("h100-80gb"), Engine(merged=merged, autocast=False))
    read, steps = speed.decode_bytes([Lengths(prompt, prompt, 96)] * rows)
    assert steps == 96
    found = 1e3 * speed.decode_seconds(read, steps) / steps
    print(f"plan {found:.1f} ms, measured {measured:.1f} ms")
    assert found == pytest.approx(measured, rel=0.2)


def test_a_turn_that_shares_nothing_is_planned_as_it_runs() -> None:
    """The passes from lengths alone are those of the walk, but for the answer's last token, which predicts nothing."""
    student, teacher, answer = turn(5_000, 200)
    walked = list(shared([(student, teacher, [*answer, 0])]))
    planned = [
        *scoring("teacher", [len(teacher) + len(answer)], False, "depth_first", CONFIG),
        *training([len(student) + len(answer)], "depth_first", CONFIG),
    ]
    assert [(p.tokens, p.adapter, p.back) for p in planned] == [(p.tokens, p.adapter, p.back) for p in walked]
    assert sum(p.pairs for p in planned) == pytest.approx(sum(p.pairs for p in walked))
    lengths = [p.tokens for p in planned if p.phase == "teacher"]
    assert max(lengths) <= CONFIG.segment_tokens
    assert all(abs(a - b) <= 1 for a, b in pairwise(lengths))


def test_what_is_slow_takes_longer(shape: Shape) -> None:
    gpu, one = find_gpu("h100-80gb"), Pass("student", 2_048, 2_048 * 2_049 / 2, True)

    def of(work: Pass = one, utilisation: float = 0.75, **engine: Any) -> float:
        return Speed(shape, CONFIG, gpu, Engine(**engine), utilisation).pass_seconds(work)

    long = Pass("student", 16_384, 16_384 * 16_385 / 2, True)
    assert of(long, fused=False) > 1.5 * of(long)
    assert of(long, autocast=False) > of(long)
    assert of(long, 0.3) > of(long)
    assert of(Pass("student", 1, 1, True)) == of(Pass("student", 100, 100, True))  # launches alone
    graphs = Speed(shape, CONFIG, gpu, Engine(graphs=True, merged=True))
    plain = Speed(shape, CONFIG, gpu, Engine(merged=True))
    step = [Lengths(16_384, 16_384, 100)]
    assert graphs.decode_seconds(*graphs.decode_bytes(step)) < plain.decode_seconds(*plain.decode_bytes(step)) / 5
