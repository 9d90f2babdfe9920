"""HTTP to the server that samples rollouts: what it answers, or a sentence that says why it did not."""

from __future__ import annotations

import os
from contextlib import suppress
from typing import Any

import httpx

from sdft_cli.errors import MachineError

CONNECT = 10.0
"""Seconds in which a server takes a connection."""
IDLE = 2.0
"""Seconds after which an idle connection is not used again: before the server closes it, which vLLM does after 5."""
KEY = "VLLM_API_KEY"
"""What `vllm serve` reads its key from, too."""
GO_ON = "a run that had begun goes on with `sdft train --resume`"


class ServerError(MachineError):
    """The server that samples rollouts did not do what was asked; nothing of this run changed."""


class Refused(ServerError):
    """It answered with an HTTP error: `status`, and `reason`, the first line of what it said."""

    def __init__(self, sentence: str, status: int, reason: str) -> None:
        super().__init__(sentence)
        self.status, self.reason = status, reason


class Server:
    """A server by its URL. May be used by several threads."""

    def __init__(self, url: str, timeout: float) -> None:
        """Take the URL up to `/v1`, without it, and the seconds in which each answer has to come."""
        self.url, self.timeout = url, timeout
        key = os.environ.get(KEY)
        self._client = httpx.Client(
            base_url=url,
            timeout=httpx.Timeout(timeout, connect=min(CONNECT, timeout), pool=None),
            limits=httpx.Limits(max_connections=None, keepalive_expiry=IDLE),
            headers={"Authorization": f"Bearer {key}"} if key else {},
        )

    def get(self, path: str) -> Any:
        """Return what a GET answers, as JSON; raises `ServerError`."""
        return self._read("GET", path, None, self.timeout)

    def post(self, path: str, body: dict[str, Any], timeout: float | None = None) -> Any:
        """Return what a POST of JSON answers, as JSON or text; raises `ServerError`."""
        return self._read("POST", path, body, timeout or self.timeout)

    def close(self) -> None:
        """Close the connections; what is in flight fails."""
        self._client.close()

    def _read(self, method: str, path: str, body: dict[str, Any] | None, timeout: float) -> Any:
        limits = httpx.Timeout(timeout, connect=min(CONNECT, timeout), pool=None)
        try:
            answer = self._client.request(method, path, json=body, timeout=limits)
        except httpx.TimeoutException as error:
            raise ServerError(
                f"The rollout server {self.url} did not answer {path} within {timeout:g} s: look whether it is busy or "
                f"stuck, or raise rollout.vllm_timeout; {GO_ON}."
            ) from error
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            reason = str(error).splitlines() or [type(error).__name__]
            raise ServerError(
                f"The rollout server {self.url} does not answer ({reason[0]}): start it, or name it by --vllm-url; "
                f"{GO_ON}."
            ) from error
        if answer.status_code >= 400:
            raise self._refused(path, answer)
        with suppress(ValueError):
            return answer.json()
        return answer.text

    def _refused(self, path: str, answer: httpx.Response) -> Refused:
        reason = _said(answer)
        if answer.status_code in (401, 403):
            sentence = f"The rollout server {self.url} wants a key ({reason}): set {KEY} as it was set there; {GO_ON}."
        else:
            sentence = (
                f"The rollout server {self.url} refused {path} ({answer.status_code}: {reason}): look into what it "
                f"printed, and start it as docs/vllm.md says; {GO_ON}."
            )
        return Refused(sentence, answer.status_code, reason)


def _said(answer: httpx.Response) -> str:
    """Return the reason that an error has: `error.message`, of older versions `message`, of its framework `detail`."""
    found: Any = answer.text
    with suppress(ValueError):
        found = answer.json()
    if isinstance(found, dict):
        inner = found.get("error")
        found = inner.get("message") if isinstance(inner, dict) else found.get("message") or found.get("detail")
    return (str(found or "").strip().splitlines() or ["no reason given"])[0].rstrip(".")
