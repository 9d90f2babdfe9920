"""A checkpoint to the Hub: a private repository, exactly the files that were checked, and no others.

A repository that holds files of another checkpoint is refused: a loader would take them for this one's.
"""

from __future__ import annotations

import glob
import re
from collections.abc import Sequence
from pathlib import Path

from sdft_cli.errors import MachineError, UsageError
from sdft_cli.merging.tensor_check import TEMPLATES, WEIGHTS

_REPO = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9_][\w.-]*")
_READ = (*WEIGHTS, ".json", ".jinja", ".model", ".txt", ".tiktoken", ".py")
"""How the names of files end that a loader may read."""


def check_repo_name(repo: str) -> None:
    """Refuse a name that is no `owner/name`, or that the Hub's library would refuse after the merge.

    Raises:
        UsageError: it is none.
    """
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    try:
        validate_repo_id(repo)
        fits = _REPO.fullmatch(repo) is not None
    except HFValidationError:
        fits = False
    if not fits:
        raise UsageError(
            f"--push {repo} is no name of a Hub repository: give owner/name, at most 96 letters, digits and single "
            "marks -, _ and ., no mark at an end."
        )


def check_token() -> None:
    """Refuse to begin without a token for the Hub.

    Raises:
        MachineError: there is none.
    """
    from huggingface_hub import get_token

    if not get_token():
        raise MachineError("There is no Hub token on this machine: run `hf auth login`, or set HF_TOKEN.")


def push_folder(folder: Path, repo: str, names: Sequence[str], public: bool = False) -> tuple[str, bool]:
    """Upload the named files of a folder to a model repository, which is created if it does not exist.

    The upload goes on where an interrupted one stopped: what is there already is not sent again. With `hf_xet` (a
    dependency of huggingface_hub on most machines) that holds for parts of files too.

    Args:
        folder: the checkpoint.
        repo: owner/name.
        names: the files to send.
        public: create it as a public repository, or push into one.

    Returns the repository's address, and whether it is private.

    Raises:
        UsageError: the repository is public and `public` is false, or it holds files of another checkpoint.
        MachineError: no token, no network, or the Hub refused.
    """
    import httpx
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    check_repo_name(repo)
    check_token()
    api = HfApi()
    try:
        url = str(api.create_repo(repo, repo_type="model", private=not public, exist_ok=True))
        info = api.model_info(repo)
        private = info.private is True
        there = {sibling.rfilename for sibling in info.siblings or ()}
        _check_target(repo, private or public, there, names)
        api.upload_folder(
            repo_id=repo,
            repo_type="model",
            folder_path=folder,
            allow_patterns=[glob.escape(name) for name in names],
            commit_message="Upload a checkpoint merged by sdft",
        )
    except HfHubHTTPError as error:
        raise MachineError(
            f"The Hub refused {repo} (HTTP {error.response.status_code}): check the name and the rights of your token."
        ) from error
    except (httpx.HTTPError, OSError, RuntimeError) as error:
        raise MachineError(
            f"The Hub could not be reached ({type(error).__name__}): check the network, and give the same command "
            "again; it goes on where it stopped."
        ) from error
    return url, private


def _check_target(repo: str, allowed: bool, there: set[str], names: Sequence[str]) -> None:
    # `create_repo` leaves a repository that exists as public as it is.
    if not allowed:
        raise UsageError(f"{repo} exists and is public: add --public to push into it, or name another repository.")
    own = (name for name in there - set(names) if "/" not in name.removeprefix(f"{TEMPLATES}/"))
    other = sorted(name for name in own if name.endswith(_READ))
    if other:  # a loader might take these instead, or besides
        raise UsageError(
            f"{repo} holds files of another checkpoint ({', '.join(other)}): delete them there, or name another "
            "repository."
        )
