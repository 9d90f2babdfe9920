"""A dataset with a template of its own, which asks for the date: every stage renders with both, on any day."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from typer.testing import CliRunner, Result

from sdft_cli.cli.main import app
from sdft_cli.traces.examples import write_examples

Run = Callable[..., Result]
CAPS = ["--max-seq-tokens", "4096", "--max-prompt-tokens", "3584", "--max-rollout-tokens", "256"]
TRAIN = [
    *("--profile", "cpu-demo", "--gate", "off", "--max-steps", "2", "--set", "lora.rank=4"),
    *("--set", "rollout.max_new_tokens=4", "--set", "optim.turns_per_step=2", "--set", "heldout.every=null"),
    *("--set", "optim.schedule=constant"),
]
DAY = "2001-02-03"


@pytest.fixture
def sdft(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run a command in this process, in a working folder of its own."""
    monkeypatch.chdir(tmp_path)
    environment = {"COLUMNS": "120", "NO_COLOR": "1"}
    return lambda *arguments: CliRunner().invoke(app, list(map(str, arguments)), env=environment)


def dated(smollm2: Path, file: Path) -> Path:
    """SmolLM2's template with the date and the hour in front."""
    own = (smollm2 / "chat_template.jinja").read_text()
    file.write_text("{{- 'Today is ' + strftime_now('%d %b %Y, %H:%M') + '.' -}}\n" + own)
    return file


def prepare(sdft: Run, folder: Path, model: Path, *arguments: str, out: str = "data") -> Result:
    if not (folder / "sessions").exists():
        write_examples(folder / "sessions", 6)
    options = ["--model", model, "--teacher-template", "repeat", "--validation-fraction", "0.3", *CAPS]
    return sdft("prepare", "sessions", *options, "--out", out, *arguments)


def manifest_of(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "manifest.json").read_text())
    return found


@pytest.mark.slow
def test_a_run_on_another_day_than_its_dataset_has_the_same_prompts(
    sdft: Run, tmp_path: Path, tiny_model: Path, smollm2: Path
) -> None:
    template = dated(smollm2, tmp_path / "dated.jinja")
    text = template.read_text()
    done = prepare(sdft, tmp_path, tiny_model, "--chat-template", str(template), "--template-date", DAY)
    assert done.exit_code == 0, done.stderr
    assert "dated.jinja, not the model's own; asked for the date, it is told 2001-02-03." in done.stderr
    manifest = manifest_of(tmp_path / "data")
    assert manifest["chat_template"] == {"name": "dated.jinja", "text": text}
    assert manifest["template_date"] == DAY
    assert str(tmp_path) not in (tmp_path / "data" / "manifest.json").read_text()
    template.unlink()  # the dataset has it

    done = sdft("train", "data", *TRAIN, "--model", tiny_model, "--out", "runs/r")
    assert done.exit_code == 0, done.stderr
    run = json.loads((tmp_path / "runs" / "r" / "run.json").read_text())
    assert run["dataset"]["template_date"] == DAY
    from transformers import AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(tiny_model)
    prompts = [json.loads(line) for line in (tmp_path / "runs" / "r" / "check_prompts.jsonl").read_text().splitlines()]
    for item in prompts:
        assert tokenizer.decode(item["prompt"]).startswith("Today is 03 Feb 2001, 00:00.<|im_start|>")

    done = sdft("merge", "runs/r", "--bf16", "--prompts", "2")
    assert done.exit_code == 0, done.stderr
    merged = tmp_path / "runs" / "r" / "merged"
    assert (merged / "chat_template.jinja").read_text() == text
    certificate = json.loads((merged / "merge-certificate.json").read_text())
    assert certificate["passed"]
    assert certificate["files"]["chat_template.jinja"] == "the run's own"

    documents = []
    for number in (1, 2):
        few = ["--limit", "2", "--general", "2", "--questions", "2", "--max-new-tokens", "4"]
        done = sdft("eval", "runs/r", "data", "--merged", "--out", f"eval-{number}.json", *few)
        assert done.exit_code == 0, done.stderr
        documents.append((tmp_path / f"eval-{number}.json").read_bytes())
    assert documents[0] == documents[1]

    # the same sessions, told another day: another dataset, with which the run cannot go on
    done = prepare(sdft, tmp_path, tiny_model, "--chat-template", str(dated(smollm2, template)), out="other")
    assert done.exit_code == 0, done.stderr
    assert manifest_of(tmp_path / "other")["template_date"] == date.today().isoformat()
    done = sdft("train", "other", "--resume", "--out", "runs/r", "--max-steps", "3")
    assert done.exit_code != 0
    assert "is not the dataset that runs/r was started with" in done.stderr


def test_what_a_template_drops_and_refuses_is_told_with_what_to_do(
    sdft: Run, tmp_path: Path, tiny_model: Path, smollm2: Path
) -> None:
    (tmp_path / "text.jinja").write_text(
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    done = prepare(sdft, tmp_path, tiny_model, "--chat-template", "text.jinja")
    assert done.exit_code == 3, done.stderr
    assert "template_loses" in done.stderr
    assert "The chat template does not write the tools that are offered" in done.stderr
    assert "name a template that writes them (--chat-template)" in done.stderr
    assert "raise --max" not in done.stderr
    assert not (tmp_path / "data").exists()


def write_parallel(folder: Path) -> Path:
    """Write sessions of four turns: two calls at once, an answer, one call, an answer."""
    tool = {"name": "Read", "description": "Read a file.", "parameters": {"type": "object", "properties": {"p": {}}}}
    folder.mkdir()
    for number in range(6):
        calls = [{"name": "Read", "arguments": json.dumps({"p": f"{name}{number}"})} for name in "abc"]
        made = [{"id": f"c{i}", "type": "function", "function": call} for i, call in enumerate(calls)]
        results = [{"role": "tool", "tool_call_id": f"c{i}", "content": f"text {i} of {number}"} for i in range(3)]
        messages = [
            {"role": "user", "content": f"Read both files of {number}."},
            {"role": "assistant", "content": "", "tool_calls": made[:2]},
            *results[:2],
            {"role": "assistant", "content": f"Read {number}."},
            {"role": "user", "content": "And the third."},
            {"role": "assistant", "content": "", "tool_calls": made[2:]},
            results[2],
            {"role": "assistant", "content": f"Read all of {number}."},
        ]
        line = json.dumps({"messages": messages, "tools": [{"type": "function", "function": tool}]})
        (folder / f"{number}.jsonl").write_text(line + "\n")
    return folder


def test_a_template_of_single_calls_is_told_and_parallel_ones_can_be_split(
    sdft: Run, tmp_path: Path, tiny_model: Path, smollm2: Path
) -> None:
    write_parallel(tmp_path / "sessions")
    several = "{% for m in messages if (m.tool_calls or []) | length > 1 %}{{ raise_exception('one call only!') }}"
    single = several + "{% endfor %}" + (smollm2 / "chat_template.jinja").read_text()
    (tmp_path / "single.jinja").write_text(single)
    done = prepare(sdft, tmp_path, tiny_model, "--chat-template", "single.jinja")
    assert done.exit_code == 3, done.stderr  # each turn has the two calls in it, or before it
    assert "(template_error 24)" in done.stderr
    assert "The chat template refuses this conversation: one call only!" in done.stderr
    assert "--parallel-calls split takes parallel calls apart" in " ".join(done.stderr.split())

    split = ["--chat-template", "single.jinja", "--parallel-calls", "split"]
    done = prepare(sdft, tmp_path, tiny_model, *split, out="split")
    assert done.exit_code == 0, done.stderr
    funnel = manifest_of(tmp_path / "split")["funnel"]
    assert funnel["turns"] == funnel["kept"] == 30  # a turn more in each session
    assert funnel["notes"]["parallel_calls_split"] == 6
    assert "6 turn(s) with parallel calls became consecutive turns, each with its result." in done.stderr
    assert set(pl.read_parquet(tmp_path / "split" / "train.parquet")["turn_index"]) == {1, 3, 5, 7, 9}


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--chat-template", "nope"], "Chat template nope is no .jinja file and none of those that ship"),
        (["--chat-template", "gone.jinja"], "Chat template gone.jinja cannot be read (no such file or directory)"),
        (["--chat-template", "llama3-hermes"], "the model has no such token"),
        (["--template-date", "tomorrow"], "tomorrow is no date: write it as YYYY-MM-DD"),
        (["--template-date", "2026-02-30"], "2026-02-30 is no date: write it as YYYY-MM-DD"),
    ],
)
def test_bad_templates_and_dates_are_usage_errors(
    sdft: Run, tmp_path: Path, tiny_model: Path, arguments: list[str], sentence: str
) -> None:
    done = prepare(sdft, tmp_path, tiny_model, *arguments)
    assert done.exit_code == 2, done.stderr
    assert sentence in " ".join(done.stderr.split())
    assert not (tmp_path / "data").exists()
