from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from safetensors.torch import load_file, save_file  # noqa: E402

from sdft_cli.engine.models.names import differences, identity, resolve_model  # noqa: E402
from sdft_cli.errors import DataError, UsageError, VerificationError  # noqa: E402
from sdft_cli.merging.adapter import Adapter  # noqa: E402
from sdft_cli.merging.certificate import check_certified  # noqa: E402
from sdft_cli.merging.merge import check_target, merge_run  # noqa: E402
from sdft_cli.merging.tensor_check import ordered  # noqa: E402
from sdft_cli.merging.weights import base_shards, copy_companions  # noqa: E402
from sdft_cli.prompts.chat import ChatPrompts, load_tokenizer  # noqa: E402
from sdft_cli.prompts.teacher import load_teacher_template  # noqa: E402
from sdft_cli.run_folder import read_run  # noqa: E402
from sdft_cli.stages.chat import find_subject  # noqa: E402
from sdft_cli.stages.merge import run_merge  # noqa: E402
from tests.merging.conftest import make_run  # noqa: E402


def test_every_tensor_is_the_fp32_sum_cast_once_or_untouched(run: Path, tiny_model: Path, tmp_path: Path) -> None:
    check = merge_run(read_run(run), str(tiny_model), tmp_path / "merged")
    base, merged = load_file(tiny_model / "model.safetensors"), load_file(tmp_path / "merged" / "model.safetensors")
    adapter = load_file(run / "adapter" / "adapter_model.safetensors")
    assert base.keys() == merged.keys()
    adapted = 0
    for name, weight in base.items():
        module = "base_model.model." + name.removesuffix(".weight")
        if f"{module}.lora_A.weight" in adapter:
            delta = 2.0 * (adapter[f"{module}.lora_B.weight"].double() @ adapter[f"{module}.lora_A.weight"].double())
            expected = (weight.double() + delta).to(torch.bfloat16)
            ulps = (merged[name].view(torch.int16).int() - expected.view(torch.int16).int()).abs().max()
            assert ulps <= 1
            assert not torch.equal(merged[name], weight)
            adapted += 1
        else:
            assert torch.equal(merged[name], weight)
    assert len(check["adapted"]) == adapted == 14
    assert check["behaviour"]["mean_kl"] < 1e-3 < check["behaviour"]["base_mean_kl"]
    assert check["behaviour"]["positions"] == 6  # two answers of three tokens
    assert check["behaviour"]["answers"] == 2
    assert check["passed"]
    assert json.loads((tmp_path / "merged" / "merge-certificate.json").read_text()) == check


def test_the_checkpoint_stands_alone(run: Path, tiny_model: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    merge_run(read_run(run), str(tiny_model), tmp_path / "merged")
    names = {p.name for p in (tmp_path / "merged").iterdir()}
    assert {"config.json", "generation_config.json", "tokenizer.json", "chat_template.jinja"} <= names
    assert json.loads((tmp_path / "merged" / "config.json").read_text())["dtype"] == "bfloat16"
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "merged")
    assert model.dtype == torch.bfloat16
    assert tokenizer.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False).startswith("<|im_start|>")


def test_several_shards_are_merged_one_by_one(run: Path, tiny_model: Path, tmp_path: Path) -> None:
    base = tmp_path / "base"
    shutil.copytree(tiny_model, base)
    tensors = load_file(base / "model.safetensors")
    (base / "model.safetensors").unlink()
    names = sorted(tensors)
    parts = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    for file, part in parts.items():
        save_file({n: tensors[n] for n in part}, base / file, metadata={"format": "pt"})
    index = {"metadata": {}, "weight_map": {n: file for file, part in parts.items() for n in part}}
    (base / "model.safetensors.index.json").write_text(json.dumps(index))
    save_file(tensors, base / "consolidated.safetensors")  # a second form of the weights, which the index does not list
    assert [p.name for p in base_shards(base)] == sorted(parts)
    merge_run(read_run(run), str(base), tmp_path / "sharded")
    merge_run(read_run(run), str(tiny_model), tmp_path / "whole")
    whole = load_file(tmp_path / "whole" / "model.safetensors")
    sharded = {k: v for file in parts for k, v in load_file(tmp_path / "sharded" / file).items()}
    assert sharded.keys() == whole.keys()
    assert all(torch.equal(sharded[k], whole[k]) for k in whole)


def edited(file: Path, **changes: Any) -> None:
    document = json.loads(file.read_text())
    file.write_text(json.dumps({**document, **changes}))


def truncated(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-7])


def tensors_edited(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


Q = "model.layers.0.self_attn.q_proj.weight"
NORM = "model.layers.1.input_layernorm.weight"
AFTER: dict[str, tuple[Callable[[Path, Path], object], str]] = {
    "one module skipped": (
        lambda out, base: tensors_edited(out, lambda t: t.update({Q: load_file(base / "model.safetensors")[Q]})),
        "is not base",
    ),
    "two modules swapped": (
        lambda out, base: tensors_edited(
            out, lambda t: t.update({Q: t[Q.replace("0", "1", 1)].clone(), Q.replace("0", "1", 1): t[Q].clone()})
        ),
        "is not base",
    ),
    "one tensor dropped": (lambda out, base: tensors_edited(out, lambda t: t.pop(NORM)), "is missing"),
    "one tensor added": (
        lambda out, base: tensors_edited(out, lambda t: t.update(x=t[NORM].clone())),
        "not in the base",
    ),
    "an untouched tensor changed": (
        lambda out, base: tensors_edited(out, lambda t: t[NORM].view(torch.int16)[3:4].add_(1)),
        "is not adapted and differs",
    ),
    "another dtype": (lambda out, base: tensors_edited(out, lambda t: t.update({NORM: t[NORM].half()})), "float16"),
    "another shape": (lambda out, base: tensors_edited(out, lambda t: t.update({NORM: t[NORM][:8]})), "shape"),
    "not finite": (lambda out, base: tensors_edited(out, lambda t: t[Q][0].fill_(torch.nan)), "is not base"),
    "a truncated shard": (
        lambda out, base: (out / "model.safetensors").write_bytes((out / "model.safetensors").read_bytes()[:-7]),
        "is damaged",
    ),
    "eos swapped": (lambda out, base: edited(out / "generation_config.json", eos_token_id=5), "end of turn"),
    "eos swapped in the config": (lambda out, base: edited(out / "config.json", eos_token_id=5), "end of turn"),
    "another template": (
        lambda out, base: (out / "chat_template.jinja").write_text("{{ messages[0].content }}"),
        "chat_template.jinja differs",
    ),
    "truncated config": (lambda out, base: truncated(out / "config.json"), "config.json is damaged"),
    "truncated generation config": (
        lambda out, base: truncated(out / "generation_config.json"),
        "generation_config.json is damaged",
    ),
    "truncated tokenizer config": (
        lambda out, base: truncated(out / "tokenizer_config.json"),
        "tokenizer_config.json is damaged",
    ),
    "truncated index": (
        lambda out, base: (out / "model.safetensors.index.json").write_text('{"weight_map": {'),
        "model.safetensors.index.json is damaged",
    ),
    "an index of nothing": (
        lambda out, base: (out / "model.safetensors.index.json").write_text("{}"),
        "model.safetensors.index.json names no weight files",
    ),
    "no weights": (lambda out, base: (out / "model.safetensors").unlink(), "model.safetensors is missing"),
    "another dtype in the config": (lambda out, base: edited(out / "config.json", dtype="float16"), "dtype is float16"),
    "a further template": (
        lambda out, base: (
            (out / "additional_chat_templates").mkdir(),
            (out / "additional_chat_templates" / "x.jinja").touch(),
        ),
        "additional_chat_templates/x.jinja is in the checkpoint and not in the base",
    ),
    "no tokenizer": (lambda out, base: (out / "tokenizer.json").unlink(), "tokenizer.json is missing"),
}


def refused(run: Path, base: Path, out: Path, why: str) -> None:
    with pytest.raises(VerificationError, match="is not the model that was trained"):
        merge_run(read_run(run), str(base), out)
    certificate = json.loads((out / "merge-certificate.json").read_text())
    assert not certificate["passed"]
    assert why in " ".join(certificate["failures"])
    assert (out / "FAILED.txt").read_text().splitlines() == certificate["failures"]
    with pytest.raises(UsageError, match="failed its certificate"):
        resolve_model(str(out))


@pytest.mark.parametrize("sabotage", AFTER)
def test_a_checkpoint_that_was_sabotaged_is_caught_and_marked(
    run: Path, tiny_model: Path, tmp_path: Path, sabotage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sdft_cli.merging.merge as module

    change, why = AFTER[sabotage]

    def companions(base: Path, out: Path, dtype: str, chat_template: str | None) -> None:
        copy_companions(base, out, dtype, chat_template)
        change(out, base)

    monkeypatch.setattr(module, "copy_companions", companions)
    refused(run, tiny_model, tmp_path / "merged", why)


@pytest.mark.parametrize("factor", [2.0, 0.5, 0.0, -1.0])
def test_a_wrong_scaling_is_caught(
    run: Path, tiny_model: Path, tmp_path: Path, factor: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    delta = Adapter.delta
    monkeypatch.setattr(Adapter, "delta", lambda self, name: factor * delta(self, name))
    refused(run, tiny_model, tmp_path / "merged", "is not base")


def test_float32_keeps_every_element_of_the_update(run: Path, tiny_model: Path, tmp_path: Path) -> None:
    found = merge_run(read_run(run), str(tiny_model), tmp_path / "merged", dtype=torch.float32)
    assert found["dtype"] == "float32"
    assert json.loads((tmp_path / "merged" / "config.json").read_text())["dtype"] == "float32"
    assert {tensor["surviving_share"] > 0.999 for tensor in found["adapted"]} == {True}


def test_float32_is_compared_in_float32_whatever_the_run_was_in(tiny_model: Path, tmp_path: Path) -> None:
    """In bfloat16 the merge would be what the one in bfloat16 is, whose rounding it does not have."""
    run = make_run(tmp_path / "bf16", tiny_model, overrides=["dtype=bfloat16"])
    found = merge_run(read_run(run), str(tiny_model), tmp_path / "merged", dtype=torch.float32)
    rounded = merge_run(read_run(run), str(tiny_model), tmp_path / "rounded")
    assert found["behaviour"]["mean_kl"] < 1e-9 < 1e-6 < rounded["behaviour"]["mean_kl"]


def test_an_update_that_vanishes_is_said(run: Path, tiny_model: Path, tmp_path: Path) -> None:
    tensors = load_file(run / "adapter" / "adapter_model.safetensors")
    name = "base_model.model.model.layers.0.mlp.up_proj.lora_B.weight"
    tensors[name].mul_(1e-9)
    save_file(tensors, run / "adapter" / "adapter_model.safetensors", metadata={"format": "pt"})
    refused(run, tiny_model, tmp_path / "merged", "its update vanishes in bfloat16 (merge with --dtype float32)")


def test_an_adapter_of_another_base_is_refused(run: Path, tiny_model: Path, tmp_path: Path) -> None:
    base = tmp_path / "base"
    shutil.copytree(tiny_model, base)
    tensors = load_file(base / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, base / "model.safetensors")
    with pytest.raises(VerificationError, match=r"no tensor model\.layers\.1\.mlp\.up_proj\.weight"):
        merge_run(read_run(run), str(base), tmp_path / "merged")
    (run / "adapter" / "adapter_model.safetensors").unlink()
    with pytest.raises(DataError, match=r"adapter_model\.safetensors"):
        read_run(run)


def test_units_in_the_last_place() -> None:
    values = torch.tensor([-2.0, -1.0, -(2.0**-133), 0.0, 2.0**-133, 1.0, 1.0078125], dtype=torch.bfloat16)
    found = ordered(values).tolist()
    assert found == sorted(found)
    assert found[6] - found[5] == 1
    assert found[4] - found[2] == 2  # the smallest numbers on both sides of 0
    assert ordered(torch.tensor([-0.0])).tolist() == ordered(torch.tensor([0.0])).tolist()


def test_a_failed_merge_does_not_replace_a_good_checkpoint(
    run: Path, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "merged"
    merge_run(read_run(run), str(tiny_model), out)
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    delta = Adapter.delta
    monkeypatch.setattr(Adapter, "delta", lambda self, name: 2.0 * delta(self, name))
    for _ in range(2):  # the second failure replaces the first one
        with pytest.raises(VerificationError, match=r"merged-failed/FAILED\.txt lists it all\. .*merged is as it was"):
            merge_run(read_run(run), str(tiny_model), out, overwrite=True)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    failed = tmp_path / "merged-failed"
    assert not json.loads((failed / "merge-certificate.json").read_text())["passed"]
    assert (failed / "model.safetensors").is_file()
    assert {path.name for path in tmp_path.iterdir() if "merged" in path.name} == {"merged", "merged-failed"}
    # A failed one in the place is no good one: it is replaced.
    shutil.rmtree(out)
    failed.rename(out)
    with pytest.raises(VerificationError, match=r"merged/FAILED\.txt lists it all\.$"):
        merge_run(read_run(run), str(tiny_model), out, overwrite=True)
    monkeypatch.setattr(Adapter, "delta", delta)
    merge_run(read_run(run), str(tiny_model), out, overwrite=True)
    assert not (out / "FAILED.txt").exists()


def test_a_changed_checkpoint_is_not_the_certified_one(run: Path, tiny_model: Path, tmp_path: Path) -> None:
    out, adapter = tmp_path / "merged", run / "adapter"
    document = merge_run(read_run(run), str(tiny_model), out)
    assert (document["base"], document["base_kind"]) == ("tiny-llama", "folder")  # no path of this machine
    assert str(tmp_path) not in (out / "merge-certificate.json").read_text()
    assert check_certified(out, adapter, "bfloat16") == json.loads((out / "merge-certificate.json").read_text())
    (out / "README.md").write_text("a card may come and go")
    (out / ".cache").mkdir()
    check_certified(out)
    with pytest.raises(VerificationError, match="its weights are bfloat16, not float32"):
        check_certified(out, adapter, "float32")

    def refused_after(change: Callable[[Path], object], why: str) -> None:
        copy = tmp_path / "copy"
        shutil.copytree(out, copy)
        change(copy)
        with pytest.raises(VerificationError, match=why):
            check_certified(copy, adapter)
        shutil.rmtree(copy)

    refused_after(lambda c: (c / "tokenizer.json").write_text("{}"), r"tokenizer\.json was changed")
    refused_after(lambda c: (c / "config.json").unlink(), r"config\.json is missing")
    refused_after(lambda c: (c / "notes.txt").write_text("mine"), r"notes\.txt is no file of the checkpoint")
    refused_after(lambda c: (c / "logs").mkdir(), "logs is no file of the checkpoint")
    refused_after(lambda c: edited(c / "merge-certificate.json", passed=False), "no certificate that passed")
    refused_after(lambda c: edited(c / "merge-certificate.json", passed="yes"), "no certificate that passed")
    refused_after(lambda c: (c / "FAILED.txt").write_text(""), "no certificate that passed")
    refused_after(lambda c: (c / "merge-certificate.json").unlink(), "no certificate that passed")
    refused_after(lambda c: (c / "merge-certificate.json").write_text("{"), "no certificate that passed")
    refused_after(lambda c: edited(c / "merge-certificate.json", sha256={}), "holds no hashes")
    tensors = load_file(adapter / "adapter_model.safetensors")
    save_file({name: t + 1 for name, t in tensors.items()}, adapter / "adapter_model.safetensors")
    refused_after(lambda c: None, "made from adapter, and not from .*adapter as that is now")


def bytes_below(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_what_the_merge_reads_is_never_its_target(run: Path, tiny_model: Path, tmp_path: Path) -> None:
    """Each of these folders could hold a certificate, which alone would allow to replace it."""
    base = tmp_path / "base"
    shutil.copytree(tiny_model, base)
    (tmp_path / "link").symlink_to(run)
    for folder in (tmp_path, run, run / "adapter", base):
        (folder / "merge-certificate.json").write_text("{}")
    before = bytes_below(tmp_path)
    inside = (run / "adapter" / "new", run / "adapter-best", base / "new" / "deeper")
    for target in (tmp_path, run, tmp_path / "link", run / "adapter", base, *inside):
        for merge in (lambda t: run_merge(read_run(run), t, overwrite=True, base=str(base)), checked(run, base)):
            with pytest.raises(UsageError, match=r"The merge reads .*: choose another --out"):
                merge(target)
    assert bytes_below(tmp_path) == before
    assert not (base / "new").exists()
    check_target(run / "merged", read_run(run), str(base))
    check_target(tmp_path / "runs" / "x", read_run(run), "owner/model")


def checked(run: Path, base: Path) -> Callable[[Path], object]:
    return lambda target: merge_run(read_run(run), str(base), target, overwrite=True, other_base=str(base))


def test_only_a_checkpoint_is_replaced(run: Path, tiny_model: Path, tmp_path: Path) -> None:
    for marker in ("manifest.json", "run.json", "sdft-source.json", "sdft-demo.json", "FAILED.txt"):
        folder = tmp_path / f"of-{marker}"
        folder.mkdir()
        (folder / marker).write_text("{}")
        with pytest.raises(UsageError, match=r"holds no merge-certificate\.json"):
            merge_run(read_run(run), str(tiny_model), folder, overwrite=True)
        assert bytes_below(folder) == {marker: b"{}"}
    (tmp_path / "empty").mkdir()
    merge_run(read_run(run), str(tiny_model), tmp_path / "empty")
    merge_run(read_run(run), str(tiny_model), tmp_path / "empty", overwrite=True)


def test_a_failed_merge_takes_the_next_free_name(
    run: Path, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, good = tmp_path / "merged", tmp_path / "merged-failed-2"
    merge_run(read_run(run), str(tiny_model), out)
    shutil.copytree(out, good)  # a checkpoint that passed, under a name that is only a name
    (tmp_path / "merged-failed").mkdir()
    (tmp_path / "merged-failed" / "notes.txt").write_text("mine")
    before = bytes_below(tmp_path)
    delta = Adapter.delta
    monkeypatch.setattr(Adapter, "delta", lambda self, name: 2.0 * delta(self, name))
    for _ in range(2):
        with pytest.raises(VerificationError, match=r"merged-failed-3/FAILED\.txt lists it all"):
            merge_run(read_run(run), str(tiny_model), out, overwrite=True)
    after = bytes_below(tmp_path)
    assert {name: data for name, data in after.items() if not name.startswith("merged-failed-3/")} == before
    assert not (tmp_path / "merged-failed-4").exists()


def with_info(run: Path, **info: Any) -> Path:
    edited(run / "run.json", **info)
    return run


def test_a_base_that_has_changed_since_the_run_is_refused(
    run: Path, tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = tmp_path / "base"
    shutil.copytree(tiny_model, base)
    edited(run / "config.json", model=str(base))
    run_merge(read_run(run), tmp_path / "old")
    assert "Note: the run does not say what exactly its base was" in capsys.readouterr().err
    with_info(run, base=identity(base))
    run_merge(read_run(run), tmp_path / "same")
    assert "Note" not in capsys.readouterr().err

    edited(base / "config.json", rope_theta=5.0)
    tensors_edited(base, lambda t: t.update(more=torch.ones(1)))
    with pytest.raises(VerificationError, match=r"\(another config\.json, model\.safetensors\): restore that one, or"):
        run_merge(read_run(run), tmp_path / "merged")
    assert not (tmp_path / "merged").exists()
    run_merge(read_run(run), tmp_path / "merged", base=str(base))  # asked for by name


def test_a_base_with_other_weights_of_the_same_size_is_another(run: Path, tiny_model: Path, tmp_path: Path) -> None:
    """As that of a run which was trained on a merged checkpoint, and merged again from another adapter."""
    base = tmp_path / "base"
    shutil.copytree(tiny_model, base)
    edited(run / "config.json", model=str(base))
    before = identity(base)
    with_info(run, base=before)
    old = {name: (base / name).stat().st_size if name.endswith(".safetensors") else x for name, x in before.items()}

    def changed(tensors: dict[str, Any]) -> None:
        tensors["model.layers.1.mlp.up_proj.weight"].add_(1)

    tensors_edited(base, changed)
    assert differences(base, before) == ["model.safetensors"]
    assert differences(base, old) == []  # an earlier version noted sizes
    assert differences(base, {}) == []
    for refuse in (lambda: run_merge(read_run(run), tmp_path / "merged"), lambda: find_subject(str(run), None, True)):
        with pytest.raises(VerificationError, match=r"\(another model\.safetensors\): restore that one"):
            refuse()


def test_the_base_of_a_run_on_the_hub_is_its_commit(run: Path, tiny_model: Path, tmp_path: Path) -> None:
    snapshots = tmp_path / "hub" / "models--o--m" / "snapshots"
    for commit in ("aaa", "bbb"):
        shutil.copytree(tiny_model, snapshots / commit)
    assert identity(snapshots / "aaa") == {"commit": "aaa"}
    with_info(run, base={"commit": "aaa"})
    check = merge_run(read_run(run), str(snapshots / "aaa"), tmp_path / "merged")
    assert check["revision"] == "aaa"
    with pytest.raises(VerificationError, match=r"\(another commit\)"):
        merge_run(read_run(run), str(snapshots / "bbb"), tmp_path / "other")


HUB = """
import json, sys
from sdft_cli.engine.models.names import identity, loaded_folder, local_folder
found = loaded_folder("o/m")
print(json.dumps([identity(found), local_folder("o/m", identity(found)["commit"]) == found, loaded_folder("o/x")]))
"""


def test_a_hub_base_is_found_as_it_was_loaded(tiny_model: Path, tmp_path: Path) -> None:
    repo = tmp_path / "models--o--m"
    commit = "0123456789abcdef0123456789abcdef01234567"
    shutil.copytree(tiny_model, repo / "snapshots" / commit)
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text(commit)
    environment = {**os.environ, "HF_HUB_CACHE": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, "-c", HUB], env=environment, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == [{"commit": commit}, True, None]


def test_another_base_has_to_be_of_the_same_family(run: Path, tiny_model: Path, tmp_path: Path) -> None:
    prompts = ChatPrompts(load_tokenizer(tiny_model), load_teacher_template("repeat"))
    dataset = json.loads((run / "run.json").read_text())["dataset"]
    with_info(run, dataset={**dataset, "fingerprint": prompts.fingerprint()})
    other = tmp_path / "other"
    shutil.copytree(tiny_model, other)
    assert merge_run(read_run(run), str(other), tmp_path / "merged", other_base=str(other))["base"] == "other"
    check_certified(tmp_path / "merged", run / "adapter", "bfloat16", str(other))
    with pytest.raises(VerificationError, match=r"its base is other \(folder\), not tiny-llama"):
        check_certified(tmp_path / "merged", run / "adapter", "bfloat16", str(tiny_model))
    (other / "chat_template.jinja").write_text("{{ messages[0].content }}")
    with pytest.raises(VerificationError, match=r"The chat template of .*other differ from"):
        merge_run(read_run(run), str(other), tmp_path / "out", other_base=str(other))
    edited(other / "tokenizer.json", added_tokens=[])
    with pytest.raises(VerificationError, match=r"The tokenizer and chat template of .*other differ from"):
        merge_run(read_run(run), str(other), tmp_path / "out", other_base=str(other))
    assert not (tmp_path / "out").exists()


def test_a_damaged_adapter_leaves_nothing_behind(run: Path, tiny_model: Path, tmp_path: Path) -> None:
    truncated(run / "adapter" / "adapter_model.safetensors")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(DataError, match="adapter holds no whole adapter"):
        merge_run(read_run(run), str(tiny_model), tmp_path / "merged")
    assert sorted(tmp_path.rglob("*")) == before


def test_a_certificate_of_an_earlier_version_counts_as_none(run: Path, tiny_model: Path, tmp_path: Path) -> None:
    out = tmp_path / "merged"
    merge_run(read_run(run), str(tiny_model), out)
    check_certified(out, run / "adapter", "bfloat16")
    edited(out / "merge-certificate.json", format=2)
    with pytest.raises(VerificationError, match="holds no certificate that passed"):
        check_certified(out, run / "adapter", "bfloat16")
