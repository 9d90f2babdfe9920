"""The printed commands of servers: their options exist where the server is installed."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from click.testing import CliRunner

from sdft_cli.chat.serving import VLLM_PARSERS, service_of
from sdft_cli.errors import UsageError
from sdft_cli.prompts.syntaxes.find import SYNTAXES


def options_of(command: list[str]) -> set[str]:
    return {word for word in command if word.startswith("--")}


def test_options_of_transformers_serve_exist(tmp_path: Path) -> None:
    from transformers.cli.transformers import app

    done = CliRunner().invoke(app, ["serve", "--help"], env={"COLUMNS": "200"})
    assert done.exit_code == 0
    text = re.sub(r"\x1b\[[0-9;]*m", "", done.stdout)
    service = service_of("transformers", tmp_path / "merged", "localhost", 8000)
    assert service.command[:2] == ["transformers", "serve"]
    assert options_of(service.command) <= set(re.findall(r"--[\w-]+", text))
    assert re.search(r"--reasoning \[[^\]]*off", text)


def test_vllm_gets_the_parser_of_the_models_syntax(tmp_path: Path) -> None:
    service = service_of("vllm", tmp_path / "my-run" / "merged", "localhost", 8001, "Qwen XML")
    given = dict(zip(service.command[2:], service.command[3:], strict=False))
    assert given["--tool-call-parser"] == "qwen3_coder"
    assert json.loads(given["--default-chat-template-kwargs"]) == {"enable_thinking": False}
    assert given["--served-model-name"] == service.model == "my-run"
    assert service.claude_code is not None
    assert service.claude_code["ANTHROPIC_BASE_URL"] == "http://localhost:8001"  # clients add /v1/messages
    assert service.openai["OPENAI_BASE_URL"] == "http://localhost:8001/v1"
    assert "ANTHROPIC_DEFAULT_SONNET_MODEL=my-run" in "\n".join(service.told())
    plain = service_of("vllm", tmp_path, "localhost", 8001)
    assert "--tool-call-parser" not in plain.command


def test_parsers_are_of_syntaxes_that_sdft_knows() -> None:
    assert set(VLLM_PARSERS) <= {syntax.name for syntax in SYNTAXES}


def test_another_server_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="use transformers or vllm"):
        service_of("sglang", tmp_path, "localhost", 1)
