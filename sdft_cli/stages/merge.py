"""An adapter -> a certified checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdft_cli.notices import say

if TYPE_CHECKING:
    from sdft_cli.run_folder import Run


def existing(run: Run | Path, target: Path, dtype: str | None, base: str | None = None) -> dict[str, Any]:
    """Return the certificate of a checkpoint that is there already, after comparing its files with it.

    Raises:
        VerificationError: it did not pass, was changed, or is of another adapter, dtype or base.
    """
    from sdft_cli.merging.certificate import check_certified
    from sdft_cli.report.progress import working

    with working("Comparing the files with the certificate"):
        check = check_certified(target, run if isinstance(run, Path) else run.adapter, dtype, base)
    say(f"{target} is there, of this adapter, unchanged, and passed its certificate: it is not merged again")
    return check


def run_merge(
    run: Run,
    target: Path,
    prompts: int = 8,
    overwrite: bool = False,
    dtype: str = "bfloat16",
    base: str | None = None,
) -> dict[str, Any]:
    """Merge a run's adapter into its base at `target`, compare the two, write the card; return the certificate."""
    import torch

    from sdft_cli.engine.models.names import resolve_model
    from sdft_cli.merging.certificate import CERTIFICATE
    from sdft_cli.merging.merge import check_target, merge_run
    from sdft_cli.records.folders import check_output_folder
    from sdft_cli.report.progress import working
    from sdft_cli.stages.model_card import write_model_card

    check_target(target, run, base or run.config.model)
    check_output_folder(target, CERTIFICATE, overwrite)
    if not (run.info.get("base") if base is None else run.info["dataset"].get("fingerprint")):
        say("Note: the run does not say what exactly its base was, so whether this is the one is not known.")
    with working("Merging and comparing with the adapter"):
        model = resolve_model(base or run.config.model, say)
        check = merge_run(run, model, target, prompts, overwrite, getattr(torch, dtype), base)
    write_model_card(run, target)
    return check


def run_merge_adapter(
    adapter: Path, target: Path, prompts: int, overwrite: bool, dtype: str, base: str
) -> dict[str, Any]:
    """Merge an adapter folder of another trainer into `base` at `target`, compare the two; return the certificate."""
    import torch

    from sdft_cli.engine.models.names import resolve_model
    from sdft_cli.merging.certificate import CARD, CERTIFICATE
    from sdft_cli.merging.merge import merge_adapter
    from sdft_cli.records.folders import check_output_folder, write_text
    from sdft_cli.records.json_files import read_json
    from sdft_cli.report.cards import adapted_card
    from sdft_cli.report.progress import working

    check_output_folder(target, CERTIFICATE, overwrite)
    with working("Merging and comparing with the adapter"):
        model = resolve_model(base, say)
        check = merge_adapter(adapter, model, base, target, prompts, overwrite, getattr(torch, dtype))
    config = read_json(target / "config.json", "merge again with --overwrite")
    write_text(target / CARD, adapted_card(check, vision=config.get("vision_config") is not None), overwrite=True)
    return check
