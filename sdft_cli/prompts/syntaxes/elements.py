"""Calls as elements, one per parameter, nothing in them escaped: Qwen3-Coder and Qwen3.5, Seed-OSS, GLM, MiniMax.

Not every call can be written this way: a value may look like the end of its element. `tool_calls.comes_back` says
whether a rendered one can be read.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

from sdft_cli.prompts.syntaxes.raw_values import typed
from sdft_cli.prompts.syntaxes.turns import Marks, ParsedCall, ParsedTurn, Syntax, Tools, TurnSoFar, walk
from sdft_cli.records import ToolSchema


@dataclass(frozen=True, slots=True)
class Elements:
    """The elements of a call. `function` matches a whole call: its name, and all its parameters; `head` its beginning.

    `parameter` matches a parameter: its key and its value. A closing tag inside a value closes nothing unless another
    parameter, or the end, comes behind it; `two` matches a value that looks like two parameters, of which nobody can
    tell whether it is.
    """

    function: re.Pattern[str]
    head: re.Pattern[str]
    parameter: re.Pattern[str]
    two: re.Pattern[str]

    def read(self, body: str, tools: Tools) -> ParsedCall | str:
        """Return the call that the text between the marks of a call is, or what is wrong with it."""
        match = self.function.fullmatch(body)
        if match is None:
            return "not a function element"
        inner, raw, position = match[2], dict[str, str](), 0
        for parameter in self.parameter.finditer(inner):
            if inner[position : parameter.start()].strip() or self.two.search(parameter[2]):
                return "text between parameters"
            if parameter[1] in raw:
                return f"parameter {parameter[1]} twice"
            raw[parameter[1]] = parameter[2]
            position = parameter.end()
        return (
            "text after parameters" if inner[position:].strip() else ParsedCall(match[1], typed(raw, match[1], tools))
        )


FUNCTION = Elements(
    re.compile(r"\s*<function=([^>\n]+)>\n?(.*)</function>\s*", re.DOTALL),
    re.compile(r"\s*<function=([^>\n]+)>"),
    re.compile(r"<parameter=([^>\n]+)>\n?(.*?)\n?</parameter>\s*(?=<parameter=|\Z)", re.DOTALL),
    re.compile(r"</parameter>.*<parameter=", re.DOTALL),
)
_FUNCTION_INLINE = replace(
    FUNCTION, parameter=re.compile(r"<parameter=([^>\n]+)>(.*?)</parameter>\s*(?=<parameter=|\Z)", re.DOTALL)
)
_ARGUMENT_PAIRS = Elements(
    re.compile(r"\s*([^<\n]*[^<\s])[^\S\n]*(?:\n\s*)?((?:<arg_key>.*)?)", re.DOTALL),
    re.compile(r"\s*([^<\n]*[^<\s])\s*(?:\n|<)"),
    re.compile(
        r"<arg_key>([^<\n]+)</arg_key>\s*<arg_value>(.*?)</arg_value>\s*(?=<arg_key>|\Z)",
        re.DOTALL,
    ),
    re.compile(r"</arg_value>.*<arg_key>", re.DOTALL),
)


def _invoke(prefix: str) -> Elements:
    """Return the elements `invoke` and `parameter` of a namespace, behind the opening mark `<invoke name=`."""
    parameter = f"<{prefix}parameter name="
    return Elements(
        re.compile(r"\"([^\"\n]+)\">(.*)", re.DOTALL),
        re.compile(r"\"([^\"\n]+)\">"),
        re.compile(rf"{parameter}\"([^\"\n]+)\">(.*?)</{prefix}parameter>\s*(?={parameter}|\Z)", re.DOTALL),
        re.compile(rf"</{prefix}parameter>.*{parameter}", re.DOTALL),
    )


def read_element(text: str, start: int, tools: Tools, turn: TurnSoFar, marks: Marks, elements: Elements) -> int:
    """Read the call whose opening mark ends at `start`; return where the text goes on."""
    close, again = text.find(marks.closing, start), text.find(marks.opening, start)
    if close < 0 or 0 <= again < close:
        return marks.give_up(text, start, turn, "not a function element", elements.head)
    turn.add(elements.read(text[start:close], tools), text[start:close])
    return close + len(marks.closing)


def _parse(text: str, tools: Sequence[ToolSchema], marks: Marks, elements: Elements) -> ParsedTurn:
    return walk(text, tools, marks, partial(read_element, marks=marks, elements=elements))


def _syntax(name: str, marks: Marks, elements: Elements) -> Syntax:
    return Syntax(name, partial(_parse, marks=marks, elements=elements))


_TAGS = Marks("<tool_call>", "</tool_call>")
QWEN_XML = _syntax("Qwen XML", _TAGS, FUNCTION)
GLM = _syntax("GLM", _TAGS, _ARGUMENT_PAIRS)
_SEED_MARKS = Marks("<seed:tool_call>", "</seed:tool_call>", ("<seed:think>", "</seed:think>"))
SEED = _syntax("Seed-OSS", _SEED_MARKS, _FUNCTION_INLINE)
MINIMAX = _syntax(
    "MiniMax",
    Marks("<invoke name=", "</invoke>", dropped=("<minimax:tool_call>", "</minimax:tool_call>")),
    _invoke(""),
)
MUSE = _syntax(
    "Muse Glimmer",
    Marks(
        "<atem:invoke name=",
        "</atem:invoke>",
        (" to=self<|message|>", "<|eom|>"),
        ("<atem:function_calls>", "</atem:function_calls>", "<|eot|>"),
        r"<\|start\|>assistant| to=(?!self<)[^\s<]+<\|message\|>",
        prompt_thinks=False,
    ),
    _invoke("atem:"),
)
