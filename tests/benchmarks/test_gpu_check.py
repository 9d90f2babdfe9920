"""The check for GPU machines, at its tiny size on a CPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch")

from benchmarks import gpu_check
from benchmarks.gpu_check import Check, main, options_of

ROOT = Path(__file__).resolve().parents[2]


def lines(text: str) -> list[dict[str, object]]:
    return [json.loads(line) for line in text.splitlines() if line.startswith("{")]


@pytest.mark.slow
def test_the_tiny_size_passes(tmp_path: Path) -> None:
    out = tmp_path / "lines.jsonl"
    only = "attention,delta,head,sharing,shared,trl,merge,unsloth"
    assert main(["--size", "tiny", "--only", only, "--out", str(out), "--scratch", str(tmp_path)]) == 0
    found = lines(out.read_text())
    assert {row["stage"] for row in found} == {"env", "load", "end", *only.split(",")}
    (alone,) = (row for row in found if row.get("way") == "each alone, none")
    assert 0 <= float(str(alone["gradient_distance"])) < 1e-4
    (other,) = (row for row in found if row["stage"] == "trl")
    assert float(str(other["gradient_distance"])) < 1e-4
    assert float(str(other["loss"])) == pytest.approx(float(str(other["engine_loss"])), rel=1e-3)
    ways = {row["way"]: row for row in found if row["stage"] == "unsloth" and "way" in row}
    if ways:  # it is installed
        assert float(str(ways["unsloth"]["gradient_distance"])) < 1e-4
        assert float(str(ways["unsloth"]["loss"])) == pytest.approx(float(str(ways["transformers"]["loss"])), rel=1e-3)
    assert list(tmp_path.iterdir()) == [out]


@pytest.mark.slow
def test_it_runs_as_a_script_in_bf16_where_packages_that_it_never_calls_are_missing(tmp_path: Path) -> None:
    script = ROOT / "benchmarks" / "gpu_check.py"
    code = (
        "import runpy, sys\n"
        "sys.modules.update(dict.fromkeys(('polars', 'jsonschema_rs', 'msgspec', 'kingfisher_sdk', 'datasets')))\n"
        f"sys.argv[1:] = '--size tiny --bf16 --only lora,head,step,rollout,merge'.split()\n"
        f"runpy.run_path({str(script)!r}, run_name='__main__')"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    first, *_, last = lines(done.stdout)
    assert first["stand_ins"] == ["polars", "jsonschema_rs", "msgspec"]
    assert last["failures"] == 0


def test_what_fails_is_counted_and_the_next_stage_runs(capsys: pytest.CaptureFixture[str]) -> None:
    check = Check(options_of(["--size", "tiny"]))

    def broken(check: Check) -> None:
        raise ZeroDivisionError("no")

    def far(check: Check) -> None:
        check.tell("far", **check.compared({"a": 1.0, "b": 0.0, "c": float("nan")}))

    check.run("broken", 0, broken)
    check.run("far", 0, far)
    check.run("long", 10_000, broken)
    rows = lines(capsys.readouterr().out)
    assert rows[0]["failed"] == "ZeroDivisionError: no"
    assert rows[1]["failed"] == "too far: a, c"
    assert "skipped" in rows[2]
    assert check.failures == 2


def test_every_stage_is_told_in_the_docstring() -> None:
    for name, _, _ in gpu_check.stages(gpu_check.NINE):
        assert f"\n{name} " in (gpu_check.__doc__ or "")
