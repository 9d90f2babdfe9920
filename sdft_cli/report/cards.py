"""Data cards: the README.md of a dataset folder, with Hub metadata, from `templates/cards/`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import jinja2
import yaml

from sdft_cli.report.statistics import Statistics, Summary
from sdft_cli.resources import resource_text

_SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))
_LARGEST = "1M<n<10M"


def code_span(value: Any) -> str:
    """Return a name as code for Markdown, harmless in a heading and in a table cell whatever the name is.

    White space and control characters become blanks. A name of ordinary characters stands between backticks; of any
    other name each unusual character is an HTML entity, which Markdown never reads as syntax.
    """
    text = re.sub(r"[\s\x00-\x1f\x7f-\x9f]+", " ", str(value)).strip()
    if re.fullmatch(r"[\w .:/@+-]+", text):
        return f"`{text}`"
    return "<code>" + re.sub(r"[^\w ]|_", lambda found: f"&#{ord(found.group())};", text) + "</code>"


def _number(value: int) -> str:
    return f"{value:,}"


def _cells(summary: Summary | None) -> str:
    if summary is None:
        return "- | - | - | -"
    return " | ".join(map(_number, (summary.min, summary.median, summary.p90, summary.max)))


def _config(name: str, files: Mapping[str, str], **more: Any) -> dict[str, Any]:
    return {"config_name": name, **more, "data_files": [{"split": s, "path": path} for s, path in files.items()]}


def hub_metadata(manifest: Mapping[str, Any], license_id: str | None = None) -> dict[str, Any]:
    """Return the metadata that the Hub reads from the top of the card; `configs` is what `datasets` loads."""
    funnel, source = manifest["funnel"], manifest["source"]
    splits = [split for split in ("train", "validation") if funnel[split]]
    found: dict[str, Any] = {"license": license_id} if license_id else {}
    found["pretty_name"] = f"Per-turn records from {source['name']}"
    if source["kind"] == "hub":
        found["source_datasets"] = [source["name"]]
    found["task_categories"] = ["text-generation"]
    found["tags"] = ["agent-traces", "tool-use", "sdft"]
    found["size_categories"] = [next((name for limit, name in _SIZES if funnel["kept"] < limit), _LARGEST)]
    found["configs"] = [
        _config("records", {split: f"{split}.parquet" for split in splits}, default=True),
        _config("sessions", {"train": "sessions.parquet"}),
        _config("rejected", {"train": "rejected.parquet"}),
    ]
    return found


def dataset_card(
    manifest: Mapping[str, Any], license_id: str | None = None, statistics: Statistics | None = None
) -> str:
    """Return the card of a prepared dataset.

    Args:
        manifest: what `sdft prepare` writes; `redaction`, if there, is `{"enabled": bool, "counts": {kind: n}}`.
        license_id: the source's licence where it is known.
        statistics: of the same records; without them the card has no table of lengths and of tools.
    """
    environment = jinja2.Environment(
        undefined=jinja2.StrictUndefined, keep_trailing_newline=True, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["number"] = _number
    environment.filters["code"] = code_span
    template = environment.from_string(resource_text("templates", "cards", "dataset.md.jinja"))
    return template.render(
        metadata=yaml.safe_dump(hub_metadata(manifest, license_id), sort_keys=False),
        manifest=manifest,
        license=license_id,
        funnel=manifest["funnel"],
        config=manifest["config"],
        statistics=statistics,
        cells=_cells,
    )
