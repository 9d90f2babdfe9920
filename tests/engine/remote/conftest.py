"""Servers of vLLM's protocol around the tiny model: real HTTP, in threads of the tests' own process or in another."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from sdft_cli.records import Dataset
from tests.engine.parallel.conftest import launcher as launcher

Serve = Callable[..., Any]


@pytest.fixture(scope="package")
def serve() -> Iterator[Serve]:
    """Serve a model by the options of `benchmarks.completions_server`; returns the server."""
    pytest.importorskip("torch")
    from benchmarks.completions_server import CompletionsServer, Options, Service

    with ExitStack() as stack:

        def start(model: Path, **options: Any) -> Any:
            return stack.enter_context(CompletionsServer(Service(str(model), Options(**options))))

        yield start


@pytest.fixture(scope="package")
def data(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    pytest.importorskip("torch")
    from tests.engine.prepared import prepared

    return prepared(tiny_model, tmp_path_factory.mktemp("remote"), 8, 0.3)
