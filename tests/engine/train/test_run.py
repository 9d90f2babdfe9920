from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("torch")

from sdft_cli.config import load_train_config
from sdft_cli.engine.train.run import Job, on_its_base
from sdft_cli.records import Dataset
from sdft_cli.records.json_files import write_json


def test_a_resumed_run_goes_on_with_the_commit_of_its_base(tmp_path: Path) -> None:
    config = load_train_config("cpu-demo", (), {"model": "o/m"})
    job = Job(config, Dataset(tmp_path / "data", {}, {}, [], [], []), tmp_path, resume=True)
    write_json(tmp_path / "run.json", {"base": {"commit": "1111"}})
    assert on_its_base(job).config == config.model_copy(update={"revision": "1111"})
    write_json(tmp_path / "run.json", {"base": {"config.json": "x"}})  # a folder
    assert on_its_base(job) == job
