"""Sessions -> a dataset folder."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from sdft_cli.addresses import check_target, fetch, is_address, put
from sdft_cli.notices import say, some
from sdft_cli.places import DATA_ROOT, DATASET

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


def run_preparation(
    config: PrepareConfig, target: Path | str, overwrite: bool = False
) -> tuple[dict[str, Any], Statistics]:
    """Read the source, measure every turn, write the dataset; return its manifest and its statistics.

    Source and target may be addresses (`s3://...`): then they are copied from there, and to there, by way of a
    temporary folder.
    """
    from sdft_cli.preparation.on_ray import check_cluster
    from sdft_cli.records.folders import check_output_folder
    from sdft_cli.report.progress import progress_reporter
    from sdft_cli.traces.rows import SUFFIXES, suffix_of

    with ExitStack() as temporary:

        def folder() -> Path:
            return Path(temporary.enter_context(TemporaryDirectory(prefix="sdft-")))

        address = str(target) if is_address(str(target)) else None
        if address:
            check_target(address, DATASET, overwrite)
        local = Path(target) if address is None else folder() / "dataset"
        check_output_folder(local, DATASET, overwrite)
        if config.engine == "ray":
            check_cluster(config)
        path = config.source
        if is_address(path):
            with progress_reporter() as progress:
                path = str(fetch(path, folder(), lambda file: suffix_of(file) in SUFFIXES, progress))
        found = _prepared(config, path, local, overwrite)
        if address:
            put(local, address, DATASET)
        return found


def _prepared(config: PrepareConfig, path: str, target: Path, overwrite: bool) -> tuple[dict[str, Any], Statistics]:
    """Prepare what lies at `path`, which is the source or a copy of it."""
    from sdft_cli.engine.models.names import resolve_model
    from sdft_cli.preparation.job import Job
    from sdft_cli.preparation.pipeline import make_records, manifest_of, read, write
    from sdft_cli.prompts.chat import prompts_for
    from sdft_cli.prompts.teacher import load_teacher_template
    from sdft_cli.prompts.template import load_chat_template
    from sdft_cli.report.cards import dataset_card
    from sdft_cli.report.progress import progress_reporter
    from sdft_cli.report.statistics import statistics_of
    from sdft_cli.traces.data_cards import load_data_card
    from sdft_cli.traces.source import resolve_source

    source = resolve_source(path, config.revision)
    card = load_data_card(source.name) if source.kind == "hub" else None
    source = replace(source, name=config.source, format=card.reader if card else None)
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

    return Redactor(redaction_key(), known_values())
