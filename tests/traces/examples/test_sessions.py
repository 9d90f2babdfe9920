"""What the example sessions promise: the same bytes for a seed, a mix of turns, and answers that can be derived."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema_rs import validator_for

from sdft_cli.config import PrepareConfig
from sdft_cli.preparation.job import Job
from sdft_cli.preparation.pipeline import prepare
from sdft_cli.prompts.chat import ChatPrompts, load_tokenizer
from sdft_cli.prompts.teacher import load_teacher_template
from sdft_cli.traces.examples import example_session, write_examples
from sdft_cli.traces.examples.talk import HOW_TO
from sdft_cli.traces.source import resolve_source
from sdft_cli.traces.tools import declared_tools

TOOLS = {"Bash", "Edit", "Glob", "Grep", "Read", "Write"}
VALIDATORS = {name: validator_for(json.loads(tool.parameters)) for name, tool in declared_tools().items()}
FILE = re.compile(r"[\w/.-]+\.(?:py|ts|go|rs|md|toml|sh)\b")
QUOTED = re.compile(r"`([^`]+)`")
TAUGHT = "def function func fn ls pytest npm test cargo gotestsum run git status short log oneline diff stat wc mkdir "
TAUGHT += "mv switch pip install go get add make du sh commit rm"
"""Words of calls that no request says: how definitions begin, and commands."""

sessions = st.builds(example_session, st.integers(0, 500), st.integers(0, 10**6), st.sampled_from(["all", "few"]))


def turns(lines: list[dict[str, Any]]) -> Iterator[tuple[str, Any, str]]:
    """Go through a session: what each line holds (`user`, `say`, `call`, `result`), its value, and all text before."""
    before = ""
    for line in lines[1:]:
        content = line["message"]["content"]
        for block in [{"type": "user", "text": content}] if isinstance(content, str) else content:
            if block["type"] == "thinking":
                continue
            kind, key = {
                "user": ("user", "text"),
                "text": ("say", "text"),
                "tool_use": ("call", "input"),
                "tool_result": ("result", "content"),
            }[block["type"]]
            yield kind, (block["name"], block["input"]) if kind == "call" else block[key], before
            before += f"\n{' '.join(block[key].values()) if kind == 'call' else block[key]}"


def kinds(lines: list[dict[str, Any]]) -> str:
    """Return the kinds of a session's turns as letters: `u`ser, `c`all, `r`esult, `s`ay."""
    return "".join(kind[0] for kind, _, _ in turns(lines))


def test_a_seed_writes_the_same_bytes_and_another_seed_others(tmp_path: Path) -> None:
    written = [write_examples(tmp_path / name, 30, seed) for name, seed in (("a", 3), ("b", 3), ("c", 4))]
    a, b, c = ([(path.name, path.read_bytes()) for path in paths] for paths in written)
    assert a == b
    assert not {text for _, text in a} & {text for _, text in c}
    assert len({text for _, text in a}) == 30


@given(sessions)
@settings(deadline=None, max_examples=150)
def test_every_call_is_valid_and_its_words_come_from_the_conversation(lines: list[dict[str, Any]]) -> None:
    for kind, value, before in turns(lines):
        if kind == "call":
            name, arguments = value
            assert name in TOOLS
            VALIDATORS[name].validate(arguments)
            said = {*re.findall(r"\w+", before), *TAUGHT.split()}
            code = re.sub(r"-\w\b|v(?=\d)|\*\.\w+", " ", " ".join(v for k, v in arguments.items() if k != "content"))
            assert not set(re.findall(r"\w+", code)) - said, (value, before)


@given(sessions)
@settings(deadline=None, max_examples=150)
def test_names_and_numbers_of_an_answer_occur_before_it(lines: list[dict[str, Any]]) -> None:
    called = False
    for kind, value, before in turns(lines):
        called |= kind == "call"
        if kind == "say":
            assert not set(re.findall(r"\d+", value)) - set(re.findall(r"\d+", before)), value
            assert not [path for path in FILE.findall(value) if path not in before], value
            if called:
                assert not [name for name in QUOTED.findall(value) if name not in before], value


@given(st.integers(0, 10**6), st.integers(0, 20))
@settings(deadline=None, max_examples=20)
def test_each_dozen_has_both_kinds_of_turns(seed: int, dozen: int) -> None:
    found = [kinds(example_session(12 * dozen + i, seed)) for i in range(12)]
    turns = Counter("".join(found))
    assert 1.0 <= turns["c"] / turns["s"] <= 1.7
    assert sum(f.startswith("us") for f in found) == 4
    assert found.count("us") == 2
    assert sum("ccrr" in f or f.startswith("uuu") for f in found) == 1


@pytest.mark.parametrize("seed", range(5))
def test_two_dozen_have_every_tool(seed: int) -> None:
    """Of the first 400 seeds two leave a rare tool out, 24 sessions being few."""
    found = [example_session(i, seed) for i in range(24)]
    called = Counter(value[0] for lines in found for kind, value, _ in turns(lines) if kind == "call")
    assert set(called) == TOOLS


@given(st.integers(0, 10**6))
@settings(deadline=None, max_examples=10)
def test_of_two_dozen_no_two_begin_with_the_same_request(seed: int) -> None:
    found = [example_session(i, seed) for i in range(24)]
    first = [next(value for _, value, _ in turns(lines) if "<local" not in value) for lines in found]
    assert len(set(first)) == 24


def test_few_kinds_are_each_a_tool_or_talk() -> None:
    called, shapes = Counter[str](), Counter[str]()
    for index in range(120):
        lines = example_session(index, 5, "few")
        shapes[kinds(lines)] += 1
        called.update(value[0] for kind, value, _ in turns(lines) if kind == "call")
    assert set(called) == {"Bash", "Read", "Write"}
    assert max(called.values()) <= 1.2 * min(called.values())
    assert shapes == {"us": 20, "usucrs": 20, "ucrs": 60, "ucrsus": 20}


@pytest.mark.parametrize(("subset", "turns_held_out"), [("all", 40), ("few", 30)])
def test_of_160_sessions_those_held_out_say_nothing_that_the_others_say(subset: Any, turns_held_out: int) -> None:
    """Learning by heart does not help: fewer than 5% of texts and 10% of calls of a quarter occur in the rest."""
    said: dict[str, list[list[str]]] = {"say": [[], []], "call": [[], []]}
    for index in range(160):
        for kind, value, _ in turns(example_session(index, 0, subset)):
            if kind in said:
                said[kind][index % 4 == 0].append(repr(value))
    for kind, most in (("say", 0.05), ("call", 0.1)):
        rest, held_out = said[kind]
        assert len(held_out) >= turns_held_out
        assert sum(text in set(rest) for text in held_out) < most * len(held_out)


def test_a_command_is_told_or_run_as_the_user_wants() -> None:
    asked = Counter[bool]()
    for index in range(240):
        found = list(turns(example_session(index)))
        for (_, request, _), (kind, answer, _) in pairwise(found):
            if kind == "say" and re.search(r"[Hh]ow (do I|to)\b|would I type|by hand|do I type", str(request)):
                asked[any(f"`{command.split()[0]}" in answer for _, command in HOW_TO)] += 1
    assert set(asked) == {True}


@pytest.mark.parametrize("seed", [0, 7])
def test_all_sessions_fit_and_only_a_forks_turns_are_rejected(tmp_path: Path, smollm2: Path, seed: int) -> None:
    write_examples(tmp_path / "x", 48, seed)
    config = PrepareConfig(source=str(tmp_path / "x"), model="smollm2-135m", redact=False)
    prompts = ChatPrompts(load_tokenizer(smollm2), load_teacher_template("own_turn"))
    found = prepare(resolve_source(str(tmp_path / "x")), Job(config, prompts, None))
    assert set(found.funnel.rejected) == {"abandoned_branch"}
    assert found.funnel.rejected["abandoned_branch"] == 2 * 2  # a call and an answer of each fork, one in 24 sessions
    assert max(row.reference_tokens for row in found.rows) <= 75
    assert max(row.teacher_prompt_tokens for row in found.rows) <= 700
    assert len({session.group for session in found.sessions}) == 48
