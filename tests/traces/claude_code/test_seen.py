"""The lines of a source, as sqlite keeps them in a temporary file."""

from __future__ import annotations

import pytest

from sdft_cli.errors import MachineError
from sdft_cli.traces.claude_code.seen import _First


@pytest.mark.usefixtures("no_room")
def test_a_full_disk_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sdft_cli.traces.claude_code.seen.CACHE_KB", 16)
    lines = _First()
    with pytest.raises(MachineError, match="Writing temporary files failed"):
        [lines.setdefault(f"{number}", 0, "group", "place") for number in range(100_000)]
