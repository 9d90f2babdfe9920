"""Chat templates of many families, and made-up turns with calls to render through them."""

from __future__ import annotations

import importlib.util
import json
import random
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from sdft_cli.prompts.chat import ChatPrompts
from sdft_cli.prompts.teacher import load_teacher_template
from sdft_cli.records import Message, ToolCall, ToolSchema


@dataclass(frozen=True)
class Family:
    """A chat template: the syntax that it writes, the token that ends its turns, and the tokens that mark its calls.

    `template`: the name of one that TRL ships, or the text of one.
    """

    syntax: str
    template: str
    end: str
    marks: tuple[str, ...]


_FRAME = """
{%- for m in messages -%}
    {%- if m.role == 'user' -%}<user>{{ m.content }}</user>
    {%- else -%}
        {{- m.content -}}
        {%- if m.tool_calls -%}
            {{- BEFORE -}}
            {%- for c in m.tool_calls -%}
                {{- '' }}CALL{{ '' -}}
                {%- if not loop.last -%}{{- BETWEEN -}}{%- endif -%}
            {%- endfor -%}
            {{- AFTER -}}
        {%- endif -%}
        {{- END -}}
    {%- endif -%}
{%- endfor -%}
"""


def _frame(before: str, call: str, between: str, after: str, end: str) -> str:
    """Return a template that writes prose, then all calls: `call` has NAME, ID, and ARGUMENTS as JSON."""
    for word, path in (("NAME", "c.function.name"), ("ID", "c.id"), ("ARGUMENTS", "c.function.arguments | tojson")):
        call = re.sub(rf"\b{word}\b", "{{ " + path + " }}", call)
    text = _FRAME.replace("CALL", call)
    for word, value in (("BEFORE", before), ("BETWEEN", between), ("AFTER", after), ("END", end)):
        text = text.replace(f"- {word} -", f"- {value!r} -")
    return text


_PYTHONIC = (
    "NAME({%- for k, v in c.function.arguments.items() -%}{{ k }}={{ v | tojson }}"
    "{%- if not loop.last -%}{{ ', ' }}{%- endif -%}{%- endfor -%})"
)
_PYTHONIC_RAW = _PYTHONIC.replace("{{ v | tojson }}", '{{ "\'" + v + "\'" if v is string else v | tojson }}')
_ESCAPE = """
{%- macro value(v) -%}
    {%- if v is string -%}{{ '<escape>' + v + '<escape>' }}
    {%- elif v is mapping -%}
        {{ '{' }}
        {%- for k, w in v.items() -%}{{ k }}:{{ value(w) }}{%- if not loop.last -%},{%- endif -%}{%- endfor -%}
        {{ '}' }}
    {%- elif v is sequence -%}
        [{%- for w in v -%}{{ value(w) }}{%- if not loop.last -%},{%- endif -%}{%- endfor -%}]
    {%- else -%}{{ v | tojson }}
    {%- endif -%}
{%- endmacro -%}
"""
_FUNCTION_GEMMA = "<start_function_call>call:NAME{{ value(c.function.arguments) }}<end_function_call>"
_NO_PROSE = ("{{- m.content -}}", "{%- if not m.tool_calls -%}{{- m.content -}}{%- endif -%}")
_INVOKE = (
    '<invoke name="NAME">\n{%- for k, v in c.function.arguments.items() -%}{{ \'\\n\' }}<parameter name="{{ k }}">'
    "{{ v if v is string else v | tojson }}</parameter>{%- endfor -%}{{ '\\n' }}</invoke>"
)
_SEED = (
    "<seed:tool_call>\n<function=NAME>{%- for k, v in c.function.arguments.items() -%}{{ '\\n' }}<parameter={{ k }}>"
    "{{ v if v is string else v | tojson }}</parameter>{%- endfor -%}{{ '\\n' }}</function>\n</seed:tool_call>"
)
_DEEPSEEK = (
    "<｜tool▁calls▁begin｜>",
    "<｜tool▁call▁begin｜>",
    "<｜tool▁sep｜>",
    "<｜tool▁call▁end｜>",
    "<｜tool▁calls▁end｜>",
)
_KIMI = ("<|tool_calls_section_begin|>", "<|tool_call_begin|>", "<|tool_call_argument_begin|>", "<|tool_call_end|>")
_NAMED = '{"name": "NAME", "arguments": ARGUMENTS}'
_TAGS = ("<think>", "</think>", "<tool_call>", "</tool_call>")
_GEMMA = ('<|"|>', "<|tool_call>", "<tool_call|>", "<|tool_response>", "<|channel>", "<channel|>")
_HARMONY = ("<|start|>", "<|channel|>", "<|message|>", "<|end|>", "<|constrain|>", "<|return|>")

FAMILIES: dict[str, Family] = {
    "qwen2_5": Family("Hermes JSON", "qwen2_5", "<|im_end|>", _TAGS),
    "qwen3": Family("Hermes JSON", "qwen3", "<|im_end|>", _TAGS),
    "qwen3_5": Family("Qwen XML", "qwen3_5_nothink", "<|im_end|>", _TAGS),
    "qwen3_8": Family("Qwen XML", "qwen3_8", "<|im_end|>", _TAGS),
    "nemotron_3": Family("Qwen XML", "nemotron_3_nano", "<|im_end|>", _TAGS),
    "llama3_1": Family("Llama 3 JSON", "llama3_1", "<|eot_id|>", ("<|python_tag|>",)),
    "gptoss": Family("Harmony", "gptoss", "<|call|>", _HARMONY),
    "gemma4": Family("Gemma 4", "gemma4", "<turn|>", _GEMMA),
    "gemma4_v5": Family("Gemma 4", "gemma4_v5", "<turn|>", _GEMMA),
    "glm4moe": Family("GLM", "glm4moe", "<|endoftext|>", _TAGS),
    "lfm2_v2": Family("LFM2", "lfm2_v2", "<|im_end|>", ("<|tool_call_start|>", "<|tool_call_end|>")),
    "lfm2_2_5": Family("LFM2, nothing escaped", "lfm2_2_5", "<|im_end|>", ("<|tool_call_start|>", "<|tool_call_end|>")),
    "mistral": Family(
        "Mistral, a list of calls",
        _frame("[TOOL_CALLS] [", '{"name": "NAME", "arguments": ARGUMENTS, "id": "ID"}', ", ", "]", "</s>"),
        "</s>",
        ("[TOOL_CALLS]",),
    ),
    "mistral [ARGS]": Family(
        "Mistral, a name and its arguments",
        _frame("", "[TOOL_CALLS]NAME[ARGS]ARGUMENTS", "", "", "</s>"),
        "</s>",
        ("[TOOL_CALLS]", "[ARGS]", "[CALL_ID]"),
    ),
    "command r": Family(
        "Command R",
        _frame(
            "<|START_ACTION|>[\n",
            '    {"tool_call_id": "{{ loop.index0 }}", "tool_name": "NAME", "parameters": ARGUMENTS}',
            ",\n",
            "\n]<|END_ACTION|>",
            "<|END_OF_TURN_TOKEN|>",
        ),
        "<|END_OF_TURN_TOKEN|>",
        ("<|START_ACTION|>", "<|END_ACTION|>", "<|START_RESPONSE|>"),
    ),
    "deepseek v3": Family(
        "DeepSeek V3 and R1",
        _frame(
            _DEEPSEEK[0],
            f"{_DEEPSEEK[1]}function{_DEEPSEEK[2]}NAME\n```json\nARGUMENTS{{{{ '\\n' }}}}```{_DEEPSEEK[3]}",
            "\n",
            _DEEPSEEK[4],
            "<｜end▁of▁sentence｜>",
        ),
        "<｜end▁of▁sentence｜>",
        _DEEPSEEK,
    ),
    "deepseek v3.1": Family(
        "DeepSeek V3.1",
        _frame(
            _DEEPSEEK[0],
            f"{_DEEPSEEK[1]}NAME{_DEEPSEEK[2]}ARGUMENTS{_DEEPSEEK[3]}",
            "",
            _DEEPSEEK[4],
            "<｜end▁of▁sentence｜>",
        ),
        "<｜end▁of▁sentence｜>",
        _DEEPSEEK,
    ),
    "olmo 3": Family(
        "OLMo 3",
        _frame("<function_calls>\n", _PYTHONIC, "\n", "\n</function_calls>", "<|im_end|>"),
        "<|im_end|>",
        ("<function_calls>", "</function_calls>"),
    ),
    "olmo 3, raw": Family(
        "OLMo 3, nothing escaped",
        _frame("<function_calls>\n", _PYTHONIC_RAW, "\n", "\n</function_calls>", "<|im_end|>"),
        "<|im_end|>",
        ("<function_calls>", "</function_calls>"),
    ),
    "muse": Family("Muse Glimmer", "muse_glimmer", "<|eot|>", ("<|start|>", "<|message|>", "<|eom|>")),
    "llama 3, pythonic": Family(
        "Llama pythonic",
        _frame("[", _PYTHONIC, ", ", "]", "<|eot_id|>").replace(*_NO_PROSE),
        "<|eot_id|>",
        ("<|python_tag|>",),
    ),
    "llama 3, raw": Family(
        "Llama pythonic, nothing escaped",
        _frame("[", _PYTHONIC_RAW, ", ", "]", "<|eot_id|>").replace(*_NO_PROSE),
        "<|eot_id|>",
        (),
    ),
    "llama 4": Family(
        "Llama pythonic",
        _frame("<|python_start|>[", _PYTHONIC, ", ", "]<|python_end|>", "<|eot|>"),
        "<|eot|>",
        ("<|python_start|>", "<|python_end|>"),
    ),
    "minimax": Family(
        "MiniMax",
        _frame("\n<minimax:tool_call>\n", _INVOKE, "\n", "\n</minimax:tool_call>", "[e~["),
        "[e~[",
        ("<minimax:tool_call>", "</minimax:tool_call>"),
    ),
    "seed": Family(
        "Seed-OSS", _frame("\n", _SEED, "\n", "", "<seed:eos>"), "<seed:eos>", ("<seed:tool_call>", "</seed:tool_call>")
    ),
    "kimi": Family(
        "Kimi K2",
        _frame(
            _KIMI[0],
            f"{_KIMI[1]}functions.NAME:{{{{ loop.index0 }}}}{_KIMI[2]}ARGUMENTS{_KIMI[3]}",
            "",
            "<|tool_calls_section_end|>",
            "<|im_end|>",
        ),
        "<|im_end|>",
        (*_KIMI, "<|tool_calls_section_end|>"),
    ),
    "granite": Family(
        "Granite", _frame("<|tool_call|>[", _NAMED, ", ", "]", "<|end_of_text|>"), "<|end_of_text|>", ("<|tool_call|>",)
    ),
    "nemotron 2": Family(
        "Nemotron",
        _frame("<TOOLCALL>[", _NAMED, ", ", "]</TOOLCALL>", "<SPECIAL_12>"),
        "<SPECIAL_12>",
        ("<TOOLCALL>", "</TOOLCALL>"),
    ),
    "functiongemma": Family(
        "FunctionGemma",
        _ESCAPE + _frame("", _FUNCTION_GEMMA, "", "", "<end_of_turn>"),
        "<end_of_turn>",
        ("<escape>", "<start_function_call>", "<end_function_call>"),
    ),
    "phi-4": Family(
        "Phi-4-mini",
        _frame("<|tool_call|>[", _NAMED, ", ", "]<|/tool_call|>", "<|end|>"),
        "<|end|>",
        ("<|tool_call|>", "<|/tool_call|>"),
    ),
}


def _text_of(template: str) -> str:
    if "{" in template:
        return template
    found = importlib.util.find_spec("trl")
    if found is None or not found.submodule_search_locations:
        raise SystemExit("trl, which carries the templates of models, is not installed")
    path = Path(found.submodule_search_locations[0]) / "chat_templates" / f"{template}.jinja"
    return path.read_text(encoding="utf-8")


@cache
def prompts_of(name: str) -> ChatPrompts:
    """Return the prompts of a family: its template, and a tokenizer of bytes with the tokens that mark its calls."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    family = FAMILIES[name]
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE(vocab={letter: i for i, letter in enumerate(letters)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=family.end, bos_token="<bos>")
    tokenizer.add_tokens(list(family.marks), special_tokens=True)
    tokenizer.chat_template = _text_of(family.template)
    return ChatPrompts(tokenizer, load_teacher_template())


_MARKS = sorted({mark for family in FAMILIES.values() for mark in (*family.marks, family.end)})
_CODE = ["'", '"', "\\", "\\n", "{", "}", "[", "]", "(", ")", ",", ", a=", "', b='", "')", ":", "=", "```", "//", "\t"]
_TAGS_IN_TEXT = [
    "</arg_value>",
    "<arg_key>",
    "<parameter=a>",
    "</parameter>",
    "</function>",
    "<function=f>",
    "</invoke>",
]
_WORDS = [
    "a",
    "it's",
    "print",
    "1",
    "0042",
    "1e5",
    "-3",
    "true",
    "None",
    "null",
    "x y",
    " ",
    "\n",
    "\r\n",
    "é",
    "中文",
    "🦓",
]
_NUMBERS = [0, -1, 7, 10**30, -(2**63), 0.5, -0.25, 1e-07, 1e16, 1.5e300, 3.0, True, False, None]
_TYPES = {"str": "string", "bool": "boolean", "int": "integer", "float": "number", "list": "array", "dict": "object"}


def _text(rng: random.Random, most: int = 5) -> str:
    pools = [_WORDS, _WORDS, _CODE, *([_MARKS, _TAGS_IN_TEXT] if rng.random() < 0.25 else [])]
    text = "".join(rng.choice(rng.choice(pools)) for _ in range(rng.randrange(most + 1)))
    if rng.random() < 0.1:
        text += "".join(chr(c) for c in (rng.randrange(1, 0xD800), rng.randrange(0xE000, 0x10FFFD)))
    return text


def _value(rng: random.Random, depth: int = 2) -> Any:
    kind = rng.random()
    if kind < 0.5 or (kind >= 0.75 and not depth):
        return _text(rng)
    if kind < 0.75:
        return rng.choice(_NUMBERS)
    if kind < 0.88:
        return [_value(rng, depth - 1) for _ in range(rng.randrange(4))]
    return {_key(rng, False): _value(rng, depth - 1) for _ in range(rng.randrange(4))}


def _key(rng: random.Random, plain: bool) -> str:
    if plain or rng.random() < 0.9:
        return rng.choice(["path", "text", "old_string", "limit", "x", "Ä", "with-dash", "a.b", "n0"])
    return _text(rng, 2) or "x"


def _schema(rng: random.Random, calls: list[dict[str, Any]]) -> dict[str, Any]:
    kinds: dict[str, set[str]] = {}
    for arguments in calls:
        for key, value in arguments.items():
            kinds.setdefault(key, set()).add(_TYPES.get(type(value).__name__, "null"))
    described = {key: {"type": sorted(types)} for key, types in kinds.items() if rng.random() < 0.97}
    return {"type": "object", "properties": described}


def turns(seed: int) -> Iterator[tuple[Message, ToolSchema]]:
    """Yield turns of one to three calls of a tool, and the tool; some of names, keys, prose and values are hostile."""
    rng = random.Random(seed)
    while True:
        yield turn(rng)


def turn(rng: random.Random) -> tuple[Message, ToolSchema]:
    """Return one such turn, and the tool that it calls."""
    plain = rng.random() < 0.8
    name = rng.choice(["Read", "bash_run", "edit-file", "mcp__x__y", "ünï"]) if plain else _text(rng, 2) or "x"
    calls = [{_key(rng, plain): _value(rng) for _ in range(rng.randrange(5))} for _ in range(rng.choice([1, 1, 2, 3]))]
    made = tuple(ToolCall(f"call0000{i}", name, json.dumps(arguments)) for i, arguments in enumerate(calls))
    prose = "" if rng.random() < 0.5 else "I look at it." if plain else _text(rng)
    return Message("assistant", prose, made), ToolSchema(name, "", json.dumps(_schema(rng, calls)))
