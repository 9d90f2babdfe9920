"""Is a folder a checkpoint that passed its certificate, and still the same files? Asked before it is given away."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sdft_cli.engine.models.names import FAILED, known_as
from sdft_cli.errors import DataError, VerificationError
from sdft_cli.merging.tensor_check import TEMPLATES
from sdft_cli.records.folders import sha256_of
from sdft_cli.records.json_files import read_json

CERTIFICATE = "merge-certificate.json"
FORMAT = 3
"""Of the certificate; those of earlier versions say other things, and count as none."""
CARD = "README.md"
NOT_HASHED = {CERTIFICATE, CARD}
"""The certificate cannot hold its own hash; the card is written anew after an evaluation."""


def visible(folder: Path) -> dict[str, Path]:
    """Return what a folder holds by name, sorted, without hidden names; of further templates their files."""
    further = folder / TEMPLATES
    inside = list(further.iterdir()) if further.is_dir() and not further.is_symlink() else []
    paths = [*(path for path in folder.iterdir() if path != further or not inside), *inside]
    return {p.relative_to(folder).as_posix(): p for p in sorted(paths) if not p.name.startswith(".")}


def file_hashes(folder: Path) -> dict[str, str]:
    """Return the hash of every file that the certificate speaks for."""
    return {name: sha256_of(path) for name, path in visible(folder).items() if name not in NOT_HASHED}


def read_certificate(folder: Path) -> dict[str, Any]:
    """Return what a checkpoint's certificate says.

    Raises:
        DataError: it is missing or damaged.
    """
    return read_json(folder / CERTIFICATE, "merge again with --overwrite")


def has_passed(folder: Path) -> bool:
    """Say whether a folder holds a certificate of this version that passed, and no mark of a failure.

    Files are not looked at.
    """
    try:
        document = read_certificate(folder)
    except DataError:
        return False
    passed = document.get("format") == FORMAT and document.get("passed") is True
    return passed and not (folder / FAILED).exists()


def check_certified(
    folder: Path, adapter: Path | None = None, dtype: str | None = None, base: str | None = None
) -> dict[str, Any]:
    """Return the certificate of a checkpoint after comparing every file with its hash in it.

    Args:
        folder: the checkpoint.
        adapter: the adapter that the checkpoint should hold, a folder.
        dtype: the weights that it should hold.
        base: the model that the adapter should have been added to.

    Raises:
        VerificationError: there is no certificate, it failed, or files, adapter, dtype or base are others.
    """
    if not has_passed(folder):
        raise VerificationError(
            f"{folder} holds no certificate that passed ({CERTIFICATE}, {FAILED}): merge again with --overwrite."
        )
    document = read_certificate(folder)
    problem = _changed(folder, document.get("sha256")) or _another(document, adapter, dtype, base)
    if problem:
        raise VerificationError(f"{folder} is not what its certificate speaks for: {problem}; merge with --overwrite.")
    return document


def _changed(folder: Path, expected: Any) -> str | None:
    if not isinstance(expected, dict) or not expected:
        return "the certificate is of an earlier version and holds no hashes"
    for name, path in visible(folder).items():
        if path.is_symlink() or not path.is_file() or name not in {*expected, *NOT_HASHED}:
            return f"{name} is no file of the checkpoint"
    for name, digest in sorted(expected.items()):
        if not (folder / name).is_file():
            return f"{name} is missing"
        if sha256_of(folder / name) != digest:
            return f"{name} was changed"
    return None


def _another(document: dict[str, Any], adapter: Path | None, dtype: str | None, base: str | None) -> str | None:
    if dtype is not None and document["dtype"] != dtype:
        return f"its weights are {document['dtype']}, not {dtype}"
    if base is not None and (expected := known_as(base)) != {key: document.get(key) for key in expected}:
        return f"its base is {document.get('base')} ({document.get('base_kind')}), not {expected['base']}"
    made_from = document["adapter"]
    if adapter is not None and made_from["sha256"] != sha256_of(adapter / "adapter_model.safetensors"):
        return f"it was made from {made_from['name']}, and not from {adapter} as that is now"
    return None
