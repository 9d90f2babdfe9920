"""`sdft prepare`: sessions -> per-assistant-turn records."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from sdft_cli.addresses import is_address
from sdft_cli.cli.support import completion
from sdft_cli.cli.support.common import command, print_json
from sdft_cli.cli.support.options import AsJson, ProjectFile, given_settings, option, setting
from sdft_cli.notices import say, some
from sdft_cli.places import DATA_ROOT
from sdft_cli.stages.folders import name_of
from sdft_cli.stages.prepare import card_defaults, run_preparation
from sdft_cli.stages.project import read_project


@command
def prepare(
    context: typer.Context,
    source: Annotated[
        str | None,
        typer.Argument(
            help="A trace file, a folder of them, a Hub dataset id (owner/name), or an address (s3://...).",
            show_default="the project file's source",
            autocompletion=completion.sources,
        ),
    ] = None,
    out: Annotated[
        str | None,
        option(help="The dataset folder to create, or an address (s3://...).", left_out="data/<source name>"),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing dataset folder.")] = False,
    as_json: AsJson = False,
    project: ProjectFile = None,
    workers: Annotated[int | None, setting("prepare.workers")] = None,
    engine: Annotated[str | None, setting("prepare.engine")] = None,
    ray_address: Annotated[str | None, setting("prepare.ray_address")] = None,
    revision: Annotated[str | None, setting("prepare.revision", panel="Source")] = None,
    limit_sessions: Annotated[int | None, setting("prepare.limit_sessions")] = None,
    redact: Annotated[bool | None, setting("prepare.redact", "--redact/--no-redact")] = None,
    tools: Annotated[str | None, setting("prepare.tools")] = None,
    branches: Annotated[str | None, setting("prepare.branches")] = None,
    system_prompt: Annotated[str | None, setting("prepare.system_prompt")] = None,
    license: Annotated[str | None, setting("prepare.license")] = None,
    model: Annotated[str | None, setting("prepare.model", "--model", "--tokenizer", panel="Records")] = None,
    max_seq_tokens: Annotated[int | None, setting("prepare.max_seq_tokens")] = None,
    max_prompt_tokens: Annotated[int | None, setting("prepare.max_prompt_tokens")] = None,
    max_rollout_tokens: Annotated[int | None, setting("prepare.max_rollout_tokens")] = None,
    max_unseen_tokens: Annotated[int | None, setting("prepare.max_unseen_tokens")] = None,
    chat_template: Annotated[
        str | None, setting("prepare.chat_template", autocompletion=completion.chat_templates)
    ] = None,
    template_date: Annotated[str | None, setting("prepare.template_date")] = None,
    parallel_calls: Annotated[str | None, setting("prepare.parallel_calls")] = None,
    teacher_template: Annotated[
        str | None, setting("prepare.teacher_template", autocompletion=completion.teacher_templates)
    ] = None,
    validation_fraction: Annotated[float | None, setting("prepare.validation_fraction", panel="Held out")] = None,
    split_by: Annotated[str | None, setting("prepare.split_by")] = None,
    seed: Annotated[int | None, setting("prepare.seed")] = None,
) -> None:
    """Turn recorded sessions into per-assistant-turn records.

    Every assistant turn becomes a record, or a rejection with a reason; nothing is truncated. Reasoning is stripped.
    The data card of a source (`sdft cards`) may set other defaults.

    Example: sdft prepare armand0e/claude-fable-5-claude-code
    """
    settings = read_project(project)
    name = settings.source_of(source)
    config = settings.prepare_config(name, given_settings(context), card_defaults(name))
    target = out or str(DATA_ROOT / name_of(name))
    manifest, statistics = run_preparation(config, target, overwrite)

    from sdft_cli.report import terminal

    if as_json:
        facts = {name: manifest[name] for name in ("coverage", "system_prompt", "unknown")}
        print_json({"dataset": target, **manifest["funnel"], **facts})
    else:
        terminal.stdout().print(terminal.statistics_report(manifest["funnel"], statistics))
    _tell(manifest, target)


def _tell(manifest: dict[str, Any], target: str) -> None:
    from sdft_cli.report.told import sentences

    broken = manifest["broken_lines"]
    if broken:
        say(f"{len(broken)} unreadable line(s) or file(s) were skipped: {some(broken)}")
    for sentence in sentences(manifest):
        say(sentence)
    say(_redaction(manifest["redaction"]))
    if is_address(target):
        say(f"Dataset written to {target}; copy it to this machine to look at it (sdft report) and for sdft train")
    else:
        say(f"Dataset written to {target}; look at it: sdft report {target}; next: sdft train {target}")


def _redaction(redaction: dict[str, Any]) -> str:
    """Say what was redacted, or what redaction was told to leave."""
    if not redaction["enabled"]:
        return "Not redacted: secrets, e-mail addresses, user names and home folders are in the dataset as recorded."
    counts = redaction["counts"]
    return "Redacted: " + (", ".join(f"{kind} {count}" for kind, count in counts.items()) or "nothing was found")
