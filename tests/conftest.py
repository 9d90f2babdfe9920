"""Shared fixtures. Tests are hermetic: no network, a cache folder of their own, models made here or from a package."""

from __future__ import annotations

import gc
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from sdft_cli.threads import limit_spinning
from tests.fork_server import ForkServer

ROOT = Path(__file__).resolve().parent.parent
VOCABULARY = 8192
"""Of the tiny model: every process of the tests loads its tokenizer."""
SHARED = ROOT.parent / "shared"

# A shell starts what it runs in the background with Ctrl-C ignored, and our children would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)
limit_spinning()
sys.dont_write_bytecode = False  # hundreds of processes would each compile what they import
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
gc.set_threshold(20_000, 20, 20)  # to look again and again through what the libraries made was a sixth of tests/traces
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ["SDFT_CONFIG"] = tempfile.mkdtemp(prefix="sdft-tests-")  # the key of pseudonyms, not the user's own


@pytest.fixture(scope="session")
def shared_sessions() -> Path:
    """Real Claude Code sessions, where they can be had."""
    folder = SHARED / "traces" / "claude-code"
    if not folder.is_dir():
        pytest.skip("no ../shared/traces here: real sessions are not part of the repository")
    return folder


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """SmolLM2-135M-Instruct, converted once into the user's cache, as `sdft` itself does."""
    pytest.importorskip("torch")
    from sdft_cli.engine.models.names import resolve_model

    return Path(resolve_model("smollm2-135m"))


@pytest.fixture(scope="session")
def tiny_model(smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random two-layer Llama with a part of SmolLM2's tokenizer, and its template: fast, and a real model folder."""
    import torch
    from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("models") / "tiny-llama"
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=8192,
        tie_word_embeddings=True,
        initializer_range=0.3,  # logits with some shape; the usual 0.02 gives a uniform distribution
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=2,
    )
    torch.manual_seed(0)
    model = LlamaForCausalLM(config)
    model.generation_config = GenerationConfig(bos_token_id=1, eos_token_id=2, pad_token_id=2)
    model.to(torch.bfloat16).save_pretrained(folder)
    for name in ("tokenizer_config.json", "chat_template.jinja"):
        shutil.copyfile(smollm2 / name, folder / name)
    tokenizer = json.loads((smollm2 / "tokenizer.json").read_text(encoding="utf-8"))
    (folder / "tokenizer.json").write_text(json.dumps(first_tokens(tokenizer, VOCABULARY)), encoding="utf-8")
    return folder


def first_tokens(tokenizer: dict[str, Any], count: int) -> dict[str, Any]:
    """Keep the first tokens of a byte-level BPE with the same ids: they are made by its first merges."""
    model = tokenizer["model"]
    vocab = {token: i for token, i in model["vocab"].items() if i < count}
    merges = [pair for pair in model["merges"] if "".join(pair) in vocab]
    return {**tokenizer, "model": {**model, "vocab": vocab, "merges": merges}}


@pytest.fixture
def write_jsonl(tmp_path: Path) -> Callable[..., Path]:
    """Write objects (or raw bytes) as the lines of a file."""

    def write(name: str, lines: list[object]) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"".join((x if isinstance(x, bytes) else json.dumps(x).encode()) + b"\n" for x in lines))
        return path

    return write


@pytest.fixture(scope="session")
def fork_server() -> Iterator[ForkServer]:
    """A process that has imported what commands import."""
    server = ForkServer()
    yield server
    server.close()


@pytest.fixture
def sdft(tmp_path: Path, fork_server: ForkServer) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run the command as a user would, in a working folder of its own.

    With other variables in the environment it is a new process: libraries read them when they are imported.
    """

    def run(
        *arguments: object, cwd: Path | None = None, server: ForkServer = fork_server, **environment: str
    ) -> subprocess.CompletedProcess[str]:
        given, folder = [str(argument) for argument in arguments], cwd or tmp_path
        whole = {**os.environ, "COLUMNS": "120", "NO_COLOR": "1", **environment}
        if server.serves(whole):
            return server.run(given, folder, whole)
        return subprocess.run(
            [sys.executable, "-m", "sdft_cli", *given],
            cwd=folder,
            env=whole,
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )

    return run


@pytest.fixture
def no_room() -> Iterator[None]:
    """No file may become larger than 64 KB."""
    before, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    signal.signal(signal.SIGXFSZ, handler)
