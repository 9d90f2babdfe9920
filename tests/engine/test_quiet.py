"""What libraries say of themselves when the engine imports them stays off the user's terminal."""

from __future__ import annotations

import subprocess
import sys

import pytest

pytest.importorskip("torch")


def test_importing_the_engine_says_nothing() -> None:
    code = (
        "import logging\n"
        "import sdft_cli.engine.score.ranking, sdft_cli.engine.models.load\n"
        "logging.getLogger('torchao').warning('a part cannot be loaded')\n"
        "logging.getLogger('torchao').error('broken')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr.strip()) == ("", "broken")
