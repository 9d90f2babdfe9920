from __future__ import annotations

import importlib.util
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

from sdft_cli.prompts.chat import ChatPrompts, load_tokenizer
from sdft_cli.prompts.teacher import load_teacher_template

QWEN_TOKENS = ["<think>", "</think>", "<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>"]


def chat_prompts(folder: Path, template: str) -> ChatPrompts:
    """SmolLM2's tokenizer with its own template, or with one of Qwen's and the control tokens that it needs."""
    tokenizer = load_tokenizer(folder)
    if template != "smollm2":
        found = importlib.util.find_spec("trl")
        if found is None or not found.submodule_search_locations:
            pytest.skip("trl, which carries Qwen's templates, is not installed")
        path = Path(found.submodule_search_locations[0]) / "chat_templates" / f"{template}.jinja"
        tokenizer.chat_template = path.read_text(encoding="utf-8")
        tokenizer.add_tokens(QWEN_TOKENS)
    return ChatPrompts(tokenizer, load_teacher_template())


@pytest.fixture(scope="session")
def make_prompts(smollm2: Path) -> Callable[[str], ChatPrompts]:
    return cache(lambda template: chat_prompts(smollm2, template))


@pytest.fixture(scope="session", params=["smollm2", "qwen3_5_nothink", "qwen3_5_think"])
def prompts(request: pytest.FixtureRequest, smollm2: Path) -> ChatPrompts:
    return chat_prompts(smollm2, request.param)
