"""A session that names a secret once, and uses it in its continuation and in a subagent."""

from __future__ import annotations

import json
from pathlib import Path

from tests.traces.lines import call, line, result, text

SECRET = "kX9w" + "TpQ2zLm4"


def write_shared_secret(path: Path) -> None:
    """Write the lines of the session."""
    agent = {"isSidechain": True, "agentId": "ag"}
    lines = [
        line("1", None, "user", f'the database: DB_PASSWORD="{SECRET}"'),
        line("2", "1", "assistant", call("c1", "Bash", command=f"echo {SECRET} | login"), mid="m1"),
        line("3", "2", "user", result("c1", "ok")),
        line("4", "3", "assistant", text("I am in."), mid="m2"),
        line("b", None, "system", subtype="compact_boundary", logicalParentUuid="4"),
        line("5", "b", "user", "The user logs in to the database.", isCompactSummary=True),
        line("6", "5", "assistant", call("c2", "Bash", command=f"echo {SECRET} | login"), mid="m3"),
        line("7", "6", "user", result("c2", f"{SECRET} was accepted")),
        line("8", "7", "assistant", text("I am in again."), mid="m4"),
        line("9", None, "user", f"Log in with {SECRET}.", **agent),
        line("10", "9", "assistant", text(f"I logged in with {SECRET}."), mid="m5", **agent),
    ]
    path.write_text("".join(json.dumps(item) + "\n" for item in lines))
