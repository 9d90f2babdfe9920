"""The cards of a run: of its adapters, and of its merged checkpoint, which is written again with an evaluation."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdft_cli.texts import read_text

if TYPE_CHECKING:
    from sdft_cli.run_folder import Run

_MODEL_ID = re.compile(r'^model_id = ".*"$', re.MULTILINE)


def write_model_card(run: Run, merged: Path, evaluation: dict[str, Any] | None = None) -> Path:
    """Write the card of a run's merged checkpoint as its README.md; return its path.

    Args:
        run: the run, finished.
        merged: the checkpoint, with a certificate that passed.
        evaluation: what `sdft eval` found on the run; None: the one in the run's folder, if it is of this adapter.

    Raises:
        VerificationError: the checkpoint did not pass its certificate, or is not of this run's adapter.
    """
    from sdft_cli.engine.models.names import license_of
    from sdft_cli.errors import VerificationError
    from sdft_cli.merging.certificate import CARD, has_passed, read_certificate
    from sdft_cli.records.folders import sha256_of
    from sdft_cli.records.json_files import read_json
    from sdft_cli.report.cards import Evaluation, model_card
    from sdft_cli.report.evaluation import values_rows

    if not has_passed(merged):
        raise VerificationError(f"{merged} holds no certificate that passed: merge again with --overwrite.")
    certificate = read_certificate(merged)
    adapter = certificate.get("adapter", {"name": "adapter", "sha256": None})
    weights = run.path / adapter["name"] / "adapter_model.safetensors"
    if not weights.is_file() or sha256_of(weights) != adapter["sha256"]:
        raise VerificationError(f"{merged} is not of the adapter in {run.path}: merge again with --overwrite.")
    found = evaluation or _evaluation_of(run, adapter["sha256"])
    text = model_card(
        run.config.model_dump(mode="json"),
        run.info,
        certificate,
        license=certificate["license"] if "license" in certificate else license_of(merged),
        vision=read_json(merged / "config.json", "merge again with --overwrite").get("vision_config") is not None,
        evaluation=Evaluation.of(found, values_rows(found)) if found else None,
    )
    named = _MODEL_ID.search((merged / CARD).read_text(encoding="utf-8")) if (merged / CARD).is_file() else None
    if named:  # the repository that it was pushed to
        text = _MODEL_ID.sub(lambda _: named[0], text)
    _write(merged, text, own=True)
    return merged / CARD


def write_adapter_cards(folder: Path) -> None:
    """Write the README.md of the adapters of a finished run.

    Args:
        folder: of the run.
    """
    from sdft_cli.engine.models.disk_names import unloaded
    from sdft_cli.engine.models.names import known_as, license_of, loaded_folder, resolve_model
    from sdft_cli.engine.models.targets import target_names
    from sdft_cli.records.folders import write_text
    from sdft_cli.report.cards import adapter_card
    from sdft_cli.run_folder import read_run

    run = read_run(folder)
    model = resolve_model(run.config.model)
    base = loaded_folder(model, run.revision)
    empty = unloaded(model, run.revision)
    all_steps: dict[str, Any] = {"adapter": run.info["last_step"]["step"], "adapter-best": run.info.get("best_step")}
    for name, steps in all_steps.items():
        if (folder / name).is_dir():
            text = adapter_card(
                run.config.model_dump(mode="json"),
                run.info,
                known_as(run.config.model),
                license=license_of(base) if base else None,
                vision=getattr(empty.config, "vision_config", None) is not None,
                targets=target_names(empty, run.config.lora.target_modules),
                steps=steps,
            )
            write_text(folder / name / "README.md", text, overwrite=True)


def _write(merged: Path, text: str, own: bool) -> None:
    """Write the card; of one that is sdft's own, note in the certificate what was written."""
    from sdft_cli.merging.certificate import CARD, CERTIFICATE, read_certificate
    from sdft_cli.records.folders import sha256_of, write_text
    from sdft_cli.records.json_files import write_json

    write_text(merged / CARD, text, overwrite=True)
    if own:
        write_json(merged / CERTIFICATE, read_certificate(merged) | {"card": sha256_of(merged / CARD)})


def is_own_card(merged: Path) -> bool:
    """Say whether the card of a checkpoint that passed is as sdft wrote it, so that it may be written anew."""
    from sdft_cli.merging.certificate import CARD, read_certificate
    from sdft_cli.records.folders import sha256_of

    written = read_certificate(merged).get("card")
    return (merged / CARD).is_file() and written == sha256_of(merged / CARD)


def _evaluation_of(run: Run, sha256: str | None) -> dict[str, Any] | None:
    """Return the evaluation in a run's folder that is of this adapter, if there is one."""
    from sdft_cli.records.json_files import read_json

    for name in ("eval.json", "eval-best.json"):
        if (run.path / name).is_file():
            found: dict[str, Any] = read_json(run.path / name, "run `sdft eval` again, or delete it")
            if sha256 and found.get("adapter", {}).get("sha256") == sha256:
                return found
    return None


def evaluated_card(run: Run, evaluation: dict[str, Any]) -> Path | None:
    """Write the card of the run's checkpoint anew, with this evaluation; return its path.

    None: there is no checkpoint of the same adapter, or its card was edited since sdft wrote it, which is said.
    """
    from sdft_cli.merging.certificate import CARD, has_passed, read_certificate
    from sdft_cli.notices import say

    merged = run.path / "merged"
    if not has_passed(merged):
        return None
    certified = read_certificate(merged).get("adapter", {}).get("sha256")
    if certified is None or certified != evaluation["adapter"]["sha256"]:
        return None
    if (merged / CARD).is_file() and not is_own_card(merged):
        say(f"{merged / CARD} is not as sdft wrote it, so it was left alone; `sdft eval` writes one that is missing.")
        return None
    return write_model_card(run, merged, evaluation)


def name_in_card(merged: Path, repo: str) -> None:
    """Say in the card's code where the checkpoint will be; raises as `read_text`."""
    from sdft_cli.merging.certificate import CARD

    card = read_text(merged / CARD, "Model card", "save it as UTF-8")
    text = _MODEL_ID.sub(f'model_id = "{repo}"', card)
    _write(merged, text, own=is_own_card(merged))
