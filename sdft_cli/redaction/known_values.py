"""What is personal on this machine, user names in paths, and the key of the pseudonyms."""

from __future__ import annotations

import getpass
import os
import re
import secrets
import socket
from collections.abc import Iterator, Mapping
from pathlib import Path

from sdft_cli.errors import MachineError
from sdft_cli.redaction.rules import is_placeholder

_COMMON_WORDS = (
    "root user users username user_name someuser myuser your_user youruser me you name yourname your_name admin "
    "administrator ubuntu debian centos fedora ec2-user opc azureuser runner runneradmin vsts jenkins travis circleci "
    "buildkite gitlab github vagrant vscode node python ruby rust golang java app apps application www www-data nginx "
    "postgres mysql redis git dev devel developer dev-user test tester testuser test-user tests demo example sample "
    "foo bar baz alice bob carol dave eve john jane johndoe janedoe john.doe jdoe joe shared public default guest home "
    "lib linuxbrew homebrew jovyan codespace coder sandbox workspace workspaces project projects repo repos code src "
    "data docs documents downloads desktop work build builder deploy deployer service server client local localhost "
    "localhost.localdomain main master system xxx xxxx xyz abc all any none null undefined true false index dashboard "
    "settings profile about page pages login signup website analytics notifications company claude codex cursor "
    "anthropic openai assistant agent model human computer laptop macbook desktop-pc container docker kali pi owner "
    "new-user"
)
COMMON = frozenset(_COMMON_WORDS.split())
"""Names that say nothing about a person: never redacted, in a path or elsewhere."""

_UNIX = re.compile(rb"/(?:home|Users)/([A-Za-z][\w.-]{1,63})")
# A path starts after no word character (or an escape, a compiler's -I or -L, a drive, a volume).
_BEFORE_UNIX = re.compile(rb"(?:^|[^\w.~})-]|\\[nrt]|-[IL]|/[a-z]|/Volumes/[\w .-]{1,40}|/System/Volumes/Data)$")
_WINDOWS = re.compile(
    rb":(?<=[A-Za-z]:)(?:\\{1,8}|/)(?i:Users|Documents and Settings)(?:\\{1,8}|/)"
    rb"([A-Za-z][\w.-]{1,63}(?: [\w.-]{1,30}){0,2}(?=[\\/])|[A-Za-z][\w.-]{1,63})"
)
_DASHED = re.compile(rb"(?:(?<![\w-])-Users-|(?<=[/\\])-home-)([A-Za-z][A-Za-z0-9]{1,63})(?![A-Za-z0-9])")


def is_common(name: str) -> bool:
    """Say whether a name is generic, or too short to be replaced where it stands alone."""
    return len(name) < 4 or name.lower() in COMMON


def is_unusual(name: str) -> bool:
    """Say whether a user name may be replaced outside paths too, anywhere in its session.

    It must be no common word and have 8 characters, or 5 of which one is a digit or punctuation: `maria` may be a
    word of the conversation, `mgonzalez` and `maria87` are not.
    """
    plain = name.isalpha()
    return name.lower() not in COMMON and len(name) >= (8 if plain else 5)


def path_names(data: bytes) -> Iterator[tuple[int, int]]:
    """Yield the offsets of user names in the paths of home folders, Claude Code's dashed project folders included."""
    if b"Users" not in data and b"/home/" not in data and b"-home-" not in data and b"users" not in data:
        return
    for pattern in (_UNIX, _WINDOWS, _DASHED):
        for match in pattern.finditer(data):
            start, end = match.span(1)
            if pattern is _UNIX and not _BEFORE_UNIX.search(data[max(0, match.start() - 48) : match.start()]):
                continue
            end = start + len(data[start:end].rstrip(b".-_"))
            name = data[start:end]
            # `/home/index.html` is a page, `/home/jo.smith/x` a folder
            if b"." in name and data[end : end + 1] not in (b"/", b"\\"):
                continue
            if (
                len(name) >= 2
                and name != b"All Users"
                and name.decode("utf-8", "replace").lower() not in COMMON
                and not is_placeholder(name)
            ):
                yield start, end


_TOKEN_NAME = re.compile(r"KEY|TOKEN|SECRET|PASSWORD|CREDENTIAL", re.IGNORECASE)


def known_values() -> dict[str, list[str]]:
    """Return what can be found out about this machine and its user, kind -> exact values.

    Home folder, user name, host name, the name and e-mail of git's configuration, and the values of environment
    variables whose name contains KEY, TOKEN, SECRET, PASSWORD or CREDENTIAL (8 characters or more, no path).
    """
    values: dict[str, list[str]] = {"home_folder": [str(Path.home())], "host_name": [socket.gethostname()]}
    try:
        values["user_name"] = [getpass.getuser()]
    except (KeyError, OSError):  # a container's numeric user has no name, so there is none to hide
        values["user_name"] = []
    for kind, value in _git_identity():
        values.setdefault(kind, []).append(value)
    values["environment_secret"] = [
        value
        for name, value in sorted(os.environ.items())
        if _TOKEN_NAME.search(name) and len(value) >= 8 and not value.startswith(("/", "~", "."))
    ]
    return values


def _git_identity() -> Iterator[tuple[str, str]]:
    """Read name and e-mail from git's per-user files; git itself is not run."""
    config = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config")
    for path in (Path.home() / ".gitconfig", config / "git" / "config"):
        if not path.is_file():
            continue
        section = ""
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            line = line.strip()
            if line.startswith("["):
                section = line.strip("[] ").lower()
            key, equals, value = line.partition("=")
            value = value.split("#")[0].strip().strip('"')
            if section == "user" and equals and value and key.strip().lower() in ("name", "email"):
                yield ("email" if key.strip().lower() == "email" else "person_name"), value
    for name in ("GIT_AUTHOR", "GIT_COMMITTER"):
        for field, kind in (("NAME", "person_name"), ("EMAIL", "email")):
            if given := os.environ.get(f"{name}_{field}"):
                yield kind, given


KEY_BYTES = 32


def redaction_key(environment: Mapping[str, str] = os.environ) -> bytes:
    """Return this machine's secret key for pseudonyms; the first call makes it.

    It is 32 random bytes in `redaction.key` (mode 0600) in the folder `$SDFT_CONFIG`, or `~/.config/sdft`. It is not
    part of any dataset: without it, nobody can try values until one gives a published pseudonym. Raises `MachineError`
    if the file cannot be made or read, or is not 32 bytes.
    """
    folder = Path(environment.get("SDFT_CONFIG") or Path.home() / ".config" / "sdft")
    path = folder / "redaction.key"
    try:
        if not path.exists():
            _write_key(path)
        key = path.read_bytes()
    except OSError as error:
        raise MachineError(
            f"The redaction key {path} cannot be made or read ({error.strerror}): set SDFT_CONFIG to a folder of yours."
        ) from error
    if len(key) != KEY_BYTES:
        raise MachineError(
            f"The redaction key {path} is not {KEY_BYTES} bytes: restore it, or delete it for a new one."
        )
    return key


def _write_key(path: Path) -> None:
    """Write a new key; of two processes at once, the first one's key stays."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    draft = path.with_name(f"{path.name}.{os.getpid()}.{secrets.token_hex(4)}")
    handle = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(secrets.token_bytes(KEY_BYTES))
        try:
            os.link(draft, path)
        except FileExistsError:
            return
    finally:
        draft.unlink()
