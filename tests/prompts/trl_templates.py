"""The chat templates that TRL ships, with SmolLM2's tokenizer and the control tokens that they name."""

from __future__ import annotations

import importlib.util
import re
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from sdft_cli.prompts.chat import ChatPrompts, load_tokenizer
from sdft_cli.prompts.teacher import load_teacher_template
from sdft_cli.prompts.template import ChatTemplate

DATE = "2026-01-02"
_TOKEN = re.compile(
    r"<\|[^|<>\s'\"{}]+\|>|<｜[^｜]+｜>|</?(?:start|end)_of_(?:turn|utterance)>|<\|?(?:turn|tool_call|tool_response)\|?>|</s>"
)


def trl_text(name: str) -> str:
    """Return a template of TRL; skip the test where TRL is not installed."""
    found = importlib.util.find_spec("trl")
    if found is None or not found.submodule_search_locations:
        pytest.skip("trl, which carries the templates of many models, is not installed")
    folder = Path(found.submodule_search_locations[0]) / "chat_templates"
    return (folder / f"{name}.jinja").read_text(encoding="utf-8")


@cache
def prompts_of(model: Path, text: str, date: str | None = DATE, eos: str | None = None) -> ChatPrompts:
    """Return prompts with a template; the control tokens that it writes are added to the tokenizer."""
    tokenizer: Any = load_tokenizer(model)
    tokens = sorted({token for token in _TOKEN.findall(text) if token not in ("<tool_call>", "<tool_response>")})
    tokenizer.add_special_tokens({"additional_special_tokens": tokens})
    if eos:
        tokenizer.eos_token = eos
    return ChatPrompts(tokenizer, load_teacher_template(), ChatTemplate(tokenizer, text, date=date))
