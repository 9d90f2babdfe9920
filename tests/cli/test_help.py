"""Help: what holds without each option, for all commands and all options, as a terminal shows it."""

from __future__ import annotations

import re
import shlex
from functools import reduce
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from sdft_cli.cli.main import app
from sdft_cli.cli.support.options import DEFAULT_PROFILE, given_settings
from sdft_cli.config import EvalConfig, PrepareConfig, load_train_config

COMMANDS: dict[str, Any] = typer.main.get_command(app).commands  # type: ignore[attr-defined]
OF_TRAINING = {
    "train": {
        "--model": "model",
        "--backend": "backend",
        "--objective": "objective",
        "--max-steps": "optim.max_steps",
        "--seed": "seed",
        "--init-adapter": "init_adapter",
        "--gate": "gate.action",
        "--track": "trackers",
        "--rollouts": "rollout.source",
        "--vllm-url": "rollout.vllm_url",
    },
    "gate": {"--model": "model", "--records": "gate.records"},
    "plan": {"--model": "model", "--backend": "backend"},
}
"""Options that give a setting of training. Those of `prepare` and `eval` have their settings' names."""
NULL = {"revision": "the main branch", "limit_sessions": "all", "limit": "all"}
NULL |= {"chat_template": "the model's own", "template_date": "today's"}
NULL |= {"init_adapter": "a fresh adapter", "rollout.vllm_url": "there is none"}
NULL |= {"license": "that of the source's data card, if it has one"}
NULL |= {"ray_address": "one of `workers` processes is started here"}
NULL |= {"lm_eval_path": "none", "lm_eval_limit": "all"}
"""What null means, of settings whose default it is."""
ACTIONS = {"--help", "--version", "--install-completion", "--show-completion"}


def shown(name: str, columns: int) -> dict[str, str]:
    """Return the rows of a command's help, one line each, by the option or the argument that they begin with."""
    environment = {"COLUMNS": str(columns), "NO_COLOR": "1", "TERM": "dumb"}
    done = CliRunner().invoke(app, [name, "--help"], env=environment)
    assert done.exit_code == 0, done.output
    assert "…" not in done.output
    assert all(len(line) <= columns for line in done.output.splitlines())
    rows: list[str] = []
    for line in done.output.splitlines():
        if line.startswith("│") and line[1:8].strip():
            rows.append("")
        if line.startswith("│"):
            rows[-1] += f" {line[1:-1].strip()}"
    return {re.split(r"[\s,]", row.removeprefix(" *").strip())[0]: " ".join(row.split()) for row in rows}


def default_of(command: str, option: str) -> tuple[Any, Any] | None:
    """Return the default of the setting that an option gives, and what null means; None: it gives none."""
    if command in OF_TRAINING:
        if (key := OF_TRAINING[command].get(option)) is None:
            return None
        return reduce(getattr, key.split("."), load_train_config(DEFAULT_PROFILE)), NULL.get(key)
    kinds = {"prepare": PrepareConfig, "eval": EvalConfig}
    name = option.removeprefix("--").replace("-", "_")
    field = kinds[command].model_fields.get(name) if command in kinds else None
    return (field.default, NULL.get(name)) if field is not None else None


def written(value: Any, null: str | None) -> str:
    if value is None:
        assert null is not None
        return null
    return "none" if value in ((), []) else str(value)


@pytest.mark.parametrize("columns", [80, 120])
@pytest.mark.parametrize("name", COMMANDS)
def test_help_says_of_every_option_what_holds_without_it(name: str, columns: int) -> None:
    rows = shown(name, columns)
    seen = 0
    for parameter in COMMANDS[name].params:
        is_option = parameter.param_type_name == "option"
        long = next((o for o in parameter.opts if o.startswith("--")), "") if is_option else ""
        row = rows[long or parameter.metavar or parameter.name]
        if parameter.required:
            assert row.endswith("[required]")
            continue
        told = re.search(r"\[default: (.+)\]$", row)
        assert told, row
        seen += 1
        if (setting := default_of(name, long)) is None:
            default = parameter.default
            if getattr(parameter, "is_flag", False) and default is not None:
                default = "off" if not parameter.secondary_opts else (parameter.opts[0] if default else "")[2:]
            if default is not None:
                assert told[1] == str(default)
            continue
        value, null = setting
        text = {"--redact": "redact"}.get(long) or written(value, null)
        assert told[1].split("; or ")[0] == (f"the profile's ({text})" if name in OF_TRAINING else text)
    assert seen > 0


def test_every_setting_of_an_option_is_one_of_the_tables_above() -> None:
    """Of train, gate and plan the table is written out, so one that it lacks would go unseen."""
    for name, options in OF_TRAINING.items():
        rows = shown(name, 120)
        assert {option for option, row in rows.items() if "the profile's" in row} == options.keys()


def test_choices_stand_in_help() -> None:
    rows = shown("train", 80)
    assert rows["--backend"].endswith("[default: the profile's (auto); or unsloth, transformers]")
    assert rows["--track"].endswith("; or tensorboard, trackio, wandb]")
    assert shown("prepare", 80)["--split-by"].endswith("[default: session; or project]")


@pytest.mark.parametrize("name", COMMANDS)
def test_options_stand_in_a_few_groups(name: str) -> None:
    done = CliRunner().invoke(app, [name, "--help"], env={"COLUMNS": "80", "NO_COLOR": "1"})
    groups = [group for group in re.split(r"╭─ ", done.output)[1:] if not group.startswith("Arguments")]
    sizes = [len(re.findall(r"^│ \*? *--", group, re.MULTILINE)) for group in groups]
    assert len(groups) <= 5  # the last one is the same everywhere
    assert max(sizes) <= 9
    assert sum(sizes) <= 7 or len(groups) > 1


def test_the_shared_options_come_out_as_settings() -> None:
    given = {
        "train": (
            "--model m --backend unsloth --objective sft --max-steps 7 --seed 3 --gate warn --track wandb "
            "--track trackio --rollouts vllm --vllm-url http://there:8000",
            {
                "model": "m",
                "backend": "unsloth",
                "objective": "sft",
                "optim.max_steps": 7,
                "seed": 3,
                "gate.action": "warn",
                "trackers": ["wandb", "trackio"],
                "rollout.source": "vllm",
                "rollout.vllm_url": "http://there:8000",
            },
        ),
        "gate": ("--model m --records 5", {"model": "m", "gate.records": 5}),
        "plan": ("--model m", {"model": "m"}),
        "eval": (
            "--max-new-tokens 1 --limit 2 --general 0 --questions 4 --seed 5",
            {"max_new_tokens": 1, "limit": 2, "general": 0, "questions": 4, "seed": 5},
        ),
        "prepare": (
            "s --tokenizer t --max-seq-tokens 3 --max-prompt-tokens 2 --max-rollout-tokens 1 --validation-fraction 0.5 "
            "--seed 4 --limit-sessions 5 --tools all --teacher-template repeat --split-by project --no-redact "
            "--workers 2 --revision r",
            {
                "model": "t",
                "max_seq_tokens": 3,
                "max_prompt_tokens": 2,
                "max_rollout_tokens": 1,
                "validation_fraction": 0.5,
                "seed": 4,
                "limit_sessions": 5,
                "tools": "all",
                "teacher_template": "repeat",
                "split_by": "project",
                "redact": False,
                "workers": 2,
                "revision": "r",
            },
        ),
    }
    for name, (line, settings) in given.items():
        with COMMANDS[name].make_context(name, line.split()) as context:
            assert given_settings(context) == settings
        with COMMANDS[name].make_context(name, line.split()[:1] if name == "prepare" else []) as context:
            assert given_settings(context) == {}


@pytest.mark.parametrize("name", COMMANDS)
def test_the_example_of_each_command_can_be_parsed(name: str) -> None:
    """Its options exist and its arguments are enough; options that are looked at first must not end it."""
    help_text = " ".join((COMMANDS[name].help or "").split())
    (example,) = re.findall(r"Example: sdft (.+)$", help_text)
    command, *arguments = shlex.split(example)
    assert command == name
    with COMMANDS[name].make_context(name, arguments) as context:
        assert context.args == []
