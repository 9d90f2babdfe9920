"""The Slurm and SkyPilot examples: they parse, and type what torchrun and `sdft train` know, first and again.

`srun`, `torchrun` and `scontrol` are stand-ins that write down how they were called.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import yaml

from docs import make_commands
from sdft_cli.resources import resource_text

pytest.importorskip("torch")

ROOT = Path(__file__).resolve().parents[2]
SLURM = ROOT / "examples" / "slurm.sh"
SKY: dict[str, Any] = yaml.safe_load((ROOT / "examples" / "skypilot.yaml").read_text(encoding="utf-8"))
SLURM_GIVES = {"SLURM_JOB_ID": "71", "SLURM_JOB_NODELIST": "n[1-2]", "SLURM_NNODES": "2", "SLURM_GPUS_ON_NODE": "8"}
SKY_GIVES = {
    "SKYPILOT_NODE_IPS": "10.0.0.4\n10.0.0.5",
    "SKYPILOT_NODE_RANK": "0",
    "SKYPILOT_NUM_NODES": "2",
    "SKYPILOT_NUM_GPUS_PER_NODE": "8",
    "SKYPILOT_TASK_ID": "sky-managed-1_sdft_1-0",
}
STAND_IN = """#!/bin/bash
printf '%s\\n' "$(basename "$0") $*" >> "$CALLS"
if [ "$(basename "$0") $1" = "scontrol show" ]; then printf 'n1\\nn2\\n'; exit 0; fi
if [ "$(basename "$0")" = "scontrol" ]; then exit 0; fi
exit "${CODE:-0}"
"""


def run(script: str, folder: Path, **environment: str) -> tuple[int, list[str]]:
    """Run a script; return its exit code, and what it called."""
    calls, tools = folder / "calls", folder / "tools"
    calls.unlink(missing_ok=True)
    tools.mkdir(exist_ok=True)
    for name in ("srun", "torchrun", "scontrol"):
        (tools / name).write_text(STAND_IN)
        (tools / name).chmod(0o755)
    own = {"PATH": f"{tools}:{os.environ['PATH']}", "CALLS": str(calls), **environment}
    done = subprocess.run(["bash", "-c", script], env=own, capture_output=True, text=True)
    return done.returncode, calls.read_text().splitlines() if calls.exists() else []


def checked(call: str) -> tuple[Any, list[str]]:
    """Return what torchrun makes of a call, and the words behind `sdft train`, whose options all exist."""
    from torch.distributed.run import get_args_parser

    found = get_args_parser().parse_args(call.split(" torchrun ")[-1].removeprefix("torchrun ").split())
    assert (found.module, found.training_script) == (True, "sdft_cli")
    command, *words = found.training_script_args
    assert command == "train"
    known = {word for parameter in make_commands.commands()["train"].params for word in parameter.opts}
    assert {word for word in words if word.startswith("--")} <= known
    return found, words


def test_the_slurm_script_parses_and_its_head_is_slurms() -> None:
    subprocess.run(["bash", "-n", str(SLURM)], check=True)
    options = dict(re.findall(r"^#SBATCH --([a-z-]+)=?(.*)$", SLURM.read_text(encoding="utf-8"), re.MULTILINE))
    assert options.keys() == {
        *("job-name", "nodes", "ntasks-per-node", "gpus-per-node", "cpus-per-task", "time"),
        *("signal", "requeue", "open-mode", "output"),
    }
    assert options["ntasks-per-node"] == "1"  # torchrun starts the processes of a machine


def test_slurm_starts_goes_on_and_puts_back(tmp_path: Path) -> None:
    script, folder = SLURM.read_text(encoding="utf-8"), tmp_path / "run"
    given = {**SLURM_GIVES, "DATA": "/shared/data", "RUN": str(folder)}
    code, (shown, call) = run(script, tmp_path, **given)
    assert (code, shown) == (0, "scontrol show hostnames n[1-2]")
    found, words = checked(call)
    assert call.startswith("srun --kill-on-bad-exit=1 torchrun ")
    assert (found.nnodes, found.nproc_per_node, found.rdzv_backend) == ("2", "8", "c10d")
    assert (found.rdzv_endpoint, found.rdzv_id, found.max_restarts) == ("n1:29500", "71-0", 0)
    profile = ["--profile", "recommended-qwen3.5-9b-64k", "--backend", "transformers"]
    assert words == ["/shared/data", *profile, "--out", str(folder)]
    folder.mkdir()
    (folder / "run.json").write_text("{}")
    code, calls = run(script, tmp_path, **given, CODE="1", SLURM_RESTART_COUNT="2")
    assert code == 1
    found, words = checked(calls[1])
    assert words == ["--resume", "--out", str(folder)]
    assert found.rdzv_id == "71-2"
    assert calls[2:] == ["scontrol requeue 71"]
    code, calls = run(script, tmp_path, **given, CODE="1", SLURM_RESTART_COUNT="3")
    assert (code, len(calls)) == (1, 2)  # often enough
    code, calls = run(script, tmp_path, **{**given, "RUN": ""})
    assert (code != 0, calls) == (True, [])


def test_the_skypilot_task_has_the_fields_that_skypilot_reads() -> None:
    assert SKY.keys() == {"name", "num_nodes", "resources", "volumes", "envs", "setup", "run"}
    assert SKY["resources"].keys() == {"infra", "accelerators", "job_recovery"}
    assert SKY["resources"]["job_recovery"] == {"max_restarts_on_errors": 3}
    assert all(isinstance(value, str) for value in SKY["envs"].values())
    used = set(re.findall(r"SKYPILOT_\w+", SKY["run"]))
    assert used == SKY_GIVES.keys()
    for script in (SKY["setup"], SKY["run"]):
        subprocess.run(["bash", "-n"], input=script, text=True, check=True)


@pytest.mark.parametrize("rank", [0, 1])
def test_skypilot_starts_and_goes_on(tmp_path: Path, rank: int) -> None:
    folder = tmp_path / "run"
    given = {**SKY_GIVES, **SKY["envs"], "RUN": str(folder), "SKYPILOT_NODE_RANK": str(rank)}
    code, (call,) = run(SKY["run"], tmp_path, **given)
    assert code == 0
    found, words = checked(call)
    assert (found.nnodes, found.nproc_per_node, found.rdzv_endpoint) == ("2", "8", "10.0.0.4:29500")
    assert found.rdzv_conf == f"is_host={'true' if rank == 0 else 'false'}"
    assert words[:3] == ["/shared/data/mine", "--profile", "recommended-qwen3.5-9b-64k"]
    folder.mkdir()
    (folder / "run.json").write_text("{}")
    code, (call,) = run(SKY["run"], tmp_path, **given, CODE="1")
    assert code == 1  # which SkyPilot restarts
    assert checked(call)[1] == ["--resume", "--out", str(folder)]


def machines(script: str, folder: Path, given: dict[str, str]) -> list[subprocess.Popen[bytes]]:
    """Start a script as two machines would."""
    return [
        subprocess.Popen(
            ["bash", "-c", script],
            env={**given, "SKYPILOT_NODE_RANK": str(rank)},
            stderr=(folder / f"log{rank}").open("w"),
            stdout=subprocess.DEVNULL,
            cwd=folder,
        )
        for rank in (0, 1)
    ]


def lose(machine: subprocess.Popen[bytes]) -> None:
    """Kill all that runs on a machine: torchrun starts its processes in sessions of their own."""
    import psutil

    with suppress(psutil.NoSuchProcess):
        own = psutil.Process(machine.pid)
        for process in (own, *own.children(recursive=True)):
            with suppress(psutil.NoSuchProcess):
                process.kill()


def ended(started: list[subprocess.Popen[bytes]]) -> list[int]:
    """Wait for machines; return their exit codes. Nothing is left behind."""
    try:
        return [machine.wait(150) for machine in started]
    finally:
        for machine in started:
            lose(machine)


@pytest.mark.slow
def test_a_lost_machine_of_the_skypilot_task(tmp_path: Path, tiny_model: Path) -> None:
    """Two machines on this one, with the real torchrun: they meet, one is lost, both come again and go on."""
    from tests.engine.parallel.launcher import free_port
    from tests.engine.prepared import prepared

    data, folder = prepared(tiny_model, tmp_path, 12, 0.3), tmp_path / "run"
    profile = yaml.safe_load(resource_text("templates", "profiles", "cpu-demo.yaml"))
    profile |= {"model": str(tiny_model), "gate": {"action": "off"}, "heldout": {"every": None}}
    profile |= {"checkpoint": {"every": 1}, "optim": {**profile["optim"], "max_steps": 12, "turns_per_step": 4}}
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(profile))
    given = {
        **os.environ,
        **SKY_GIVES,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",  # torchrun is beside it
        "DATA": str(data.path),
        "RUN": str(folder),
        "PROFILE": str(tmp_path / "tiny.yaml"),
        "OMP_NUM_THREADS": "1",
        "SKYPILOT_NODE_IPS": "127.0.0.1\n127.0.0.1",
        "SKYPILOT_NUM_GPUS_PER_NODE": "1",
    }
    script, steps = SKY["run"].replace("29500", str(free_port())), folder / "metrics.jsonl"
    started = machines(script, tmp_path, given)
    while not steps.is_file() or len(steps.read_text().splitlines()) < 2:
        assert [machine.poll() for machine in started] == [None, None], (tmp_path / "log0").read_text()[-3000:]
        time.sleep(0.1)
    lose(started[1])
    codes = ended(started)
    assert codes[0] not in (0, None)
    assert json.loads((folder / "run.json").read_text())["status"] == "running"
    assert ended(machines(script, tmp_path, given)) == [0, 0], (tmp_path / "log0").read_text()[-3000:]
    lines = [json.loads(line) for line in steps.read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, 13))
    assert all("processes" in line["phase_seconds"] for line in lines)
    assert run(SKY["run"], tmp_path, **given) == (0, [])  # finished: torchrun is not called


def test_launchers_know_the_options_on_the_page() -> None:
    from accelerate.commands.launch import launch_command_parser

    page = (ROOT / "docs" / "multi-node.md").read_text(encoding="utf-8").replace("\\\n", " ")
    calls = re.findall(r"^    ((?:torchrun|accelerate launch) .*)$", page, re.MULTILINE)
    assert len(calls) == 4
    for call in calls:
        if call.startswith("torchrun"):
            checked(call)
            continue
        found = launch_command_parser().parse_args(call.replace("RANK", "0").split()[2:])
        assert (found.module, found.training_script) == (True, "sdft_cli")
        checked("torchrun -m sdft_cli " + " ".join(found.training_script_args))


def test_the_profiles_of_the_examples_exist() -> None:
    from sdft_cli.config import load_train_config

    assert load_train_config(SKY["envs"]["PROFILE"]).optim.turns_per_step == 8
    assert SKY["envs"]["PROFILE"] in SLURM.read_text(encoding="utf-8")
