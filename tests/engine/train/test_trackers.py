from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any, get_args

import pytest

pytest.importorskip("accelerate")

from sdft_cli.config import TrainConfig, load_train_config
from sdft_cli.engine.train import trackers as tracking
from sdft_cli.errors import MachineError

NAMES = ("tensorboard", "trackio", "wandb")
ROOT = Path(__file__).resolve().parents[3]


def test_nested_numbers_are_flat_and_nothing_else_is_left() -> None:
    metrics = {"loss": 0.5, "step": 3, "phase_seconds": {"rollout": 1.5, "x": {"y": 2}}, "note": "t", "kl": None}
    assert tracking.numbers({**metrics, "list": [1], "ok": True}) == {
        "loss": 0.5,
        "step": 3.0,
        "phase_seconds/rollout": 1.5,
        "phase_seconds/x/y": 2.0,
        "ok": 1.0,
    }


def test_settings_have_one_level_and_no_lists() -> None:
    found = tracking.settings(load_train_config("cpu-demo", ["lora.target_modules=[q_proj, v_proj]"]))
    assert found["optim/learning_rate"] == 2e-3
    assert found["gradient_checkpointing"] is False
    assert found["lora/target_modules"].startswith("['q_proj', ")
    assert {type(value) for value in found.values()} <= {bool, int, float, str}


def test_the_names_are_accelerates() -> None:
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS
    from accelerate.utils import LoggerType

    literal = get_args(get_args(TrainConfig.model_fields["trackers"].annotation)[0])
    assert literal == NAMES
    assert set(NAMES) <= {str(name) for name in LoggerType} & LOGGER_TYPE_TO_CLASS.keys()
    assert [name for name in NAMES if LOGGER_TYPE_TO_CLASS[name].requires_logging_directory] == ["tensorboard"]


@pytest.mark.parametrize("name", NAMES)
def test_a_missing_package_is_named(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(MachineError, match=rf"^Tracker {name} needs the package {name}: pip install {name}$"):
        tracking.check_trackers([name])
    tracking.check_trackers([])


def test_folders_named_by_the_user_are_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_DIR", "/elsewhere")
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert tracking.tracker_arguments(tmp_path / "run" / "trackers") == {"wandb": {"dir": "/elsewhere", "name": "run"}}
    monkeypatch.delenv("WANDB_DIR")
    folder = tmp_path / "run" / "trackers"
    assert tracking.tracker_arguments(folder)["wandb"]["dir"] == str(folder)
    assert os.environ["WANDB_MODE"] == "offline"


def test_without_trackers_nothing_is_written(tmp_path: Path) -> None:
    from accelerate import Accelerator

    trackers = tracking.open_trackers(Accelerator(cpu=True), load_train_config("cpu-demo"), tmp_path)
    trackers.log({"loss": 1.0}, 1)
    trackers.close()
    assert not list(tmp_path.iterdir())


SAMPLE = {
    "step": 2,
    "record_id": "s/3",
    "on_policy": True,
    "finished": False,
    "rollout": "a|b\n<script>alert(1)</script>",
    "reference": "r" * 20_005,
    "tokens": ["a", "|"],
    "per_token": [0.5, 0.25],
}


def open_and_log(folder: Path, *names: str) -> None:
    from accelerate import Accelerator

    config = load_train_config("cpu-demo", [], {"trackers": names})
    trackers = tracking.open_trackers(Accelerator(cpu=True), config, folder)
    for step, loss in ((1, 0.5), (2, 0.25)):
        trackers.log({"loss": loss, "phase_seconds": {"rollout": step / 2}, "note": "text", "kl": None}, step)
    trackers.log_rollout(SAMPLE, 2)
    trackers.close()
    trackers.close()


def in_a_process(name: str, folder: Path) -> dict[str, Any]:
    """Trackers keep state in their process and read folders at import: run each in one of its own."""
    home = folder / "home"
    home.mkdir()
    code = f"from pathlib import Path; from {__name__} import open_and_log as f; f(Path('run'), '{name}')"
    hidden = ("WANDB_DIR", "WANDB_CACHE_DIR", "WANDB_DATA_DIR", "TRACKIO_DIR")
    environment = {key: value for key, value in os.environ.items() if key not in hidden}
    path = os.pathsep.join([str(ROOT), *environment.get("PYTHONPATH", "").split(os.pathsep)])
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=folder,
        env={**environment, "PYTHONPATH": path, "HOME": str(home), "WANDB_MODE": "offline"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert {p.name for p in folder.iterdir()} == {"home", "run"}
    assert [p.name for p in (folder / "run").iterdir()] == ["trackers"]
    return {str(p.relative_to(folder)): p for p in folder.rglob("*") if p.is_file()}


def test_tensorboard_holds_every_number_at_its_step(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    files = in_a_process("tensorboard", tmp_path)
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    assert files
    assert all(name.startswith("run/trackers/sdft/") for name in files)
    events = EventAccumulator(str(tmp_path / "run" / "trackers" / "sdft"))
    events.Reload()
    found = {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
    assert found == {"loss": [(1, 0.5), (2, 0.25)], "phase_seconds/rollout": [(1, 0.5), (2, 1.0)]}


def test_tensorboard_shows_rollouts_as_a_table_of_text(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    in_a_process("tensorboard", tmp_path)
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path / "run" / "trackers" / "sdft"))
    events.Reload()
    (tag,) = (tag for tag in events.Tags()["tensors"] if "rollouts" in tag)
    (event,) = events.Tensors(tag)
    assert event.step == 2
    lines = event.tensor_proto.string_val[0].decode().splitlines()
    assert lines[:2] == ["| | |", "| --- | --- |"]
    assert "| rollout | a&#124;b<br>&lt;script&gt;alert(1)&lt;/script&gt; |" in lines
    assert "| divergence | 0.75 |" in lines
    (reference,) = (line for line in lines if line.startswith("| reference "))
    assert reference.endswith("r ... (5 more characters) |")


def test_wandb_holds_rollouts_as_a_table(tmp_path: Path) -> None:
    pytest.importorskip("wandb")
    in_a_process("wandb", tmp_path)
    (table,) = (tmp_path / "run" / "trackers").rglob("rollouts*.table.json")
    document = json.loads(table.read_text())
    (row,) = document["data"]
    assert dict(zip(document["columns"], row, strict=True))["rollout"] == SAMPLE["rollout"]


def test_trackio_holds_rollouts_as_a_table(tmp_path: Path) -> None:
    pytest.importorskip("trackio")
    files = in_a_process("trackio", tmp_path)
    (database,) = (path for name, path in files.items() if name.endswith("sdft.db"))
    with sqlite3.connect(database) as connection:
        rows = [row for (row,) in connection.execute("select metrics from metrics")]
    assert any("rollouts" in json.loads(row) for row in rows)


@pytest.mark.parametrize("name", ["trackio", "wandb"])
def test_other_trackers_write_into_the_run_folder_only(name: str, tmp_path: Path) -> None:
    pytest.importorskip(name)
    files = in_a_process(name, tmp_path)
    assert any(path.startswith("run/trackers/") for path in files)
    assert not [path for path in files if path.startswith("home/") and not path.startswith("home/.config/")]
