from __future__ import annotations

from sdft_cli.report.run.answers import MOST_RECORDS, answered, facts_of, plain_turn, sides
from sdft_cli.report.run.parts import Evaluation
from tests.evaluation.documents import document
from tests.report.run.made import answers


def test_equal_answers_behind_each_other_are_one_version() -> None:
    lines = [answers(step, [text], step == 0) for step, text in ((0, "a"), (5, "a"), (10, "b"), (15, "a"))]
    (record,), more = answered(lines)
    assert more == 0
    assert record.reference == "The expert's."
    assert [(v.steps, v.text) for v in record.versions] == [("steps 0 to 5", "a"), ("step 10", "b"), ("step 15", "a")]
    assert record.versions[0].facts == "KL 0.250 nats per token, expert NLL 0.500 nats per token"


def test_of_many_versions_and_records_some_are_left_out_and_counted() -> None:
    lines = [answers(step, [f"{step}"] * (MOST_RECORDS + 3), False) for step in range(20)]
    found, more = answered(lines)
    assert more == 3
    assert [v.text for v in found[0].versions] == ["0", "1", "2", "3", "16", "17", "18", "19"]
    assert found[0].left_out == 12
    assert found[0].reference is None


def test_facts_name_the_best_that_holds() -> None:
    flags = {"named": True, "valid": True, "exact": False}
    assert facts_of({"flags": flags, "finished": False}) == "cut off by the cap, a valid call"
    assert facts_of({"flags": dict.fromkeys(flags, False)}) == "not the right call"
    assert (
        facts_of({"flags": {}, "calls_unasked": True, "kl": 1.0, "rollout_tokens": 0})
        == "a call that was not asked for"
    )


def test_records_on_which_models_differ_come_first() -> None:
    found = document(tuned=("tuned", 0.5))
    base, tuned = (found["contenders"][name]["items"] for name in ("base", "tuned"))
    for one, other in zip(base, tuned, strict=True):
        other["text"], other["flags"] = one["text"], one["flags"]
    tuned[20]["flags"] = {"valid": not base[20]["flags"]["valid"]}
    tuned[9]["text"] = "another"
    shown, more = sides(Evaluation("e", found, references={"s3/9": "expert"}))
    assert (len(shown), more) == (24, 0)
    assert [record for record, _, _ in shown[:3]] == ["s6/20", "s3/9", "s0/0"]
    assert shown[1][1] == "expert"
    assert [(side.model, side.text) for side in shown[1][2]] == [("base", base[9]["text"]), ("tuned", "another")]


def test_an_experts_turn_in_plain_text() -> None:
    assert plain_turn("Look:", [{"name": "ls", "arguments": '{"p": 1}'}]) == 'Look:\nls({"p": 1})'
    assert plain_turn("", []) == ""
