from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sdft_cli.config import PrepareConfig
from sdft_cli.errors import DataError
from sdft_cli.preparation.coverage import (
    Coverage,
    Turn,
    Usage,
    coverage_of,
    coverages,
    growth,
    jumps,
    scale_of,
    start_bound,
    summary,
    weighted_median,
)
from sdft_cli.preparation.job import Job
from sdft_cli.preparation.pipeline import Prepared, prepare
from sdft_cli.prompts.chat import ChatPrompts, load_tokenizer
from sdft_cli.prompts.teacher import load_teacher_template
from sdft_cli.records import read_dataset
from sdft_cli.report.page import render_page
from sdft_cli.traces.source import resolve_source
from tests.traces.lines import line, text

Run = Callable[..., subprocess.CompletedProcess[str]]
MOST = 60_000


def session(name: str, *pairs: tuple[int, int], **more: Any) -> Usage:
    """Turns by (seen, ours), at the odd indices."""
    return Usage(name, [Turn(2 * i + 1, seen, ours) for i, (seen, ours) in enumerate(pairs)], **more)


def steady(name: str, start: int, steps: int = 10, step: int = 1_000, **more: Any) -> Usage:
    """A session that lacks `start` tokens in every turn, counted by equal tokenizers."""
    return session(name, *((start + step * i, step * i) for i in range(1, steps + 1)), **more)


def test_weighted_median() -> None:
    assert weighted_median([(3, 1), (1, 1), (2, 1)]) == 2
    assert weighted_median([(1, 1), (2, 1)]) == 1
    assert weighted_median([(1, 1), (2, 2)]) == 2
    assert weighted_median([(1, 3), (9, 1), (8, 1)]) == 1
    with pytest.raises(ValueError, match="no values"):
        weighted_median([])


@given(st.lists(st.tuples(st.integers(-50, 50), st.integers(1, 9)), min_size=1, max_size=20))
def test_weighted_median_is_that_of_the_values_written_out(values: list[tuple[int, int]]) -> None:
    written = sorted(value for value, weight in values for _ in range(weight))
    assert weighted_median(values) == written[(len(written) - 1) // 2]


def test_the_scale_is_the_usual_ratio_of_growth() -> None:
    turns = [Turn(0, 100, 10), Turn(1, 130, 30), Turn(2, 135, 30), Turn(3, 131, 29), Turn(4, 191, 69)]
    assert growth(turns) == [(1.5, 20.0), (1.5, 40.0)]  # no growth of ours, no ratio
    steps = [(1.2, 1000.0)] * 5 + [(-30.0, 1000.0)] * 2 + [(70.0, 1000.0)] * 2
    assert scale_of(steps) == 1.2
    assert scale_of(steps[:7], 0.9) == 0.9  # too few steps
    assert scale_of([(ratio, weight / 2) for ratio, weight in steps], 0.9) == 0.9  # too little growth
    assert scale_of([(3.0, 1000.0)] * 9, 0.9) == 0.9  # no tokenizer
    assert scale_of([(0.1, 1000.0)] * 9, 0.9) == 0.9


def test_a_session_that_is_whole_lacks_the_same_in_each_turn() -> None:
    found = coverage_of(session("s", *((30_000 + 1_250 * i, 1_000 * i) for i in range(9))), 1.25)
    assert set(found.unseen.values()) == {30_000}
    assert list(found.unseen) == [1, 3, 5, 7, 9, 11, 13, 15, 17]
    assert (found.start, found.off, found.refused, found.drops) == (30_000, {}, {}, 0)


def test_a_step_is_a_jump_where_no_tokenizer_explains_it() -> None:
    turns = [Turn(0, 30_000, 1_000), Turn(1, 45_000, 11_000), Turn(2, 50_000, 18_500), Turn(3, 52_000, 18_500)]
    assert jumps(turns, 1.0) == [0, 0, 0, 0]  # 1.5 times as many, 1.5 times as few, 2,000 more
    turns = [Turn(0, 30_000, 1_000), Turn(1, 48_000, 11_000), Turn(2, 40_000, 12_500), Turn(3, 40_000, 9_000)]
    assert jumps(turns, 1.0) == [0, 3_000, -9_000, 0]  # 48 - 30 - 1.5 * 10; 40 - 48 - 1.5 / 1.5
    assert jumps([], 1.0) == []


def test_text_that_is_lost_in_the_middle_is_found() -> None:
    """10 turns, then 20,000 tokens that the model saw and the file lacks, then 10 turns more."""
    before = [(30_000 + 100 * i, 100 * i) for i in range(10)]
    after = [(50_000 + 100 * i, 100 * i) for i in range(10, 20)]
    found = coverage_of(session("s", *before, *after), 1.0)
    # The step after the cut grew by 20,100 for 100 of ours; text of 100 takes 150 at the most.
    assert found.off == {2 * i + 1: 19_950 for i in range(10, 20)}
    assert found.refused == found.off  # 19,950 is more than 16,000 and than a fifth of 51,900
    assert found.drops == 0
    assert found.runs == [(21, 10)]
    longer = coverage_of(session("s", *((s + 60_000, o) for s, o in (*before, *after))), 1.0)
    assert longer.off == found.off
    assert longer.refused == {}  # not a fifth of 110,000


def test_a_silent_compaction_is_found() -> None:
    before = [(30_000 + 5_000 * i, 5_000 * i) for i in range(10)]
    after = [(5_000 * i, 5_000 * i) for i in range(10, 12)]
    found = coverage_of(session("s", *before, *after), 1.0)
    # 75,000 -> 50,000 where ours grew by 5,000: text of 5,000 takes 3,333 at the least.
    assert found.off == {21: -28_333, 23: -28_333}
    assert found.refused == found.off
    assert found.drops == 1


def test_reasoning_that_comes_slowly_and_goes_at_once_is_no_gap() -> None:
    thinking = [(30_000 + 1_800 * i, 100 * i) for i in range(10)]
    found = coverage_of(session("s", *thinking, (31_000, 1_000), (31_100, 1_100)), 1.0)
    assert max(found.unseen.values()) == 45_300
    assert found.off == {}
    assert found.drops == 1


def test_a_session_that_lacks_too_much_from_its_start_is_refused() -> None:
    cut, whole = steady("cut", MOST + 1), steady("whole", MOST)
    first, second = coverages([cut, whole], MOST)
    assert first.refused == dict.fromkeys(range(1, 21, 2), MOST + 1)
    assert second.refused == {}
    after_compaction = steady("cut", MOST + 25_000, continued=True), steady("cut", MOST + 25_001, continued=True)
    assert [bool(c.refused) for c in coverages(after_compaction, MOST)] == [False, True]


def test_what_was_dropped_on_purpose_is_not_missed() -> None:
    found = coverage_of(steady("s", 70_000, dropped=10_000), 1.2)
    assert found.start == round(70_000 - 0.2 * 3_000) - 12_000
    assert next(coverages([steady("s", 70_000, dropped=10_000)], MOST)).refused == {}
    assert next(coverages([steady("s", 70_001, dropped=10_000)], MOST)).refused != {}


def test_a_source_whose_sessions_all_have_many_tools_is_not_refused() -> None:
    heavy = [steady(str(i), 90_000 + i) for i in range(8)]
    assert not any(c.refused for c in coverages(heavy, MOST))
    found = list(coverages([*heavy, steady("cut", 110_003)], MOST))
    assert [c.session_id for c in found if c.refused] == ["cut"]
    assert start_bound([90_000] * 3, MOST) == MOST  # too few to say what is usual
    assert start_bound([10_000, 90_000, 90_000, 90_000], MOST) == MOST
    assert start_bound([90_000, 90_000, 90_000, 90_000], MOST) == 110_000
    agents = [steady(f"a{i}", 5_000, agent=True) for i in range(20)]
    assert not any(c.refused for c in coverages([*heavy, *agents], MOST))


def test_a_short_session_takes_the_scale_of_its_source() -> None:
    long = session("long", *((30_000 + 1_200 * i, 1_000 * i) for i in range(20)))
    short = session("short", (20_000 + 1_200, 1_000), (20_000 + 2_400, 2_000))
    found = list(coverages([short, long, Usage("none", ())], MOST))
    assert [(c.session_id, c.scale) for c in found] == [("short", 1.2), ("long", 1.2)]
    assert found[0].unseen == {1: 20_000, 3: 20_000}
    assert next(coverages([short], MOST)).scale == 1.0


def test_what_the_manifest_says() -> None:
    assert summary([]) is None
    found = [
        Coverage("a", 1.23456, {1: 10, 3: 40, 5: 30}, 10, {3: -9_000, 5: -9_001}, runs=[(3, 2)]),
        Coverage("b", 1.0, {1: 20}, 20, {1: 9_500}, runs=[(1, 1)]),
    ]
    assert summary(found) == {
        "turns": 4,
        "median_unseen": 20,
        "sessions": [["a", 3, 30, 1.235], ["b", 1, 20, 1.0]],
        "gaps": [["b/1", 9_500, 1], ["a/3", -9_000, 2]],
    }
    many = summary([Coverage(f"s{i:04}", 1.0, {1: 1}, 1, {1: 9_000}, runs=[(1, 1)]) for i in range(101)])
    assert many is not None
    assert len(many["sessions"]) == len(many["gaps"]) == 100


COUNTS = st.integers(0, 10**8)
SESSIONS = st.lists(st.tuples(COUNTS, COUNTS), max_size=12)


@settings(deadline=None)
@given(st.lists(SESSIONS, max_size=6), st.integers(1, 10**6))
def test_any_counts_are_judged(sessions: list[list[tuple[int, int]]], most: int) -> None:
    found = list(coverages([session(str(i), *pairs) for i, pairs in enumerate(sessions)], most))
    assert [c.session_id for c in found] == [str(i) for i, pairs in enumerate(sessions) if pairs]
    for one in found:
        pairs = sessions[int(one.session_id)]
        assert 0.5 <= one.scale <= 2
        assert [*one.unseen] == [2 * i + 1 for i in range(len(pairs))]
        assert one.off.keys() | one.refused.keys() <= one.unseen.keys()
    json.dumps(summary(found))


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 20_000), st.integers(-3, 3)), min_size=1, max_size=40),
    st.integers(1, MOST),
    st.integers(60, 180),
)
def test_a_whole_session_is_never_refused(steps: list[tuple[int, int]], start: int, percent: int) -> None:
    """Whatever ratio its tokenizers have, within a few tokens a step, and whatever it lacks up to the bound."""
    ours, pairs = 0, []
    scale = Fraction(percent, 100)
    for step, noise in steps:
        ours += step
        pairs.append((start + int(scale * ours) + noise, ours))
    found = coverage_of(session("s", *pairs), float(scale))
    assert found.off == found.refused == {}
    assert abs(found.start - start) <= 4


WORDS = " ".join(["word"] * 2_000)
"""About as many tokens."""


def talk(name: str, turns: int) -> list[dict[str, Any]]:
    """A session of two lines a turn, which lacks 30,000 tokens in each."""
    made: list[dict[str, Any]] = []
    for turn in range(turns):
        parent = f"{name}a{turn - 1}" if turn else None
        made.append(line(f"{name}u{turn}", parent, "user", f"{name}{turn} {WORDS}", version="2.2.0"))
        answer = line(f"{name}a{turn}", f"{name}u{turn}", "assistant", text("yes"), mid=f"{name}m{turn}")
        usage = {"input_tokens": 7, "cache_read_input_tokens": 30_000, "output_tokens": 3}
        answer["message"]["usage"] = usage | {"cache_creation_input_tokens": 2_020 * (turn + 1)}
        made.append(answer)
    return [{**one, "sessionId": name} for one in made]


def write_source(folder: Path) -> None:
    """Eight whole sessions, and one whose first 20 turns are cut away, without a trace of it in the parents."""
    folder.mkdir()
    cut = talk("i", 40)[40:]
    cut[0]["parentUuid"] = None
    for name in "abcdefgh":
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(one) + "\n" for one in talk(name, 10)))
    (folder / "i.jsonl").write_text("".join(json.dumps(one) + "\n" for one in cut))


def test_a_file_without_its_first_half_is_rejected(tmp_path: Path, sdft: Run, smollm2: Path) -> None:
    """Its turns are rejected, with what they lack, and all reports say what is missing."""
    write_source(tmp_path / "sessions")
    options = ("--validation-fraction", 0, "--no-redact", "--max-prompt-tokens", 120_000, "--max-seq-tokens", 120_000)
    done = sdft("prepare", "sessions", "--out", "d", "--model", smollm2, *options)
    assert done.returncode == 0, done.stderr
    data = read_dataset(tmp_path / "d")
    assert {r.row.session_id for r in data.train} == set("abcdefgh")
    assert {(r.session_id, r.reason) for r in data.rejected} == {("i", "context_incomplete")}
    assert len(data.rejected) == 20
    assert all("tokens that the session does not hold" in r.detail for r in data.rejected)
    assert all(r.reference_tokens for r in data.rejected)
    coverage = data.manifest["coverage"]
    assert coverage["turns"] == 8 * 10 + 20
    unseen = {name: median for name, _, median, _ in coverage["sessions"]}
    assert all(29_000 < unseen[name] < 31_000 for name in "abcdefgh")
    assert 69_000 < unseen["i"] < 72_000  # and the 20 turns of about 2,020 tokens that were cut
    assert data.manifest["unknown"] == {"kinds": 1, "times": 100, "named": [["version: 2.2.0", 100]]}
    assert "the model saw far more than the session holds" in done.stdout
    seen = f"The model saw a median of {coverage['median_unseen']:,} more tokens a turn"
    card = (tmp_path / "d" / "README.md").read_text(encoding="utf-8")
    for shown in (done.stderr, card, render_page(data), sdft("report", "d").stdout):
        assert seen in shown
        assert "version: 2.2.0" in shown


def test_the_bound_is_a_setting_and_a_cut_file_alone_is_refused(tmp_path: Path, smollm2: Path) -> None:
    write_source(tmp_path / "sessions")
    prompts = ChatPrompts(load_tokenizer(smollm2), load_teacher_template())
    caps = {"max_prompt_tokens": 120_000, "max_seq_tokens": 120_000, "redact": False}

    def run(path: Path, **changes: Any) -> Prepared:
        config = PrepareConfig.model_validate({"source": str(path), "model": "smollm2-135m", **caps, **changes})
        return prepare(resolve_source(str(path)), Job(config, prompts, None))

    cut = tmp_path / "sessions" / "i.jsonl"
    with pytest.raises(DataError, match=r"\(context_incomplete 20\): look for the whole files, or raise"):
        run(cut)
    found = run(cut, max_unseen_tokens=80_000)
    assert len(found.rows) == found.funnel.kept == 20
    assert not found.rejected
    lines = talk("i", 40)
    lines[1]["message"]["usage"]["input_tokens"] = -1
    for turn in range(30, 40):  # from here on the model no longer saw 45,000 tokens
        lines[2 * turn + 1]["message"]["usage"] = {"input_tokens": 30_000 + 2_020 * (turn + 1) - 45_000}
    cut.write_text("".join(json.dumps(one) + "\n" for one in lines))
    found = run(cut)
    assert {(r.turn_index, r.reason) for r in found.rejected} == {(i, "context_incomplete") for i in range(61, 81, 2)}
    assert all("tokens less than the session holds" in r.detail for r in found.rejected)
    notes = found.funnel.notes
    assert (notes["bad_usage"], notes["silent_compactions"], notes["context_gaps"]) == (1, 1, 10)
