"""`sdft prepare`: sessions -> per-assistant-turn records."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sdft_cli.cli.common import DATA_ROOT, command, say
from sdft_cli.cli.options import given_settings, option, setting

if TYPE_CHECKING:
    from sdft_cli.config import PrepareConfig
    from sdft_cli.prepare.turns import Redact
    from sdft_cli.report.statistics import Statistics


@command
def prepare(
    source: Annotated[str, typer.Argument(help="A trace file, a folder of them, or a Hub dataset id (owner/name).")],
    context: typer.Context,
    out: Annotated[Path | None, option(help="The dataset folder to create.", left_out="data/<source name>")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing dataset folder.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the funnel as JSON.")] = False,
    revision: Annotated[str | None, setting("prepare.revision", panel="Source")] = None,
    limit_sessions: Annotated[int | None, setting("prepare.limit_sessions")] = None,
    redact: Annotated[bool | None, setting("prepare.redact", "--redact/--no-redact")] = None,
    tools: Annotated[str | None, setting("prepare.tools")] = None,
    branches: Annotated[str | None, setting("prepare.branches")] = None,
    system_prompt: Annotated[str | None, setting("prepare.system_prompt")] = None,
    workers: Annotated[int | None, setting("prepare.workers")] = None,
    model: Annotated[str | None, setting("prepare.model", "--model", "--tokenizer", panel="Records")] = None,
    max_seq_tokens: Annotated[int | None, setting("prepare.max_seq_tokens")] = None,
    max_prompt_tokens: Annotated[int | None, setting("prepare.max_prompt_tokens")] = None,
    max_rollout_tokens: Annotated[int | None, setting("prepare.max_rollout_tokens")] = None,
    max_unseen_tokens: Annotated[int | None, setting("prepare.max_unseen_tokens")] = None,
    chat_template: Annotated[str | None, setting("prepare.chat_template")] = None,
    template_date: Annotated[str | None, setting("prepare.template_date")] = None,
    parallel_calls: Annotated[str | None, setting("prepare.parallel_calls")] = None,
    teacher_template: Annotated[str | None, setting("prepare.teacher_template")] = None,
    validation_fraction: Annotated[float | None, setting("prepare.validation_fraction", panel="Held out")] = None,
    split_by: Annotated[str | None, setting("prepare.split_by")] = None,
    seed: Annotated[int | None, setting("prepare.seed")] = None,
) -> None:
    """Turn recorded sessions into per-assistant-turn records.

    Every assistant turn becomes a record, or a rejection with a reason; nothing is truncated. Reasoning is stripped.
    The data card of a source (`sdft cards`) may set other defaults.

    Example: sdft prepare armand0e/claude-fable-5-claude-code
    """
    from sdft_cli.config import PrepareConfig, build

    config = build(PrepareConfig, {"source": source, **card_defaults(source), **given_settings(context)})
    target = out or DATA_ROOT / (
        Path(source).expanduser().resolve().stem if Path(source).exists() else source.rstrip("/").split("/")[-1]
    )
    manifest, statistics = run_preparation(config, target, overwrite)

    from sdft_cli.report import terminal

    if as_json:
        facts = {name: manifest[name] for name in ("coverage", "system_prompt", "unknown")}
        typer.echo(json.dumps({"dataset": str(target), **manifest["funnel"], **facts}, indent=2))
    else:
        terminal.stdout().print(terminal.statistics_report(manifest["funnel"], statistics))
    _tell(manifest, target)


def card_defaults(source: str) -> dict[str, Any]:
    """Return the settings that the source's data card states; flags override them.

    Raises:
        UsageError: the card says that the dataset is not on the Hub.
    """
    from sdft_cli.errors import UsageError
    from sdft_cli.traces.data_cards import load_data_card

    card = None if Path(source).expanduser().exists() else load_data_card(source)
    if card is None:
        return {}
    if card.url:
        raise UsageError(f"{source} is not on the Hub: get it from {card.url}, then name the folder.")
    return card.defaults.model_dump(exclude_none=True)


def run_preparation(config: PrepareConfig, target: Path, overwrite: bool = False) -> tuple[dict[str, Any], Statistics]:
    """Read the source, measure every turn, write the dataset; return its manifest and its statistics."""
    from sdft_cli.engine.models.names import resolve_model
    from sdft_cli.prepare.pipeline import make_records, manifest_of, read, write
    from sdft_cli.prepare.workers import Job
    from sdft_cli.prompts.chat import prompts_for
    from sdft_cli.prompts.teacher import load_teacher_template
    from sdft_cli.prompts.template import load_chat_template
    from sdft_cli.records.folders import check_output_folder
    from sdft_cli.report import terminal
    from sdft_cli.report.cards import dataset_card
    from sdft_cli.report.statistics import statistics_of
    from sdft_cli.traces.data_cards import load_data_card
    from sdft_cli.traces.source import resolve_source

    check_output_folder(target, "manifest.json", overwrite)
    source = resolve_source(config.source, config.revision)
    card = load_data_card(source.name) if source.kind == "hub" else None
    source = replace(source, format=card.reader if card else None)
    load_teacher_template(config.teacher_template)  # bad names are told before anything is read or downloaded
    if config.chat_template:
        load_chat_template(config.chat_template)
    with terminal.progress_reporter() as progress:  # before the tokenizer: bad input should not wait for a download
        found = read(config, source, progress)
    if found.report.ignored:
        say(f"{len(found.report.ignored)} file(s) beside the sessions hold none: {_some(found.report.ignored)}")
    prompts = prompts_for(
        resolve_model(config.model, say), config.teacher_template, config.chat_template, config.template_date
    )
    with terminal.progress_reporter() as progress:
        prepared = make_records(source, found, Job(config, prompts, redactor(config)), progress)
    manifest = manifest_of(config, source, prompts, prepared)
    manifest["data_card"] = card and card.dataset
    statistics = statistics_of(manifest, prepared.sessions, prepared.rows, prepared.rejected)
    write(prepared, manifest, target, dataset_card(manifest, card.license if card else None, statistics), overwrite)
    return manifest, statistics


def redactor(config: PrepareConfig) -> Redact | None:
    """Return what redacts a session, with this machine's key and the values that are known on it; None if it is off."""
    if not config.redact:
        return None
    from sdft_cli.redaction.known_values import known_values, redaction_key
    from sdft_cli.redaction.redactor import Redactor

    return Redactor(redaction_key(), known_values()).session


def _tell(manifest: dict[str, Any], target: Path) -> None:
    from sdft_cli.report.told import sentences

    broken = manifest["broken_lines"]
    if broken:
        say(f"{len(broken)} unreadable line(s) or file(s) were skipped: {_some(broken)}")
    for sentence in sentences(manifest):
        say(sentence)
    say(_redaction(manifest["redaction"]))
    say(f"Dataset written to {target}; look at it: sdft report {target}; next: sdft train {target}")


def _some(names: list[str]) -> str:
    """Return the first five names, and how many more there are."""
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def _redaction(redaction: dict[str, Any]) -> str:
    """Say what was redacted, or what redaction was told to leave."""
    if not redaction["enabled"]:
        return "Not redacted: secrets, e-mail addresses, user names and home folders are in the dataset as recorded."
    counts = redaction["counts"]
    return "Redacted: " + (", ".join(f"{kind} {count}" for kind, count in counts.items()) or "nothing was found")
