"""The few calls of the Hub that creating a repository and uploading a folder take, on this machine."""

from __future__ import annotations

import base64
import functools
import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class FakeHub:
    """One repository. `files`: path -> content, as committed; `calls`: methods and paths, as they came."""

    url: str = ""
    exists: bool = False
    private: bool = True
    refuse: int = 0
    files: dict[str, bytes] = field(default_factory=dict)
    calls: list[str] = field(default_factory=list)
    tokens: set[str] = field(default_factory=set)

    def answer(self, method: str, path: str, body: bytes) -> tuple[int, Any]:
        """Return the status and the JSON document for a request."""
        if self.refuse:
            return self.refuse, {"error": "refused"}
        if path == "/api/repos/create":
            if self.exists:
                return 409, {"url": f"{self.url}/me/model", "error": "exists"}
            self.exists = True
            asked = json.loads(body)
            self.private = asked.get("private") is True or asked.get("visibility") == "private"
            return 200, {"url": f"{self.url}/me/model", "name": "me/model"}
        if path.startswith("/api/models/me/model/preupload/"):
            names = [file["path"] for file in json.loads(body)["files"]]
            files = [{"path": name, "uploadMode": "regular", "shouldIgnore": False} for name in names]
            return 200, {"files": files}
        if path.startswith("/api/models/me/model/commit/"):
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    self.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            return 200, {"success": True, "commitOid": "c" * 40, "commitUrl": f"{self.url}/me/model/commit/c"}
        if method == "GET" and path.startswith("/api/models/me/model"):
            siblings = [{"rfilename": name} for name in self.files]
            return 200, {"id": "me/model", "private": self.private, "sha": "c" * 40, "siblings": siblings}
        return 200, {}


@functools.cache
def url() -> str:
    """Return where hubs are served: always the same, since a Hub's client reads that once, when it is imported."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{free.getsockname()[1]}"


@contextmanager
def serving(hub: FakeHub) -> Iterator[FakeHub]:
    """Serve a hub on this machine, at `url()`."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def handle_any(self) -> None:
            body = self._body()
            hub.calls.append(f"{self.command} {self.path.split('?')[0]}")
            hub.tokens.add(self.headers.get("Authorization", ""))
            status, document = hub.answer(self.command, self.path, body)
            text = json.dumps(document).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        do_GET = do_POST = handle_any

        def _body(self) -> bytes:
            if self.headers.get("Transfer-Encoding") != "chunked":
                return self.rfile.read(int(self.headers.get("Content-Length") or 0))
            parts = []
            while size := int(self.rfile.readline(), 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)

        def log_message(self, format: str, *args: Any) -> None:
            """Nothing on the terminal."""

    hub.url = url()
    server = ThreadingHTTPServer(("127.0.0.1", int(hub.url.rsplit(":", 1)[1])), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
