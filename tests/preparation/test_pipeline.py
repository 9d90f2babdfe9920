from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from sdft_cli.config import PrepareConfig
from sdft_cli.errors import DataError
from sdft_cli.preparation.job import Job
from sdft_cli.preparation.pipeline import _unknown, manifest_of, prepare, write
from sdft_cli.preparation.reasoning import strip_message, strip_session
from sdft_cli.preparation.split import validation_groups
from sdft_cli.prompts.chat import ChatPrompts, load_tokenizer
from sdft_cli.prompts.teacher import load_teacher_template
from sdft_cli.records import Message, Session, ToolCall, read_dataset
from sdft_cli.redaction.redactor import Redactor
from sdft_cli.report.cards import dataset_card
from sdft_cli.traces.examples import write_examples
from sdft_cli.traces.examples.sessions import THOUGHTS
from sdft_cli.traces.source import resolve_source
from tests.preparation.shared_secret import SECRET, write_shared_secret
from tests.prompts.texts import student_text, teacher_text
from tests.traces.lines import call, line, result, text


@pytest.fixture(scope="module")
def prompts(smollm2: Path) -> ChatPrompts:
    return ChatPrompts(load_tokenizer(smollm2), load_teacher_template())


def config(source: Path, **changes: object) -> PrepareConfig:
    return PrepareConfig.model_validate({"source": str(source), "model": "smollm2-135m", "redact": False, **changes})


def test_every_turn_is_a_record_or_has_its_reason(write_jsonl: Callable[..., Path], prompts: ChatPrompts) -> None:
    path = write_jsonl(
        "s.jsonl",
        [
            line("0", None, "assistant", text("before any user"), mid="m0"),
            line("1", "0", "user", "hi"),
            line("2", "1", "assistant", text("short"), mid="m1"),
            line("3", "2", "user", "more"),
            line("4", "3", "assistant", [{"type": "thinking", "thinking": "only this"}], mid="m2"),
            line("5", "4", "assistant", text("\n\n"), mid="m3"),
            line("6", "5", "assistant", text("API Error"), mid="m4", model="<synthetic>", isApiErrorMessage=True),
            line("7", "6", "assistant", text("No response requested."), mid="m5", model="<synthetic>"),
            line("8", "7", "user", "retry"),
            line("9", "8", "assistant", text("word " * 60), mid="m6"),
            line("10", "9", "user", "w " * 500),
            line("11", "10", "assistant", text("after a long prompt"), mid="m7"),
            line("a", "9", "user", "the other branch"),
            line("b", "a", "assistant", text("last"), mid="m8"),
        ],
    )
    settings = config(path, max_rollout_tokens=50, max_prompt_tokens=400, max_seq_tokens=600, validation_fraction=0)
    found = prepare(resolve_source(str(path)), Job(settings, prompts, None))
    assert [(r.turn_index, r.reason) for r in found.rejected] == [
        (None, "api_error"),
        (None, "abandoned_branch"),
        (0, "no_context"),
        (4, "reasoning_only"),
        (5, "empty_reference"),
        (6, "synthetic"),
        (8, "over_rollout_cap"),
    ]
    assert [r.turn_index for r in found.rows] == [2, 10]
    assert found.funnel.turns == 9
    assert found.funnel.kept == 2


def test_nothing_is_truncated_and_the_cap_that_fails_is_named(tmp_path: Path, prompts: ChatPrompts) -> None:
    write_examples(tmp_path / "x", 6)
    source = resolve_source(str(tmp_path / "x"))
    everything = prepare(source, Job(config(tmp_path / "x"), prompts, None))
    longest = max(r.teacher_prompt_tokens for r in everything.rows)
    assert not everything.rejected

    def reasons(**caps: int) -> Counter[str]:
        return Counter(r.reason for r in prepare(source, Job(config(tmp_path / "x", **caps), prompts, None)).rejected)

    over = sum(r.teacher_prompt_tokens > longest - 1 for r in everything.rows)
    assert reasons(max_prompt_tokens=longest) == {}
    assert reasons(max_prompt_tokens=longest - 1) == {"over_prompt_cap": over}
    longest_reference = max(r.reference_tokens for r in everything.rows)
    over = sum(r.reference_tokens == longest_reference for r in everything.rows)
    assert reasons(max_rollout_tokens=longest_reference - 1) == {"over_rollout_cap": over}
    both = max(r.teacher_prompt_tokens + r.reference_tokens for r in everything.rows)
    over = sum(r.teacher_prompt_tokens + r.reference_tokens == both for r in everything.rows)
    assert reasons(max_seq_tokens=both - 1, max_prompt_tokens=longest) == {"over_sequence_cap": over}
    with pytest.raises(DataError, match="over_prompt_cap"):
        reasons(max_prompt_tokens=10)


def test_lengths_are_those_of_a_full_render_and_encode(tmp_path: Path, prompts: ChatPrompts) -> None:
    write_examples(tmp_path / "x", 12)
    settings = config(tmp_path / "x", validation_fraction=0.25)
    source = resolve_source(str(tmp_path / "x"))
    found = prepare(source, Job(settings, prompts, None))
    manifest = manifest_of(settings, source, prompts, found)
    data = read_dataset(write(found, manifest, tmp_path / "d", dataset_card(manifest)))

    def count(rendered: str) -> int:
        return len(prompts.tokenizer.encode(rendered, add_special_tokens=False))

    for record in [*data.train, *data.validation]:
        assert record.row.prompt_tokens == count(student_text(prompts, record))
        assert record.row.teacher_prompt_tokens == count(teacher_text(prompts, record))
        assert record.row.reference_tokens == count(prompts.reference_text(record.reference)) + 1
        assert record.row.has_tool_call == bool(record.reference.tool_calls)
        assert not [t for some in THOUGHTS.values() for t in some if t in teacher_text(prompts, record)]
    assert {r.session.group for r in data.train}.isdisjoint(r.session.group for r in data.validation)
    assert manifest["funnel"]["kept"] == len(data.train) + len(data.validation)
    assert manifest["funnel"]["turns"] == manifest["funnel"]["kept"] + sum(manifest["funnel"]["rejected"].values())
    assert str(tmp_path) not in json.dumps(manifest)


def test_a_call_of_a_tool_that_was_not_offered_is_rejected(
    write_jsonl: Callable[..., Path], prompts: ChatPrompts
) -> None:
    tool_call = {"id": "c", "function": {"name": "g", "arguments": "{}"}}
    row = {
        "messages": [
            {"role": "user", "content": "a"},
            {"role": "assistant", "content": "b"},
            {"role": "user", "content": "a"},
            {"role": "assistant", "tool_calls": [tool_call]},
        ],
        "tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}],
    }
    path = write_jsonl("m.jsonl", [row])
    found = prepare(resolve_source(str(path)), Job(config(path), prompts, None))
    assert [(r.turn_index, r.reason) for r in found.rejected] == [(3, "unknown_tool")]


def test_reasoning_is_stripped_wherever_it_stands() -> None:
    message = Message("assistant", "<think>\nsecret\n</think>\n\nanswer", reasoning="more")
    assert strip_message(message) == Message("assistant", "answer")
    assert strip_message(Message("user", "<think>mine</think>")).content == "<think>mine</think>"
    counts: Counter[str] = Counter()
    session = Session(
        "s",
        (
            Message("user", "a"),
            Message("assistant", "<think>x</think>"),
            Message("assistant", "", (ToolCall("c", "f", "{}"),), reasoning="r"),
        ),
    )
    stripped, only = strip_session(session, counts)
    assert only == {1}
    assert counts == {"messages_with_reasoning": 2}
    assert all(not m.reasoning for m in stripped.messages)


@pytest.mark.parametrize(
    ("text", "stripped"),
    [
        ("The user wants a sum. 2+2=4.\n</think>\n\n4", "4"),
        ("It is four.</think>\n\n4", "4"),
        ("I look at the file.</think>", ""),
        ("</think>4", "4"),
        ("<think>cut off", ""),
        ("<think>a <think>b</think> c</think>d", "d"),
        ("<think>I write a <think> tag</think>\n\n4", "4"),
        ("<think>The tag </think> ends it.\n</think>\n\n4", "4"),
        ("<think>a</think>\n\n<think>b</think>\n4", "4"),
        ("[THINK]a[/THINK]4", "4"),
        ("<seed:think>a</seed:think>4", "4"),
    ],
)
def test_thoughts_at_the_beginning_are_stripped(text: str, stripped: str) -> None:
    assert strip_message(Message("assistant", text)).content == stripped


@pytest.mark.parametrize(
    "text",
    [
        "Wrap it in `<think>...</think>` tags, then parse.",
        "Wrap it in <think>...</think> tags, then parse.",
        "`</think>` ends it.\n\nDone.",
        "End it with `</think>`\n\nand go on.",
        "Write </think> behind it.",
        "The template:\n\n```\n{{ thought }}\n</think>\n\n{{ answer }}\n```\n\nThat is all.",
        "  with space around  ",
        "",
    ],
)
def test_prose_about_tags_keeps_its_words(text: str) -> None:
    message = Message("assistant", text)
    assert strip_message(message) is message


def test_what_one_session_of_a_group_gives_away_leaves_all_of_them(tmp_path: Path, prompts: ChatPrompts) -> None:
    write_shared_secret(tmp_path / "s.jsonl")
    settings = config(tmp_path / "s.jsonl", redact=True)
    found = prepare(resolve_source(str(tmp_path / "s.jsonl")), Job(settings, prompts, Redactor(b"key")))
    assert [s.session_id for s in found.sessions] == ["s", "s#2", "s/agent-ag"]
    assert SECRET not in repr(list(found.sessions))
    assert len(set(re.findall(r"REDACTED_\w+", repr(list(found.sessions))))) == 1
    assert found.redacted == {"password": 6}


def test_names_that_come_from_paths_are_redacted_too(tmp_path: Path, prompts: ChatPrompts) -> None:
    folder = tmp_path / "-Users-tkowalska87-client"
    folder.mkdir()
    turns = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]
    (folder / "-Users-tkowalska87-a.jsonl").write_text(json.dumps({"messages": turns, "id": "x"}) + "\n{\n")
    source = resolve_source(str(folder))
    for redact in (True, False):
        settings = config(folder, redact=redact)
        found = prepare(source, Job(settings, prompts, Redactor(b"key") if redact else None))
        manifest = manifest_of(settings, source, prompts, found)
        published = json.dumps(manifest) + dataset_card(manifest)
        assert ("tkowalska87" in published) is not redact
        assert bool(manifest["redaction"]["counts"].get("user_name")) is redact
    assert manifest["broken_lines"] == ["-Users-tkowalska87-a.jsonl:2 (not a JSON object)"]


def test_split_holds_out_whole_groups_and_does_not_depend_on_order() -> None:
    names = [f"g{i}" for i in range(20)]
    chosen = validation_groups(names, 0.25, 0)
    assert len(chosen) == 5
    assert chosen == validation_groups(reversed(names * 2), 0.25, 0)
    assert chosen != validation_groups(names, 0.25, 1)
    assert len(validation_groups(names, 0.001, 0)) == 1
    assert validation_groups(names, 0.0, 0) == set()
    assert validation_groups(["one"], 0.5, 0) == set()
    assert len(validation_groups(["one", "two"], 0.99, 0)) == 1


def test_results_of_a_kept_turn_stay_in_later_contexts(write_jsonl: Callable[..., Path], prompts: ChatPrompts) -> None:
    path = write_jsonl(
        "s.jsonl",
        [
            line("1", None, "user", "go"),
            line("2", "1", "assistant", call("c", "Bash", command="x" * 4000), mid="m1"),
            line("3", "2", "user", result("c", "output")),
            line("4", "3", "assistant", text("done"), mid="m2"),
        ],
    )
    found = prepare(resolve_source(str(path)), Job(config(path, max_rollout_tokens=40), prompts, None))
    assert [(r.turn_index, r.reason) for r in found.rejected] == [(1, "over_rollout_cap")]
    (row,) = found.rows
    assert row.turn_index == 3
    assert row.prompt_tokens > 500  # the long call is in the context


def test_the_manifest_names_little_of_what_the_reader_does_not_know() -> None:
    found = Counter({f"line type: {i:02}": 100 - i for i in range(60)})
    found |= {"line type: " + "x" * 5000: 200, "line type: " + "x" * 6000: 1, "line type: \x1b[31m\n": 150}
    told = _unknown(found)
    assert (told["kinds"], told["times"]) == (62, sum(100 - i for i in range(60)) + 351)
    assert len(told["named"]) == 50
    assert told["named"][:3] == [["line type: " + "x" * 69, 201], ["line type: ?[31m?", 150], ["line type: 00", 100]]


def test_a_job_that_would_not_redact_as_configured_is_refused(tmp_path: Path, prompts: ChatPrompts) -> None:
    """Else the manifest would call a dataset redacted that is not."""
    with pytest.raises(ValueError, match="disagree"):
        Job(config(tmp_path, redact=True), prompts, None)
    with pytest.raises(ValueError, match="disagree"):
        Job(config(tmp_path), prompts, lambda session, counts: session)
