from __future__ import annotations

from sdft_cli.report.run.autopsy import LEVELS, MOST_SAMPLES, level_of, pieces_of, sample_of, samples_of, sums_of
from tests.report.run.made import sample


def test_levels_begin_at_their_borders() -> None:
    assert [level_of(border) for border in LEVELS] == [1, 2, 3, 4, 5]
    assert [level_of(border - 1e-9) for border in LEVELS] == [0, 1, 2, 3, 4]


def test_tokens_without_loss_are_joined_and_others_say_loss_and_kind() -> None:
    pieces = pieces_of(["a", "b", "c", "\n", "d"], [0.0, 0.01, 1.5, 2.5], ["prose", "prose", "tool"], "KL")
    assert [(p.text, p.level, p.title) for p in pieces] == [
        ("ab", 0, ""),
        ("c", 3, "KL 1.500 nats, tool name"),
        ("\u23ce\n", 4, "KL 2.500 nats"),
        ("d", 0, ""),  # behind the last token with loss
    ]


def test_the_worst_come_first_with_what_both_preferred() -> None:
    found = sample_of(sample(3))
    assert [worst.at for worst in found.worst] == [7, 6, 5]
    assert [(name, p) for name, p, _ in found.worst[0].roles] == [("student", "60.0%"), ("teacher", "30.0%")]
    assert [(c.text, c.p, c.taken) for c in found.worst[0].roles[0][2]] == [
        ("Read", "60.0%", True),
        ("Write", "30.0%", False),
        ("Bash", "5.0%", False),
    ]


def test_samples_are_spread_over_the_run() -> None:
    assert len(samples_of([sample(i) for i in range(3)])) == 3
    shown = samples_of([sample(i) for i in range(100)])
    assert len(shown) == MOST_SAMPLES
    assert [shown[0].title.split(",")[0], shown[-1].title.split(",")[0]] == ["step 0", "step 99"]


def test_sums_of_steps_are_added_by_whose_trajectories_they_are() -> None:
    own, expert = sums_of([sample(1), sample(2), sample(3, own=False)])
    assert (own[0], own[1], expert[0], expert[1]) == ("the student's rollouts", 4, "the expert's turns", 2)
    assert [(g.name, g.tokens, round(g.mean, 6), g.share) for g in own[2]] == [
        ("tool name", 4, 2.5, 1.0),
        ("prose", 20, 0.21, 0.084),
    ]
    assert [(g.name, g.tokens) for g in own[3]] == [("token 1", 4), ("tokens 5 to 8", 16)]
    assert sums_of([{"step": 1}]) == []
