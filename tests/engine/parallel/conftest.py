"""Processes that are started as `torchrun` starts them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.engine.parallel.launcher import Launcher


@pytest.fixture(scope="package")
def launcher() -> Iterator[Launcher]:
    pytest.importorskip("torch")
    found = Launcher()
    yield found
    found.close()
