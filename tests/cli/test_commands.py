"""The commands as a user runs them, in processes of their own."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sdft_cli.engine.models.names import identity
from sdft_cli.records import read_dataset
from sdft_cli.traces.examples import write_examples
from tests.traces.lines import line, text

Run = Callable[..., subprocess.CompletedProcess[str]]


def has_unsloth() -> bool:
    return importlib.util.find_spec("unsloth") is not None


FAST = [
    *("--set", "lora.rank=4"),
    *("--set", "rollout.max_new_tokens=4"),
    *("--set", "optim.turns_per_step=2"),
    *("--set", "heldout.max_new_tokens=4"),
    *("--gate", "off"),
]


def clean(done: subprocess.CompletedProcess[str], code: int) -> str:
    """Check the exit code and that a failure is one sentence; return stderr."""
    assert done.returncode == code, f"{done.returncode}\n{done.stdout}\n{done.stderr}"
    assert "Traceback" not in done.stderr + done.stdout
    return done.stderr


@pytest.mark.slow
def test_secrets_and_names_do_not_reach_the_dataset(sdft: Run, tmp_path: Path, tiny_model: Path) -> None:
    token, home = "ghp_" + "aZ3kQ9xL2mN8vB4cR7tY" + "1wE5uI0oP6sD", "/home/mwinterbottom"
    sessions = tmp_path / "sessions"
    sessions.mkdir()
    lines = [
        line("1", None, "user", f"My token is {token}, the code is in {home}/app.", cwd=f"{home}/app"),
        line("2", "1", "assistant", text(f"I use {token} in {home}/app."), mid="m"),
        line("3", None, "user", "Another project.", cwd="/srv/other"),
    ]
    (sessions / "s.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))
    done = sdft("prepare", "sessions", "--model", tiny_model, "--out", "d", "--validation-fraction", 0)
    error = clean(done, 0)
    assert "Redacted: token 2, user_name 3" in error
    assert token not in done.stdout + error
    (session,) = read_dataset(tmp_path / "d").sessions.values()
    stored = repr(session)
    assert token not in stored
    assert "mwinterbottom" not in stored
    pseudonyms = [word for m in session.messages for word in m.content.split() if "REDACTED" in word]
    assert len({p.rstrip(",") for p in pseudonyms}) == 1  # one value, one pseudonym, in prompt and reference
    assert session.metadata["project"].endswith("/app")

    done = sdft("prepare", "sessions", "--model", tiny_model, "--out", "raw", "--validation-fraction", 0, "--no-redact")
    assert "Not redacted: secrets, e-mail addresses, user names and home folders" in clean(done, 0)
    (session,) = read_dataset(tmp_path / "raw").sessions.values()
    assert token in session.messages[1].content
    assert session.metadata["project"] == f"{home}/app"


def check_adapter_can_be_given_away(adapter: Path, base: Path) -> None:
    """No path of this machine in it, and a card whose code loads it."""
    assert {path.name for path in adapter.iterdir()} == {
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
    }
    card, config = (adapter / "README.md").read_text(), (adapter / "adapter_config.json").read_text()
    assert json.loads(config)["base_model_name_or_path"] == base.name
    assert not [text for text in (card, config) if str(base.parent) in text or str(adapter.parent) in text]
    assert f"| base | `{base.name}` (a folder) |" in card
    (code,) = re.findall(r"```python\n(.*?)```", card, flags=re.DOTALL)
    scope: dict[str, Any] = {}
    exec(code.replace(f'"{base.name}"', f'"{base}"').replace("your-name/your-adapter", str(adapter)), scope)
    assert type(scope["model"]).__name__ == "PeftModelForCausalLM"


@pytest.mark.slow
def test_prepare_train_merge_eval_end_to_end(sdft: Run, tmp_path: Path, tiny_model: Path) -> None:
    write_examples(tmp_path / "sessions", 12)
    done = sdft("prepare", "sessions", "--model", tiny_model, "--validation-fraction", 0.25, "--json")
    clean(done, 0)
    funnel = json.loads(done.stdout)
    assert funnel["dataset"] == "data/sessions"
    assert funnel["turns"] == funnel["kept"] + sum(funnel["rejected"].values())
    assert funnel["rejected"] == {}  # of the example sessions, the second dozen has the first fork

    done = sdft("train", "--profile", "cpu-demo", "--model", tiny_model, "--max-steps", 2, *FAST)
    error = clean(done, 0)
    assert "Using the newest dataset: data/sessions" in error
    assert "Backend: transformers (as asked)" in error
    assert "step 2/2" in error
    run = tmp_path / "runs" / "sessions-cpu-demo"
    logs = {"metrics.jsonl", "heldout.jsonl", "heldout_answers.jsonl", "samples.jsonl"}
    names = {"run.json", "config.json", "check_prompts.jsonl", "adapter", "checkpoints", *logs}
    assert {p.name for p in run.iterdir()} == names
    assert json.loads((run / "run.json").read_text())["base"] == identity(tiny_model)

    check_adapter_can_be_given_away(run / "adapter", tiny_model)

    done = sdft("merge", "--bf16")
    assert "Using the newest run: runs/sessions-cpu-demo" in clean(done, 0)
    assert "adapted tensors" in done.stdout
    assert (run / "merged" / "model.safetensors").is_file()
    card = run / "merged" / "README.md"
    assert "None yet" in card.read_text()

    small = ("--max-new-tokens", 4, "--general", 6, "--questions", 4)
    first = sdft("eval", "--json", *small)
    clean(first, 0)
    document = (run / "eval.json").read_bytes()
    clean(sdft("eval", "--json", *small), 0)
    assert (run / "eval.json").read_bytes() == document  # the same seed, the same document
    assert "| expert NLL, nats per token |" in card.read_text()
    clean(sdft("merge", "--bf16", "--overwrite"), 0)
    assert "| expert NLL, nats per token |" in card.read_text()
    numbers = json.loads(first.stdout)["contenders"]
    assert set(numbers) == {"base", "tuned"}
    summaries = {name: found["summary"] for name, found in numbers.items()}
    assert numbers["base"]["drift"]["drift_kl"] == 0.0
    assert summaries["base"]["tool_turns"] == summaries["tuned"]["tool_turns"] > 0

    table = sdft("eval", run / "merged", "data/sessions", "--max-new-tokens", 4, "--questions", 4, "--out", "m.json")
    clean(table, 0)
    assert "expert NLL, nats per token" in table.stdout
    merged = json.loads((tmp_path / "m.json").read_text())["contenders"]["model"]["summary"]
    assert merged["expert_nll_per_token"] == pytest.approx(summaries["tuned"]["expert_nll_per_token"], abs=0.02)

    # The control arm, and all models in one evaluation.
    sft = ("--objective", "sft", "--max-steps", 2, "--out", "runs/control", *FAST)
    clean(sdft("train", "--profile", "cpu-demo", "--model", tiny_model, *sft), 0)
    done = sdft("eval", run, "--merged", "--control", "runs/control", "--details", "--out", "all.json", *small)
    clean(done, 0)
    for words in ("tuned - base", "sft - base", "sft - tuned", "merged - tuned", "By tool turns"):
        assert words in done.stdout
    clean(sdft("eval", "runs/control", *small), 0)
    together = json.loads((tmp_path / "all.json").read_text())
    alone = json.loads((tmp_path / "runs" / "control" / "eval.json").read_text())
    assert together["contenders"]["sft"]["items"] == alone["contenders"]["tuned"]["items"]  # its adapter, no other one
    assert together["controls"]["sft"] == alone["adapter"] != together["adapter"]
    nll = {name: found["summary"]["expert_nll_per_token"] for name, found in together["contenders"].items()}
    assert nll["merged"] == pytest.approx(nll["tuned"], abs=0.02)
    assert len(set(nll.values())) == 4
    shutil.copytree(run, tmp_path / "runs" / "other")
    shutil.copytree(
        tmp_path / "runs" / "control" / "adapter", tmp_path / "runs" / "other" / "adapter", dirs_exist_ok=True
    )
    assert "it was made from adapter" in clean(sdft("eval", "runs/other", "--merged", *small), 4)
    shutil.rmtree(tmp_path / "runs" / "other")
    assert "choose another --out" in clean(sdft("eval", run, "--out", "sessions", *small), 1)
    assert "give a run" in clean(sdft("eval", tiny_model, "--general", 6), 2)
    done = sdft("compare", run, "runs/control", "--html", "compare.html")
    clean(done, 0)
    assert "control - sessions-cpu-demo" in done.stdout
    assert "<svg" in (tmp_path / "compare.html").read_text()
    assert "--overwrite" in clean(sdft("compare", run, "runs/control", "--html", "compare.html"), 2)
    assert "with other settings" in clean(sdft("compare", run, "m.json"), 3)
    assert "give a run folder" in clean(sdft("eval", tiny_model, "--merged"), 2)
    assert "no task no_such" in clean(sdft("eval", run, "--lm-eval", "no_such", "--lm-eval-path", "sessions"), 2)
    assert "names no task" in clean(sdft("eval", run, "--lm-eval-limit", 3), 2)
    assert "is no folder" in clean(sdft("eval", run, "--lm-eval", "x", "--lm-eval-path", "nowhere"), 2)

    if has_unsloth():
        done = sdft(
            "train",
            "--profile",
            "cpu-demo",
            "--model",
            tiny_model,
            "--backend",
            "unsloth",
            "--max-steps",
            1,
            "--out",
            "runs/fast",
            *FAST,
        )
        assert "Backend: unsloth (as asked)" in clean(done, 0)
        clean(sdft("merge", "runs/fast", "--bf16"), 0)
        assert {p.name for p in tmp_path.iterdir()} <= {
            "sessions",
            "data",
            "runs",
            "m.json",
            "all.json",
            "compare.html",
        }  # no compiled caches

    # Nothing is overwritten unasked, and a run without its adapter is no run.
    assert "--overwrite" in clean(sdft("train", "--profile", "cpu-demo", "--model", tiny_model), 2)
    assert "--overwrite" in clean(sdft("merge", "--bf16"), 2)

    # Nor is a folder of another kind, asked or not.
    before = sorted(tmp_path.rglob("*"))
    train = ("train", "data/sessions", "--profile", "cpu-demo", "--model", tiny_model, "--overwrite", "--out")
    assert "holds no run.json" in clean(sdft(*train, "data/sessions"), 2)
    assert "holds no run.json" in clean(sdft(*train, run / "merged"), 2)
    prepare = ("prepare", "sessions", "--model", tiny_model, "--overwrite", "--out")
    assert "holds no manifest.json" in clean(sdft(*prepare, run), 2)
    assert "The merge reads" in clean(sdft("merge", run, "--bf16", "--overwrite", "--out", run), 2)
    assert "holds no merge-certificate.json" in clean(
        sdft("merge", run, "--bf16", "--overwrite", "--out", "data/sessions"), 2
    )
    assert "holds no sdft-demo.json" in clean(sdft("demo", "--overwrite", "--out", run), 2)
    assert sorted(tmp_path.rglob("*")) == before
    (run / "adapter" / "adapter_model.safetensors").unlink()
    assert "adapter_model.safetensors is missing" in clean(sdft("merge", run, "--bf16", "--overwrite"), 3)


@pytest.mark.slow
def test_bad_input_to_prepare_is_one_sentence_with_a_stable_code(sdft: Run, tmp_path: Path, tiny_model: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "nothing").mkdir()
    (tmp_path / "nothing" / "readme.txt").write_text("hi")
    (tmp_path / "garbage.jsonl").write_bytes(os.urandom(5000))
    (tmp_path / "silent.jsonl").write_text(
        json.dumps({"type": "user", "uuid": "1", "sessionId": "s", "message": {"role": "user", "content": "hi"}})
    )
    messages = re.findall(r'"id": "(msg_\w+)"', "".join(p.read_text() for p in write_examples(tmp_path / "good", 2)))
    turns = len(set(messages))
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "file").write_text("mine")
    cases: list[tuple[list[object], int, str]] = [
        (["empty"], 3, "holds no trace file"),
        (["nothing"], 3, "holds no trace file"),
        (["garbage.jsonl"], 3, "No session with an assistant turn"),
        (["silent.jsonl"], 3, "No session with an assistant turn"),
        (["missing/"], 2, "is no file, no folder"),
        (["good", "--model", "no-such-model"], 2, "no alias: the aliases are smollm2-135m"),
        (["good", "--model", "owner/no-such-model"], 1, "could not be loaded from the Hub"),
        (["good", "--out", "taken"], 2, "--overwrite"),
        (["good", "--max-seq-tokens", 5], 2, "is above max_seq_tokens"),
        (["good", "--max-prompt-tokens", 5, "--model", tiny_model], 3, f"over_prompt_cap {turns}"),
        (["good", "--out", "/proc/nowhere/x"], 1, "Cannot write in /proc/nowhere"),
        (
            ["good", "--teacher-template", "nope", "--model", tiny_model],
            2,
            "that ship with sdft: choose of again",
        ),
    ]
    for arguments, code, message in cases:
        error = clean(sdft("prepare", *arguments), code)
        assert message in error, arguments
        assert len([x for x in error.splitlines() if x.startswith("sdft: ")]) == 1
    assert not (tmp_path / "data").exists() or not list((tmp_path / "data").iterdir())
    assert (tmp_path / "taken" / "file").read_text() == "mine"


@pytest.mark.slow
def test_bad_input_to_train_merge_and_eval(sdft: Run, tmp_path: Path, tiny_model: Path, smollm2: Path) -> None:
    assert "run `sdft prepare SOURCE` first" in clean(sdft("train"), 2)
    assert "run `sdft train` first" in clean(sdft("merge", "--bf16"), 2)
    assert "add --bf16" in clean(sdft("merge"), 2)
    write_examples(tmp_path / "good", 3)
    clean(sdft("prepare", "good", "--model", tiny_model, "--validation-fraction", 0), 0)
    assert "there are cpu-demo" in clean(sdft("train", "--profile", "nope"), 2)
    error = clean(sdft("train", "--profile", "cpu-demo", "--model", tiny_model, "--set", "optim.lr=1"), 2)
    assert "optim.lr" in error
    other = tmp_path / "other"
    other.mkdir()
    for path in tiny_model.iterdir():
        (other / path.name).write_bytes(path.read_bytes())
    (other / "chat_template.jinja").write_text("{{ messages[0].content }}")
    assert "its chat template differ" in clean(sdft("train", "--profile", "cpu-demo", "--model", other), 3)
    assert "over 10 tokens" in clean(
        sdft("train", "--profile", "cpu-demo", "--model", tiny_model, "--set", "max_prompt_tokens=10"), 3
    )
    assert "has no validation record" in clean(sdft("eval", tiny_model), 3)
    import torch

    if not torch.cuda.is_available():
        error = clean(sdft("train"), 1)
        assert "needs a CUDA GPU with at least 70 GB" in error
        assert "try --profile cpu-demo" in error
    assert not (tmp_path / "runs").exists() or not list((tmp_path / "runs").iterdir())


def test_help_of_every_command_has_an_example(sdft: Run) -> None:
    for name in ("prepare", "plan", "gate", "train", "merge", "eval", "compare", "report", "export", "demo"):
        done = sdft(name, "--help")
        clean(done, 0)
        assert f"Example: sdft {name}" in done.stdout
    assert sdft("--version").stdout.startswith("sdft 0.")
    assert sdft().returncode == 2
    assert sdft("prepare").returncode == 2
