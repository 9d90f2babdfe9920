from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from accelerate import Accelerator  # noqa: E402

from sdft_cli.config import load_train_config  # noqa: E402
from sdft_cli.engine.models.load import load_backend  # noqa: E402
from sdft_cli.engine.train.heldout import HeldOut  # noqa: E402
from sdft_cli.engine.train.loop import Loop, check_records  # noqa: E402
from sdft_cli.engine.train.sdft_step import Trainer  # noqa: E402
from sdft_cli.errors import DataError, OutOfMemory, VerificationError  # noqa: E402
from sdft_cli.prompts.chat import open_prompts  # noqa: E402
from sdft_cli.records import Dataset  # noqa: E402

FAST = [
    "lora.rank=4",
    "rollout.max_new_tokens=4",
    "optim.turns_per_step=3",
    "optim.max_steps=4",
    "checkpoint.every=2",
    "heldout.every=2",
    "heldout.records=2",
    "heldout.max_new_tokens=3",
]


class Watching:
    """Keeps what it is told, and can do something to the run at a step."""

    def __init__(self, at_step: Callable[[int], None] = lambda step: None) -> None:
        self.steps: list[int] = []
        self.evaluations: list[int] = []
        self.notices: list[str] = []
        self.at_step = at_step

    def step(self, metrics: Mapping[str, Any]) -> None:
        self.steps.append(metrics["step"])
        self.at_step(metrics["step"])

    def heldout(self, metrics: Mapping[str, Any]) -> None:
        self.evaluations.append(metrics["step"])

    def notice(self, text: str) -> None:
        self.notices.append(text)


def loop(model: Path, data: Dataset, folder: Path, *overrides: str, watching: Watching | None = None) -> Loop:
    config = load_train_config("cpu-demo", [*FAST, *overrides])
    backend = load_backend(config, "transformers", str(model))
    found = Trainer(config, backend, open_prompts(str(model), data.manifest), Accelerator(cpu=True))
    folder.mkdir(exist_ok=True)
    heldout = HeldOut(
        backend,
        found.prompts,
        data.validation,
        config.heldout,
        max_tokens_per_pass=4096,
        max_decode_tokens=4096,
        notify=print,
    )
    return Loop(found, data.train, folder, heldout, watching or Watching())


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_run_writes_what_it_promises(tiny_model: Path, tiny_data: Dataset, tmp_path: Path) -> None:
    watching = Watching()
    settings = ["samples_every=3", "distill.lambda_on_policy=1", "optim.learning_rate=1e-3", "optim.warmup_steps=5"]
    loop(tiny_model, tiny_data, tmp_path / "r", *settings, watching=watching).run()
    metrics = lines(tmp_path / "r" / "metrics.jsonl")
    assert watching.steps == [x["step"] for x in metrics] == [1, 2, 3, 4]
    assert metrics[0]["learning_rate"] == pytest.approx(1e-3 / 5)
    assert metrics[1]["learning_rate"] == pytest.approx(2e-3 / 5)
    keys = {"loss", "kl_per_token", "rollout_length", "tokens_per_second", "phase_seconds", "grad_norm", "updated"}
    assert keys <= set(metrics[0])
    assert {"rollout", "teacher", "student", "loss", "backward"} <= set(metrics[0]["phase_seconds"])
    assert "sampler_gap" in metrics[0]
    assert "sampler_gap" not in metrics[1]
    assert watching.evaluations == [x["step"] for x in lines(tmp_path / "r" / "heldout.jsonl")] == [0, 2, 4]
    samples = lines(tmp_path / "r" / "samples.jsonl")
    assert [x["step"] for x in samples] == [1, 3, 4]
    assert len(samples[0]["tokens"]) == len(samples[0]["per_token"]) > 0
    assert "".join(samples[0]["tokens"]) == samples[0]["rollout"]
    assert all(len(x["worst"]) == min(16, len(x["tokens"])) and len(x["kinds"]) == len(x["tokens"]) for x in samples)
    answers = lines(tmp_path / "r" / "heldout_answers.jsonl")
    assert [x["step"] for x in answers] == [0, 2, 4]
    names = [[answer["record_id"] for answer in line["answers"]] for line in answers]
    assert names[0] == names[1] == names[2]
    assert [["reference" in answer for answer in line["answers"]] for line in answers] == [
        [True] * 2,
        *[[False] * 2] * 2,
    ]
    told = [
        sum(a["kl"] for a in line["answers"]) / sum(a["rollout_tokens"] for a in line["answers"]) for line in answers
    ]
    assert told == pytest.approx([x["kl_per_token"] for x in lines(tmp_path / "r" / "heldout.jsonl")])
    assert sorted(p.name for p in (tmp_path / "r" / "checkpoints").iterdir() if p.is_dir()) == [
        "step-000002",
        "step-000004",
    ]


def test_a_resumed_run_writes_the_same_samples_and_answers(
    tiny_model: Path, tiny_data: Dataset, tmp_path: Path
) -> None:
    """Stopped behind step 3, whose sample was written; it goes on from step 2."""
    settings = ["samples_every=1", "optim.learning_rate=1e-3"]
    loop(tiny_model, tiny_data, tmp_path / "whole", *settings).run()

    def leave(step: int) -> None:
        if step == 3:
            raise KeyError("killed")

    with pytest.raises(KeyError):
        loop(tiny_model, tiny_data, tmp_path / "r", *settings, watching=Watching(leave)).run()
    assert [x["step"] for x in lines(tmp_path / "r" / "samples.jsonl")] == [1, 2, 3]
    again = loop(tiny_model, tiny_data, tmp_path / "r", *settings)
    assert again.resume() == 2
    again.run()
    for name in ("samples.jsonl", "heldout_answers.jsonl"):
        assert (tmp_path / "r" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


@pytest.mark.parametrize(("moved", "saved"), [(False, ["step-000002", "step-000003"]), (True, ["step-000002"])])
def test_out_of_memory_loses_no_whole_step(
    tiny_model: Path, tiny_data: Dataset, tmp_path: Path, moved: bool, saved: list[str]
) -> None:
    """In step 4, before its update: step 3 is saved. Within the update the adapter may be neither: it is not."""
    whole = loop(tiny_model, tiny_data, tmp_path / "whole", "heldout.every=null")
    whole.run()

    def fail(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError

    run = loop(tiny_model, tiny_data, tmp_path / "r", "heldout.every=null")
    part = run.trainer.optimizer if moved else run.trainer

    def at(step: int) -> None:
        if step == 3:
            setattr(part, "step" if moved else "backward", fail)

    run.observer = Watching(at)
    with pytest.raises(OutOfMemory, match=r"^Out of memory in step 4: lower or set"):
        run.run()
    assert sorted(p.name for p in (tmp_path / "r" / "checkpoints").iterdir() if p.is_dir()) == saved
    again = loop(tiny_model, tiny_data, tmp_path / "r", "heldout.every=null", "optim.max_tokens_per_pass=300")
    assert again.resume() == (2 if moved else 3)
    again.run()
    ends = [list(run.trainer.backend.parameters()) for run in (whole, again)]
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(*ends, strict=True))


def test_other_evaluations_begin_the_search_for_the_best_step_anew(
    tiny_model: Path, tiny_data: Dataset, tmp_path: Path
) -> None:
    first = loop(tiny_model, tiny_data, tmp_path / "r", "optim.max_steps=2")
    assert first.run().best_kl is not None
    same, other = Watching(), Watching()
    again = loop(tiny_model, tiny_data, tmp_path / "r", "heldout.every=1", watching=same)
    again.resume()
    assert (again.progress.best_kl, same.notices) == (first.progress.best_kl, [])
    assert again.rules.state() == first.rules.state()
    again = loop(tiny_model, tiny_data, tmp_path / "r", "heldout.max_new_tokens=1", watching=other)
    again.resume()
    assert (again.progress.best_step, again.progress.best_kl) == (None, None)
    assert again.rules.first_length is None
    assert "the best step is looked for anew" in other.notices[0]
    assert again.run().best_step in (3, 4)


def test_a_best_step_that_was_not_marked_before_a_kill_is_marked(
    tiny_model: Path, tiny_data: Dataset, tmp_path: Path
) -> None:
    run = loop(tiny_model, tiny_data, tmp_path / "r", "optim.learning_rate=1e-3", "optim.max_steps=2")
    if run.run().best_step != 2:
        run.progress.best_step = 2
        run.save()
    (tmp_path / "r" / "checkpoints" / "best.json").unlink()
    again = loop(tiny_model, tiny_data, tmp_path / "r", "optim.learning_rate=1e-3")
    again.resume()
    best = again.checkpoints.best()
    assert best is not None
    assert best.step == 2


def test_the_best_step_is_one_with_the_last_teacher(tiny_model: Path, tiny_data: Dataset, tmp_path: Path) -> None:
    """The adapter hardly moves, so the first evaluation that counts is about the best: that at the end of the start."""
    run = loop(tiny_model, tiny_data, tmp_path / "r", "teacher.start=2", "heldout.every=1", "optim.learning_rate=1e-12")
    progress = run.run()
    names = [next(key for key in x if key.endswith("_per_token")) for x in lines(tmp_path / "r" / "metrics.jsonl")]
    assert names == ["nll_per_token"] * 2 + ["kl_per_token"] * 2
    assert [x["step"] for x in lines(tmp_path / "r" / "heldout.jsonl")] == [0, 1, 2, 3, 4]
    assert progress.best_step is not None
    assert progress.best_step >= 2


def test_a_stop_rule_ends_the_run_and_its_state_is_saved(tiny_model: Path, tiny_data: Dataset, tmp_path: Path) -> None:
    watching = Watching()

    def poison(step: int) -> None:
        if step == 3:
            next(iter(run.trainer.backend.parameters())).data.fill_(torch.nan)

    watching.at_step = poison
    run = loop(tiny_model, tiny_data, tmp_path / "r", "heldout.every=null", "objective=sft", watching=watching)
    with pytest.raises(VerificationError, match=r"after step 4 by the rule not_finite.*--resume"):
        run.run()
    assert lines(tmp_path / "r" / "metrics.jsonl")[-1]["updated"] is False
    assert lines(tmp_path / "r" / "metrics.jsonl")[-1]["loss"] is None  # JSON has no NaN
    assert any("it is not saved" in notice for notice in watching.notices)
    assert [p.name for p in (tmp_path / "r" / "checkpoints").iterdir() if p.is_dir()] == ["step-000002"]


def test_logits_that_are_not_finite_are_one_sentence(tiny_model: Path, tiny_data: Dataset, tmp_path: Path) -> None:
    run = loop(tiny_model, tiny_data, tmp_path / "r", "heldout.every=null")
    next(iter(run.trainer.backend.parameters())).data.fill_(torch.nan)
    with pytest.raises(VerificationError, match="logits are not finite"):
        run.run()


def test_sharing_changes_no_loss(tiny_model: Path, tiny_data: Dataset, tmp_path: Path) -> None:
    """The same trajectories (the expert's turns), steps of one session's turns, run in each way."""
    settings = ["distill.lambda_on_policy=0", "optim.group_by=session", "optim.max_steps=6", "optim.learning_rate=1e-3"]
    losses = []
    for sharing in ("none", "packed", "depth_first"):
        found = loop(tiny_model, tiny_data, tmp_path / sharing, *settings)
        found.trainer.backend.sharing = sharing  # type: ignore[assignment]
        found.trainer.backend.segment_tokens = 64
        found.run()
        lines = (tmp_path / sharing / "metrics.jsonl").read_text().splitlines()
        losses.append([json.loads(line)["loss"] for line in lines])
    assert len(losses[0]) == 6
    assert losses[1] == pytest.approx(losses[0], abs=1e-5)
    assert losses[2] == pytest.approx(losses[0], abs=1e-5)
    assert max(losses[0]) - min(losses[0]) > 1e-3


def test_records_that_do_not_fit_are_refused(tiny_data: Dataset) -> None:
    with pytest.raises(DataError, match="no training record"):
        check_records([], load_train_config("cpu-demo"))
    with pytest.raises(DataError, match="over 10 tokens"):
        check_records(tiny_data.train, load_train_config("cpu-demo", ["max_prompt_tokens=10"]))
    long = [replace(r, row=replace(r.row, reference_tokens=2000)) for r in tiny_data.train[:2]]
    short = ("max_seq_tokens=1024", "max_prompt_tokens=896", "distill.lambda_on_policy=1")
    check_records(long, load_train_config("cpu-demo", short))  # nothing is trained on the experts' turns
    for setting in ("distill.lambda_on_policy=0.9", "objective=sft", "teacher.start=1", "distill.lambda_start=0"):
        config = load_train_config("cpu-demo", [*short, setting])
        with pytest.raises(DataError, match=r"2 record\(s\) have over 1024 tokens with the expert's turn"):
            check_records(long, config)
