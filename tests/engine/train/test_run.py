from __future__ import annotations

import shutil
from contextlib import nullcontext
from hashlib import sha256
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from safetensors.torch import load_file, save_file  # noqa: E402

from sdft_cli.config import load_train_config  # noqa: E402
from sdft_cli.engine.models.load import check_merged_later  # noqa: E402
from sdft_cli.engine.train.loop import Silent  # noqa: E402
from sdft_cli.engine.train.opening import Job, cut_warning, load  # noqa: E402
from sdft_cli.engine.train.resume_state import trainable  # noqa: E402
from sdft_cli.engine.train.run import on_its_base, start_training, warnings_of  # noqa: E402
from sdft_cli.errors import DataError, UsageError, VerificationError  # noqa: E402
from sdft_cli.records import Dataset  # noqa: E402
from sdft_cli.records.json_files import read_json, write_json  # noqa: E402
from sdft_cli.run_folder import read_run_json  # noqa: E402
from tests.engine.prepared import prepared  # noqa: E402


def test_a_resumed_run_goes_on_with_the_commit_of_its_base(tmp_path: Path) -> None:
    config = load_train_config("cpu-demo", (), {"model": "o/m"})
    job = Job(config, Dataset(tmp_path / "data", {}, {}, [], [], []), tmp_path, resume=True)
    write_json(tmp_path / "run.json", {"base": {"commit": "1111"}})
    assert on_its_base(job).config == config.model_copy(update={"revision": "1111"})
    write_json(tmp_path / "run.json", {"base": {"config.json": "x"}})  # a folder
    assert on_its_base(job) == job


def test_what_could_never_be_merged_is_refused_before_it_is_trained(tmp_path: Path, tiny_model: Path) -> None:
    base = tmp_path / "base"
    shutil.copytree(tiny_model, base)
    config = load_train_config("cpu-demo", (), {"model": str(base)})
    check_merged_later(config, None)
    document = read_json(base / "config.json", "")
    write_json(base / "config.json", {**document, "quantization_config": {"quant_method": "bitsandbytes"}})
    check_merged_later(config, "its/16-bit-form")
    with pytest.raises(
        UsageError, match=r"is quantised, and .* name its 16-bit form in sdft.yaml, merge: {base: MODEL}"
    ):
        check_merged_later(config, None)


@pytest.mark.parametrize(
    ("targets", "sentence"),
    [
        ("lm_head", "lm_head is the output head, which the loss reads without an adapter"),
        ("q_proj, embed_tokens", "embed_tokens is the token embedding"),
        ("up_proj", r"up_proj could be trained and not merged \(No tensor"),
    ],
)
def test_targets_that_could_not_be_merged_are_refused_before_loading(
    tiny_model: Path, tmp_path: Path, targets: str, sentence: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a base whose files hold no tensor for one of the modules."""
    import sdft_cli.engine.models.load as loading

    base = tmp_path / "base"
    shutil.copytree(tiny_model, base)
    tensors = load_file(base / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, base / "model.safetensors", metadata={"format": "pt"})
    monkeypatch.setattr(loading, "load_backend", lambda *_: pytest.fail("the weights were loaded"))
    data = prepared(tiny_model, tmp_path, 12, 0.3)
    settings = [f"lora.target_modules=[{targets}]", "backend=transformers"]
    config = load_train_config("cpu-demo", settings, {"model": str(base)})
    with pytest.raises(UsageError, match=sentence):
        load(Job(config, data, tmp_path / "run"), lambda text: None)


SHORT = [
    *("lora.rank=4", "lora.alpha=8", "rollout.max_new_tokens=3", "optim.turns_per_step=2", "optim.warmup_steps=0"),
    *("optim.schedule=constant", "optim.max_steps=2", "checkpoint.every=1", "heldout.every=null", "gate.action=off"),
    *("rehearse=false", "backend=transformers"),
]


def trained(folder: Path, model: Path, data: Dataset, *settings: str, resume: bool = False) -> list[str]:
    """Train in a folder; return what was said."""
    said: list[str] = []
    config = load_train_config("cpu-demo", [*SHORT, *settings], {"model": str(model)})
    start_training(Job(config, data, folder, resume=resume), said.append, lambda: nullcontext(Silent()))
    return said


WEIGHTS = "adapter/adapter_model.safetensors"


def test_a_run_begins_with_the_adapter_of_another_one(tmp_path: Path, tiny_model: Path, tiny_data: Dataset) -> None:
    first, second, whole = (tmp_path / name for name in ("first", "second", "whole"))
    trained(first, tiny_model, tiny_data, "objective=sft")
    begins = f"init_adapter={first}"
    config = load_train_config("cpu-demo", [*SHORT, begins, "teacher.kind=ema"], {"model": str(tiny_model)})
    trainer = load(Job(config, tiny_data, tmp_path / "x"), lambda text: None).trainer
    stored = load_file(first / WEIGHTS)
    for name, parameter in trainable(trainer.backend.model).items():
        assert torch.equal(parameter, stored[name.replace(".default", "")])
        assert trainer.ema is not None
        assert torch.equal(trainer.ema.tensors[name], parameter)
    assert not trainer.optimizer.state
    assert any("begins with the weights of first" in text for text in trained(second, tiny_model, tiny_data, begins))
    told = read_run_json(second)["init_adapter"]
    assert told == {"name": "first", "sha256": sha256((first / WEIGHTS).read_bytes()).hexdigest()}
    assert read_run_json(first)["init_adapter"] is None
    # It goes on without the first one, and ends as one that was not interrupted.
    trained(whole, tiny_model, tiny_data, f"init_adapter={first / 'adapter'}", "optim.max_steps=4")
    assert read_run_json(whole)["init_adapter"] == told
    first.rename(tmp_path / "moved")
    trained(second, tiny_model, tiny_data, begins, "optim.max_steps=4", resume=True)
    assert (second / WEIGHTS).read_bytes() == (whole / WEIGHTS).read_bytes()
    assert read_run_json(second)["init_adapter"] == told
    # Without a checkpoint it needs the adapter that it began with.
    shutil.rmtree(second / "checkpoints")
    with pytest.raises(UsageError, match="holds no adapter"):
        trained(second, tiny_model, tiny_data, begins, "optim.max_steps=4", resume=True)
    trained(first, tiny_model, tiny_data, "objective=sft", "seed=1")
    with pytest.raises(DataError, match="changed since"):
        trained(second, tiny_model, tiny_data, begins, "optim.max_steps=4", resume=True)


def test_the_best_adapter_of_an_earlier_end_goes_with_it(tmp_path: Path, tiny_model: Path, tiny_data: Dataset) -> None:
    """The run goes on, and its last adapter is the best: `--best` would merge another one than run.json names."""
    run = tmp_path / "run"
    trained(run, tiny_model, tiny_data, "optim.max_steps=2")
    (run / "adapter-best").mkdir()
    (run / "adapter-best" / "adapter_model.safetensors").write_bytes(b"of an earlier end")
    trained(run, tiny_model, tiny_data, "optim.max_steps=4", resume=True)
    info = read_run_json(run)
    assert (run / "adapter-best").exists() == (info["best_step"] not in (None, 0, 4))
    if (run / "adapter-best").exists():
        assert (run / "adapter-best" / "adapter_model.safetensors").read_bytes() != b"of an earlier end"


def test_a_run_does_not_go_on_from_another_base(tmp_path: Path, tiny_model: Path, tiny_data: Dataset) -> None:
    base, run = tmp_path / "base", tmp_path / "run"
    shutil.copytree(tiny_model, base)
    trained(run, base, tiny_data, "optim.max_steps=2")
    weights = load_file(base / "model.safetensors")
    weights["model.layers.0.mlp.up_proj.weight"].mul_(2)  # a file of the same size
    save_file(weights, base / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(
        VerificationError, match=r"is not the base that .* was trained on \(another model.safetensors\)"
    ):
        trained(run, base, tiny_data, "optim.max_steps=4", resume=True)


def test_what_goes_wrong_is_said_before(tiny_data: Dataset) -> None:
    longest = max(r.row.reference_tokens for r in tiny_data.train)

    def warns(*settings: str) -> str | None:
        return cut_warning(tiny_data.train, load_train_config("cpu-demo", ["distill.lambda_on_policy=1", *settings]))

    assert "turns of the expert are longer than rollout.max_new_tokens (2)" in (warns("rollout.max_new_tokens=2") or "")
    assert warns(f"rollout.max_new_tokens={longest}") is None
    assert warns("objective=sft", "rollout.max_new_tokens=2") is None
    said = [warnings_of(load_train_config("cpu-demo", [f"lora.dropout={x}"])) for x in (0, 0.1)]
    assert [any("the sampler is not compared" in text for text in texts) for texts in said] == [False, True]


def test_an_adapter_that_does_not_fit_is_refused_in_a_sentence(
    tmp_path: Path, tiny_model: Path, tiny_data: Dataset
) -> None:
    first = tmp_path / "first"
    trained(first, tiny_model, tiny_data, "objective=sft", "optim.max_steps=1")
    begins = f"init_adapter={first}"

    def refused(sentence: str, *settings: str, model: Path = tiny_model) -> None:
        with pytest.raises((UsageError, DataError), match=sentence):
            trained(tmp_path / "second", model, tiny_data, begins, *settings)
        assert not (tmp_path / "second").exists()

    refused("first has rank 4, this run has 8: use --set lora.rank=4", "lora.rank=8")
    refused("first has alpha 8, this run has 16: use --set lora.alpha=8", "lora.alpha=16")
    refused(r"first adapts, unlike this run, model.layers.0.mlp", "lora.target_modules=[q_proj]")
    refused("holds no adapter", f"init_adapter={tmp_path}")
    named = tmp_path / "other"
    shutil.copytree(tiny_model, named)
    refused(r"was trained on .*, this run trains other", model=named)
    again = tmp_path / "again" / tiny_model.name  # the same name, other weights
    shutil.copytree(tiny_model, again)
    tensors = load_file(again / "model.safetensors")
    save_file({**tensors, "more": torch.zeros(1)}, again / "model.safetensors", metadata={"format": "pt"})
    refused("was trained on other weights", model=again)
    config = read_json(first / "adapter" / "adapter_config.json", "")
    write_json(first / "adapter" / "adapter_config.json", config | {"use_dora": True})
    refused("no plain LoRA adapter")
    write_json(first / "adapter" / "adapter_config.json", config)
    (first / WEIGHTS).write_bytes(b"nothing")
    refused("is damaged")
