"""`sdft inspect` as a user runs it."""

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

from tests.cli.test_commands import clean
from tests.datasets import example_dataset
from tests.engine.prepared import prepared

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    parent = tmp_path_factory.mktemp("inspect")
    prepared(tiny_model, parent, 12, 0.3, "again")
    return parent


def test_the_list_a_session_and_a_record(sdft: Run, folder: Path, tiny_model: Path) -> None:
    done = sdft("inspect", "data", "--split", "validation", "--json", cwd=folder)
    assert "Look at a session: sdft inspect data " in clean(done, 0)
    listed = json.loads(done.stdout)["sessions"]
    assert all(one["validation"] and not one["train"] for one in listed)
    name = listed[0]["session_id"]
    plain = sdft("inspect", "data", "--limit", 3, cwd=folder, COLUMNS="80")
    clean(plain, 0)
    assert len(plain.stdout.splitlines()) == 2 + 2 * 3
    session = sdft("inspect", "data", name, cwd=folder)
    assert "[validation record, " in session.stdout
    assert f"Look at a record: sdft inspect data {name}/" in clean(session, 0)
    document = json.loads(sdft("inspect", "data", name, "--json", cwd=folder).stdout)
    fate = next(m["fate"] for m in document["messages"] if "fate" in m)
    moved = sdft("inspect", "data", fate["record_id"], cwd=folder)
    assert "name its folder with --model" in clean(moved, 2)
    assert moved.stdout.startswith("\u2500\u2500 Record ")
    record = sdft("inspect", "data", fate["record_id"], "--model", tiny_model, cwd=folder)
    assert "--tokens\n" in clean(record, 0)
    assert f"Student's prompt: {fate['prompt_tokens']:,} tokens" in record.stdout
    assert f"Teacher's prompt: {fate['teacher_prompt_tokens']:,} tokens" in record.stdout
    assert "\n+ Again.\u27e6<|im_end|>\u27e7\n" in record.stdout
    assert "WARNING" not in record.stdout
    done = sdft("inspect", "data", fate["record_id"], "--tokens", "--json", "--model", tiny_model, cwd=folder)
    whole = json.loads(done.stdout)
    assert len(whole["teacher"]["ids"]) == whole["teacher"]["tokens"] == fate["teacher_prompt_tokens"]
    assert whole["reference"]["parts"][-1] == {"text": "<|im_end|>", "control": True}


def test_search_and_what_was_dropped(sdft: Run, folder: Path) -> None:
    done = sdft("inspect", "data", "--search", "zzz-nowhere", cwd=folder)
    assert "No message holds this text" in clean(done, 0)
    document = json.loads(sdft("inspect", "data", "--search", "the", "--limit", 5, "--json", cwd=folder).stdout)
    assert len(document["found"]) == 5
    assert all(hit["found"] == "the" for hit in document["found"])
    done = sdft("inspect", "data", "--rejected", cwd=folder)
    assert "dropped turn(s), by reason:" in done.stdout
    assert "did you mean duplicate?" in clean(
        sdft("inspect", "data", "--rejected", "--reason", "duplicat", cwd=folder), 2
    )


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("nowhere",), "There is no dataset nowhere"),
        (("data", "zzz"), "lists the sessions"),
        (("data", "--reason", "duplicate"), "--reason belongs to --rejected"),
        (("data", "--rejected", "--search", "x"), "two views"),
        (("data", "--tokens"), "--tokens is for a record"),
        (("data", "--search", ""), "--search needs a text"),
    ],
)
def test_what_does_not_go_together_is_refused(sdft: Run, tmp_path: Path, arguments: tuple[str, ...], said: str) -> None:
    example_dataset(tmp_path, 2)
    assert said in clean(sdft("inspect", *arguments), 2)


def test_a_terminal_gets_a_pager_where_the_output_is_longer_than_it(tmp_path: Path) -> None:
    example_dataset(tmp_path, 24)
    pager = tmp_path / "pager"
    pager.write_text(f"#!{sys.executable}\nimport sys\nprint('PAGED', len(sys.stdin.read().splitlines()))\n")
    pager.chmod(0o755)

    def on_a_terminal(*arguments: str) -> str:
        main, child = pty.openpty()
        environment = {**os.environ, "PAGER": str(pager), "LINES": "24", "COLUMNS": "80", "TERM": "xterm"}
        environment.pop("NO_COLOR", None)
        command = [sys.executable, "-m", "sdft_cli", "inspect", "data", *arguments]
        process = subprocess.Popen(
            command, stdin=child, stdout=child, stderr=subprocess.DEVNULL, cwd=tmp_path, env=environment
        )
        os.close(child)
        found = b""
        while select.select([main], [], [], 120)[0]:
            try:
                found += os.read(main, 65536)
            except OSError:  # the terminal is closed
                break
        os.close(main)
        assert process.wait() == 0
        return found.decode()

    assert "PAGED 50" in on_a_terminal()
    short = on_a_terminal("--limit", "3")
    assert "PAGED" not in short
    assert "\x1b[1msession" in short
