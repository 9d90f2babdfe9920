"""`sdft chat` as a user runs it, on a tiny run with an adapter, with and without its merged checkpoint."""

from __future__ import annotations

import json
import os
import pty
import select
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import Result
from typer.testing import CliRunner

pytest.importorskip("torch")

import sdft_cli
from sdft_cli.cli.main import app
from sdft_cli.config import load_train_config
from sdft_cli.engine.train.loop import check_prompts
from sdft_cli.engine.train.run import dataset_facts
from sdft_cli.prompts.chat import open_prompts
from sdft_cli.records.json_files import write_json
from sdft_cli.run_folder import FORMAT, write_check_prompts
from tests.engine.prepared import adapted, prepared

FEW = ("--max-new-tokens", 6)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    """`data` of example sessions, and `run`, whose adapter is random."""
    folder = tmp_path_factory.mktemp("chat")
    data = prepared(tiny_model, folder, 12, 0.3)
    backend = adapted(tiny_model)
    prompts = open_prompts(str(tiny_model), data.manifest)
    config = load_train_config("cpu-demo", ["lora.rank=4"], {"model": str(tiny_model)})
    run = folder / "run"
    (run / "adapter").mkdir(parents=True)
    backend.save_adapter(run / "adapter")
    write_json(run / "config.json", config.model_dump(mode="json"))
    info = {"format": FORMAT, "status": "finished", "dataset": dataset_facts(data), "objective": "sdft", "steps": 1}
    write_json(run / "run.json", info)
    write_check_prompts(run / "check_prompts.jsonl", check_prompts(data.validation, prompts)[:1])
    return folder


@pytest.fixture(autouse=True)
def own_signals() -> Iterator[None]:
    """A command in this process leaves its handlers behind."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def sdft(*arguments: object, stdin: str | bytes = "") -> Result:
    """Run a command in this process; stdin is no terminal."""
    return CliRunner().invoke(app, [str(argument) for argument in arguments], input=stdin)


def answers(done: Result) -> list[dict[str, object]]:
    assert done.exit_code == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.slow
def test_base_and_tuned_answer_beside_each_other(trained: Path) -> None:
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
def test_the_merged_checkpoint_answers_where_there_is_one(trained: Path, tmp_path: Path) -> None:
    run = trained / "run"
    merged = sdft_cli.merge(run, out=tmp_path / "m", dtype="float32").path
    (tuned,) = answers(sdft("chat", run, "-m", "hi", *FEW, "--json"))
    merged.rename(run / "merged")
    try:
        (answer,) = answers(sdft("chat", run, "-m", "hi", *FEW, "--json"))
        assert answer == {**tuned, "model": "merged"}
        done = sdft("chat", run, "--serve", "--dry-run")
        assert done.exit_code == 0
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
def test_several_messages_and_a_limit(trained: Path) -> None:
    done = sdft("chat", trained / "run", "-m", "a", "-m", "/tools", "-m", "b", *FEW, "--system", "Be brief.")
    assert done.exit_code == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == "> a"
    assert "The model is offered no tools: name a dataset with --dataset." in lines
    assert lines.count("(cut off at 6 tokens: --max-new-tokens)") == 2
    done = sdft("chat", trained / "run", "-m", "word " * 9000, *FEW)
    assert done.exit_code == 3
    assert "the model reads 8192" in done.stderr


def test_what_is_refused_says_what_to_do(trained: Path) -> None:
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
        ((run, "-m", "a\udcff"), "--message is no UTF-8 text"),
        ((run, "--system", "a\udcff", "-m", "a"), "--system is no UTF-8 text"),
        ((), "No run under runs/"),
    ]:
        done = sdft("chat", *arguments)
        assert done.exit_code == 2, done.stderr
        assert words in done.stderr
        assert "Talking to" not in done.stderr  # nothing was loaded
        assert "Traceback" not in done.stderr


def test_all_of_a_pipe_is_one_message(trained: Path) -> None:
    assert len(answers(sdft("chat", trained / "run", *FEW, "--json", stdin="two\nlines\n"))) == 1
    empty = sdft("chat", trained / "run", stdin="\n")
    assert (empty.exit_code, "nothing on stdin" in empty.stderr) == (2, True)
    other = sdft("chat", trained / "run", stdin=b"a\xff")
    assert (other.exit_code, "What is piped is no UTF-8 text" in other.stderr) == (2, True)


@pytest.mark.slow
def test_in_a_terminal_it_is_a_chat(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The terminal is a real one; what is typed waits in it."""
    ours, theirs = pty.openpty()
    os.write(ours, b'/help\nhello\n"""a\nb"""\n/quit\nnever said\n')
    with os.fdopen(theirs, "r+b", buffering=0) as terminal:
        for name in ("stdin", "stdout", "stderr"):
            mode = "r" if name == "stdin" else "w"
            file = open(terminal.fileno(), mode, closefd=False, buffering=1)  # noqa: SIM115
            monkeypatch.setattr(sys, name, file)
        app(["chat", str(trained / "run"), "--max-new-tokens", "4"], standalone_mode=False)
        shown = os.read(ours, 65_536).decode("utf-8", "replace")
        while select.select([ours], [], [], 0)[0]:
            shown += os.read(ours, 65_536).decode("utf-8", "replace")
    os.close(ours)
    assert "Ctrl-D leaves" in shown
    assert "/reset   forget what was said" in shown
    assert shown.count("cut off at 4 tokens") == 2
    assert shown.count("> ") >= 4
