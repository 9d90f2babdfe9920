"""Redaction: secrets and personal names leave a session before its tokens are counted and it is written.

Three finders look at every string: the kingfisher scanner (its rules for several hundred issuers), the context rules of
`rules`, and exact values known on this machine. What one string gives away is removed from the whole session and from
the others of its group, so the prompt and the reference stay consistent. Pseudonyms are keyed: HMAC-SHA256 (RFC 2104),
8 hexadecimal digits.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from typing import NamedTuple

from kingfisher_sdk import Scanner

from sdft_cli.records import Session
from sdft_cli.redaction.known_values import is_common, is_unusual, path_names
from sdft_cli.redaction.rewrite import rewrite_session
from sdft_cli.redaction.rules import (
    RULES,
    flatten,
    has_key_body,
    is_placeholder,
    is_wordy,
    key_material,
    mask,
    without_colours,
)

_NAMES = ("user_name", "person_name")
CACHED_CHARACTERS = 16 << 20
"""What was found is remembered for so much text; a session that is longer forgets it on the way."""


class _Found(NamedTuple):
    """Bytes `start:end` are of `kind`; `value` is what the pseudonym is made of."""

    start: int
    end: int
    kind: str
    value: bytes


Values = dict[bytes, tuple[str, bytes]]
"""Exact bytes -> kind and the value that the pseudonym is made of."""


class Redactor:
    """Finds and replaces secrets and personal names in text and sessions.

    Args:
        key: secret key of the pseudonyms, see `known_values.redaction_key`.
        known: kind -> exact values of this machine, see `known_values.known_values`; common words, values below 4
            characters and environment values that read as words are ignored.

    A redactor can be pickled; a worker process builds its scanner on first use.
    """

    def __init__(self, key: bytes, known: Mapping[str, Sequence[str]] | None = None) -> None:
        self._key = key
        self._given = {kind: tuple(values) for kind, values in (known or {}).items()}
        self._known = _exact((kind, v.encode()) for kind, values in self._given.items() for v in values)
        self._remembered: dict[tuple[str, str], tuple[_Found, ...]] = {}
        self._characters = 0

    def __reduce__(self) -> tuple[type[Redactor], tuple[bytes, Mapping[str, Sequence[str]]]]:
        return Redactor, (self._key, self._given)

    def text(self, text: str, counts: Counter[str]) -> str:
        """Return one text redacted on its own; `counts` grows by the number of replacements of each kind."""
        return self._replaced(text, "", self._values_of([(text, "")]), counts)

    def kinds(self, text: str, name: str = "") -> Counter[str]:
        """Count what one text gives away, by kind, and replace nothing; `name`: the key that it is the value of."""
        return Counter(found.kind for found in self._search(text, name))

    def session(self, session: Session, counts: Counter[str], revealed: Values | None = None) -> Session:
        """Return the session redacted, or the same object if nothing had to change.

        Messages (text, reasoning, arguments), tools (descriptions, schemas) and metadata are searched. A secret or an
        unusual user name found in one of them is replaced in all of them; so is what `revealed` holds, see there.
        """
        values = {**self.revealed(session), **(revealed or {})}
        return rewrite_session(session, lambda text, name: self._replaced(text, name, values, counts))

    def revealed(self, session: Session) -> Values:
        """Return what must leave every session of a group because this one gives it away."""
        seen: list[tuple[str, str]] = []

        def collect(text: str, name: str) -> str:
            seen.append((text, name))
            return text

        rewrite_session(session, collect)
        return self._values_of(seen)

    def _values_of(self, strings: Iterable[tuple[str, str]]) -> Values:
        """Return what must go everywhere because one string gave it away."""
        spans = (f for text, name in strings for f in self._find(text, name))
        return _exact((f.kind, f.value) for f in spans if _spreads(f))

    def _replaced(self, text: str, name: str, values: Values, counts: Counter[str]) -> str:
        """Replace until nothing is found: a replacement can uncover what its neighbour hid. Each round masks more."""
        while True:
            spans = self._find(text, name)
            if values:
                data = mask(_encode(text))
                spans = tuple(_merged([*spans, *_exact_matches(data, values)]))
            if not spans:
                return text
            data, parts, at = _encode(text), [], 0
            for item in spans:
                parts += [data[at : item.start], self._pseudonym(item)]
                at = item.end
                counts[item.kind] += 1
            text = b"".join([*parts, data[at:]]).decode("utf-8", "surrogatepass")

    def _find(self, text: str, name: str) -> tuple[_Found, ...]:
        """Return what `_search` finds, which is asked at least twice for each string of a session."""
        found = self._remembered.get((text, name))
        if found is None:
            if self._characters > CACHED_CHARACTERS:
                self._remembered.clear()
                self._characters = 0
            found = self._remembered[text, name] = self._search(text, name)
            self._characters += len(text)
        return found

    def _search(self, text: str, name: str) -> tuple[_Found, ...]:
        """Find everything in one string; `name` is the key under which the string is the value, if it has one."""
        data = _encode(text)
        masked = mask(data)
        prefix = f'{name}="'.encode("utf-8", "replace") if name else b""
        flat = flatten(prefix + data)
        spans = [_Found(*span, flat[span.start : span.end]) for rule in RULES for span in rule(flat)]
        spans += _scanned(flat)
        if prefix:
            shift = len(prefix)
            spans = [f._replace(start=f.start - shift, end=f.end - shift) for f in spans if f.start >= shift]
        spans += [
            _Found(start, end, "user_name", masked[start:end]) for start, end in path_names(without_colours(masked))
        ]
        return tuple(_merged([*spans, *_exact_matches(masked, self._known)]))

    def _pseudonym(self, found: _Found) -> bytes:
        value = key_material(found.value) if found.kind == "private_key" else found.value
        if found.kind == "home_folder":
            return b"/home/" + self._pseudonym(found._replace(kind="user_name", value=re.split(rb"[/\\]", value)[-1]))
        digest = hmac.new(self._key, value, hashlib.sha256).hexdigest()[:8]
        if found.kind in _NAMES:
            return f"user_{digest}".encode()
        if found.kind == "email":
            return f"user_{digest}@example.com".encode()
        if found.kind == "host_name":
            return f"host_{digest}".encode()
        return f"REDACTED_{found.kind.upper()}_{digest}".encode()


# The scanner.

_OURS = frozenset({"betterleaks.generic-credential-uri", "betterleaks.slack-webhook-url"})
"""Rules of the scanner that a rule of ours replaces: it cuts out the secret part alone, by the same name everywhere."""


@cache
def _scanner() -> Scanner:
    return Scanner()


def _scanned(flat: bytes) -> Iterator[_Found]:
    for finding in _scanner().scan(flat):
        if not finding.visible or finding.rule_id in _OURS:
            continue
        start, end = finding.location["start_offset"], finding.location["end_offset"]
        if finding.rule_id == "betterleaks.curl-auth-user":
            start += flat[start:end].find(b":") + 1
        value = flat[start:end].strip(b"\"'`")
        start += flat[start:end].find(value)
        if value and not is_placeholder(value) and not (b"PRIVATE KEY-" in value and not has_key_body(value)):
            kind = re.sub(r"[^a-z0-9]+", "_", finding.rule_id.split(".", 1)[-1].split("/")[-1].lower()).strip("_")
            yield _Found(start, start + len(value), kind, value)


# Spans.


def _encode(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


def _merged(found: Iterable[_Found]) -> Iterator[_Found]:
    """Join overlapping finds: the union is replaced, named by its longest member (the first of equals)."""
    last: _Found | None = None
    for item in sorted(found, key=lambda f: (f.start, f.start - f.end)):
        if last is None or item.start >= last.end:
            if last is not None:
                yield last
            last = item
            continue
        longest = max(last, item, key=lambda f: f.end - f.start)
        last = longest._replace(start=last.start, end=max(last.end, item.end))
    if last is not None:
        yield last


def _exact(values: Iterable[tuple[str, bytes]]) -> Values:
    """Return the values that may be searched for as they are; a name's dashed form stands for the name."""
    exact: Values = {}
    for kind, value in values:
        if _is_searchable(kind, value):
            exact.setdefault(value, (kind, value))
            if kind in _NAMES:
                exact.setdefault(re.sub(rb"[^A-Za-z0-9]", b"-", value), (kind, value))
    return exact


def _is_searchable(kind: str, value: bytes) -> bool:
    text = value.decode("utf-8", "replace")
    if kind == "home_folder":
        return value.count(b"/") + value.count(b"\\") > 1 and not is_common(re.split(r"[/\\]", text)[-1])
    if kind == "environment_secret":
        return len(value) >= 8 and not is_wordy(value) and not is_placeholder(value)
    return not is_common(text)


def _spreads(found: _Found) -> bool:
    """Say whether a find is replaced where it stands alone too; e-mail addresses are found everywhere anyway."""
    if found.kind in _NAMES:
        return is_unusual(found.value.decode("utf-8", "replace"))
    return (
        found.kind not in ("email", "host_name", "home_folder") and len(found.value) >= 8 and not is_wordy(found.value)
    )


def _exact_matches(data: bytes, values: Values) -> Iterator[_Found]:
    for exact, (kind, value) in values.items():
        at = data.find(exact)
        while at >= 0:
            end = at + len(exact)
            if (len(exact) >= 16 and kind not in _NAMES) or _is_whole(data, at, end):
                yield _Found(at, end, kind, value)
            at = data.find(exact, end)


def _is_whole(data: bytes, start: int, end: int) -> bool:
    """Say whether no letter or digit touches the bytes from outside; an escape (`\\n`) before them is no letter."""
    before = data[start - 1 : start].isalnum() and not (
        data[start - 1] in b"nrt" and data[start - 2 : start - 1] == b"\\"
    )
    return not before and not data[end : end + 1].isalnum()
