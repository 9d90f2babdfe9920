"""`sdft chat` as a user runs it, on a tiny run with an adapter, with and without its merged checkpoint."""

from __future__ import annotations

import json
import os
import pty
import select
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("torch")

import sdft_cli
from tests.engine.prepared import prepared

Run = Callable[..., subprocess.CompletedProcess[str]]
FEW = ("--max-new-tokens", 6)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    """`data` of example sessions, and `run`, trained on it for a step."""
    folder = tmp_path_factory.mktemp("chat")
    data = prepared(tiny_model, folder, 12, 0.3)
    small = {"lora.rank": 4, "rollout.max_new_tokens": 4, "optim.turns_per_step": 1, "heldout.max_new_tokens": 4}
    small |= {"rehearse": False, "optim.learning_rate": 0.1}
    sdft_cli.train(
        data, out=folder / "run", profile="cpu-demo", model=str(tiny_model), max_steps=1, gate="off", settings=small
    )
    return folder


def answers(done: subprocess.CompletedProcess[str]) -> list[dict[str, object]]:
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.slow
def test_base_and_tuned_answer_beside_each_other(sdft: Run, trained: Path) -> None:
    run, data = trained / "run", trained / "data"
    asked = ("--message", "What is in src?", *FEW, "--json")
    both = answers(sdft("chat", run, "--compare", "--dataset", data, *asked))
    assert [one["model"] for one in both] == ["base", "tuned"]
    (tuned,) = answers(sdft("chat", run, "--dataset", data, *asked))
    assert tuned == both[1]
    config = json.loads((run / "config.json").read_text())
    (base,) = answers(sdft("chat", config["model"], "--dataset", data, *asked))
    assert {**base, "model": "base"} == both[0]
    (alone,) = answers(sdft("chat", run / "adapter", "--base", config["model"], "--dataset", data, *asked))
    assert alone["text"] == tuned["text"]
    (untold,) = answers(sdft("chat", run, *asked))
    assert untold["prompt_tokens"] < tuned["prompt_tokens"]  # type: ignore[operator]


@pytest.mark.slow
def test_the_merged_checkpoint_answers_where_there_is_one(sdft: Run, trained: Path, tmp_path: Path) -> None:
    run = trained / "run"
    merged = sdft_cli.merge(run, out=tmp_path / "m", dtype="float32").path
    (tuned,) = answers(sdft("chat", run, "-m", "hi", *FEW, "--json"))
    merged.rename(run / "merged")
    try:
        (answer,) = answers(sdft("chat", run, "-m", "hi", *FEW, "--json"))
        assert answer == {**tuned, "model": "merged"}
        done = sdft("chat", run, "--serve", "--dry-run")
        assert done.returncode == 0
        assert done.stdout.startswith(f"transformers serve {run / 'merged'} --reasoning off")
        vllm = json.loads(sdft("chat", run, "--serve", "--engine", "vllm", "--dry-run", "--json").stdout)
        assert vllm["command"][-2:] == ["--tool-call-parser", "hermes"]
        (run / "merged" / "FAILED.txt").write_text("x")
        done = sdft("chat", run, "-m", "hi", *FEW, "--json")
        assert "did not pass its certificate, so base and adapter answer" in done.stderr
        assert answers(done) == [tuned]
    finally:
        (run / "merged").rename(tmp_path / "gone")


@pytest.mark.slow
def test_several_messages_and_a_limit(sdft: Run, trained: Path) -> None:
    done = sdft("chat", trained / "run", "-m", "a", "-m", "/tools", "-m", "b", *FEW, "--system", "Be brief.")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == "> a"
    assert "The model is offered no tools: name a dataset with --dataset." in lines
    assert lines.count("(cut off at 6 tokens: --max-new-tokens)") == 2
    done = sdft("chat", trained / "run", "-m", "word " * 9000, *FEW)
    assert done.returncode == 3
    assert "the model reads 8192" in done.stderr


def test_what_is_refused_says_what_to_do(sdft: Run, trained: Path) -> None:
    run, data = trained / "run", trained / "data"
    for arguments, words in [
        ((run, "--session", "x"), "name that with --dataset"),
        ((run, "--dataset", data, "--session", "nope", "-m", "a"), "has no session nope"),
        ((run, "--dataset", trained / "missing", "-m", "a"), "There is no dataset"),
        ((run, "--base", "x/y"), "leave --base out"),
        ((run / "adapter",), "--base"),
        (("x/y", "--compare"), "is a model alone"),
        (("./missing", "-m", "a"), "is no folder, no Hub id"),
        ((run, "--serve"), "run `sdft merge"),
        ((run, "--serve", "-m", "a"), "--message is for a chat"),
        ((run, "--dry-run"), "add --serve"),
        ((), "No run under runs/"),
    ]:
        done = sdft("chat", *arguments)
        assert done.returncode == 2, done.stderr
        assert words in done.stderr
        assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_a_pipe_is_one_message_and_a_terminal_a_chat(trained: Path) -> None:
    command = [sys.executable, "-m", "sdft_cli", "chat", str(trained / "run"), "--max-new-tokens", "4"]
    piped = subprocess.run(
        [*command, "--json"], input="two\nlines\n", capture_output=True, text=True, check=True, timeout=300
    )
    assert len(piped.stdout.splitlines()) == 1
    empty = subprocess.run(command, input="\n", capture_output=True, text=True, check=False, timeout=300)
    assert (empty.returncode, "nothing on stdin" in empty.stderr) == (2, True)

    main, end = pty.openpty()
    with subprocess.Popen(
        command, stdin=end, stdout=end, stderr=end, env={**os.environ, "TERM": "dumb", "NO_COLOR": "1"}
    ) as process:
        os.close(end)
        shown = _until(main, "\n> ")
        os.write(main, b"/help\nhello\n")
        shown += _until(main, "cut off at 4 tokens") + _until(main, "> ")
        os.write(main, b"/quit\n")
        assert process.wait(timeout=60) == 0
    os.close(main)
    assert "/reset   forget what was said" in shown
    assert "Ctrl-D leaves" in shown


def _until(terminal: int, words: str) -> str:
    """Read a terminal until it shows some words."""
    text = ""
    while words not in text.replace("\r", ""):
        assert select.select([terminal], [], [], 120)[0], text
        text += os.read(terminal, 4096).decode("utf-8", "replace")
    return text
