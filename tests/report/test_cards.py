from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from sdft_cli.records import write_dataset
from sdft_cli.report.cards import dataset_card, hub_metadata
from sdft_cli.report.statistics import dataset_statistics
from sdft_cli.report.templates import code_span
from tests.datasets import manifest_of
from tests.report.hostile import SOURCE, hostile_dataset

TEXT = st.text(st.characters(blacklist_categories=("Cs",)), max_size=30)


def metadata_of(card: str) -> dict[str, Any]:
    """What the Hub reads: everything between the first two lines that are `---`."""
    start, block, _ = re.split(r"^---$\n", card, maxsplit=2, flags=re.MULTILINE)
    assert start == ""
    found = yaml.safe_load(block)
    assert isinstance(found, dict)
    return found


def test_metadata() -> None:
    manifest = manifest_of(900, 100)
    manifest["source"] = {"name": "owner/name", "kind": "hub", "revision": "abc"}
    assert metadata_of(dataset_card(manifest, "mit")) == {
        "license": "mit",
        "pretty_name": "Per-turn records from owner/name",
        "source_datasets": ["owner/name"],
        "task_categories": ["text-generation"],
        "tags": ["agent-traces", "tool-use", "sdft"],
        "size_categories": ["1K<n<10K"],
        "configs": [
            {
                "config_name": "records",
                "default": True,
                "data_files": [
                    {"split": "train", "path": "train.parquet"},
                    {"split": "validation", "path": "validation.parquet"},
                ],
            },
            {"config_name": "sessions", "data_files": [{"split": "train", "path": "sessions.parquet"}]},
            {"config_name": "rejected", "data_files": [{"split": "train", "path": "rejected.parquet"}]},
        ],
    }
    bare = metadata_of(dataset_card(manifest_of(999)))
    assert "license" not in bare
    assert "source_datasets" not in bare
    assert bare["size_categories"] == ["n<1K"]


@settings(deadline=None)
@given(TEXT, TEXT)
def test_metadata_survives_any_name(name: str, license_id: str) -> None:
    manifest = manifest_of(1, source=name)
    manifest["source"].update(kind="hub", revision=name)
    assert metadata_of(dataset_card(manifest, license_id)) == hub_metadata(manifest, license_id)


def test_the_hub_library_reads_the_metadata(tmp_path: Path) -> None:
    from huggingface_hub import DatasetCard

    data = hostile_dataset(tmp_path / "d")
    card = DatasetCard(dataset_card(data.manifest, "mit", dataset_statistics(data)))
    assert card.data.license == "mit"
    assert card.data.pretty_name == f"Per-turn records from {SOURCE}"


@settings(deadline=None)
@given(TEXT)
def test_a_name_in_a_cell_is_no_markup(name: str) -> None:
    found = code_span(name)
    assert not re.search(r"[\n\r|]", found)
    inner = re.sub(r"^(`|<code>)|(`|</code>)$", "", found)
    assert not re.search(r"[<>`|*\[\]]", inner)


def test_the_tables(tmp_path: Path) -> None:
    data = hostile_dataset(tmp_path / "d")
    card = dataset_card(data.manifest, None, dataset_statistics(data))
    assert "| rejected: `over_prompt_cap` | 1 |" in card
    assert "| teacher prompt | 20 | 20 | 20 | 20 | 100 |" in card
    assert "| `ok_name` | 1 | 1 |" in card
    assert "| <code>a&#124;b&#96;c&#96;&#96;d</code> | 1 | 1 |" in card
    body = card.split("\n---\n", 1)[1]
    assert "<script>" not in body
    assert "<img" not in body
    for table in re.findall(r"(?:^\|.*\n)+", card, flags=re.MULTILINE):
        assert len({line.count("|") for line in table.splitlines()}) == 1


def test_redaction_and_licence_are_told() -> None:
    assert "was not scanned for secrets" in dataset_card(manifest_of(1))
    assert "was not scanned for secrets" in dataset_card(manifest_of(1, redaction={"enabled": False, "counts": {}}))
    assert "none was found" in dataset_card(manifest_of(1, redaction={"enabled": True, "counts": {}}))
    found = dataset_card(manifest_of(1, redaction={"enabled": True, "counts": {"aws key": 1200}}))
    assert "| `aws key` | 1,200 |" in found
    assert "licence of the source is not known" in found
    assert "licensed as `mit`" in dataset_card(manifest_of(1), "mit")


def test_the_card_of_a_folder_loads_it_as_it_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The code blocks of the card are run, on a folder whose names are hostile."""
    import datasets

    data = hostile_dataset(tmp_path / "first")
    rows = [r.row for r in data.train]
    card = dataset_card(data.manifest, "mit", dataset_statistics(data))
    splits = {"train": rows, "validation": []}
    folder = write_dataset(
        tmp_path / "d", data.sessions.values(), splits, data.rejected, data.manifest, {"README.md": card}
    )
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    scope: dict[str, Any] = {"print": lambda *values: None}
    blocks = re.findall(r"```python\n(.*?)```", card, flags=re.DOTALL)
    assert len(blocks) == 2
    for block in blocks:
        exec(block.replace("PATH/TO/THIS/FOLDER", str(folder)), scope)
    assert scope["record"].reference == data.train[0].reference
    assert scope["records"]["record_id"] == ["s/1"]
    assert scope["sessions"]["session_id"] == ["s"]
    rejected = datasets.load_dataset(str(folder), "rejected", cache_dir=str(tmp_path / "cache"))["train"]
    assert rejected["reason"] == ["over_prompt_cap"]
