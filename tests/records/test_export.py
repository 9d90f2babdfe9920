from __future__ import annotations

import ast
import importlib.util
import json
import os
import tracemalloc
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sdft_cli.errors import DataError, MachineError, UsageError
from sdft_cli.records import Dataset, Message, Record, RecordRow, Session, ToolCall, ToolSchema
from sdft_cli.records import export as module
from sdft_cli.records.export import (
    NotExpressibleError,
    export,
    openai_row,
    plain_turn,
    records_of,
    sharegpt_row,
    trl_row,
    write_jsonl,
)
from sdft_cli.records.folders import new_file
from sdft_cli.traces.messages import session_of
from sdft_cli.traces.source import read_file
from sdft_cli.traces.types import ReadReport
from tests.datasets import example_dataset, row, store

READ = ToolSchema("Read", "Read a file.", '{"type": "object", "properties": {"path": {"type": "string"}}}')
BARE = ToolSchema("Bare", "", '{"type": "object"}')
CALL = ToolCall("c1", "Read", '{"path": "a.py", "limit": null}')
OTHER = ToolCall("c2", "Bare", '{"other": [1]}')


def record(*messages: Message, tools: tuple[ToolSchema, ...] = (READ, BARE)) -> Record:
    turn = len(messages) - 1
    return Record(RecordRow(f"s/{turn}", "s", turn, 1, 2, 3, False), Session("s", messages, tools, "s"))


PARALLEL = record(
    Message("system", "Be brief."),
    Message("user", "Look."),
    Message("user", "Now."),
    Message("assistant", "I read.", (CALL, OTHER)),
    Message("tool", "one", tool_call_id="c1", name="Read"),
    Message("tool", "two", tool_call_id="c2", name="Bare"),
    Message("assistant", "", (CALL,)),
)


@pytest.fixture(scope="module")
def examples(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return example_dataset(tmp_path_factory.mktemp("examples"))


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_openai_row() -> None:
    found = openai_row(PARALLEL)
    call = {"id": "c1", "type": "function", "function": {"name": "Read", "arguments": CALL.arguments}}
    other = {"id": "c2", "type": "function", "function": {"name": "Bare", "arguments": OTHER.arguments}}
    assert found["messages"] == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Look."},
        {"role": "user", "content": "Now."},
        {"role": "assistant", "content": "I read.", "tool_calls": [call, other]},
        {"role": "tool", "content": "one", "tool_call_id": "c1"},
        {"role": "tool", "content": "two", "tool_call_id": "c2"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
    ]
    schema = {"type": "object", "properties": {"path": {"type": "string"}}}
    function = {"name": "Read", "description": "Read a file.", "parameters": schema}
    assert found["tools"][0] == {"type": "function", "function": function}
    assert "tools" not in openai_row(record(Message("user", "a"), Message("assistant", "b"), tools=()))


def test_trl_row() -> None:
    asked = record(*PARALLEL.session.messages, Message("tool", "3", tool_call_id="c1"), Message("user", "?"), ANSWER)
    found = trl_row(asked)
    assert set(found) == {"prompt", "privileged_context", "tools"}
    assert found["prompt"][-1] == {"role": "user", "content": "?"}
    assert found["prompt"][3]["tool_calls"][0]["function"]["arguments"] == {"path": "a.py", "limit": None}
    assert found["privileged_context"] == (
        'Done.\n<tool_call>\n{"name": "Read", "arguments": {"path": "a.py", "limit": null}}\n</tool_call>'
    )
    assert trl_row(asked, render=lambda message: message.content)["privileged_context"] == "Done."
    with pytest.raises(NotExpressibleError, match="does not end in a user message"):
        trl_row(PARALLEL)
    assert trl_row(PARALLEL, tool_turns=True)["prompt"][-1]["role"] == "tool"


ANSWER = Message("assistant", "Done.", (CALL,))


def test_plain_turn_has_no_stray_lines() -> None:
    assert plain_turn(Message("assistant", "text")) == "text"
    assert plain_turn(Message("assistant", "", (OTHER,))) == (
        '<tool_call>\n{"name": "Bare", "arguments": {"other": [1]}}\n</tool_call>'
    )


def trl_teacher_prompt(prompt: list[dict[str, Any]], privileged_context: Any) -> list[dict[str, Any]]:
    """Run the code of the installed TRL that composes the teacher's prompt, without importing torch."""
    spec = importlib.util.find_spec("trl")
    if spec is None or spec.origin is None:
        pytest.skip("trl is not installed")
    path = Path(spec.origin).parent / "experimental" / "sdft" / "sdft_trainer.py"
    names = {"_extract_last_user_text", "DemonstrationTeacherContextBuilder"}
    tree = ast.parse(path.read_text(encoding="utf-8"))
    tree.body = [node for node in tree.body if getattr(node, "name", "") in names]
    assert len(tree.body) == 2
    scope: dict[str, Any] = {"Any": Any, "torch": SimpleNamespace(Tensor=None)}
    exec(compile(tree, str(path), "exec"), scope)
    trainer = SimpleNamespace(args=SimpleNamespace(teacher_prompt_template="{prompt}\n\n{privileged_context}"))
    builder = scope["DemonstrationTeacherContextBuilder"](trainer)
    (found,) = builder.select_generation_prompts([prompt], [privileged_context])
    return list(found)


def test_the_installed_trl_reads_what_is_exported(examples: Dataset, tmp_path: Path) -> None:
    done = export(examples, "trl", tmp_path / "x.jsonl", "all")
    rows = lines(tmp_path / "x.jsonl")
    asked = [r for r in records_of(examples, "all") if r.context[-1].role == "user"]
    assert done.rows == len(rows) == len(asked) > 0
    assert done.left_out == {"prompt does not end in a user message": len(records_of(examples, "all")) - len(asked)}
    for found, expected in zip(rows, asked, strict=True):
        composed = trl_teacher_prompt(found["prompt"], found["privileged_context"])
        assert composed[:-1] == found["prompt"][:-1]
        last = f"{expected.context[-1].content}\n\n{plain_turn(expected.reference)}"
        assert composed[-1] == {"role": "user", "content": last}
    with pytest.raises(ValueError, match="expects the conversation to end with a user turn"):
        trl_teacher_prompt(trl_row(PARALLEL, tool_turns=True)["prompt"], "x")


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_datasets_keeps_the_arguments_of_a_trl_prompt_apart(tmp_path: Path, suffix: str) -> None:
    """Struct inference would add the keys of one call to the other, as nulls."""
    from datasets import load_dataset

    session = Session("s", (*PARALLEL.session.messages, Message("user", "?"), ANSWER), (READ, BARE), "s")
    data = store(tmp_path / "d", [session], [row(session, 6), row(session, 8)])
    path = tmp_path / f"rows.{suffix}"
    export(data, "trl", path, tool_turns=True)
    kind = "json" if suffix == "jsonl" else "parquet"
    loaded = load_dataset(kind, data_files=str(path), cache_dir=str(tmp_path / "cache"))["train"]
    assert list(loaded) == [trl_row(r, tool_turns=True) for r in data.train]


def like_llama_factory(row: dict[str, Any]) -> list[tuple[str, Any]]:
    """Check a row by LLaMA-Factory's rules (roles alternate, calls are JSON) and return its turns."""
    conversation = row["conversations"]
    turns = conversation[1:] if conversation[0]["from"] == "system" else conversation
    assert len(turns) % 2 == 0
    found: list[tuple[str, Any]] = []
    for index, entry in enumerate(turns):
        assert entry["from"] in (("human", "observation"), ("gpt", "function_call"))[index % 2]
        value: Any = entry["value"]
        if entry["from"] == "function_call":
            text, mark, rest = value.partition("<tool_call>")
            calls = json.loads(rest.partition("</tool_call>")[0] if mark else value)
            value = (text if mark else "", calls if isinstance(calls, list) else [calls])
        found.append((entry["from"], value))
    if row["tools"]:
        for tool in json.loads(row["tools"]):
            assert isinstance(tool["parameters"]["properties"], dict)
    return found


def test_sharegpt_row() -> None:
    one = {"name": "Read", "arguments": {"path": "a.py", "limit": None}}
    two = {"name": "Bare", "arguments": {"other": [1]}}
    assert sharegpt_row(PARALLEL)["conversations"][0] == {"from": "system", "value": "Be brief."}
    assert like_llama_factory(sharegpt_row(PARALLEL)) == [
        ("human", "Look.\n\nNow."),
        ("function_call", ("I read.", [one, two])),
        ("observation", "one\n</tool_response>\n<tool_response>\ntwo"),
        ("function_call", ("", [one])),
    ]
    assert sharegpt_row(record(Message("user", "a"), Message("assistant", "b"), tools=()))["tools"] == ""


def test_assistant_turns_in_a_row_are_one_turn_of_a_sharegpt_context() -> None:
    says = [Message("assistant", text) for text in ("b", "", "c")]
    found = sharegpt_row(
        record(
            Message("user", "a"),
            *says,
            Message("assistant", "d", (OTHER,)),
            Message("tool", "out", tool_call_id="c2"),
            Message("assistant", "e"),
        )
    )
    assert like_llama_factory(found) == [
        ("human", "a"),
        ("function_call", ("b\n\nc\n\nd", [{"name": "Bare", "arguments": {"other": [1]}}])),
        ("observation", "out"),
        ("gpt", "e"),
    ]


def test_an_argument_cannot_look_like_a_mark_of_sharegpt() -> None:
    hostile = "</tool_call><think>\u2028"
    call = ToolCall("c", "Read", json.dumps({"path": hostile}))
    found = sharegpt_row(record(Message("user", "a"), Message("assistant", "b", (call,))))
    value = found["conversations"][-1]["value"]
    assert value.count("<") == 2
    assert like_llama_factory(found)[-1] == (
        "function_call",
        ("b", [{"name": "Read", "arguments": {"path": hostile}}]),
    )


@pytest.mark.parametrize(
    ("messages", "reason"),
    [
        ([Message("user", "a"), Message("assistant", "b"), Message("assistant", "c")], "two assistant turns in a row"),
        (
            [
                Message("user", "a"),
                Message("assistant", "b", (CALL,)),
                Message("assistant", "c"),
                Message("user", "d"),
                Message("assistant", "e"),
            ],
            "two assistant turns in a row",
        ),
        (
            [
                Message("user", "a"),
                Message("assistant", "", (CALL,)),
                Message("tool", "x", tool_call_id="c1"),
                Message("user", "stop"),
                Message("assistant", "b"),
            ],
            "user message next to a tool result",
        ),
        ([Message("assistant", "a"), Message("user", "b"), Message("assistant", "c")], "starts with an answer"),
        ([Message("user", "a"), Message("system", "b"), Message("assistant", "c")], "system message inside"),
        ([Message("user", "a"), Message("assistant", "<tool_call>", (CALL,))], "text with tool-call marks"),
    ],
)
def test_what_sharegpt_cannot_hold_is_named(messages: list[Message], reason: str) -> None:
    with pytest.raises(NotExpressibleError, match=reason):
        sharegpt_row(record(*messages))


def test_every_record_is_a_row_or_counted(examples: Dataset, tmp_path: Path) -> None:
    for name in ("openai", "trl", "sharegpt"):
        done = export(examples, name, tmp_path / f"{name}.jsonl", "all")  # type: ignore[arg-type]
        assert done.rows + sum(done.left_out.values()) == len(examples.train) + len(examples.validation)
        assert len(lines(tmp_path / f"{name}.jsonl")) == done.rows
    for found in lines(tmp_path / "sharegpt.jsonl"):
        like_llama_factory(found)
    assert export(examples, "openai", tmp_path / "t.jsonl").rows == len(examples.train)
    assert export(examples, "openai", tmp_path / "v.jsonl", "validation").rows == len(examples.validation)


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_our_own_reader_reads_the_openai_file_back(examples: Dataset, tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"rows.{suffix}"
    export(examples, "openai", path, "all")
    found = read_file(path)
    assert found is not None
    assert not found.report.broken
    for session, expected in zip(found.sessions, records_of(examples, "all"), strict=True):
        assert session.messages[-1] == expected.reference
        assert len(session.messages) == len(expected.context) + 1
        assert {t.name: json.loads(t.parameters) for t in session.tools} == {
            t.name: json.loads(t.parameters) for t in expected.tools
        }
    if suffix == "jsonl":
        assert list(read_file(path).sessions) == list(found.sessions)


TEXT = st.text(st.characters(blacklist_categories=("Cs",)), max_size=12)
ARGUMENTS = st.dictionaries(TEXT, st.none() | st.integers(-9, 9) | TEXT | st.lists(TEXT, max_size=2), max_size=3)
CALLS = st.lists(
    st.builds(lambda i, n, a: ToolCall(i or "c", n, json.dumps(a, ensure_ascii=False)), TEXT, TEXT, ARGUMENTS),
    max_size=2,
).map(tuple)
TURN = st.builds(lambda text, calls: Message("assistant", text, calls), TEXT, CALLS)
OTHERS = st.builds(Message, st.sampled_from(["system", "user"]), TEXT) | st.builds(
    lambda text, call: Message("tool", text, tool_call_id=call), TEXT, TEXT
)


@settings(max_examples=100, deadline=None)
@given(st.lists(TURN | OTHERS, max_size=4), TURN)
def test_any_conversation_comes_back_from_its_openai_line(context: list[Message], reference: Message) -> None:
    line = json.dumps(openai_row(record(*context, reference)), ensure_ascii=False)
    found = session_of(json.loads(line), "x", ReadReport())
    assert found.messages == (*context, reference)


@settings(max_examples=200, deadline=None)
@given(st.lists(TURN | OTHERS, max_size=6), TURN)
def test_a_sharegpt_row_is_readable_or_refused(context: list[Message], reference: Message) -> None:
    try:
        found = sharegpt_row(record(*context, reference))
    except NotExpressibleError:
        return
    kind, value = like_llama_factory(found)[-1]
    if reference.tool_calls:
        calls = [{"name": c.name, "arguments": json.loads(c.arguments)} for c in reference.tool_calls]
        assert (kind, value) == ("function_call", (reference.content, calls))
    else:
        assert (kind, value) == ("gpt", reference.content)


def test_rows_are_written_one_by_one(tmp_path: Path) -> None:
    tracemalloc.start()
    count = write_jsonl(tmp_path / "x.jsonl", ({"text": "x" * 1_000_000} for _ in range(50)))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == 50
    assert (tmp_path / "x.jsonl").stat().st_size > 50_000_000
    assert peak < 10_000_000


def test_parquet_is_written_in_bounded_groups(
    examples: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import pyarrow.parquet as pq

    export(examples, "sharegpt", tmp_path / "one.parquet")
    monkeypatch.setattr(module, "PARQUET_GROUP_CHARACTERS", 10_000)
    export(examples, "sharegpt", tmp_path / "many.parquet")
    one, many = pq.ParquetFile(tmp_path / "one.parquet"), pq.ParquetFile(tmp_path / "many.parquet")
    assert one.metadata.num_row_groups == 1 < many.metadata.num_row_groups
    assert one.read().to_pylist() == many.read().to_pylist()


def test_nothing_is_overwritten_unasked_and_a_failure_leaves_the_old_file(examples: Dataset, tmp_path: Path) -> None:
    path = tmp_path / "deep" / "x.jsonl"
    export(examples, "openai", path)
    before = path.read_bytes()
    with pytest.raises(UsageError, match="--overwrite"):
        export(examples, "openai", path)
    with pytest.raises(UsageError, match="is a folder"):
        export(examples, "openai", tmp_path)

    def half(error: Exception) -> None:
        with new_file(path, overwrite=True) as scratch:
            scratch.write_text("half")
            raise error

    with pytest.raises(MachineError, match="No space left"):
        half(OSError(28, os.strerror(28)))
    with pytest.raises(KeyboardInterrupt):
        half(KeyboardInterrupt())  # type: ignore[arg-type]
    assert path.read_bytes() == before
    assert [p.name for p in path.parent.iterdir()] == ["x.jsonl"]
    with pytest.raises(MachineError, match=r"Writing .* failed"):
        export(examples, "openai", Path("/proc/nowhere/x.jsonl"))
    export(examples, "sharegpt", path, overwrite=True)
    assert path.read_bytes() != before


def test_an_empty_split_and_a_format_that_holds_nothing_are_refused(tmp_path: Path) -> None:
    session = PARALLEL.session
    data = store(tmp_path / "d", [session], [row(session, 6)])
    with pytest.raises(DataError, match="no record in validation"):
        export(data, "openai", tmp_path / "x.jsonl", "validation")
    with pytest.raises(DataError, match="No record of train fits the format trl"):
        export(data, "trl", tmp_path / "x.jsonl")
    assert not (tmp_path / "x.jsonl").exists()


def test_real_sessions_are_exported_whole_or_counted(shared_sessions: Path) -> None:
    from sdft_cli.traces.source import read_source, resolve_source
    from tests.datasets import with_tools

    found = with_tools(read_source(resolve_source(str(shared_sessions)), limit=8).sessions, every_builtin=False)
    records = [Record(row(s, turn), s) for s in found for turn in s.assistant_turns()][::5]
    for one in records:
        last = session_of(json.loads(json.dumps(openai_row(one))), "x", ReadReport()).messages[-1]
        assert (last.content, last.tool_calls) == (one.reference.content, one.reference.tool_calls)
        # Not expressible: a user message beside a tool result (queued while a tool ran), or a turn after a turn.
        roles = [m.role for m in (*one.context, one.reference)]
        if {("user", "tool"), ("tool", "user")} & set(pairwise(roles)) or roles[-2] == "assistant":
            with pytest.raises(NotExpressibleError):
                sharegpt_row(one)
        else:
            like_llama_factory(sharegpt_row(one))
    assert len(records) > 20
