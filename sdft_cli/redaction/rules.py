"""What is looked for: shapes of secrets, secrets by context, e-mail addresses, user names in paths.

Rules work on bytes (UTF-8), so that their offsets are the scanner's. `flatten` makes a copy of the same length in which
escapes, terminal colours and earlier pseudonyms cannot hide or forge a match.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import NamedTuple


class RuleSpan(NamedTuple):
    """`kind` was found at `data[start:end]`, byte offsets."""

    start: int
    end: int
    kind: str


PSEUDONYM = re.compile(rb"REDACTED_[A-Z0-9_]+_[0-9a-f]{8}|user_[0-9a-f]{8}(?:@example\.com)?|host_[0-9a-f]{8}")
_MASK = b"\x01"
_ESCAPED_SPACE = re.compile(rb"\\+[nrtbf]")
_ESCAPED_QUOTE = re.compile(rb"\\+([\"'`])")
_COLOUR = re.compile(rb"\x1b\[[0-9;]*m")
_SURROGATE = re.compile(
    rb"\xed[\xa0-\xbf][\x80-\xbf]|\xef\xbb\xbf"
)  # a lone surrogate as `surrogatepass` writes it; BOM


def _blank(match: re.Match[bytes]) -> bytes:
    return b" " * len(match[0])


def _space(match: re.Match[bytes]) -> bytes:
    return b" " * (len(match[0]) - 1) + (b"\n" if match[0][-1:] in b"nr" else b" ")


def _quote(match: re.Match[bytes]) -> bytes:
    return match[1] * len(match[0])


def flatten(data: bytes) -> bytes:
    """Return a copy of the same length: escapes and bytes that break the scanner become blanks, pseudonyms \\x01.

    In JSON inside a string, `\\n` right before a token would glue the `n` to it, and `\\"` would end no string.
    """
    if b"\\" in data:
        data = _ESCAPED_QUOTE.sub(_quote, _ESCAPED_SPACE.sub(_space, data))
    data = without_colours(data)
    if b"\0" in data:
        data = data.replace(b"\0", b"\n")
    if b"\xed" in data or b"\xef" in data:
        data = _SURROGATE.sub(_blank, data)
    return mask(data)


def without_colours(data: bytes) -> bytes:
    """Return a copy of the same length with blanks for the terminal's colour codes, which end in a letter."""
    return _COLOUR.sub(_blank, data) if b"\x1b" in data else data


def mask(data: bytes) -> bytes:
    """Return a copy of the same length in which pseudonyms are \\x01 bytes, which no rule matches."""
    if b"REDACTED_" in data or b"user_" in data or b"host_" in data:
        return PSEUDONYM.sub(lambda match: _MASK * len(match[0]), data)
    return data


# Values that are no secret.

_PLACEHOLDER = re.compile(
    rb"^\[|\\[wWdDsS]|x{4,}|\*{3,}|\.{3}|\xe2\x80\xa6|[<>]|\$\{|\$\(|\{|^[$%@#]|your|example|placeholder|change.?me|dummy|fake|redacted"
    rb"|insert|todo|replace|12345678|01234567|abcdef0?1?|deadbeef|env[.\[(]|environ|getenv|process\.|\x01",
    re.IGNORECASE,
)
_WEAK = re.compile(
    rb"test|pass|pwd|secret|token|admin|root|user|guest|demo|foo|bar|qwerty|1234|abc|postgres|mysql|redis|mongo|rabbit"
    rb"|default|local|hello|letmein|welcome|sample|key|auth|bearer|basic|value|none|null|true|false",
    re.IGNORECASE,
)
_TOKENS = re.compile(rb"[A-Z]?[a-z]+|[A-Z]+|[0-9]+")
_DIGIT = re.compile(rb"[0-9]")
_LETTER = re.compile(rb"[A-Za-z]")
_SIGN = re.compile(rb"[!@#$%^&*?]")
_NAME = re.compile(rb"[A-Z_][A-Z0-9]*(?:_[A-Z0-9]*)+|[a-z_][a-z0-9_]*(?:\.[a-z_][a-z0-9_]*)+")
_VOWEL = re.compile(rb"[aeiouyAEIOUY]")
_CONSONANTS = re.compile(rb"[^aeiouyAEIOUY]{4}")
_PATH = re.compile(rb"(?:~|\.{1,2}|[A-Za-z]:)?[/\\][\w.@-]+(?:[/\\][\w.@-]*)*")


def is_placeholder(value: bytes) -> bool:
    """Say whether a value stands for a secret instead of being one (`<token>`, `sk-...`, `xxxx`, `$KEY`)."""
    return bool(_PLACEHOLDER.search(value[:64])) or (len(value) >= 12 and len(set(value[-16:])) <= 4)


def is_wordy(value: bytes) -> bool:
    """Say whether a value reads as words (an identifier, a label) more than as random characters."""
    words = [t for t in _TOKENS.findall(value) if len(t) >= 3 and _VOWEL.search(t) and not _CONSONANTS.search(t)]
    if value.upper() != value:  # runs of capitals are words in `MAX_LENGTH`, and chance in `aXKOBq`
        words = [t for t in words if not t.isupper()]
    return sum(map(len, words)) >= 0.72 * len(value)


def _mixed(value: bytes) -> bool:
    return bool(_DIGIT.search(value)) or (value.lower() != value and value.upper() != value)


def is_secret_value(value: bytes, quoted: bool) -> bool:
    """Say whether the right-hand side of `password=` and similar names is a literal secret.

    A literal has a digit and a letter (or, in quotes, a sign) and is no placeholder, path, identifier or code.
    Without quotes it must have 8 characters, with quotes 6.
    """
    if len(value) < (6 if quoted else 8) or not _LETTER.search(value):
        return False
    if not _DIGIT.search(value) and not (quoted and _SIGN.search(value, 1)):
        return False
    if is_placeholder(value) or b"://" in value or (not quoted and _NAME.fullmatch(value)):
        return False
    if _PATH.fullmatch(value) and (len(value) < 32 or is_wordy(value) or value.count(b"/") > 3):
        return False
    return not is_wordy(value) if not quoted else not (is_wordy(value) and _WEAK.search(value))


# Shapes: a prefix that only one issuer uses. (kind, needles that must occur, pattern)

_GITLAB = (b"pat", b"dt", b"ptt", b"rt", b"cbt", b"ft", b"imt", b"agent", b"oas", b"soat", b"ffct")
_EDGE = rb"(?<![A-Za-z0-9])"
_SHAPES: tuple[tuple[str, tuple[bytes, ...], re.Pattern[bytes]], ...] = tuple(
    (kind, needles, re.compile(pattern))
    for kind, needles, pattern in (
        (
            "aws_access_key_id",
            (b"AKIA", b"ASIA", b"ABIA", b"ACCA"),
            _EDGE + rb"(?:AKIA|ASIA|ABIA|ACCA)[A-Z0-9]{16}(?![A-Za-z0-9])",
        ),
        ("github_token", (b"ghp_", b"gho_", b"ghu_", b"ghs_", b"ghr_"), rb"gh[pousr]_[A-Za-z0-9]{36,}"),
        ("github_token", (b"github_pat_",), rb"github_pat_[A-Za-z0-9_]{36,}"),
        (
            "gitlab_token",
            tuple(b"gl%b-" % kind for kind in _GITLAB),
            _EDGE + rb"gl(?:%b)-[A-Za-z0-9_-]{20,}" % b"|".join(_GITLAB) + rb"(?:\.[0-9a-z]{2}\.?[0-9a-z]{7,9})?",
        ),
        ("slack_token", (b"xox",), rb"xox[abcdeoprs](?:\.xox[bp])?-[A-Za-z0-9-]{10,}"),
        ("slack_token", (b"xapp-",), rb"xapp-\d-[A-Za-z0-9-]{10,}"),
        (
            "slack_webhook",
            (b"hooks.slack.com",),
            rb"(?<=hooks\.slack\.com/)(?:services|workflows|triggers)/[A-Za-z0-9]{6,}/[A-Za-z0-9+/]{16,}",
        ),
        ("anthropic_key", (b"sk-ant-",), _EDGE + rb"sk-ant-[a-z0-9]+-[A-Za-z0-9_-]{20,}"),
        (
            "openai_key",
            (b"sk-",),
            _EDGE + rb"sk-(?:(?:proj|svcacct|admin|or-v1|None)-[A-Za-z0-9_-]{20,}|[A-Za-z0-9]{32,})",
        ),
        ("google_key", (b"AIza",), rb"AIza[A-Za-z0-9_-]{35}"),
        ("stripe_key", (b"k_live_", b"k_test_"), _EDGE + rb"[rs]k_(?:live|test)_[A-Za-z0-9]{16,}"),
        ("npm_token", (b"npm_",), _EDGE + rb"npm_[A-Za-z0-9]{36}"),
        ("pypi_token", (b"pypi-AgE",), rb"pypi-AgE[A-Za-z0-9_-]{40,}"),
        ("hugging_face_token", (b"hf_", b"api_org_"), _EDGE + rb"(?:hf|api_org)_[A-Za-z0-9]{30,}"),
        ("sendgrid_key", (b"SG.",), _EDGE + rb"SG\.[A-Za-z0-9_-]{16,32}\.[A-Za-z0-9_-]{32,64}"),
        ("jwt", (b".ey",), _EDGE + rb"ey[A-Za-z0-9_-]{8,}\.ey[A-Za-z0-9_-]{8,}(?:\.[A-Za-z0-9_-]{8,})?"),
    )
)


_BY_NEEDLE = {needle: shape for shape in _SHAPES for needle in shape[1]}
# One search for all needles costs less than one per needle: most texts hold none.
_NEEDLE = re.compile(b"|".join(re.escape(needle) for needle in sorted(_BY_NEEDLE, key=len, reverse=True)))


def _is_shape(value: bytes) -> bool:
    return not is_placeholder(value) and (_mixed(value[4:]) or not is_wordy(value))


def _shapes(flat: bytes) -> Iterator[RuleSpan]:
    hit = set(_NEEDLE.findall(flat))
    for kind, pattern in dict.fromkeys((_BY_NEEDLE[n][0], _BY_NEEDLE[n][2]) for n in hit):
        for match in pattern.finditer(flat):
            if _is_shape(match[0]):
                yield RuleSpan(*match.span(), kind)


# Context: what stands before the value.

_PEM_HEAD = re.compile(rb"-----BEGIN (?:[A-Z0-9]+ )*PRIVATE KEY(?: BLOCK)?-----")
_PEM_TAIL = re.compile(rb"-----END (?:[A-Z0-9]+ )*PRIVATE KEY(?: BLOCK)?-----")
# The body as files, JSON strings and numbered listings (`12->MIIE...`) show it; a listing may stop before the end.
_PEM_LINES = re.compile(rb"(?:\s*(?:\d+(?:\xe2\x86\x92|[\t|:]))?\s*[A-Za-z0-9+/=]{40,})+(?:\s*\S{1,40}={1,2})?")
_PEM_RUN = re.compile(rb"[A-Za-z0-9+/=]{16,}")
_PEM_LONGEST = 20_000


def _private_keys(flat: bytes) -> Iterator[RuleSpan]:
    if b"PRIVATE KEY" not in flat:
        return
    for head in _PEM_HEAD.finditer(flat):
        tail = _PEM_TAIL.search(flat, head.end(), head.end() + _PEM_LONGEST)
        if tail and has_key_body(flat[head.end() : tail.start()]):
            yield RuleSpan(head.start(), tail.end(), "private_key")
        elif lines := _PEM_LINES.match(flat, head.end()):
            yield RuleSpan(head.start(), lines.end(), "private_key")


def has_key_body(body: bytes) -> bool:
    """Say whether key material stands between the two lines of a PEM block, and not code or dots."""
    return any(len(run) >= 32 and _mixed(run) for run in _PEM_RUN.findall(body)) and b"..." not in body


def key_material(block: bytes) -> bytes:
    """Return a PEM block's material alone, so that a key is the same key in a file, in JSON and in a listing."""
    joined = b"".join(_PEM_RUN.findall(block))
    return joined[: len(joined) // 64 * 64] or joined


_KEYWORD = re.compile(
    rb"pass(?:word|wd|phrase)|pwd|secret|token|credential|(?:api|access|auth|private|encryption|signing|account|shared"
    rb"|master)[ _-]?key"
)
_ASSIGNED = re.compile(
    rb"(?:s|_?\d{1,2}|_(?:prod|dev|live|test|staging|value))?[\"'`\])*]{0,8}"
    rb"(?:[ \t]{0,8}(?:=>|:=|=|:)\*{0,2}[ \t]{0,8}|[ \t]+is[ \t]+|(?P<gap>[ \t]+))"
    rb"(?:[bru]{0,2}(?P<quote>[\"'`]{1,8}))?(?P<value>[^\s\"'`\x01]{6,1024})"
)
_AWS_SECRET = re.compile(rb"(?![0-9a-f]+$|[0-9A-F]+$)[A-Za-z0-9/+]{40}")
_CODE = re.compile(rb"[,;(){}\[\]<>|\\]")
_KIND_OF_KEYWORD = {b"pa": "password", b"pw": "password", b"to": "token", b"se": "secret", b"cr": "credential"}


def _assignments(flat: bytes) -> Iterator[RuleSpan]:
    """`password=`, `"api_key": "..."`, `--token ...`, `the password is ...`, `PASSWORD '...'`."""
    for keyword in _KEYWORD.finditer(flat.lower()):
        match = _ASSIGNED.match(flat, keyword.end())
        if not match:
            continue
        start, end = match.span("value")
        quoted = bool(match["quote"]) and flat[end : end + 1] in (b'"', b"'", b"`")
        if not quoted:
            end = _literal_end(flat, start, end)
        value = flat[start:end]
        is_aws = keyword[0].endswith(b"key") and _AWS_SECRET.fullmatch(value) and not is_placeholder(value)
        if not is_aws and not is_secret_value(value, quoted):  # one AWS key in 64 starts like a path
            continue
        if not match["gap"] or quoted or _is_option(flat, keyword.start()):
            yield RuleSpan(start, end, "aws_secret_key" if is_aws else _KIND_OF_KEYWORD.get(keyword[0][:2], "api_key"))


def _is_option(flat: bytes, keyword: int) -> bool:
    """Say whether the word that ends in a keyword is a command-line option (`--db-password`)."""
    return bool(re.search(rb"(?<![\w-])--[\w-]*$", flat[max(0, keyword - 40) : keyword]))


def _literal_end(flat: bytes, start: int, end: int) -> int:
    """Cut an unquoted value where code or a sentence goes on; return `start` where it is a call or a subscript."""
    if code := _CODE.search(flat, start, end + 1):
        if code[0] in b"([{":
            return start
        end = min(end, code.start())
    while end > start and flat[end - 1] in b".:!?":
        end -= 1
    return end


_SCHEME = re.compile(rb"bearer|basic|authorization[\"']{0,8}[ \t]*[:=][ \t]*[\"']{0,8}(?:token|apikey)")
_CREDENTIAL = re.compile(rb"[ \t]+([A-Za-z0-9._~+/=-]{16,4096})")


def _authorizations(flat: bytes) -> Iterator[RuleSpan]:
    for scheme in _SCHEME.finditer(flat.lower()):
        match = _CREDENTIAL.match(flat, scheme.end())
        value = match[1].rstrip(b".") if match else b""
        if match and _mixed(value) and not is_placeholder(value) and not is_wordy(value):
            yield RuleSpan(match.start(1), match.start(1) + len(value), "authorization")


_URL_PASSWORD = re.compile(rb":(?:\\*/){2}(?P<user>[^\s:/@\"'`<>]*):(?P<value>[^\s/\"'`<>]+)@(?=[\w\[])")


def _url_passwords(flat: bytes) -> Iterator[RuleSpan]:
    if b"@" in flat and b":" in flat:
        for match in _URL_PASSWORD.finditer(flat):
            value = match["value"]
            weak = value == match["user"] or ((is_wordy(value) or len(value) < 8) and _WEAK.search(value))
            if len(value) >= 6 and not weak and not is_placeholder(value) and _mixed(value):
                yield RuleSpan(*match.span("value"), "url_password")


# E-mail addresses.

_DOMAIN = re.compile(rb"@((?:[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?\.)+[A-Za-z]{2,12})(?![\w(\[-]|\.\w)")
_LOCAL = re.compile(rb"[A-Za-z0-9](?:[A-Za-z0-9._%+-]*[A-Za-z0-9_+-])?$")
_TOP_LEVEL = (
    b"com org net edu gov mil int info biz io ai dev app co me tv cloud tech xyz online site email name pro eu "
    b"at au be bg br ca ch cl cn cz de dk ee es fi fr gr hk hr hu ie il in ir is it jp ke kr lt lu lv ma mx my ng nl "
    b"no nz pe ph pk pl pt ro rs ru sa se sg si sk th tr tw ua uk us vn za"
)
_TLDS = frozenset(_TOP_LEVEL.split())
_PUBLIC_LOCAL = re.compile(
    rb"git|no-?reply|do-?not-?reply|support|info|help|security|contact|admin|root|user(?:name)?|me|you|postmaster"
    rb"|webmaster|hello|team|sales|abuse|name|email|test|foo|bar|someone|nobody|first\.last|your.*",
    re.IGNORECASE,
)
_PUBLIC_DOMAIN = re.compile(
    rb"(?:.*\.)?(?:example\.[a-z]+|users\.noreply\.github\.com|noreply\.[a-z.]+|[a-z]+\.test|test\.com|(?:my)?domain\.com"
    rb"|(?:foo|bar|baz|acme|company|email|mail|site|your[a-z-]*)\.com|(?:acme|foo|bar|baz|company)\.[a-z]+)",
    re.IGNORECASE,
)


def _emails(flat: bytes) -> Iterator[RuleSpan]:
    if b"@" not in flat:
        return
    for match in _DOMAIN.finditer(flat):
        domain = match[1].lower()
        local = _LOCAL.search(flat, max(0, match.start() - 64), match.start())
        if not local or domain.rsplit(b".", 1)[-1] not in _TLDS or _PUBLIC_DOMAIN.fullmatch(domain):
            continue
        before = flat[max(0, local.start() - 2) : local.start()]
        # `https://name@host` is the user of a URL, `\x01` an earlier pseudonym
        if not _PUBLIC_LOCAL.fullmatch(local[0]) and not before.endswith((b"//", _MASK)):
            yield RuleSpan(local.start(), match.end(), "email")


RULES: tuple[Callable[[bytes], Iterator[RuleSpan]], ...] = (
    _shapes,
    _private_keys,
    _assignments,
    _authorizations,
    _url_passwords,
    _emails,
)
"""Each takes the flattened bytes; where two kinds cover the same bytes, the earlier rule names it."""
