"""Made-up secrets of valid shape, in the places where sessions carry them. No literal here looks like a secret."""

from __future__ import annotations

import base64
import json
import random
import string
from collections.abc import Callable
from dataclasses import dataclass

from sdft_cli.records import Message, Session, ToolCall

ALNUM = string.ascii_letters + string.digits
URL_SAFE = ALNUM + "-_"
UPPER = string.ascii_uppercase + string.digits


@dataclass(frozen=True)
class Case:
    """`text` holds a secret; nothing of `parts` may remain of it."""

    kind: str
    text: str
    parts: tuple[str, ...]


def _chars(rng: random.Random, alphabet: str, count: int) -> str:
    return "".join(rng.choices(alphabet, k=count))


def _b64(value: object) -> str:
    return base64.urlsafe_b64encode(json.dumps(value).encode()).decode().rstrip("=")


def _jwt(r: random.Random) -> str:
    head = _b64({"alg": "HS256", "typ": "JWT"})
    return f"{head}.{_b64({'sub': _chars(r, ALNUM, 10), 'iat': r.randrange(10**9)})}.{_chars(r, URL_SAFE, 43)}"


def _slack_webhook(r: random.Random) -> str:
    return f"services/T{_chars(r, UPPER, 10)}/B{_chars(r, UPPER, 10)}/{_chars(r, ALNUM, 24)}"


def _pem(kind: str, width: int, lines: int, fixed: str = "") -> Callable[[random.Random], Case]:
    def make(r: random.Random) -> Case:
        body = [_chars(r, ALNUM + "+/", width) for _ in range(lines)]
        body[0] = (fixed + body[0])[:width]
        last = _chars(r, ALNUM, 20) + "=="
        text = "\n".join([f"-----BEGIN {kind} KEY-----", *body, last, f"-----END {kind} KEY-----"])
        return Case(kind.lower().replace(" ", "_") + "_key", text, (*body[1:], last))

    return make


def _password(r: random.Random) -> str:
    """8 to 20 characters with at least a lower-case letter, an upper-case letter and a digit."""
    signs = r.choice(["", "!@#%^&*_-+=."])
    while True:
        value = r.choice(ALNUM) + _chars(r, ALNUM + signs, r.randrange(6, 19)) + r.choice(ALNUM)
        if any(c.islower() for c in value) and any(c.isupper() for c in value) and any(c.isdigit() for c in value):
            return value


def _simple(
    kind: str, secret: Callable[[random.Random], str], frames: tuple[str, ...] = ("{}",)
) -> tuple[str, Callable]:
    def make(r: random.Random) -> Case:
        value = secret(r)
        return Case(kind, r.choice(frames).replace("{}", value), (value,))

    return kind, make


PASSWORD_FRAMES = ("password={}", "password: {}", 'passwd="{}"', "PGPASSWORD={}", 'db_password = "{}"', "--password {}")
KEY_FRAMES = ("SERVICE_API_KEY={}", "export WEATHER_TOKEN={}", 'client_secret: "{}"', "api-key: {}", "X_SECRET='{}'")
AWS_FRAMES = ("aws_secret_access_key = {}", "AWS_SECRET_ACCESS_KEY={}", 'SecretAccessKey": "{}"')
BEARER_FRAMES = ("Authorization: Bearer {}", "-H 'authorization: bearer {}'")
PATH_FRAMES = ("/home/{}/src/main.py", "/Users/{}/x", "C:\\Users\\{}\\x", "x/-Users-{}-app/y")
DATABASES = ("postgres", "postgresql+asyncpg", "mysql", "mongodb+srv", "redis", "amqp")


def _database(r: random.Random) -> Case:
    value = _chars(r, ALNUM, r.randrange(10, 24))
    return Case("database_url", f"{r.choice(DATABASES)}://app:{value}@db.internal:5432/main", (value,))


def _slack_bot(r: random.Random) -> str:
    return f"xoxb-{_chars(r, string.digits, 12)}-{_chars(r, string.digits, 13)}-{_chars(r, ALNUM, 24)}"


def _email(r: random.Random) -> str:
    first, last, domain = (_chars(r, string.ascii_lowercase, count) for count in (6, 7, 8))
    return f"{first}.{last}@{domain}.{r.choice(['com', 'de', 'io', 'co.uk'])}"


def _basic(r: random.Random) -> str:
    return base64.b64encode(f"svc:{_password(r)}".encode()).decode()


def _user(r: random.Random) -> str:
    return "q" + _chars(r, string.ascii_lowercase, 4) + _chars(r, string.digits, 3)


MAKERS: dict[str, Callable[[random.Random], Case]] = dict(
    [
        _simple("aws_access_key_id", lambda r: "AKIA" + _chars(r, string.ascii_uppercase + "234567", 16)),
        _simple("aws_secret_key", lambda r: _chars(r, ALNUM + "/+", 40), AWS_FRAMES),
        _simple("github_classic", lambda r: f"gh{r.choice('pousr')}_" + _chars(r, ALNUM, 36)),
        _simple("github_fine_grained", lambda r: f"github_pat_{_chars(r, ALNUM, 22)}_{_chars(r, ALNUM, 59)}"),
        _simple("gitlab", lambda r: "glpat-" + _chars(r, URL_SAFE, 20)),
        _simple("slack_bot", _slack_bot),
        _simple("slack_webhook", _slack_webhook, ("https://hooks.slack.com/{}",)),
        _simple("openai", lambda r: f"sk-proj-{_chars(r, URL_SAFE, 74)}T3BlbkFJ{_chars(r, URL_SAFE, 74)}"),
        _simple("anthropic", lambda r: f"sk-ant-api03-{_chars(r, URL_SAFE, 93)}AA"),
        _simple("google", lambda r: "AIza" + _chars(r, URL_SAFE, 35)),
        _simple("stripe", lambda r: f"{r.choice('sr')}k_{r.choice(['live', 'test'])}_" + _chars(r, ALNUM, 24)),
        _simple("npm", lambda r: "npm_" + _chars(r, ALNUM, 36)),
        _simple("pypi", lambda r: "pypi-AgEIcHlwaS5vcmc" + _chars(r, URL_SAFE, 150)),
        _simple("hugging_face", lambda r: "hf_" + _chars(r, string.ascii_letters, 34)),
        _simple("sendgrid", lambda r: f"SG.{_chars(r, URL_SAFE, 22)}.{_chars(r, URL_SAFE, 43)}"),
        _simple("jwt", _jwt),
        ("rsa_private_key", _pem("RSA PRIVATE", 64, 24, "MIIEowIBAAKCAQEA")),
        ("openssh_private_key", _pem("OPENSSH PRIVATE", 70, 5, "b3BlbnNzaC1rZXktdjEAAAAABG5vbmUAAAAEbm9uZQ")),
        _simple("password", _password, PASSWORD_FRAMES),
        _simple("generic_key", lambda r: _chars(r, ALNUM, r.randrange(20, 48)), KEY_FRAMES),
        _simple("bearer", lambda r: _chars(r, ALNUM, 40), BEARER_FRAMES),
        _simple("basic", _basic, ("Authorization: Basic {}",)),
        ("database_url", _database),
        _simple("email", _email, ("{}", "mail <{}>", "user.email={}")),
        _simple("user_in_path", _user, PATH_FRAMES),
    ]
)


def _session(content: str = "Done.", arguments: object = None) -> Session:
    calls = (ToolCall("1", "Bash", json.dumps(arguments)),) if arguments is not None else ()
    return Session("s", (Message("user", "Do it."), Message("assistant", content, calls)))


PLACES: dict[str, Callable[[str], Session]] = {
    "prose": lambda t: _session(f"I used {t}, as you asked."),
    "end of a sentence": lambda t: _session(f"It works now with {t}."),
    "code span": lambda t: _session(f"Set `{t}` in the file (see below)."),
    "tool input": lambda t: _session(arguments={"command": "run", "env": [{"deep": {"value": f"echo {t}"}}]}),
    "dictionary key": lambda t: _session(arguments={"edits": {t: True}}),
    "JSON in a string": lambda t: _session(json.dumps({"stdout": f"line\n{t}\nline", "ok": True})),
    "JSON in JSON": lambda t: _session(arguments={"body": json.dumps({"a": json.dumps({"b": f"x\n{t}\n"})})}),
    "after an escape": lambda t: _session(f"first\\n{t}\\n"),
    "beside NUL": lambda t: _session(f"\0{t}\0"),
    "beside lone surrogates": lambda t: _session(f"\ud83d{t}\ude00 x"),
    "in colours": lambda t: _session(f"\x1b[32m{t}\x1b[0m"),
}
"""Where a secret stands: the expert's prose (the training target), tool inputs, escaped and damaged text."""


def strings_of(session: Session) -> list[str]:
    """Return every string of the messages, tool inputs decoded (twice where a string is JSON again)."""

    def walk(value: object) -> list[str]:
        if isinstance(value, dict):
            return [s for key, item in value.items() for s in (key, *walk(item))]
        if isinstance(value, list):
            return [s for item in value for s in walk(item)]
        if isinstance(value, str):
            try:
                inner = json.loads(value)
            except ValueError:
                inner = None
            return [value, *(walk(inner) if isinstance(inner, (dict, list)) else [])]
        return []

    texts = []
    for message in session.messages:
        texts += walk(message.content)
        for call in message.tool_calls:
            texts += walk(json.loads(call.arguments))
    return texts


def leaks(case: Case, session: Session) -> bool:
    """Tell whether a part of the secret is still in a session."""
    texts = strings_of(session)
    return any(part in text for part in case.parts for text in texts)
