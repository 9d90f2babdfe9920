"""A dataset for the tiny model, prepared as a user would."""

from __future__ import annotations

from pathlib import Path

import pytest

from sdft_cli.records import Dataset, read_dataset


@pytest.fixture(scope="session")
def tiny_data(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Six example sessions; one is held out."""
    from sdft_cli.config import PrepareConfig
    from sdft_cli.preparation.job import Job
    from sdft_cli.preparation.pipeline import manifest_of, prepare, write
    from sdft_cli.prompts.chat import ChatPrompts, load_tokenizer
    from sdft_cli.prompts.teacher import load_teacher_template
    from sdft_cli.traces.examples import write_examples
    from sdft_cli.traces.source import resolve_source

    folder = tmp_path_factory.mktemp("data")
    write_examples(folder / "sessions", 6)
    source = resolve_source(str(folder / "sessions"))
    config = PrepareConfig(source=str(folder / "sessions"), model=str(tiny_model), redact=False)
    prompts = ChatPrompts(load_tokenizer(tiny_model), load_teacher_template())
    found = prepare(source, Job(config, prompts, None))
    return read_dataset(write(found, manifest_of(config, source, prompts, found), folder / "d", ""))
