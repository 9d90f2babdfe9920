"""`sdft merge --push`: nothing leaves this machine before it was certified and searched for secrets."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdft_cli.notices import say
from sdft_cli.stages.model_card import name_in_card, write_model_card

if TYPE_CHECKING:
    from sdft_cli.run_folder import Run

TOKEN_TABLES = ("vocab.json", "merges.txt", "vocab.txt", "tokenizer.model", "sentencepiece.bpe.model", "spiece.model")
"""Vocabularies: no prose, some no text. Not searched where the certificate says that they are the base's own."""


def push(run: Run, merged: Path, repo: str, public: bool) -> None:
    """Push a certified checkpoint of a run: compare every file with the certificate, search for secrets, upload.

    Raises:
        VerificationError: the certificate failed, a file is not the certified one, holds something that looks like a
            secret, or cannot be searched.
        UsageError, MachineError: as `push_folder`.
    """
    from sdft_cli.merging.certificate import CARD, NOT_HASHED, check_certified
    from sdft_cli.merging.push import push_folder
    from sdft_cli.report.progress import working

    with working("Comparing the files with the certificate, and searching them for secrets"):
        certificate = check_certified(merged, run.adapter)
        if not (merged / CARD).is_file():
            write_model_card(run, merged)
        name_in_card(merged, repo)
        names = sorted({*certificate["sha256"], *NOT_HASHED})
        searched = check_no_secrets(merged, names, certificate["files"])
    left = sorted(set(names) - set(searched))
    say(f"Searched for secrets, nothing found: {', '.join(searched)}; not searched: {', '.join(left)}")
    with working(f"Uploading to {repo}"):
        url, private = push_folder(merged, repo, names, public)
    say(f"Pushed {len(names)} files to {url} ({'private' if private else 'public'})")


def check_no_secrets(folder: Path, names: list[str], files: Mapping[str, Any]) -> list[str]:
    """Search every text file of a checkpoint; return the names of the files that were searched.

    Weights are not searched, nor are, of the files that the certificate says are the base's, token tables and binaries.

    Raises:
        VerificationError: one gives something away, or cannot be searched; the message names file and kind only.
    """
    from sdft_cli.errors import VerificationError
    from sdft_cli.merging.tensor_check import WEIGHTS
    from sdft_cli.redaction.files import kinds_in
    from sdft_cli.redaction.known_values import known_values
    from sdft_cli.redaction.redactor import Redactor

    redactor = Redactor(b"", known_values())  # nothing is replaced, so no key is needed
    searched = []
    for name in names:
        of_base = files.get(name) == "identical"
        if name.endswith(WEIGHTS) or (of_base and (name in TOKEN_TABLES or _is_binary(folder / name))):
            continue
        found = kinds_in(folder / name, redactor)
        if found:
            kinds = ", ".join(f"{kind} {count}" for kind, count in sorted(found.items()))
            raise VerificationError(
                f"{folder / name} gives something away ({kinds}), so nothing was sent: look at it and remove it, or "
                "upload by hand if it is none."
            )
        searched.append(name)
    return searched


def _is_binary(path: Path) -> bool:
    if path.suffix in (".json", ".jinja"):  # no loader takes these unless they are text
        return False
    try:
        path.read_bytes().decode("utf-8")
    except UnicodeDecodeError:
        return True
    return False
