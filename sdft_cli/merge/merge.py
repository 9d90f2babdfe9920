"""`sdft merge` as a function: merge, and certify what is on disk."""

from __future__ import annotations

import gc
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from sdft_cli.engine.adapters import weights
from sdft_cli.engine.backend_transformers import load_model
from sdft_cli.engine.models import FAILED, known_as, local_folder
from sdft_cli.engine.quiet import quiet_libraries
from sdft_cli.engine.runs import CheckPrompt, Run, read_check_prompts, write_json
from sdft_cli.errors import VerificationError
from sdft_cli.merge.certificate import certify
from sdft_cli.merge.certified import CERTIFICATE, file_hash, file_hashes, has_passed
from sdft_cli.merge.verify import compare, failures, greedy_answers, log_probabilities, same_answers
from sdft_cli.merge.weights import Adapter, copy_companions, merge_weights
from sdft_cli.records.folders import new_folder


def merge_run(
    run: Run,
    model: str,
    target: Path,
    prompts: int = 8,
    overwrite: bool = False,
    dtype: torch.dtype = torch.bfloat16,
    other_base: str | None = None,
) -> dict[str, Any]:
    """Merge a run's adapter into its base as a checkpoint at `target`, and certify it from disk.

    A good checkpoint is never replaced by one that fails.

    Args:
        run: the run.
        model: folder or Hub id of the base, resolved.
        prompts: how many of the run's check prompts to compare on.
        dtype: of the merged weights, bfloat16 or float32.
        other_base: the name of `model` if that is another base than the run's, as the 16-bit form of a 4-bit one.

    Returns the certificate (also in `merge-certificate.json` of the checkpoint).

    Raises:
        VerificationError: the checkpoint on disk is not base + adapter; it stays, marked by `FAILED.txt`, beside a
            good one that was to be replaced.
        DataError: base or adapter cannot be merged; nothing is left behind.
    """
    revision = run.config.revision if other_base is None else None
    base = local_folder(model, revision)
    items = read_check_prompts(run.path / "check_prompts.jsonl", prompts)
    with new_folder(target, overwrite) as scratch:
        merge_weights(base, Adapter(run.adapter), scratch, dtype)
        copy_companions(base, scratch, str(dtype).removeprefix("torch."))
        document = {
            **known_as(other_base or run.config.model),
            "revision": revision,
            **_certificate(run, base, scratch, items, dtype),
        }
        write_json(scratch / CERTIFICATE, document)
        if document["failures"]:
            (scratch / FAILED).write_text("".join(f"{line}\n" for line in document["failures"]), encoding="utf-8")
            if has_passed(target):
                raise _failed(document["failures"], _kept_beside(scratch, target), f" {target} is as it was.")
    if document["failures"]:
        raise _failed(document["failures"], target)
    return document


def _kept_beside(scratch: Path, target: Path) -> Path:
    """Move a failed checkpoint to `<target>-failed`, and leave the good one at `target`."""
    beside = target.absolute().with_name(f"{target.name}-failed")
    with new_folder(beside, overwrite=True) as place:
        for path in list(scratch.iterdir()):
            path.rename(place / path.name)
    return beside


def _failed(failures: list[str], where: Path, more: str = "") -> VerificationError:
    others = f" (and {len(failures) - 1} more)" if len(failures) > 1 else ""
    return VerificationError(
        f"The merged checkpoint is not the model that was trained: {failures[0]}{others}; {where / FAILED} lists it "
        f"all.{more}"
    )


def _certificate(run: Run, base: Path, merged: Path, items: list[CheckPrompt], dtype: torch.dtype) -> dict[str, Any]:
    found = certify(base, run.adapter, merged, dtype)
    behaviour = None
    if not found.failures:  # else there may be nothing that loads
        behaviour = _compare(run, base, merged, items)
        found.failures += failures(behaviour)
    return {
        "format": 2,
        "passed": not found.failures,
        "failures": found.failures,
        "adapter": {"name": run.adapter.name, "sha256": file_hash(run.adapter / "adapter_model.safetensors")},
        "dtype": found.dtype,
        "adapted": [asdict(tensor) for tensor in found.adapted],
        "untouched": {"identical": found.identical, f"cast to {found.dtype}": found.cast},
        "files": found.files,
        "behaviour": behaviour,
        "sha256": file_hashes(merged),
    }


def _compare(run: Run, base: Path, merged: Path, items: list[CheckPrompt]) -> dict[str, Any]:
    """Compare the checkpoint, loaded from disk, with base + adapter: distributions, and greedy answers."""
    quiet_libraries()
    from peft import PeftModel
    from transformers import AutoTokenizer

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = getattr(torch, run.config.dtype)
    adapted: Any = PeftModel.from_pretrained(load_model(str(base), dtype, device), str(run.adapter)).eval()
    trained_log_p, trained_answers = log_probabilities(adapted, items, device), greedy_answers(adapted, items, device)
    with weights(adapted, "base"):
        base_log_p = log_probabilities(adapted, items, device)
    del adapted
    gc.collect()
    model = load_model(str(merged), dtype, device)
    found = compare(trained_log_p, log_probabilities(model, items, device), base_log_p)
    tokenizer: Any = AutoTokenizer.from_pretrained(str(merged))
    answers = [trained_answers, greedy_answers(model, items, device)]
    texts = [[tokenizer.decode(ids) for ids in side] for side in answers]
    return {**found, **same_answers(*texts)}
