"""`sdft merge` as a function: merge, and certify what is on disk."""

from __future__ import annotations

import itertools
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from sdft_cli.engine.models.disk_names import DiskNames
from sdft_cli.engine.models.names import FAILED, identity, known_as, license_of, local_folder
from sdft_cli.errors import UsageError, VerificationError
from sdft_cli.merge.adapter import Adapter
from sdft_cli.merge.behaviour_check import compare_models, failures
from sdft_cli.merge.certificate import CERTIFICATE, FORMAT, file_hash, file_hashes, has_passed
from sdft_cli.merge.tensor_check import certify
from sdft_cli.merge.weights import copy_companions, merge_weights
from sdft_cli.records.folders import new_folder
from sdft_cli.records.json_files import write_json
from sdft_cli.run_folder import CheckPrompt, Run, read_check_prompts


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
        UsageError: the target is there and may not be replaced.
        VerificationError: the base is not the one that the run was trained on. Or the checkpoint on disk is not base +
            adapter; it stays, marked by `FAILED.txt`, beside a good one that was to be replaced.
        DataError: base or adapter cannot be merged; nothing is left behind.
    """
    base, revision = _found_base(run, model, other_base is None)
    check_target(target, run, str(base))
    items = read_check_prompts(run.path / "check_prompts.jsonl", prompts)
    names = DiskNames(base)
    adapter = Adapter(run.adapter, names)
    with new_folder(target, CERTIFICATE, overwrite) as scratch:
        merge_weights(base, adapter, scratch, dtype, names)
        copy_companions(base, scratch, str(dtype).removeprefix("torch."))
        document = {
            **known_as(other_base or run.config.model),
            "revision": revision,
            "license": license_of(base),
            **_certificate(run, base, scratch, items, dtype, names),
        }
        write_json(scratch / CERTIFICATE, document)
        if document["failures"]:
            (scratch / FAILED).write_text("".join(f"{line}\n" for line in document["failures"]), encoding="utf-8")
            if has_passed(target):
                raise _failed(document["failures"], _kept_beside(scratch, target), f" {target} is as it was.")
    if document["failures"]:
        raise _failed(document["failures"], target)
    return document


def check_target(target: Path, run: Run, model: str) -> None:
    """Refuse a target in whose place, or in which, something stands that the merge reads.

    Args:
        target: the checkpoint folder to write; `<run>/merged` is a good one.
        run: the run.
        model: the base; a Hub id has no place here.

    Raises:
        UsageError: the target is or holds the run, its adapters or the base, or lies in an adapter or in the base.
    """
    place = target.resolve()
    kept = [run.path / "adapter", run.path / "adapter-best"]
    if Path(model).expanduser().is_dir():
        kept.append(Path(model).expanduser())
    for folder in (run.path, *kept):
        found = folder.resolve()
        if place == found or place in found.parents or (folder in kept and found in place.parents):
            raise UsageError(
                f"The merge reads {folder}, and {target} is it, holds it or lies in it: choose another --out."
            )


def _found_base(run: Run, model: str, own: bool) -> tuple[Path, str | None]:
    """Return folder and revision of the base, the run's `own` or another one, after comparing it with the run."""
    if not own:
        base = local_folder(model)
        _check_other_base(base, run)
        return base, None
    base = local_folder(model, run.revision)
    _check_own_base(base, run.info.get("base") or {}, run)
    return base, run.revision


def _check_own_base(base: Path, stored: dict[str, Any], run: Run) -> None:
    """Refuse a base that has changed since the run was trained; an old run does not say what it was."""
    found = identity(base) if stored else {}
    differing = sorted(key for key in stored.keys() | found.keys() if stored.get(key) != found.get(key))
    if differing:
        raise VerificationError(
            f"{base} is not the base that {run.path} was trained on (another {', '.join(differing)}): restore that "
            "one, or name this one with --base."
        )


def _check_other_base(base: Path, run: Run) -> None:
    """Refuse a base of another family: one with other tokens, or that is prompted in another way."""
    from sdft_cli.prompts.chat import ChatPrompts, load_tokenizer
    from sdft_cli.prompts.teacher import load_teacher_template
    from sdft_cli.prompts.template import OWN, ChatTemplate

    expected = run.info["dataset"].get("fingerprint")
    if not expected:  # an old run
        return
    tokenizer, dataset = load_tokenizer(base), run.info["dataset"]
    other = dataset.get("chat_template") or {"name": OWN, "text": None}
    template = ChatTemplate(tokenizer, other["text"], other["name"], dataset.get("template_date"))
    found = ChatPrompts(tokenizer, load_teacher_template(), template).fingerprint()
    differing = [key for key in ("tokenizer", "chat_template") if expected[key] != found[key]]
    if differing:
        raise VerificationError(
            f"The {' and '.join(differing).replace('_', ' ')} of {base} differ from those that {run.path} was trained "
            "with: give --base the 16-bit form of the run's own base."
        )


def _kept_beside(scratch: Path, target: Path) -> Path:
    """Move a failed checkpoint to `<target>-failed`, and leave the good one at `target`; return where it is.

    Only another failed checkpoint is replaced there: the place of anything else is left alone, and numbers follow.
    """
    first = target.absolute().with_name(f"{target.absolute().name}-failed")
    others = (first.with_name(f"{first.name}-{number}") for number in itertools.count(2))
    free = (path for path in itertools.chain([first], others) if not os.path.lexists(path) or _has_failed(path))
    beside = next(free)
    with new_folder(beside, CERTIFICATE, overwrite=True) as place:
        for path in list(scratch.iterdir()):
            path.rename(place / path.name)
    return beside


def _has_failed(folder: Path) -> bool:
    return (folder / CERTIFICATE).is_file() and (folder / FAILED).is_file()


def _failed(failures: list[str], where: Path, more: str = "") -> VerificationError:
    others = f" (and {len(failures) - 1} more)" if len(failures) > 1 else ""
    return VerificationError(
        f"The merged checkpoint is not the model that was trained: {failures[0]}{others}; {where / FAILED} lists it "
        f"all.{more}"
    )


def _certificate(
    run: Run, base: Path, merged: Path, items: list[CheckPrompt], dtype: torch.dtype, names: DiskNames
) -> dict[str, Any]:
    found = certify(base, run.adapter, merged, dtype, names)
    behaviour = None
    if not found.failures:  # else there may be nothing that loads
        behaviour = compare_models(base, run.adapter, merged, items, getattr(torch, run.config.dtype))
        found.failures += failures(behaviour)
    return {
        "format": FORMAT,
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
