"""Sessions -> a dataset folder."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdft_cli.notices import say, some
from sdft_cli.places import DATA_ROOT

if TYPE_CHECKING:
    from sdft_cli.config import PrepareConfig
    from sdft_cli.preparation.turns import Redact
    from sdft_cli.report.statistics import Statistics


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


def dataset_folder(source: str) -> Path:
    """Return where the dataset of a source goes if nobody says: under `data/`, by the source's name."""
    path = Path(source).expanduser()
    return DATA_ROOT / (path.resolve().stem if path.exists() else source.rstrip("/").split("/")[-1])


def run_preparation(config: PrepareConfig, target: Path, overwrite: bool = False) -> tuple[dict[str, Any], Statistics]:
    """Read the source, measure every turn, write the dataset; return its manifest and its statistics."""
    from sdft_cli.engine.models.names import resolve_model
    from sdft_cli.preparation.pipeline import make_records, manifest_of, read, write
    from sdft_cli.preparation.workers import Job
    from sdft_cli.prompts.chat import prompts_for
    from sdft_cli.prompts.teacher import load_teacher_template
    from sdft_cli.prompts.template import load_chat_template
    from sdft_cli.records.folders import check_output_folder
    from sdft_cli.report.cards import dataset_card
    from sdft_cli.report.progress import progress_reporter
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
    with progress_reporter() as progress:  # before the tokenizer: bad input should not wait for a download
        found = read(config, source, progress)
    if found.report.ignored:
        say(f"{len(found.report.ignored)} file(s) beside the sessions hold none: {some(found.report.ignored)}")
    prompts = prompts_for(
        resolve_model(config.model, say), config.teacher_template, config.chat_template, config.template_date
    )
    with progress_reporter() as progress:
        prepared = make_records(source, found, Job(config, prompts, redactor(config)), progress)
    manifest = manifest_of(config, source, prompts, prepared)
    manifest["data_card"] = card and card.dataset
    statistics = statistics_of(manifest, prepared.sessions, prepared.rows, prepared.rejected)
    license_id = config.license or (card.license if card else None)
    write(prepared, manifest, target, dataset_card(manifest, license_id, statistics), overwrite)
    return manifest, statistics


def redactor(config: PrepareConfig) -> Redact | None:
    """Return what redacts a session, with this machine's key and the values that are known on it; None if it is off."""
    if not config.redact:
        return None
    from sdft_cli.redaction.known_values import known_values, redaction_key
    from sdft_cli.redaction.redactor import Redactor

    return Redactor(redaction_key(), known_values()).session
