"""The commands of others that serve a checkpoint, and how clients are pointed at it. Nothing is served by sdft itself.

Both render with the checkpoint's own chat template and with thinking off, as in training.
"""

from __future__ import annotations

import json
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sdft_cli.errors import UsageError

TRANSFORMERS, VLLM = "transformers", "vllm"
NEEDS = {
    TRANSFORMERS: (("fastapi", "uvicorn", "openai", "torch"), "pip install 'transformers[serving]'"),
    VLLM: (("vllm",), "pip install vllm, in an environment of its own"),
}
"""Server -> the packages that it needs, and what installs them."""
THINKING_OFF = json.dumps({"enable_thinking": False})
VLLM_PARSERS = {
    "Hermes JSON": "hermes",
    "Qwen XML": "qwen3_coder",
    "GLM": "glm45",
    "Seed-OSS": "seed_oss",
    "MiniMax": "minimax_m2",
    "Llama 3 JSON": "llama3_json",
    "Mistral, a list of calls": "mistral",
    "Mistral, a name and its arguments": "mistral",
    "Phi-4-mini": "phi4_mini_json",
    "Granite": "granite",
    "DeepSeek V3 and R1": "deepseek_v3",
    "DeepSeek V3.1": "deepseek_v31",
    "Kimi K2": "kimi_k2",
    "Harmony": "openai",
    "Gemma 4": "gemma4",
    "FunctionGemma": "functiongemma",
    "LFM2": "lfm2",
    "OLMo 3": "olmo3",
    "Llama pythonic": "pythonic",
}
"""The syntax in which a model writes calls -> the parser of vLLM that reads it."""


@dataclass(frozen=True)
class Service:
    """A server that is to be started.

    Attributes:
        engine: `transformers` or `vllm`.
        command: program and arguments.
        url: where it listens, without a path.
        model: the name by which clients ask for it.
    """

    engine: str
    command: list[str]
    url: str
    model: str

    @property
    def shell(self) -> str:
        """The command as it is typed into a shell."""
        return shlex.join(self.command)

    @property
    def openai(self) -> dict[str, str]:
        """Environment for clients of OpenAI's API."""
        return {"OPENAI_BASE_URL": f"{self.url}/v1", "OPENAI_API_KEY": "none"}

    @property
    def claude_code(self) -> dict[str, str] | None:
        """Environment for Claude Code; None: the server does not speak Anthropic's Messages API."""
        if self.engine != VLLM:
            return None
        models = {f"ANTHROPIC_DEFAULT_{size}_MODEL": self.model for size in ("OPUS", "SONNET", "HAIKU")}
        return {"ANTHROPIC_BASE_URL": self.url, "ANTHROPIC_AUTH_TOKEN": "none", **models}

    def to_json(self) -> dict[str, Any]:
        """Return it for `--json`."""
        return {
            "engine": self.engine,
            "command": self.command,
            "url": self.url,
            "model": self.model,
            "openai": self.openai,
            "claude_code": self.claude_code,
        }

    def told(self) -> list[str]:
        """Return the lines that a person wants: the command, and how clients are pointed at it."""
        lines = [self.shell, "", f"OpenAI clients (model {self.model}):", f"  {_exports(self.openai)}"]
        lines += ["", "Claude Code:"]
        if self.claude_code is None:
            return [*lines, "  not with this server, which has no /v1/messages: --engine vllm, or docs/serving.md"]
        return [*lines, f"  {_exports(self.claude_code)} claude"]


def _exports(environment: dict[str, str]) -> str:
    return " ".join(f"{name}={shlex.quote(value)}" for name, value in environment.items())


def service_of(engine: str, checkpoint: Path, host: str, port: int, syntax: str | None = None) -> Service:
    """Return the command that serves a checkpoint.

    Args:
        engine: a key of `NEEDS`.
        checkpoint: folder of a merged checkpoint.
        host, port: where it is to listen.
        syntax: in which the model writes calls, for vLLM; None: not known, and calls stay text.

    Raises:
        UsageError: another engine is asked for.
    """
    url, where = f"http://{host}:{port}", ["--host", host, "--port", str(port)]
    path = checkpoint.resolve()
    if engine == TRANSFORMERS:
        command = ["transformers", "serve", str(path), "--reasoning", "off", *where]
        return Service(engine, command, url, str(path))
    if engine == VLLM:
        name = path.parent.name if path.name == "merged" else path.name  # Claude Code takes no name with a slash
        command = ["vllm", "serve", str(path), "--served-model-name", name, *where]
        command += ["--default-chat-template-kwargs", THINKING_OFF]
        if syntax in VLLM_PARSERS:
            command += ["--enable-auto-tool-choice", "--tool-call-parser", VLLM_PARSERS[syntax]]
        return Service(engine, command, url, name)
    raise UsageError(f"--engine {engine} is not known: use {' or '.join(NEEDS)}.")
