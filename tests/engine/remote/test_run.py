"""`sdft train --rollouts vllm`: whole runs with a server, what is recorded, and what is left when it stops."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from safetensors.torch import load_file  # noqa: E402

from sdft_cli.engine.objective.importance import importance  # noqa: E402
from sdft_cli.records import Dataset  # noqa: E402
from tests.conftest import ROOT  # noqa: E402
from tests.engine.parallel.launcher import Launcher  # noqa: E402
from tests.engine.remote.conftest import Serve  # noqa: E402

Sdft = Callable[..., subprocess.CompletedProcess[str]]
SETTINGS = {
    "lora.rank": 4,
    "rollout.max_new_tokens": 6,
    "rollout.start_tokens": "null",
    "optim.turns_per_step": 4,
    "optim.max_steps": 6,
    "optim.learning_rate": 3e-3,
    "optim.warmup_steps": 0,
    "optim.schedule": "constant",
    "distill.lambda_on_policy": 1,
    "distill.lambda_start": "null",
    "heldout.every": "null",
    "gate.action": "off",
    "samples_every": 1,
    "rehearse": "false",
    "products": "exact",
    "stop.max_sampler_gap": 5,
}


def asked(data: Dataset, model: Path, url: str, name: str, **settings: Any) -> list[str]:
    changed = {**SETTINGS, **{key.replace("__", "."): value for key, value in settings.items()}}
    sets = [x for key, value in changed.items() for x in ("--set", f"{key}={value}")]
    begin = ["train", str(data.path), "--profile", "cpu-demo", "--model", str(model), "--backend", "transformers"]
    return [*begin, "--rollouts", "vllm", "--vllm-url", url, "--out", name, *sets]


def lines(folder: Path, file: str = "metrics.jsonl") -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / file).read_text().splitlines()]


def adapter(folder: Path) -> dict[str, Any]:
    return load_file(folder / "adapter" / "adapter_model.safetensors")


def assert_same_adapter(one: Path, other: Path, within: float) -> None:
    a, b = adapter(one), adapter(other)
    assert a.keys() == b.keys()
    assert max(float((a[key] - b[key]).abs().max()) for key in a) <= within
    assert max(float(tensor.abs().max()) for tensor in a.values()) > 1e-3  # it has been trained


@pytest.fixture(scope="module")
def server(serve: Serve, tiny_model: Path) -> Any:
    return serve(tiny_model, adapters=True)


@pytest.mark.parametrize(
    ("settings", "staleness"),
    [
        ({}, [0, 0, 0, 0, 0, 0]),
        ({"rollout.sync_every": 3}, [0, 1, 2, 0, 1, 2]),
        ({"rollout.ahead": "true"}, [0, 1, 1, 1, 1, 1]),
        ({"rollout.ahead": "true", "rollout.sync_every": 2}, [0, 1, 2, 1, 2, 1]),
    ],
    ids=["each", "every-3", "ahead", "ahead-every-2"],
)
def test_staleness_is_recorded(
    sdft: Sdft,
    data: Dataset,
    tiny_model: Path,
    server: Any,
    tmp_path: Path,
    settings: dict[str, Any],
    staleness: list[int],
) -> None:
    done = sdft(*asked(data, tiny_model, server.url, "run", **settings))
    assert done.returncode == 0, done.stderr
    assert f"Rollouts: sampled by {tiny_model} at {server.url}" in done.stderr
    found = lines(tmp_path / "run")
    assert [line["rollout_staleness"] for line in found] == staleness
    for line in found:
        stale = line["rollout_staleness"] > 0
        assert ("importance_weight" in line) is stale
        if stale:
            assert line["sampler_gap"] > 1e-3  # the adapter moved meanwhile
            assert 0 < line["importance_weight"] <= 2
            assert 0 <= line["importance_clipped"] <= 1
    fresh = [line["sampler_gap"] for line in found if line["rollout_staleness"] == 0 and "sampler_gap" in line]
    assert fresh
    assert max(fresh) < 1e-4
    assert server.service.adapters == {}  # it was taken back
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run"]


def test_stale_rollouts_are_weighed_in_the_gradient(
    tiny_model: Path, server: Any, data: Dataset, tmp_path: Path
) -> None:
    """The loss of a step is the sum over its tokens of weight, importance and divergence, which are found apart."""
    from accelerate import Accelerator

    from sdft_cli.config import load_train_config
    from sdft_cli.engine.models.load import load_backend
    from sdft_cli.engine.passes.decode import Rollout
    from sdft_cli.engine.passes.timing import Phases
    from sdft_cli.engine.train.sdft_step import Trainer
    from sdft_cli.prompts.chat import open_prompts

    config = load_train_config("cpu-demo", ["lora.rank=4", "rollout.importance_clip=1.5", "distill.average=tokens"])
    trainer = Trainer(
        config,
        load_backend(config, "transformers", str(tiny_model)),
        open_prompts(str(tiny_model), data.manifest),
        Accelerator(cpu=True),
    )
    torch.manual_seed(1)
    for p in trainer.backend.parameters():
        p.data.add_(torch.randn_like(p) * 0.1)
    examples = [trainer.example(record) for record in data.train[:2]]
    fresh = [Rollout([7, 8, 9], False), Rollout([10, 11], False)]
    plain = trainer.backward(examples, fresh, Phases(), want_log_probs=True)
    assert plain.log_probs
    plain_gradient = torch.cat([p.grad.flatten() for p in trainer.backend.parameters() if p.grad is not None])
    trainer.optimizer.zero_grad()
    then = [[x - d for x, d in zip(logs, (0.3, -0.5, 0.1), strict=False)] for logs in plain.log_probs]
    stale = [Rollout(y.ids, y.finished, logs, staleness=1) for y, logs in zip(fresh, then, strict=True)]
    found = trainer.backward(examples, stale, Phases())
    rows = zip(plain.log_probs, then, plain.per_token, strict=True)
    weighed = [
        w * d
        for now, old, divergences in rows
        for w, d in zip(importance(torch.tensor(now), torch.tensor(old), config.rollout), divergences, strict=True)
    ]
    assert found.loss == pytest.approx(float(sum(weighed)) / 5, rel=1e-5)
    assert found.per_token[0] == pytest.approx(plain.per_token[0], rel=1e-5)
    gradient = torch.cat([p.grad.flatten() for p in trainer.backend.parameters() if p.grad is not None])
    assert (gradient - plain_gradient).norm() > 1e-3 * plain_gradient.norm()
    trainer.optimizer.zero_grad()
    off = trainer.backward(examples, [Rollout(y.ids, y.finished, y.log_probs) for y in stale], Phases())
    assert off.loss == pytest.approx(plain.loss, rel=1e-6)


class Process:
    """A server in a process of its own, at a port that it can have again."""

    def __init__(self, model: Path) -> None:
        with socket.socket() as found:
            found.bind(("127.0.0.1", 0))
            self.port = int(found.getsockname()[1])
        self.model, self.url = model, f"http://127.0.0.1:{self.port}"
        self.process: subprocess.Popen[str] | None = None

    def start(self) -> None:
        command = ["-m", "benchmarks.completions_server", str(self.model), "--port", str(self.port), "--adapters"]
        self.process = subprocess.Popen([sys.executable, *command], cwd=ROOT, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout
        assert "Serving" in self.process.stdout.readline()

    def kill(self) -> None:
        if self.process:
            self.process.kill()
            self.process.wait()
            assert self.process.stdout
            self.process.stdout.close()
            self.process = None


@pytest.fixture
def process(tiny_model: Path) -> Iterator[Process]:
    found = Process(tiny_model)
    yield found
    found.kill()


def started(asking: list[str], run: Path, steps: int) -> subprocess.Popen[str]:
    """Start a training in a process of its own; return it when so many steps are written."""
    training = subprocess.Popen(
        [sys.executable, "-m", "sdft_cli", *asking],
        cwd=run.parent,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stderr=subprocess.PIPE,
        text=True,
    )
    metrics, end = run / "metrics.jsonl", time.monotonic() + 120
    while not (metrics.is_file() and metrics.read_bytes().count(b"\n") >= steps) and time.monotonic() < end:
        time.sleep(0.02)
    return training


def test_a_server_that_stops_in_the_middle(
    sdft: Sdft, data: Dataset, tiny_model: Path, process: Process, tmp_path: Path
) -> None:
    """The steps before it are saved; with a server at the same address the run goes on to the same adapter."""
    process.start()
    whole = sdft(*asked(data, tiny_model, process.url, "whole", optim__max_steps=10))
    assert whole.returncode == 0, whole.stderr
    training = started(asked(data, tiny_model, process.url, "stopped", optim__max_steps=10), tmp_path / "stopped", 3)
    process.kill()
    _, said = training.communicate(timeout=60)
    assert training.returncode == 1, said
    (sentence,) = [line for line in said.splitlines() if line.startswith("sdft: ")]
    assert sentence.startswith(f"sdft: The rollout server {process.url} does not answer (")
    assert sentence.endswith("a run that had begun goes on with `sdft train --resume`.")
    assert "Traceback" not in said
    done = len(lines(tmp_path / "stopped"))
    assert 3 <= done < 10
    assert (tmp_path / "stopped" / "checkpoints" / f"step-{done:06d}").is_dir()
    refused = sdft("train", "--resume", "--out", "stopped")
    assert refused.returncode == 1
    assert "does not answer (" in refused.stderr
    process.start()
    resumed = sdft("train", "--resume", "--out", "stopped")
    assert resumed.returncode == 0, resumed.stderr
    assert f"Going on after step {done}" in resumed.stderr
    assert [line["loss"] for line in lines(tmp_path / "stopped")] == [
        line["loss"] for line in lines(tmp_path / "whole")
    ]
    assert_same_adapter(tmp_path / "stopped", tmp_path / "whole", 0.0)


def test_a_signal_ends_the_wait_for_rollouts(data: Dataset, tiny_model: Path, serve: Serve, tmp_path: Path) -> None:
    """The server would answer in minutes; the run is saved at once."""
    server = serve(tiny_model, adapters=True)
    training = started(asked(data, tiny_model, server.url, "run", optim__max_steps=200), tmp_path / "run", 2)
    object.__setattr__(server.service.options, "delay", 300.0)
    time.sleep(1)
    training.send_signal(signal.SIGINT)
    _, said = training.communicate(timeout=30)
    assert training.returncode == 130, said
    assert "sdft: interrupted after step" in said


@pytest.mark.parametrize("settings", [{}, {"rollout.ahead": "true"}], ids=["in-time", "ahead"])
def test_processes_ask_for_their_shares(
    launcher: Launcher, data: Dataset, tiny_model: Path, server: Any, tmp_path: Path, settings: dict[str, Any]
) -> None:
    for count in (1, 2):
        asking = asked(data, tiny_model, server.url, str(count), **settings)
        answer = launcher.run(count, "sdft_cli", asking, tmp_path, str(tmp_path / f"log{count}"))
        assert answer["codes"] == [0] * count, (tmp_path / f"log{count}.err0").read_text()
    one, two = (lines(tmp_path / str(count)) for count in (1, 2))
    for a, b in zip(one, two, strict=True):
        same = ("step", "rollout_tokens", "rollout_staleness", "on_policy_share")
        assert [a[key] for key in same] == [b[key] for key in same]
        assert a["loss"] == pytest.approx(b["loss"], abs=1e-4)
    samples = [[line["rollout"] for line in lines(tmp_path / str(count), "samples.jsonl")] for count in (1, 2)]
    assert samples[0] == samples[1]
    assert_same_adapter(tmp_path / "1", tmp_path / "2", 1e-4)


def test_processes_stop_together_when_the_server_does(
    launcher: Launcher, data: Dataset, tiny_model: Path, tmp_path: Path
) -> None:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{found.getsockname()[1]}"
    answer = launcher.run(2, "sdft_cli", asked(data, tiny_model, url, "run"), tmp_path, str(tmp_path / "log"))
    assert answer["codes"] == [1, 1]
    said = [(tmp_path / f"log.err{rank}").read_text() for rank in (0, 1)]
    assert f"sdft: The rollout server {url} does not answer (" in said[0]
    assert said[1] == ""
