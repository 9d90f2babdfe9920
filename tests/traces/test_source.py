from __future__ import annotations

import hashlib
import http.server
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import polars as pl
import pytest

from sdft_cli.errors import DataError, UsageError
from sdft_cli.traces.examples import write_examples
from sdft_cli.traces.source import read_source, resolve_source

COMMIT = "0123456789abcdef0123456789abcdef01234567"
CONVERSATION = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}


def test_a_folder_is_read_in_order_with_each_file_by_its_own_reader(
    tmp_path: Path, write_jsonl: Callable[..., Path]
) -> None:
    write_examples(tmp_path / "all" / "claude", 2)
    write_jsonl("all/plain.jsonl", [CONVERSATION])
    (tmp_path / "all" / "list.json").write_text(json.dumps([CONVERSATION, CONVERSATION]))
    pl.DataFrame({"messages": [CONVERSATION["messages"]]}).write_parquet(tmp_path / "all" / "rows.parquet")
    (tmp_path / "all" / "notes.md").write_text("not a trace")
    write_jsonl("all/foreign.jsonl", [{"hello": "world"}])
    source = resolve_source(str(tmp_path / "all"))
    found = read_source(source)
    assert source.ignored == ("notes.md",)
    assert [s.metadata["format"] for s in found.sessions] == ["claude-code"] * 2 + ["messages"] * 4
    assert found.report.notes["unrecognised_files"] == 1
    assert found.report.broken == ["foreign.jsonl"]
    assert len({s.session_id for s in found.sessions}) == 6


def test_settings_and_metadata_beside_sessions_are_ignored_by_name(
    tmp_path: Path, write_jsonl: Callable[..., Path]
) -> None:
    write_examples(tmp_path / "all", 1)
    for name, value in {
        "agent-x.meta.json": {"agentType": "explore", "description": "looks around"},
        "package.json": {"name": "x", "version": "1.0.0"},
        "settings.json": {"model": "m", "permissions": {"allow": []}},
    }.items():
        (tmp_path / "all" / name).write_text(json.dumps(value, indent=2))
    (tmp_path / "all" / "list.json").write_text("[1, 2]")
    (tmp_path / "all" / "torn.json").write_text('{"a": ')
    write_jsonl("all/foreign.jsonl", [{"hello": "world"}])
    found = read_source(resolve_source(str(tmp_path / "all")))
    assert len(found.sessions) == 1
    assert found.report.ignored == ["package.json", "settings.json", "agent-x.meta.json"]
    assert found.report.notes["files_ignored"] == 3
    assert found.report.broken == ["foreign.jsonl", "list.json", "torn.json"]
    assert found.report.notes["unrecognised_files"] == 3
    assert "broken" not in found.report.lines


def test_a_json_object_is_not_ignored_where_it_is_all_that_is_given(tmp_path: Path) -> None:
    path = tmp_path / "package.json"
    path.write_text('{"name": "x"}')
    for source in (path, tmp_path):
        with pytest.raises(DataError) as caught:
            read_source(resolve_source(str(source)))
        assert str(caught.value).endswith("First problem: package.json.")


def test_a_limit_counts_what_it_leaves_out(tmp_path: Path) -> None:
    write_examples(tmp_path, 5)
    found = read_source(resolve_source(str(tmp_path)), limit=2)
    assert len(found.sessions) == 2
    assert found.report.notes["files_not_read"] == 3


@pytest.mark.parametrize("content", [b"", b"\x00\xff garbage \x9f", b'{"type": "user"}\n', b"[]\n{}\n"])
def test_a_file_without_sessions_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.jsonl").write_bytes(content)
    with pytest.raises(DataError, match="No session with an assistant turn"):
        read_source(resolve_source(str(tmp_path / "x.jsonl")))


def test_a_missing_path_and_an_empty_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is no file, no folder"):
        resolve_source(str(tmp_path / "missing"))
    with pytest.raises(DataError, match="holds no trace file"):
        resolve_source(str(tmp_path))


class _Hub(http.server.BaseHTTPRequestHandler):
    """The few endpoints of the Hub that downloading a dataset calls."""

    files: dict[str, bytes]

    def log_message(self, *arguments: object) -> None:
        pass

    def _json(self, value: object, status: int = 200) -> None:
        body = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        if status == 404:
            self.send_header("X-Error-Code", "RepoNotFound")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def do_GET(self) -> None:
        path = self.path.split("?")[0]
        if not path.startswith(("/api/datasets/me/traces", "/datasets/me/traces")):
            self._json({"error": "Repository not found"}, 404)
        elif path.startswith("/api/datasets/me/traces/tree/"):
            self._json(
                [
                    {"type": "file", "path": n, "size": len(b), "oid": hashlib.sha1(b).hexdigest()}
                    for n, b in self.files.items()
                ]
            )
        elif path.startswith("/api/"):
            self._json(
                {
                    "id": "me/traces",
                    "sha": COMMIT,
                    "private": False,
                    "tags": [],
                    "downloads": 0,
                    "likes": 0,
                    "siblings": [{"rfilename": n} for n in self.files],
                }
            )
        else:
            body = self.files[path.split(f"/resolve/{COMMIT}/")[1]]
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.send_header("ETag", f'"{hashlib.sha1(body).hexdigest()}"')
            self.send_header("X-Repo-Commit", COMMIT)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

    do_HEAD = do_GET


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[str]:
    """A local server that speaks the Hub's protocol and holds one dataset, me/traces."""
    (trace,) = write_examples(tmp_path / "hub", 1)
    rows = tmp_path / "rows.parquet"
    pl.DataFrame({"messages": [CONVERSATION["messages"]]}).write_parquet(rows)
    files = {"README.md": b"# traces\n", "a.jsonl": trace.read_bytes(), "data/rows.parquet": rows.read_bytes()}
    handler = type("Handler", (_Hub,), {"files": files})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


_READ = """
import json, sys
from sdft_cli.errors import SdftError
from sdft_cli.traces.source import read_source, resolve_source
try:
    source = resolve_source(sys.argv[1])
    found = read_source(source)
    print(json.dumps({**source.describe(), "formats": [s.metadata["format"] for s in found.sessions]}))
except SdftError as error:
    print(error.exit_code, error)
"""


def read_from(endpoint: str, home: Path, name: str) -> str:
    """Read a Hub dataset in a process of its own: the client reads its endpoint when it is imported."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("HF_")}
    environment |= {"HF_ENDPOINT": endpoint, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1", "no_proxy": "127.0.0.1"}
    done = subprocess.run(
        [sys.executable, "-c", _READ, name], capture_output=True, text=True, env=environment, timeout=120, check=False
    )
    assert "Traceback" not in done.stderr, done.stderr
    return done.stdout.strip()


def test_a_hub_dataset_is_downloaded_at_a_pinned_commit(hub: str, tmp_path: Path) -> None:
    found = json.loads(read_from(hub, tmp_path / "home", "me/traces"))
    assert found == {
        "name": "me/traces",
        "kind": "hub",
        "revision": COMMIT,
        "files": 2,
        "formats": ["claude-code", "messages"],
    }


def test_an_unknown_dataset_and_no_network_are_one_sentence(hub: str, tmp_path: Path) -> None:
    unknown = read_from(hub, tmp_path / "home", "me/other")
    assert unknown.startswith("2 The Hub has no public dataset me/other")
    offline = read_from("http://127.0.0.1:9", tmp_path / "home", "me/traces")
    assert offline.startswith("1 The Hub cannot be reached and me/traces is no local path")
