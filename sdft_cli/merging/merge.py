"""`sdft merge` as a function: merge, and certify what is on disk."""

from __future__ import annotations

import itertools
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from sdft_cli.engine.models.disk_names import DiskNames, unloaded
from sdft_cli.engine.models.names import FAILED, check_base, known_as, license_of, local_folder
from sdft_cli.errors import DataError, UsageError, VerificationError
from sdft_cli.merging.adapter import Adapter
from sdft_cli.merging.behaviour_check import compare_models, failures, fixed_prompts
from sdft_cli.merging.certificate import CERTIFICATE, FORMAT, file_hashes, has_passed
from sdft_cli.merging.tensor_check import certify
from sdft_cli.merging.tensor_file import DTYPES
from sdft_cli.merging.weights import check_not_quantised, copy_companions, main_dtype, merge_weights
from sdft_cli.records.folders import new_folder, sha256_of
from sdft_cli.records.json_files import write_json
from sdft_cli.run_folder import CheckPrompt, Run, read_check_prompts


@dataclass(frozen=True)
class Source:
    """What is merged, and into what.

    `base`: its folder; `base_name` as others read it; `names` of its parameters; `prompts`: to compare on, in `dtype`;
    `cls`: the auto class of the model that was trained, if that is not all of the checkpoint; `chat_template`: that it
    was trained with, if that is not the base's.
    """

    adapter: Path
    base: Path
    base_name: str
    revision: str | None
    names: DiskNames
    prompts: list[CheckPrompt]
    dtype: torch.dtype
    cls: Any = None
    chat_template: str | None = None


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
        target: the folder to create.
        prompts: how many of the run's check prompts to compare on.
        overwrite: replace a checkpoint that is there.
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
    check_not_quantised(base)
    items = read_check_prompts(run.path / "check_prompts.jsonl", prompts)
    # In bfloat16 a float32 checkpoint would be compared as what a bfloat16 one is.
    compared_in = torch.float32 if dtype == torch.float32 else getattr(torch, run.config.dtype)
    name = other_base or run.config.model
    other = (run.info["dataset"].get("chat_template") or {}).get("text")
    source = Source(run.adapter, base, name, revision, DiskNames(base), items, compared_in, chat_template=other)
    return _merged(source, target, overwrite, dtype)


def merge_adapter(
    adapter: Path,
    model: str,
    base_name: str,
    target: Path,
    prompts: int = 8,
    overwrite: bool = False,
    dtype: torch.dtype = torch.bfloat16,
) -> dict[str, Any]:
    """Merge an adapter that another trainer wrote, and certify it, as `merge_run` does.

    Args:
        adapter: a folder with `adapter_config.json`.
        model: folder or Hub id of the base, resolved.
        base_name: of the base, as it was asked for.
        target: the folder to create.
        prompts: on how many fixed prompts to compare.
        overwrite: replace a checkpoint that is there.
        dtype: of the merged weights, bfloat16 or float32.

    Raises:
        As `merge_run`; DataError also if the adapter uses a feature that is not known.
    """
    base = local_folder(model)
    for folder in (adapter, base):
        _check_apart(target, folder, within=True)
    check_not_quantised(base)
    names, cls = names_for(base, adapter)
    source = Source(adapter, base, base_name, None, names, fixed_prompts(base, prompts), torch.float32, cls)
    return _merged(source, target, overwrite, dtype)


def names_for(base: Path, adapter: Path) -> tuple[DiskNames, Any]:
    """Return the names of a base, of the class that an adapter fits, and that auto class if it is not the usual one.

    That is all of the checkpoint, or its language model alone: other trainers may have loaded only that.

    Raises:
        DataError: the adapter fits neither, or uses a feature that is not known.
    """
    from transformers import AutoModelForCausalLM

    whole = DiskNames(base)
    try:
        Adapter(adapter, whole)
    except DataError as error:
        try:
            text = DiskNames(base, unloaded(base, cls=AutoModelForCausalLM))
            Adapter(adapter, text)
        except (DataError, UsageError):  # there is none, or it fits neither: what it lacks of the whole is told
            raise error from None
        return text, AutoModelForCausalLM
    return whole, None


def _merged(source: Source, target: Path, overwrite: bool, dtype: torch.dtype) -> dict[str, Any]:
    """Merge and certify in a scratch folder, which takes its place at the end."""
    adapter = Adapter(source.adapter, source.names)
    with new_folder(target, CERTIFICATE, overwrite) as scratch:
        merge_weights(source.base, adapter, scratch, dtype, source.names)
        copy_companions(source.base, scratch, str(dtype).removeprefix("torch."), source.chat_template)
        document = {
            **known_as(source.base_name),
            "revision": source.revision,
            "license": license_of(source.base),
            **_certificate(source, scratch, dtype, adapter.uses),
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
    kept = [run.path / "adapter", run.path / "adapter-best"]
    if Path(model).expanduser().is_dir():
        kept.append(Path(model).expanduser())
    for folder in (run.path, *kept):
        _check_apart(target, folder, within=folder in kept)


def _check_apart(target: Path, read: Path, within: bool) -> None:
    """Refuse a target that is or holds a folder that is read, or (`within`) lies in it."""
    place, found = target.resolve(), read.resolve()
    if place == found or place in found.parents or (within and found in place.parents):
        raise UsageError(f"The merge reads {read}, and {target} is it, holds it or lies in it: choose another --out.")


def _found_base(run: Run, model: str, own: bool) -> tuple[Path, str | None]:
    """Return folder and revision of the base, the run's `own` or another one, after comparing it with the run."""
    if not own:
        base = local_folder(model)
        _check_other_base(base, run)
        return base, None
    base = local_folder(model, run.revision)
    check_base(base, run.info.get("base"), run.path, "restore that one, or name this one with --base")
    return base, run.revision


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


def _certificate(source: Source, merged: Path, dtype: torch.dtype, uses: list[str]) -> dict[str, Any]:
    found = certify(source.base, source.adapter, merged, dtype, source.names, source.chat_template)
    behaviour = None
    if not found.failures:  # else there may be nothing that loads
        alike = not uses and DTYPES[main_dtype(source.base)] == dtype
        behaviour = compare_models(
            source.base, source.adapter, merged, source.prompts, source.dtype, source.cls, dtype if alike else None
        )
        rounded = " (the tensors are right: bfloat16 rounds too much away here, merge with --dtype float32)"
        found.failures += [f"{line}{rounded * (dtype == torch.bfloat16)}" for line in failures(behaviour)]
    return {
        "format": FORMAT,
        "passed": not found.failures,
        "failures": found.failures,
        "adapter": {"name": source.adapter.name, "sha256": sha256_of(source.adapter / "adapter_model.safetensors")},
        **({"uses": uses} if uses else {}),
        "dtype": found.dtype,
        "adapted": [asdict(tensor) for tensor in found.adapted],
        "untouched": {"identical": found.identical, f"cast to {found.dtype}": found.cast},
        "files": found.files,
        "behaviour": behaviour,
        "sha256": file_hashes(merged),
    }
