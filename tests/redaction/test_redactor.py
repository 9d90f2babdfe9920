"""Redaction: recall per kind, clean text stays clean, pseudonyms, consistency, idempotence, the key, known values."""

from __future__ import annotations

import hashlib
import hmac
import json
import pickle
import random
import re
import stat
import string
import sysconfig
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.redaction_corpus import MAKERS, PLACES, leaks, strings_of
from sdft_cli.errors import MachineError
from sdft_cli.records import Message, Session, ToolCall, ToolSchema
from sdft_cli.redaction import rules as redact_rules
from sdft_cli.redaction.known_values import is_unusual, known_values, redaction_key
from sdft_cli.redaction.redactor import Redactor
from sdft_cli.traces.examples import write_examples
from sdft_cli.traces.source import read_source, resolve_source
from tests.datasets import with_tools

KEY = bytes(range(32))
PERSONAL = {"user_name", "person_name", "email", "host_name", "home_folder"}


@pytest.fixture(scope="module")
def redactor() -> Redactor:
    return Redactor(KEY)


def made(kind: str, seed: int = 0) -> tuple[str, str]:
    """A text with a secret of a kind, and the secret."""
    case = MAKERS[kind](random.Random(seed))
    return case.text, case.parts[0]


def digest(value: str, key: bytes = KEY) -> str:
    return hmac.new(key, value.encode(), hashlib.sha256).hexdigest()[:8]


# Recall


@pytest.mark.parametrize("kind", sorted(MAKERS))
def test_recall_is_at_least_99_percent_and_one_pass_is_enough(kind: str, redactor: Redactor) -> None:
    rng = random.Random(kind)
    found = total = 0
    for build in PLACES.values():
        for _ in range(10):
            case = MAKERS[kind](rng)
            session, counts = build(case.text), Counter[str]()
            assert leaks(case, session)
            redacted = redactor.session(session, counts)
            found += not leaks(case, redacted)
            total += 1
            again = Counter[str]()
            assert redactor.session(redacted, again) is redacted
            assert not again
    assert found / total >= 0.99, f"{total - found} of {total} {kind} missed"


# Clean text

CLEAN = (
    'password=os.environ["X"]',
    "API_KEY=$API_KEY make run",
    "def login(user: str, password: str, token=None) -> Token2Type: ...",
    'api_key = "your-api-key-here"',
    "token=<token>, secret=xxxxxxxxxxxx1, key=sk-...",
    "export OPENAI_API_KEY=sk-...",
    "password = getpass.getpass(prompt2)",
    "token = tokens[index1]",
    "max_tokens=4096, pad_token='[PAD]', token_ids=[1, 2, 3]",
    "secretName: my-app-secret-v2",
    "per_token = layout.kv_bytes_per_token_f16 * n; mask2_token='[MASK2]'; token = r'[^\\W\\d]\\w*'",
    "password: ${{ secrets.DB_PASSWORD_2 }}",
    "curl -H 'Authorization: Bearer $TOKEN1234567890abc'",
    "Authorization: Bearer <your_token_goes_here_123>",
    "postgres://postgres:postgres@localhost:5432/test",
    "redis://:password@localhost/0 and https://user:pass@example.com/x",
    "git clone git@github.com:owner/name.git && echo noreply@anthropic.com",
    "Co-Authored-By: x <12345+someone@users.noreply.github.com>, a@example.com, b@host.test",
    "y = q@k.transpose(1, 2) + x@w.T; react@18.2.0; actions/checkout@v4.1.0; @app.route('/x')",
    *(f"cd /home/{name}/project /Users/{name} C:\\Users\\{name}\\x" for name in ("user", "runner", "ubuntu", "public")),
    'href="/home/index.html" import x from "../home/header"; ./home/x1 https://a.dev/home/abc12',
    "-----BEGIN PRIVATE KEY-----\n...\n-----END PRIVATE KEY-----",
    "if '-----BEGIN RSA PRIVATE KEY-----' in text and '-----END RSA PRIVATE KEY-----' in text: pass",
    "sha256 e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855, commit d280ae4",
    "127.0.0.1:8080 10.0.0.12 8.8.8.8",
    "ssh-ed25519 " + "A" * 60,
)


@pytest.mark.parametrize("text", CLEAN)
def test_clean_text_is_not_altered(text: str, redactor: Redactor) -> None:
    counts = Counter[str]()
    assert redactor.text(text, counts) is text
    assert not counts


def test_example_sessions_come_back_as_the_same_objects(tmp_path: Path, redactor: Redactor) -> None:
    write_examples(tmp_path, count=60)
    for session in with_tools(read_source(resolve_source(str(tmp_path))).sessions, every_builtin=True):
        assert redactor.session(session, Counter()) is session


def test_no_secret_is_seen_in_the_standard_library(redactor: Redactor) -> None:
    files = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))
    changed = []
    for path in files:
        counts = Counter[str]()
        redactor.text(path.read_text(encoding="utf-8", errors="replace"), counts)
        if set(counts) - PERSONAL:
            changed.append(path.name)
    assert len(files) > 100
    assert changed == []


def test_real_sessions_lose_user_names_and_nothing_else(shared_sessions: Path, redactor: Redactor) -> None:
    counts = Counter[str]()
    for session in read_source(resolve_source(str(shared_sessions)), limit=4).sessions:
        redacted = redactor.session(session, counts)
        assert redactor.session(redacted, Counter()) is redacted
        assert not re.search(r"/Users/(?!user_[0-9a-f]{8})[a-z]", "\n".join(strings_of(redacted)))
    assert set(counts) == {"user_name"}


# Pseudonyms and consistency


def test_a_pseudonym_is_a_keyed_hash_that_shows_the_kind(redactor: Redactor) -> None:
    text, token = made("github_classic")
    assert redactor.text(f"use {text}", Counter()) == f"use REDACTED_GITHUB_TOKEN_{digest(token)}"
    other = Redactor(b"\xff" * 32)
    assert other.text(text, Counter()) == f"REDACTED_GITHUB_TOKEN_{digest(token, bytes([255]) * 32)}"
    mail = "jan.kowal" + "@" + "corp.pl"
    assert redactor.text(f"<{mail}>", Counter()) == f"<user_{digest(mail)}@example.com>"
    assert redactor.text("ls /Users/qwx/a -Users-qwx-a", Counter()) == (
        f"ls /Users/user_{digest('qwx')}/a -Users-user_{digest('qwx')}-a"
    )


def test_prompt_and_reference_agree(redactor: Redactor) -> None:
    """A password is recognised by its context; the reference that repeats it alone must lose it too."""
    _, secret = made("password")
    session = Session(
        "s",
        (
            Message("user", f"the password is {secret}"),
            Message("assistant", "I log in.", (ToolCall("1", "Bash", json.dumps({"command": f"login -x {secret}"})),)),
        ),
        (ToolSchema("Bash", f"Runs as {secret}.", json.dumps({"properties": {"x": {"description": secret}}})),),
        metadata={"cwd": "/srv", "notes": [f"{secret}"], "count": 3},
    )
    counts = Counter[str]()
    redacted = redactor.session(session, counts)
    name = f"REDACTED_PASSWORD_{digest(secret)}"
    assert redacted.messages[0].content == f"the password is {name}"
    assert json.loads(redacted.messages[1].tool_calls[0].arguments) == {"command": f"login -x {name}"}
    assert redacted.tools[0].description == f"Runs as {name}."
    assert json.loads(redacted.tools[0].parameters) == {"properties": {"x": {"description": name}}}
    assert redacted.metadata == {"cwd": "/srv", "notes": [name], "count": 3}
    assert counts == {"password": 5}


def test_what_another_session_gave_away_leaves_this_one(redactor: Redactor) -> None:
    _, secret = made("password")
    one = Session("s", (Message("user", f"the password is {secret}"),))
    other = Session("s#2", (Message("user", f"log in with {secret}"),))
    assert redactor.session(other, Counter()) is other
    redacted = redactor.session(other, Counter(), redactor.revealed(one))
    assert redacted.messages[0].content == f"log in with REDACTED_PASSWORD_{digest(secret)}"


def test_the_key_of_a_tool_input_is_context_for_its_value(redactor: Redactor) -> None:
    _, secret = made("generic_key")
    call = ToolCall("1", "Bash", json.dumps({"env": {"MY_API_KEY": secret, "N": "4"}}))
    redacted = redactor.session(Session("s", (Message("assistant", "", (call,)),)), Counter())
    assert redacted.messages[0].tool_calls[0].parsed_arguments() == {
        "env": {"MY_API_KEY": f"REDACTED_API_KEY_{digest(secret)}", "N": "4"}
    }


def test_only_the_changed_strings_of_a_tool_input_are_written_anew(redactor: Redactor) -> None:
    text, token = made("npm")
    before = r'{"a":1.0e5, "b" : "\u00e9\/", "c": "' + text + r' \ud800é", "b": 12345678901234567890}'
    session = Session("s", (Message("assistant", "", (ToolCall("1", "T", before),)),))
    after = redactor.session(session, Counter()).messages[0].tool_calls[0].arguments
    assert after == before.replace(token, f"REDACTED_NPM_TOKEN_{digest(token)}")
    after.encode()  # the lone surrogate is still an escape


def test_user_names_leave_the_session_only_if_unusual(redactor: Redactor) -> None:
    def about(name: str) -> str:
        return redactor.text(f"{name} works in /home/{name}/src, {name}.", Counter())

    assert about("mgonzalez") == "{0} works in /home/{0}/src, {0}.".format(f"user_{digest('mgonzalez')}")
    assert about("maria") == f"maria works in /home/user_{digest('maria')}/src, maria."
    assert is_unusual("maria87")
    assert not is_unusual("developer")


def test_a_dotted_user_name_is_the_same_in_a_dashed_project_folder(redactor: Redactor) -> None:
    name = f"user_{digest('jo.smith-x')}"
    assert redactor.text("/Users/jo.smith-x/app ~/.claude/projects/-Users-jo-smith-x-app", Counter()) == (
        f"/Users/{name}/app ~/.claude/projects/-Users-{name}-app"
    )


def test_a_private_key_is_the_same_in_a_file_in_json_and_in_a_listing(redactor: Redactor) -> None:
    pem = MAKERS["rsa_private_key"](random.Random(1)).text
    listing = "\n".join(f"{i:6d}→{line}" for i, line in enumerate(pem.splitlines(), 1))
    names = {
        match
        for text in (pem, json.dumps({"key": pem}), listing)
        for match in re.findall(r"REDACTED_PRIVATE_KEY_\w{8}", redactor.text(text, Counter()))
    }
    assert len(names) == 1
    head = redactor.text("\n".join(listing.splitlines()[:9]), Counter())  # `head -9`: the block has no end
    assert re.fullmatch(r"\s*1→REDACTED_PRIVATE_KEY_\w{8}", head)


# Idempotence and equivalence of the fast paths

PIECES = st.one_of(
    st.sampled_from(sorted(MAKERS)).flatmap(lambda kind: st.integers(0, 30).map(lambda seed: made(kind, seed)[0])),
    st.sampled_from(
        ["=", ": ", "\\n", "\n", '"', '\\"', "/", "@", "\0", "\ud800", "\ufeff", ".", ",", "a", "9", " ", "-", "_", "é"]
    ),
    st.sampled_from(["password", "token=", "API_KEY=", "Bearer ", "https://u:", "/home/", "-Users-", "user_deadbeef"]),
    st.text(string.ascii_letters + string.digits, min_size=4, max_size=24),
)
TEXTS = st.lists(PIECES, max_size=8).map("".join)


@settings(max_examples=300, deadline=None)
@given(TEXTS)
def test_redacting_twice_is_redacting_once(text: str) -> None:
    redactor = _shared_redactor()
    once = redactor.text(text, Counter())
    counts = Counter[str]()
    assert redactor.text(once, counts) == once
    assert not counts


@settings(max_examples=100, deadline=None)
@given(st.lists(TEXTS, min_size=1, max_size=4), st.dictionaries(TEXTS, TEXTS, max_size=3))
def test_redacting_a_session_twice_is_redacting_it_once(texts: list[str], arguments: dict[str, str]) -> None:
    redactor = _shared_redactor()
    messages = [Message("user", text) for text in texts]
    messages.append(Message("assistant", "", (ToolCall("1", "T", json.dumps(arguments)),)))
    once = redactor.session(Session("s", tuple(messages)), Counter())
    counts = Counter[str]()
    assert redactor.session(once, counts) is once
    assert not counts


def _shared_redactor(_made: list[Redactor] = []) -> Redactor:  # noqa: B006  (one scanner for all examples)
    if not _made:
        _made.append(Redactor(KEY, {"user_name": ["qwertz"], "environment_secret": ["k2Jq81ZpL0"]}))
    return _made[0]


@settings(max_examples=300, deadline=None)
@given(st.one_of(TEXTS, st.text()))
def test_offsets_stay_true(text: str) -> None:
    data = text.encode("utf-8", "surrogatepass")
    assert len(redact_rules.flatten(data)) == len(redact_rules.mask(data)) == len(data)


@settings(max_examples=200, deadline=None)
@given(TEXTS)
def test_one_search_for_all_needles_finds_what_each_pattern_finds(text: str) -> None:
    flat = redact_rules.flatten(text.encode("utf-8", "surrogatepass"))
    plain = {
        (*match.span(), kind)
        for kind, _, pattern in redact_rules._SHAPES
        for match in pattern.finditer(flat)
        if redact_rules._is_shape(match[0])
    }
    assert set(redact_rules._shapes(flat)) == plain


@settings(max_examples=50, deadline=None)
@given(st.lists(TEXTS, max_size=6))
def test_the_cache_changes_nothing(texts: list[str]) -> None:
    warm = _shared_redactor()
    for text in texts:
        fresh = Redactor(*warm.__reduce__()[1])
        old, new = Counter[str](), Counter[str]()
        assert warm.text(text, old) == fresh.text(text, new)
        assert old == new


def test_a_redactor_can_be_pickled(redactor: Redactor) -> None:
    text, _ = made("stripe")
    assert pickle.loads(pickle.dumps(redactor)).text(text, Counter()) == redactor.text(text, Counter())


# Known values and the key


def test_known_values_are_replaced_as_whole_words() -> None:
    redactor = Redactor(
        KEY,
        {
            "user_name": ["zofia", "root"],
            "person_name": ["Zofia Maj"],
            "host_name": ["kestrel-9", "localhost"],
            "home_folder": ["/data/people/zofia"],
            "environment_secret": ["hunter-Xq77", "production"],
        },
    )
    counts = Counter[str]()
    text = "zofia (Zofia Maj) on kestrel-9: /data/people/zofia/x zofias root localhost hunter-Xq77 production"
    name = f"user_{digest('zofia')}"
    assert redactor.text(text, counts) == (
        f"{name} (user_{digest('Zofia Maj')}) on host_{digest('kestrel-9')}: /home/{name}/x zofias root localhost "
        f"REDACTED_ENVIRONMENT_SECRET_{digest('hunter-Xq77')} production"
    )
    assert counts == {"user_name": 1, "person_name": 1, "host_name": 1, "home_folder": 1, "environment_secret": 1}


def test_known_values_come_from_home_git_and_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / ".gitconfig").write_text('[user]\n\tname = Zofia Maj # me\n\temail = "z@maj.pl"\n[core]\n\tname = no\n')
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USER", "zofia")
    monkeypatch.setenv("LOGNAME", "zofia")
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    monkeypatch.setenv("SOME_API_TOKEN", "0123abcd")
    monkeypatch.setenv("SHORT_TOKEN", "0123abc")
    monkeypatch.setenv("KEY_FILE", "/etc/some.key")
    known = known_values()
    assert known["home_folder"] == [str(tmp_path)]
    assert known["user_name"] == ["zofia"]
    assert known["person_name"][0] == "Zofia Maj"
    assert known["email"][0] == "z@maj.pl"
    assert "0123abcd" in known["environment_secret"]
    assert not {"0123abc", "/etc/some.key"} & set(known["environment_secret"])


def test_the_key_is_made_once_and_is_private(tmp_path: Path) -> None:
    environment = {"SDFT_CONFIG": str(tmp_path / "config")}
    key = redaction_key(environment)
    path = tmp_path / "config" / "redaction.key"
    assert len(key) == 32
    assert redaction_key(environment) == key == path.read_bytes()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [p.name for p in path.parent.iterdir()] == ["redaction.key"]


def test_a_damaged_or_unwritable_key_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "redaction.key").write_bytes(b"short")
    with pytest.raises(MachineError, match=r"is not 32 bytes: restore it, or delete it for a new one\.$"):
        redaction_key({"SDFT_CONFIG": str(tmp_path)})
    with pytest.raises(MachineError, match=r"cannot be made or read .*: set SDFT_CONFIG to a folder of yours\.$"):
        redaction_key({"SDFT_CONFIG": str(tmp_path / "redaction.key" / "below")})
