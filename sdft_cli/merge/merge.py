"""`sdft merge` as a function: merge, load from disk, compare, and only then keep it."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import torch

from sdft_cli.engine.adapters import weights
from sdft_cli.engine.backend_transformers import load_model
from sdft_cli.engine.models import local_folder
from sdft_cli.engine.quiet import quiet_libraries
from sdft_cli.engine.runs import CheckPrompt, Run, read_check_prompts, write_json
from sdft_cli.errors import VerificationError
from sdft_cli.merge.verify import compare, failures, log_probabilities
from sdft_cli.merge.weights import Adapter, copy_companions, merge_weights
from sdft_cli.records.folders import new_folder


def merge_run(run: Run, model: str, target: Path, prompts: int = 8, overwrite: bool = False) -> dict[str, Any]:
    """Merge a run's adapter into its base as a bf16 checkpoint at `target`.

    Args:
        run: the run.
        model: folder or Hub id of the base, resolved.
        prompts: how many of the run's check prompts to compare on.

    Returns the comparison (also in `merge-check.json` of the checkpoint).

    Raises:
        VerificationError: the checkpoint, loaded from disk, disagrees with base + adapter; nothing is left behind.
        DataError: base or adapter cannot be merged.
    """
    base = local_folder(model, run.config.revision)
    items = read_check_prompts(run.path / "check_prompts.jsonl", prompts)
    with new_folder(target, overwrite) as scratch:
        counts = merge_weights(base, Adapter(run.adapter), scratch)
        copy_companions(base, scratch)
        check = {
            "adapted_tensors": len(counts.adapted),
            "untouched_tensors": counts.untouched,
            "surviving_share": counts.surviving_share,
            **_compare(run, base, scratch, items),
        }
        wrong = failures(check)
        if wrong:
            raise VerificationError(f"The merged checkpoint is not the model that was trained: {'; '.join(wrong)}.")
        write_json(scratch / "merge-check.json", check)
    return check


def _compare(run: Run, base: Path, merged: Path, items: list[CheckPrompt]) -> dict[str, Any]:
    quiet_libraries()
    from peft import PeftModel

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = getattr(torch, run.config.dtype)
    adapted: Any = PeftModel.from_pretrained(load_model(str(base), dtype, device), str(run.adapter)).eval()
    trained_log_p = log_probabilities(adapted, items, device)
    with weights(adapted, "base"):
        base_log_p = log_probabilities(adapted, items, device)
    del adapted
    gc.collect()
    merged_log_p = log_probabilities(load_model(str(merged), dtype, device), items, device)
    return compare(trained_log_p, merged_log_p, base_log_p)
