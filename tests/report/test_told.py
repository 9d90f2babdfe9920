from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sdft_cli.records import Rejection
from sdft_cli.records.reasons import ADVICE, REASONS, advice_of
from sdft_cli.report.cards import dataset_card
from sdft_cli.report.page import render_page
from sdft_cli.report.told import dominant_sentence, printable, sentences
from tests.datasets import manifest_of, row, store
from tests.report.hostile import hostile_dataset

COVERAGE = {
    "turns": 1200,
    "median_unseen": 31_204,
    "sessions": [["a", 1200, 31_204, 1.2]],
    "gaps": [["a/7", 20_000, 1], ["a/9", -9000, 31]],
}
SEEN = (
    "The model saw a median of 31,204 more tokens a turn than these records hold (system prompt, tools and memory "
    "files that this version does not record), by the provider's token counts, which 1,200 turn(s) state."
)


def told(**facts: Any) -> list[str]:
    return sentences(manifest_of(10, **facts))


def test_nothing_is_said_of_an_old_manifest_or_of_a_source_without_counts() -> None:
    assert told() == []
    assert told(coverage=None, system_prompt=None, unknown={"kinds": 0, "times": 0, "named": []}) == []


def test_what_the_model_saw_beside_the_records_is_one_sentence() -> None:
    assert told(coverage=COVERAGE) == [SEEN]
    assert told(coverage={**COVERAGE, "median_unseen": 0}) == [
        "These records hold all that the model saw in a median turn, by the provider's token counts, which 1,200 "
        "turn(s) state."
    ]


def test_turns_that_lack_far_more_are_named() -> None:
    manifest = manifest_of(10, coverage=COVERAGE)
    manifest["funnel"]["notes"] = {"context_gaps": 33}
    said = (
        " turn(s) what the model saw and what the records hold differ by far more than at the session's start. Tokens "
        "that the model saw: 20,000 more in 1 turn(s) from a/7 on, 9,000 fewer in 31 turn(s) from a/9 on"
    )
    assert sentences(manifest)[1] == f"In 33{said}, and 1 turn(s) more."
    manifest["funnel"]["notes"] = {"context_gaps": 32}
    assert sentences(manifest)[1] == f"In 32{said}."


def test_system_prompts() -> None:
    facts = {"sessions": 3, "median_tokens": 4_100, "dropped": False, "more_without": 12}
    assert told(system_prompt=facts) == [
        "3 session(s) begin with a system prompt, of a median of 4,100 tokens; --system-prompt none would keep 12 more "
        "record(s) under the caps."
    ]
    assert told(system_prompt={**facts, "dropped": True}) == [
        "3 session(s) begin with a system prompt, of a median of 4,100 tokens: it was dropped (--system-prompt none)."
    ]


def test_a_hint_names_no_cap_where_none_was_the_reason() -> None:
    facts = {"sessions": 3, "median_tokens": 4_100, "dropped": False, "more_without": 0}
    assert told(system_prompt=facts) == ["3 session(s) begin with a system prompt, of a median of 4,100 tokens."]


def test_chat_templates_and_what_they_refuse() -> None:
    other = {"name": "mine.jinja", "text": "x"}
    begin = "The chat template of this dataset and of all later stages is "
    nothing = "The chat template does not ask for the date: --template-date changes nothing."
    asked = {"config": {"template_date": "2026-01-02"}}
    assert told(chat_template=other) == [f"{begin}mine.jinja, not the model's own."]
    assert told(template_date="2026-01-02") == [f"{begin}the model's own; asked for the date, it is told 2026-01-02."]
    assert told(chat_template=other, **asked) == [f"{begin}mine.jinja, not the model's own. {nothing}"]
    assert told(**asked) == [nothing]
    assert told(refusals=[["one call only!\x1b", 7], ["No tools.", 1]]) == [
        "The chat template does not take every turn: one call only!? (7 turn(s)); No tools. (1 turn(s))"
    ]


def test_what_the_reader_does_not_know_is_named_with_its_count() -> None:
    named = [[f"line type: t{i}", 9 - i] for i in range(7)]
    (sentence,) = told(unknown={"kinds": 7, "times": 42, "named": named})
    assert sentence.endswith(
        ": line type: t0 (9), line type: t1 (8), line type: t2 (7), line type: t3 (6), line type: t4 (5) and 2 more."
    )


@pytest.mark.parametrize(
    ("reason", "advice"),
    [
        ("over_prompt_cap", "(teacher prompt over --max-prompt-tokens): raise --max-prompt-tokens."),
        ("over_rollout_cap", "(expert turn over --max-rollout-tokens): raise --max-rollout-tokens."),
        ("over_sequence_cap", "(prompt + expert turn over --max-seq-tokens): raise --max-seq-tokens."),
        ("context_incomplete", f"(the model saw far more than the session holds): {ADVICE['context_incomplete']}."),
        ("abandoned_branch", f"(on a branch the session did not end on): {ADVICE['abandoned_branch']}."),
        ("of_another_version", "of_another_version: look at rejected.parquet and the sessions."),
    ],
)
def test_the_reason_that_takes_most_turns_is_named_with_what_to_do(reason: str, advice: str) -> None:
    rejected = {"empty_reference": 2, reason: 6}
    found = dominant_sentence({"turns": 11, "rejected": rejected})
    assert found is not None
    assert found.startswith(f"Most turns (6 of 11) were rejected as {reason}")
    assert found.endswith(advice)
    assert dominant_sentence({"turns": 12, "rejected": rejected}) is None  # half is not most
    assert dominant_sentence({"turns": 0, "rejected": {}}) is None


def test_every_reason_has_advice() -> None:
    assert all(advice_of(key) for key in REASONS)


def test_card_and_page_say_the_same(tmp_path: Path) -> None:
    data = hostile_dataset(tmp_path / "first")
    (session,) = data.sessions.values()
    unknown = {"kinds": 1, "times": 3, "named": [["line type: <script>|`x`\x1b[1m", 3]]}
    rejected = [Rejection("s/3", "s", 3, "over_prompt_cap", "", 200, 210, 4)]
    facts = {"coverage": COVERAGE, "unknown": unknown}
    data = store(tmp_path / "d", [session], [row(session, 1)], [], rejected, **facts)
    card, page = dataset_card(data.manifest), render_page(data)
    assert f"- {SEEN}\n" in card
    assert "<code>line type&#58; &#60;script&#62;" in card
    assert SEEN.replace("'", "&#39;") in page
    assert "line type: &lt;script&gt;|`x`?[1m (3)" in page
    assert "## What to know" in card
    assert "## What to know" not in dataset_card(manifest_of(1))


def test_names_of_files_do_not_reach_the_terminal_as_commands() -> None:
    assert printable("a\x1b[31m\nb\u202e") == "a?[31m?b?"
