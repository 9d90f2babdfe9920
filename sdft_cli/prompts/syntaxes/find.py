"""Which syntax a model's chat template writes: found by rendering known calls and reading them back."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from sdft_cli.errors import DataError
from sdft_cli.prompts.syntaxes import elements, gemma, harmony, hermes, json_calls, named_json, pythonic
from sdft_cli.prompts.syntaxes.turns import ParsedTurn, Syntax
from sdft_cli.records import Message, ToolCall, ToolSchema

SYNTAXES: list[Syntax] = [
    hermes.HERMES,
    elements.QWEN_XML,
    elements.GLM,
    elements.SEED,
    elements.MINIMAX,
    elements.MUSE,
    json_calls.LLAMA_JSON,
    json_calls.MISTRAL_LIST,
    json_calls.COMMAND_R,
    json_calls.PHI_4,
    json_calls.GRANITE,
    json_calls.NEMOTRON,
    named_json.DEEPSEEK_V3,
    named_json.DEEPSEEK_V31,
    named_json.KIMI,
    named_json.MISTRAL_ARGS,
    harmony.HARMONY,
    gemma.GEMMA_4,
    gemma.FUNCTION_GEMMA,
    pythonic.LFM2,
    pythonic.LFM2_RAW,
    pythonic.OLMO_3,
    pythonic.OLMO_3_RAW,
    pythonic.LLAMA_PYTHONIC,
    pythonic.LLAMA_PYTHONIC_RAW,
]
"""In the order in which they are tried; one that reads what another writes too stands behind it."""

_ARGUMENTS: dict[str, Any] = {
    "path": "src/zebra crossing.py",
    "text": 'it\'s a "zebra" \\n \\ <b>&amp; {x: [y]}, z=1)\nsecond line, \u00e9\u4e2d\U0001f993',
    "digits": "0042",
    "count": -17,
    "ratio": 0.125,
    "tiny": 1e-07,
    "force": True,
    "quiet": False,
    "nothing": None,
    "items": ["zebra one", 2, None, True],
    "options": {"zebra key": "it's", "deep": {"list": [1.5, "x"]}},
}
_TYPES = {
    "count": "integer",
    "ratio": "number",
    "tiny": "number",
    "force": "boolean",
    "quiet": "boolean",
    "nothing": "null",
    "items": "array",
    "options": "object",
}
_FIRST, _SECOND, _PROSE = "zebra_write", "zebra_second", "I look for the zebra."
_TOOL = ToolSchema(
    _FIRST,
    "",
    json.dumps({"type": "object", "properties": {key: {"type": _TYPES.get(key, "string")} for key in _ARGUMENTS}}),
)
_CALL = ToolCall("call00001", _FIRST, json.dumps(_ARGUMENTS))
_OTHER = ToolCall("call00002", _SECOND, json.dumps({"path": "a b"}))
_PLAIN = Message("assistant", "", (_CALL,))
_EMPTY = Message("assistant", "", (ToolCall("call00001", _SECOND, "{}"),))
_WITH_PROSE = Message("assistant", _PROSE, (_CALL,))
_PARALLEL = Message("assistant", "", (_CALL, _OTHER))


@dataclass(frozen=True, slots=True)
class FoundSyntax:
    """The syntax that a chat template writes; where there is none, the reason, a clause."""

    syntax: Syntax | None
    reason: str = ""


def find_syntax(render: Callable[[Message], str]) -> FoundSyntax:
    """Return the first syntax that reads back all calls that a chat template can write.

    Args:
        render: returns an assistant turn as the model would write it; raises `DataError` where the template does not
            write it.

    A plain call and one without arguments have to come back. Text beside a call, and a second call, have to come back
    where the template writes them at all.
    """
    try:
        needed = [(message, render(message)) for message in (_PLAIN, _EMPTY)]
    except DataError as error:
        return FoundSyntax(None, f"the chat template refuses a tool call ({_briefly(str(error))})")
    if not all(call.name in text for message, text in needed for call in message.tool_calls):
        return FoundSyntax(None, "the chat template leaves tool calls, or their names, out of a turn")
    written = [*needed, *_rendered(render, _WITH_PROSE, _PROSE), *_rendered(render, _PARALLEL, _SECOND)]
    for syntax in SYNTAXES:
        if all(_reads(syntax, text, message) for message, text in written):
            return FoundSyntax(syntax)
    return FoundSyntax(
        None, f"no syntax that sdft knows reads back what the chat template writes: {_briefly(needed[1][1])}"
    )


def _rendered(render: Callable[[Message], str], message: Message, planted: str) -> list[tuple[Message, str]]:
    """Render a message; nothing where the template refuses it, or leaves out what was planted."""
    try:
        text = render(message)
    except DataError:
        return []
    return [(message, text)] if planted in text else []


def _reads(syntax: Syntax, text: str, message: Message) -> bool:
    turn = syntax.parse(text, [_TOOL])
    read = [[call.name, call.arguments] for call in turn.calls]
    made = [[call.name, call.parsed_arguments()] for call in message.tool_calls]
    same = json.dumps(read, sort_keys=True) == json.dumps(made, sort_keys=True)  # 1 is not true, nor 1.0
    return same and not turn.errors and prose_of(turn) == message.content


def prose_of(turn: ParsedTurn) -> str:
    """Return what a turn says beside its calls: its prose, or where it has none, its thought.

    Harmony writes the prose beside a call as a thought.
    """
    return turn.content or turn.thought.strip()


def _briefly(text: str, most: int = 120) -> str:
    line = " ".join(text.split())
    return line if len(line) <= most else f"{line[:most]}..."
