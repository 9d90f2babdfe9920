from __future__ import annotations

import json
from itertools import groupby
from operator import itemgetter
from pathlib import Path

import pytest

from sdft_cli.prompts.syntaxes.find import SYNTAXES
from sdft_cli.prompts.syntaxes.harmony import HARMONY
from sdft_cli.prompts.syntaxes.hermes import HERMES_OR_QWEN
from sdft_cli.prompts.token_kinds import character_kinds, token_kinds, token_pieces
from sdft_cli.records import ToolSchema

SIGNS = {"prose": "p", "tool": "t", "argument": "a", "control": ".", "broken": "b"}


def kinds(text: str, syntax: object = HERMES_OR_QWEN, tools: list[ToolSchema] | None = None) -> str:
    """A sign per character, so that a test shows text and kinds below each other."""
    turn = syntax.parse(text, tools or [])  # type: ignore[attr-defined]
    return "".join(SIGNS[kind] for kind in character_kinds(text, turn))


def parts(text: str, syntax: object = HERMES_OR_QWEN) -> list[tuple[str, str]]:
    """Neighbours of one kind together: (sign, text)."""
    runs = groupby(zip(kinds(text, syntax), text, strict=True), key=itemgetter(0))
    return [(sign, "".join(character for _, character in run)) for sign, run in runs]


def test_a_call_between_prose() -> None:
    text = 'I read it. <tool_call>{"name": "Read", "arguments": {"path": "a.py", "limit": 20}}</tool_call> Then.'
    assert parts(text) == [
        ("p", "I read it. "),
        (".", '<tool_call>{"name": "'),
        ("t", "Read"),
        (".", '", "arguments": {"'),
        ("a", "path"),
        (".", '": "'),
        ("a", "a.py"),
        (".", '", "'),
        ("a", "limit"),
        (".", '": '),
        ("a", "20"),
        (".", "}}</tool_call>"),
        ("p", " Then."),
    ]


def test_a_name_in_prose_is_prose_and_escaped_values_are_found() -> None:
    value = 'say "hi"\n\tdone \u00e9'
    call = json.dumps({"name": "Read", "arguments": {"text": value, "deep": {"list": [True, None, "x y"]}}})
    text = f"Read with Read:<tool_call>{call}</tool_call>"
    found = kinds(text)
    assert found.startswith("p" * len("Read with Read:") + "." * len("<tool_call>"))
    marked = {sign: "".join(c if k == sign else " " for c, k in zip(text, found, strict=True)) for sign in "ta"}
    assert marked["t"].split() == ["Read"]
    assert marked["a"].split() == [
        "text",
        r"say",
        r"\"hi\"\n\tdone",
        r"\u00e9",
        "deep",
        "list",
        "true",
        "null",
        "x",
        "y",
    ]


def test_a_broken_call_keeps_its_name_and_a_thought_is_prose() -> None:
    text = '<think>hm</think><tool_call>{"name": "Bash", "arguments": {"command": "ls'
    assert parts(text) == [
        (".", "<think>"),
        ("p", "hm"),
        (".", "</think><tool_call>"),
        ("b", '{"name": "'),
        ("t", "Bash"),
        ("b", '", "arguments": {"command": "ls'),
    ]


def test_harmony_and_qwen() -> None:
    text = '<|channel|>analysis<|message|>so<|end|><|start|>assistant to=functions.ls<|message|>{"p": "q"}<|call|>'
    found = kinds(text, HARMONY)
    assert [text[i] for i, sign in enumerate(found) if sign == "p"] == ["s", "o"]
    assert [text[i] for i, sign in enumerate(found) if sign == "t"] == ["l", "s"]
    assert [text[i] for i, sign in enumerate(found) if sign == "a"] == ["p", "q"]
    qwen = "<tool_call>\n<function=run>\n<parameter=cmd>\nls -la\n</parameter>\n</function>\n</tool_call>"
    found = kinds(qwen)
    assert "".join(c for c, sign in zip(qwen, found, strict=True) if sign == "t") == "run"
    assert "".join(c for c, sign in zip(qwen, found, strict=True) if sign == "a") == "cmdls -la"


@pytest.mark.parametrize("syntax", SYNTAXES, ids=lambda syntax: syntax.name)
@pytest.mark.parametrize("text", ["Only words.", " ", "", "x\n\ny <b>\u202e"])
def test_prose_alone_is_prose_in_every_syntax(syntax: object, text: str) -> None:
    assert kinds(text, syntax) == "p" * len(text)


def test_a_token_is_what_most_of_its_characters_are() -> None:
    text = 'Go.<tool_call>{"name": "ls", "arguments": {}}</tool_call>'
    pieces = ["Go", ".<", "tool_call>", '{"name": "', "ls", '", "arguments": {}}', "", "</tool_call>"]
    turn = HERMES_OR_QWEN.parse(text, [])
    found = token_kinds([*pieces, "<end>"], turn, [False] * 8 + [True]) if "".join(pieces) == text else []
    assert found == ["prose", "prose", "control", "control", "tool", "control", "control", "control", "control"]


def test_pieces_join_to_the_text_also_where_a_character_has_several_tokens(smollm2: Path) -> None:
    from sdft_cli.prompts.chat import load_tokenizer

    tokenizer = load_tokenizer(smollm2)
    text = "a \U0001f993 zebra\u4e2d <|im_end|>\n x"
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    pieces = token_pieces(tokenizer, ids)
    assert len(pieces) == len(ids)
    assert "".join(pieces) == text
    assert "" in pieces
    cut = token_pieces(tokenizer, tokenizer("\U0001f993", add_special_tokens=False)["input_ids"][:2])
    assert "".join(cut) == "\ufffd"
    assert token_pieces(tokenizer, []) == []
