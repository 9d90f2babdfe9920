"""`sdft train` in several processes: is it as fast as threads, and does a killed process leave a run that goes on?

    python -m benchmarks.processes speed --model smollm2-135m --data data/demo --steps 6
    python -m benchmarks.processes kills --model MODEL --data DATA --kills 20

`speed` trains the same steps in 2 processes with 1 thread each and in 1 process with 2 threads, and prints the seconds
of their steps and the ratio, phase by phase. `kills` kills a random process of two at a random moment, again and again,
goes on with 1, 2 or 3 processes, and compares the adapter in the end with that of a run that nobody disturbed.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

PORT = 29631


def start(count: int, threads: int, arguments: list[str], log: Path) -> list[subprocess.Popen[bytes]]:
    """Start the processes of a run; they see for themselves when one is gone."""
    found = []
    for rank in range(count):
        several = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(count)}
        several |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(PORT)}
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads), **(several if count > 1 else {})}
        command = [sys.executable, "-m", "sdft_cli", "train", *arguments]
        found.append(subprocess.Popen(command, env=environment, stdout=log.open("ab"), stderr=subprocess.STDOUT))
    return found


def metrics(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def speed(base: list[str], folder: Path, steps: int) -> None:
    seconds: dict[str, dict[str, float]] = {}
    losses = []
    for name, count, threads in (("2 processes x 1 thread", 2, 1), ("1 process x 2 threads", 1, 2)):
        run = folder / str(count)
        more = ["--out", str(run), "--max-steps", str(steps), "--gate", "off", "--set", "heldout.every=null"]
        codes = [process.wait() for process in start(count, threads, [*base, *more], folder / "log")]
        assert not any(codes), (folder / "log").read_text()[-2000:]
        lines = metrics(run)[1:]  # the first step warms up
        losses.append([line["loss"] for line in lines])
        phases = {phase for line in lines for phase in line["phase_seconds"]}
        seconds[name] = {phase: sum(line["phase_seconds"].get(phase, 0.0) for line in lines) for phase in phases}
        seconds[name]["all"] = sum(line["seconds"] for line in lines)
        print(name, {phase: round(value, 2) for phase, value in sorted(seconds[name].items())}, flush=True)
    two, one = seconds.values()
    for phase in sorted(one):
        print(f"{phase}: {one[phase] / max(two.get(phase, 0.0), 1e-9):.2f} times as fast in 2 processes")
    print("largest difference of losses", max(abs(a - b) for a, b in zip(*losses, strict=True)))


def kills(base: list[str], folder: Path, wanted: int, seed: int) -> None:
    from safetensors.torch import load_file

    generator = random.Random(seed)
    more = ["--gate", "off", "--set", "checkpoint.every=3", "--set", "heldout.every=null", "--set", "products=exact"]
    whole, run = folder / "whole", folder / "killed"
    assert start(1, 1, [*base, *more, "--out", str(whole)], folder / "log")[0].wait() == 0
    done, slowest, finished = 0, 0.0, 0
    while done < wanted:
        begun = (run / "run.json").is_file()
        counts = [1, 2, 3] if done % 4 == 3 else [2]
        count = generator.choice(counts)
        arguments = ["--resume", "--out", str(run)] if begun else [*base, *more, "--out", str(run)]
        processes = start(count, 1, arguments, folder / "log")
        before, began = time.monotonic(), generator.uniform(0, 25)
        while time.monotonic() - before < began and all(p.poll() is None for p in processes):
            time.sleep(0.05)
        if all(p.poll() is None for p in processes):
            generator.choice(processes).send_signal(signal.SIGKILL)
            killed = time.monotonic()
            codes = [process.wait(120) for process in processes]
            seconds, done = time.monotonic() - killed, done + 1
            slowest = max(slowest, seconds)
            print(f"kill {done}: {count} processes, exit codes {codes} after {seconds:.1f} s", flush=True)
            # The last breath of a run that is finished may be taken from it.
            assert all(codes) or json.loads((run / "run.json").read_text())["status"] == "finished", codes
        else:
            assert [process.wait(120) for process in processes] == [0] * count, (folder / "log").read_text()[-2000:]
        if (run / "run.json").is_file() and json.loads((run / "run.json").read_text())["status"] == "finished":
            finished += 1
            compare(load_file(whole / NAME), load_file(run / NAME))
            shutil.rmtree(run)
    if run.exists():
        last = [process.wait() for process in start(2, 1, ["--resume", "--out", str(run)], folder / "log")]
        assert not any(last), last
        finished += 1
        compare(load_file(whole / NAME), load_file(run / NAME))
    print(f"{done} kills, the slowest end after {slowest:.1f} s, {finished} run(s) that came to their end")


NAME = "adapter/adapter_model.safetensors"


def compare(one: dict[str, Any], other: dict[str, Any]) -> None:
    difference = max(float((one[name].float() - other[name].float()).abs().max()) for name in one)
    print(f"largest difference of adapters {difference:.1e}", flush=True)
    assert difference <= 1e-5


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=["speed", "kills"])
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--data", required=True)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--set", action="append", default=[], help="settings of the runs")
    asked = parser.parse_args()
    base = [asked.data, "--model", asked.model, "--profile", "cpu-demo", "--backend", "transformers"]
    base += [x for setting in asked.set for x in ("--set", setting)]
    with tempfile.TemporaryDirectory() as folder:
        if asked.what == "speed":
            speed(base, Path(folder), asked.steps)
        else:
            kills(base, Path(folder), asked.kills, asked.seed)


if __name__ == "__main__":
    main()
