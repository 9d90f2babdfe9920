"""`sdft train` in one, two and three processes: the same run; and what is left of one of which a process was killed."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.engine.parallel.launcher import Launcher

torch = pytest.importorskip("torch")

from safetensors.torch import load_file  # noqa: E402

from tests.engine.prepared import prepared  # noqa: E402

STEPS, EVERY = 20, 15
SETTINGS = {
    "lora.rank": 4,
    "rollout.max_new_tokens": 4,
    "rollout.start_tokens": "null",
    "optim.turns_per_step": 4,
    "optim.max_steps": STEPS,
    "optim.learning_rate": 3e-4,
    "distill.lambda_on_policy": 0.7,
    "distill.lambda_by": "turn",
    "checkpoint.every": EVERY,
    "checkpoint.keep_last": 9,
    "heldout.every": 10,
    "heldout.records": 3,
    "heldout.max_new_tokens": 4,
    "gate.action": "off",
    "samples_every": 1,
    "products": "exact",
    "rehearse": "false",
}


class Runs:
    """Runs on a dataset for the tiny model, by the command itself."""

    def __init__(self, launcher: Launcher, model: Path, folder: Path) -> None:
        self.launcher, self.folder = launcher, folder
        data = prepared(model, folder, 8, 0.3)
        self.begin = [str(data.path), "--profile", "cpu-demo", "--model", str(model), "--backend", "transformers"]

    def train(self, name: str, count: int, settings: dict[str, Any] | None = None, **more: Any) -> dict[str, Any]:
        """Train with so many processes, in a folder of this name; returns the launcher's answer."""
        changed = [x for k, v in (SETTINGS | (settings or {})).items() for x in ("--set", f"{k}={v}")]
        return self.run(name, count, [*self.begin, *changed], **more)

    def run(self, name: str, count: int, arguments: list[str], **more: Any) -> dict[str, Any]:
        asked = ["train", *arguments, "--out", name]
        return self.launcher.run(count, "sdft_cli", asked, self.folder, str(self.folder / f"{name}.log"), **more)

    def said(self, name: str, rank: int) -> str:
        """What a process printed, on stdout and stderr."""
        return "".join((self.folder / f"{name}.log.{kind}{rank}").read_text() for kind in ("out", "err"))

    def lines(self, name: str, file: str) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.folder / name / file).read_text().splitlines()]

    def adapter(self, name: str) -> dict[str, Any]:
        return load_file(self.folder / name / "adapter" / "adapter_model.safetensors")


@pytest.fixture(scope="module")
def runs(launcher: Launcher, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """Whole runs in 1, 2 and 3 processes, with the names of their numbers."""
    found = Runs(launcher, tiny_model, tmp_path_factory.mktemp("runs"))
    for count in (1, 2, 3):
        answer = found.train(str(count), count)
        assert answer["codes"] == [0] * count, found.said(str(count), 0)
    return found


@pytest.fixture(scope="module")
def killed(runs: Runs) -> dict[str, Any]:
    """Process 1 of 2 is killed in one of the steps from 17 on."""
    kill = {"rank": 1, "file": str(runs.folder / "killed" / "metrics.jsonl"), "lines": 16}
    return runs.train("killed", 2, kill=kill)


def assert_same_run(runs: Runs, name: str, other: str) -> None:
    for file in ("metrics.jsonl", "samples.jsonl", "heldout.jsonl", "heldout_answers.jsonl"):
        assert len(runs.lines(name, file)) == len(runs.lines(other, file))
    for a, b in zip(runs.lines(name, "metrics.jsonl"), runs.lines(other, "metrics.jsonl"), strict=True):
        exact = ("step", "loss_tokens", "rollout_tokens", "finished_share", "on_policy_share", "learning_rate")
        assert [a[key] for key in exact] == [b[key] for key in exact]
        assert a["loss"] == pytest.approx(b["loss"], abs=1e-5)
        assert a["grad_norm"] == pytest.approx(b["grad_norm"], rel=1e-3)
    for a, b in zip(runs.lines(name, "samples.jsonl"), runs.lines(other, "samples.jsonl"), strict=True):
        exact = ("record_id", "on_policy", "rollout", "tokens", "kinds", "first_with_loss")
        assert [a[key] for key in exact] == [b[key] for key in exact]
        assert a["per_token"] == pytest.approx(b["per_token"], abs=1e-4)
        assert a["worst"]
        assert [worst["at"] for worst in a["worst"]] == [worst["at"] for worst in b["worst"]]
        for sums, others in zip(a["sums"].values(), b["sums"].values(), strict=True):
            assert sums["trajectories"] == others["trajectories"]
            assert {k: n for k, (_, n) in sums["positions"].items()} == {
                k: n for k, (_, n) in others["positions"].items()
            }
    for a, b in zip(runs.lines(name, "heldout_answers.jsonl"), runs.lines(other, "heldout_answers.jsonl"), strict=True):
        kept = ("record_id", "text", "rollout_tokens", "reference_tokens", "tools", "flags")
        assert [[x[k] for k in kept] for x in a["answers"]] == [[x[k] for k in kept] for x in b["answers"]]
        assert [x["kl"] for x in a["answers"]] == pytest.approx([x["kl"] for x in b["answers"]], abs=1e-3)
    one, two = runs.adapter(name), runs.adapter(other)
    assert one.keys() == two.keys()
    assert max(float((one[key] - two[key]).abs().max()) for key in one) <= 1e-5


@pytest.mark.parametrize("count", [2, 3])
def test_any_number_of_processes_is_the_same_run(runs: Runs, count: int) -> None:
    assert_same_run(runs, "1", str(count))
    assert max(float(tensor.abs().max()) for tensor in runs.adapter("1").values()) > 1e-3  # it has been trained
    assert {line["on_policy_share"] for line in runs.lines("1", "metrics.jsonl")} == {0.5, 0.75}
    assert len(runs.lines("1", "metrics.jsonl")) == STEPS


def test_the_first_process_alone_speaks_and_writes(runs: Runs) -> None:
    assert "step 20/20" in runs.said("3", 0)
    assert "Run written to 3" in runs.said("3", 0)
    assert [runs.said("3", rank) for rank in (1, 2)] == ["", ""]
    names = [sorted(str(p.relative_to(runs.folder / n)) for p in (runs.folder / n).rglob("*")) for n in ("1", "3")]
    assert names[0] == names[1]


def test_a_process_that_is_killed_ends_the_run(runs: Runs, killed: dict[str, Any]) -> None:
    assert killed["codes"] == [1, -9]
    assert killed["seconds"] < 60
    (sentence,) = [line for line in runs.said("killed", 0).splitlines() if line.startswith("sdft:")]
    assert sentence.startswith("sdft: Process 1 of 2 (counted from 0) was killed or crashed (its process ")
    assert sentence.endswith("go on with `sdft train --resume`, with as many processes or others.")
    assert "Traceback" not in runs.said("killed", 0)
    assert json.loads((runs.folder / "killed" / "run.json").read_text())["status"] == "running"


@pytest.mark.parametrize("count", [1, 2, 3])
def test_a_run_goes_on_with_any_number_of_processes(runs: Runs, killed: dict[str, Any], count: int) -> None:
    name = f"resumed-{count}"
    shutil.copytree(runs.folder / "killed", runs.folder / name)
    assert runs.run(name, count, ["--resume"])["codes"] == [0] * count
    assert re.search(r"Going on after step 1[6-9]\b", runs.said(name, 0))  # the first process saved what was whole
    assert_same_run(runs, "1", name)


def test_when_the_first_process_is_killed_the_next_one_says_so(runs: Runs) -> None:
    kill = {"rank": 0, "file": str(runs.folder / "first" / "metrics.jsonl"), "lines": 2}
    answer = runs.train("first", 2, kill=kill)
    assert answer["codes"] == [-9, 1]
    assert answer["seconds"] < 60
    assert runs.said("first", 1).startswith("sdft: Process 0 of 2 (counted from 0) was killed or crashed")


def test_an_interrupt_of_one_process_saves_the_run(runs: Runs) -> None:
    kill = {
        "rank": 1,
        "signal": "SIGINT",
        "file": str(runs.folder / "interrupted" / "metrics.jsonl"),
        "lines": 3,
    }
    assert runs.train("interrupted", 2, kill=kill)["codes"] == [130, 130]
    assert "sdft: interrupted after step" in runs.said("interrupted", 0)
    assert runs.said("interrupted", 1) == ""
    done = len(runs.lines("interrupted", "metrics.jsonl"))
    assert (runs.folder / "interrupted" / "checkpoints" / f"step-{done:06d}").is_dir()


FEW = {"optim.max_steps": 3, "heldout.every": "null"}


@pytest.mark.parametrize(
    "settings",
    [
        {"objective": "sft", "prefix_sharing": "none"},
        {"prefix_sharing": "depth_first", "optim.turns_per_step": 1, "rollout.per_record": 2, "rehearse": "true"},
        {"teacher.kind": "ema", "optim.turns_per_step": 1, "gate.action": "warn", "gate.max_new_tokens": 4},
    ],
    ids=["sft-none", "depth_first", "ema"],
)
def test_each_way_to_run_a_step(runs: Runs, settings: dict[str, Any], request: pytest.FixtureRequest) -> None:
    """With one turn in a step, one of two processes has nothing to do."""
    name = request.node.callspec.id
    for count in (1, 2):
        answer = runs.train(f"{name}-{count}", count, FEW | settings)
        assert answer["codes"] == [0] * count, runs.said(f"{name}-{count}", 0)
    assert_same_run(runs, f"{name}-1", f"{name}-2")
    if "gate.action" in settings:
        gates = [json.loads((runs.folder / f"{name}-{count}" / "gate.json").read_text()) for count in (1, 2)]
        assert [item["record_id"] for item in gates[0]["items"]] == [item["record_id"] for item in gates[1]["items"]]
        assert [item["text_with"] for item in gates[0]["items"]] == [item["text_with"] for item in gates[1]["items"]]
        for key in ("nll_without", "nll_with", "nll_control"):
            expected = [item[key] for item in gates[0]["items"]]
            assert [item[key] for item in gates[1]["items"]] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (
            ["--set", "lora.dropout=0.1"],
            "With lora.dropout, several processes would drop other values than one does: add --set lora.dropout=0, or "
            "train in one process.",
        ),
        (["--profile-steps", "2"], "--profile-steps measures one process: leave it out, or train in one process."),
        (
            ["--set", "backend=unsloth"],
            "Several processes run the transformers backend only: add --backend transformers.",
        ),
        (["--set", "optim.max_steps=never"], "optim.max_steps: "),
    ],
)
def test_what_cannot_be_shared_is_refused_in_a_sentence(runs: Runs, arguments: list[str], sentence: str) -> None:
    begin = [x for x in runs.begin if x not in ("--backend", "transformers")]
    answer = runs.run("refused", 2, [*begin, *arguments])
    assert answer["codes"] == [2, 2]
    assert runs.said("refused", 0).splitlines()[-1].startswith(f"sdft: {sentence}")
    assert runs.said("refused", 1) == ""
    assert not (runs.folder / "refused").exists()


def test_other_commands_are_not_shared(runs: Runs) -> None:
    arguments = ["whole", str(runs.folder), runs.begin[0], runs.begin[4]]
    runs.launcher.run(2, "tests.engine.parallel.probe", arguments, runs.folder, str(runs.folder / "whole.log"))
    assert "2 processes were started, and they can share `sdft train` only" in runs.said("whole", 0)
