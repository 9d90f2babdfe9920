"""The card of a merged checkpoint, its README.md: written by `sdft merge`, and again when there is an evaluation."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sdft_cli.engine.runs import Run

_MODEL_ID = re.compile(r'^model_id = ".*"$', re.MULTILINE)


def write_model_card(
    run: Run, merged: Path, evaluation: dict[str, Any] | None = None, base: Path | None = None
) -> Path:
    """Write the card of a run's merged checkpoint as its README.md; return its path.

    Args:
        run: the run, finished.
        merged: the checkpoint, with a certificate that passed.
        evaluation: what `sdft eval` found on the run; None: the one in the run's folder, if it is of this adapter.
        base: the base's folder, for its licence; without it the licence of the card that is there stays.

    Raises:
        VerificationError: the checkpoint did not pass its certificate, or is not of this run's adapter.
    """
    from sdft_cli.engine.runs import read_json
    from sdft_cli.errors import VerificationError
    from sdft_cli.merge.certified import CARD, CERTIFICATE, file_hash, has_passed
    from sdft_cli.records.folders import new_file
    from sdft_cli.report.cards import Evaluation, model_card
    from sdft_cli.report.evaluation import values_rows

    if not has_passed(merged):
        raise VerificationError(f"{merged} holds no certificate that passed: merge again with --overwrite.")
    certificate = read_json(merged / CERTIFICATE)
    adapter = certificate.get("adapter", {"name": "adapter", "sha256": None})
    weights = run.path / adapter["name"] / "adapter_model.safetensors"
    if not weights.is_file() or file_hash(weights) != adapter["sha256"]:
        raise VerificationError(f"{merged} is not of the adapter in {run.path}: merge again with --overwrite.")
    found = evaluation or _evaluation_of(run, adapter["sha256"])
    text = model_card(
        run.config.model_dump(mode="json"),
        run.info,
        certificate,
        license=license_of(base or merged),
        vision=read_json(merged / "config.json").get("vision_config") is not None,
        evaluation=Evaluation.of(found, values_rows(found)) if found else None,
    )
    named = _MODEL_ID.search((merged / CARD).read_text(encoding="utf-8")) if (merged / CARD).is_file() else None
    if named:  # the repository that it was pushed to
        text = _MODEL_ID.sub(lambda _: named[0], text)
    with new_file(merged / CARD, overwrite=True) as scratch:
        scratch.write_text(text, encoding="utf-8")
    return merged / CARD


def _evaluation_of(run: Run, sha256: str | None) -> dict[str, Any] | None:
    """Return the evaluation in a run's folder that is of this adapter, if there is one."""
    from sdft_cli.engine.runs import read_json

    for name in ("eval.json", "eval-best.json"):
        if (run.path / name).is_file():
            found: dict[str, Any] = read_json(run.path / name)
            if sha256 and found.get("adapter", {}).get("sha256") == sha256:
                return found
    return None


def evaluated_card(run: Run, evaluation: dict[str, Any]) -> Path | None:
    """Write the card of the run's checkpoint anew, with this evaluation; None if it has none of the same adapter."""
    from sdft_cli.engine.runs import read_json
    from sdft_cli.merge.certified import CERTIFICATE, has_passed

    merged = run.path / "merged"
    if not has_passed(merged):
        return None
    certified = read_json(merged / CERTIFICATE).get("adapter", {}).get("sha256")
    same = certified is not None and certified == evaluation["adapter"]["sha256"]
    return write_model_card(run, merged, evaluation) if same else None


def license_of(folder: Path) -> dict[str, str]:
    """Return the Hub's licence keys of a model folder: from the top of its card, else as `sdft` itself noted it."""
    import yaml

    found: object = None
    card, source = folder / "README.md", folder / "sdft-source.json"
    if card.is_file():
        parts = re.split(
            r"^---\s*$", card.read_text(encoding="utf-8", errors="replace"), maxsplit=2, flags=re.MULTILINE
        )
        try:
            found = yaml.safe_load(parts[1]) if len(parts) == 3 and not parts[0].strip() else None
        except yaml.YAMLError:  # a card that cannot be read states no licence
            found = None
    if not (isinstance(found, dict) and found.get("license")) and source.is_file():
        found = json.loads(source.read_bytes())
    if not isinstance(found, dict) or not isinstance(found.get("license"), str):
        return {}
    return {k: found[k] for k in ("license", "license_name", "license_link") if isinstance(found.get(k), str)}


def name_in_card(merged: Path, repo: str) -> None:
    """Say in the card's code where the checkpoint will be."""
    from sdft_cli.merge.certified import CARD
    from sdft_cli.records.folders import new_file

    text = _MODEL_ID.sub(f'model_id = "{repo}"', (merged / CARD).read_text(encoding="utf-8"))
    with new_file(merged / CARD, overwrite=True) as scratch:
        scratch.write_text(text, encoding="utf-8")
