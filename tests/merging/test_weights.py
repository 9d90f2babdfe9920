"""The merge as files: bytes, dtypes, order on disk, and memory."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from safetensors import safe_open  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402

from sdft_cli.errors import DataError, VerificationError  # noqa: E402
from sdft_cli.merging.adapter import Adapter  # noqa: E402
from sdft_cli.merging.certificate import file_hashes  # noqa: E402
from sdft_cli.merging.tensor_check import certify  # noqa: E402
from sdft_cli.merging.tensor_file import TensorFile  # noqa: E402
from sdft_cli.merging.weights import copy_companions, merge_weights  # noqa: E402

W = "model.layers.0.self_attn.q_proj.weight"


def adapter_at(folder: Path, shapes: dict[str, tuple[int, int]], rank: int = 4) -> Path:
    """A LoRA adapter on these weights, alpha / r = 2."""
    folder.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps({"r": rank, "lora_alpha": 2 * rank}))
    generator = torch.Generator().manual_seed(5)
    tensors = {}
    for name, (rows, columns) in shapes.items():
        module = "base_model.model." + name.removesuffix(".weight")
        tensors[f"{module}.lora_A.weight"] = torch.randn(rank, columns, generator=generator)
        tensors[f"{module}.lora_B.weight"] = torch.randn(rows, rank, generator=generator)
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    return folder


def base_at(folder: Path, tensors: dict[str, Any], **config: Any) -> Path:
    folder.mkdir()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt", "other": "x"})
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", **config}))
    return folder


def mixed() -> dict[str, Any]:
    """One byte, two, four and eight an element; sizes that leave the next tensor at an odd byte; none; a number.

    Mainly bf16, so that other floats are exceptions.
    """
    generator = torch.Generator().manual_seed(1)
    return {
        W: torch.randn(6, 10, generator=generator).bfloat16(),
        "a.odd": torch.arange(7, dtype=torch.uint8),
        "b.flags": torch.tensor([True, False, True]),
        "c.step": torch.tensor(12, dtype=torch.int64),
        "d.norm": torch.randn(5, generator=generator).bfloat16(),
        "e.wide": torch.randn(3, generator=generator),
        "f.half": torch.randn(2, 3, generator=generator).half(),
        "g.none": torch.empty(0, 4),
        "h.nan": torch.tensor([math.nan, math.inf, -0.0]).bfloat16(),
    }


def raw(path: Path) -> dict[str, tuple[str, bytes]]:
    with TensorFile(path) as file:
        return {name: (entry.dtype, b"".join(file.chunks(name))) for name, entry in file.entries.items()}


@pytest.mark.parametrize(("dtype", "unchanged"), [(torch.bfloat16, 8), (torch.float32, 6)])
def test_the_file_is_what_the_library_would_write_of_the_same_tensors(
    tmp_path: Path, dtype: Any, unchanged: int
) -> None:
    tensors = mixed()
    base = base_at(tmp_path / "base", tensors)
    adapter = adapter_at(tmp_path / "adapter", {W: (6, 10)})
    (tmp_path / "out").mkdir()
    merge_weights(base, Adapter(adapter), tmp_path / "out", dtype)

    lora = load_file(adapter / "adapter_model.safetensors")
    module = "base_model.model." + W.removesuffix(".weight")
    delta = 2.0 * (lora[f"{module}.lora_B.weight"] @ lora[f"{module}.lora_A.weight"])
    expected = {n: t.to(dtype) if t.dtype == torch.bfloat16 else t for n, t in tensors.items()}
    expected[W] = (tensors[W].float() + delta).to(dtype)
    save_file(expected, tmp_path / "expected.safetensors", metadata={"format": "pt"})
    merged = tmp_path / "out" / "model.safetensors"
    assert raw(merged) == raw(tmp_path / "expected.safetensors")
    assert load_file(merged).keys() == tensors.keys()  # the library accepts header, offsets and alignment
    with safe_open(merged, "pt") as file:
        assert file.metadata() == {"format": "pt"}
    before, after = raw(base / "model.safetensors"), raw(merged)
    same = [n for n in tensors if n != W and (before[n][0] == after[n][0])]
    assert all(before[name] == after[name] for name in same)
    assert len(same) == unchanged
    with TensorFile(merged) as written:
        start = min(entry.start for entry in written.entries.values())
        assert start % 8 == 0
        assert all((e.start - start) % (e.size // math.prod(e.shape)) == 0 for e in written.entries.values() if e.size)


def test_tensors_longer_than_a_chunk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sdft_cli.merging.tensor_check as certificate
    import sdft_cli.merging.tensor_file as module

    tensors = mixed()
    base, adapter = base_at(tmp_path / "base", tensors), adapter_at(tmp_path / "adapter", {W: (6, 10)})
    for folder, chunk in (("whole", 16 << 20), ("cut", 16)):
        (tmp_path / folder).mkdir()
        monkeypatch.setattr(module, "CHUNK", chunk)
        merge_weights(base, Adapter(adapter), tmp_path / folder, torch.float32)
    assert raw(tmp_path / "cut" / "model.safetensors") == raw(tmp_path / "whole" / "model.safetensors")
    copy_companions(base, tmp_path / "cut", "float32")
    whole = certify(base, adapter, tmp_path / "cut", torch.float32)
    assert (whole.identical, whole.cast) == (6, 2)
    monkeypatch.setattr(certificate, "PIECE", 7)
    assert certify(base, adapter, tmp_path / "cut", torch.float32) == whole
    assert whole.failures == []


def test_the_index_states_the_size_of_what_was_written(tmp_path: Path) -> None:
    base, adapter = base_at(tmp_path / "base", mixed()), adapter_at(tmp_path / "adapter", {W: (6, 10)})
    index = {"metadata": {"total_size": 1, "more": 2}, "weight_map": dict.fromkeys(mixed(), "model.safetensors")}
    (base / "model.safetensors.index.json").write_text(json.dumps(index))
    (tmp_path / "out").mkdir()
    merge_weights(base, Adapter(adapter), tmp_path / "out", torch.float32)
    found = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    size = sum(t.nbytes for t in load_file(tmp_path / "out" / "model.safetensors").values())
    assert found == {"metadata": {"total_size": size, "more": 2}, "weight_map": index["weight_map"]}


def merged_at(folder: Path, base: Path, adapter: Path, dtype: Any) -> Path:
    folder.mkdir()
    merge_weights(base, Adapter(adapter), folder, dtype)
    copy_companions(base, folder, str(dtype).removeprefix("torch."))
    return folder


def test_an_exception_that_was_cast_is_no_pass(tmp_path: Path) -> None:
    base, adapter = base_at(tmp_path / "base", mixed()), adapter_at(tmp_path / "adapter", {W: (6, 10)})
    out = merged_at(tmp_path / "out", base, adapter, torch.bfloat16)
    assert certify(base, adapter, out, torch.bfloat16).failures == []
    tensors = load_file(out / "model.safetensors")
    save_file({**tensors, "e.wide": tensors["e.wide"].bfloat16()}, out / "model.safetensors")
    assert certify(base, adapter, out, torch.bfloat16).failures == ["e.wide is torch.bfloat16, not torch.float32"]


@pytest.mark.parametrize(("main", "sizes"), [("bfloat16", (4, 4)), ("bfloat16", (5, 4)), ("float32", (4, 5))])
def test_the_main_dtype_is_that_of_most_elements_over_all_files(
    tmp_path: Path, main: str, sizes: tuple[int, int]
) -> None:
    """Adapted tensors count too; here each file alone would say something else."""
    base, adapter = tmp_path / "base", adapter_at(tmp_path / "adapter", {"x.weight": (1, 4)})
    base.mkdir()
    (base / "config.json").write_text("{}")
    parts = {
        "a.safetensors": {"x.weight": torch.ones(1, 4).bfloat16(), "n": torch.ones(sizes[1])},
        "b.safetensors": {"m": torch.ones(sizes[0] - 4).bfloat16(), "ids": torch.arange(99)},
    }
    for name, tensors in parts.items():
        save_file(tensors, base / name, metadata={"format": "pt"})
    index = {"weight_map": {tensor: name for name, tensors in parts.items() for tensor in tensors}}
    (base / "model.safetensors.index.json").write_text(json.dumps(index))
    for dtype in (torch.bfloat16, torch.float32):
        out = merged_at(tmp_path / str(dtype), base, adapter, dtype)
        merged = {**load_file(out / "a.safetensors"), **load_file(out / "b.safetensors")}
        kept = {"m": torch.bfloat16, "n": torch.float32}
        cast = {"m" if main == "bfloat16" else "n": dtype}
        assert {name: merged[name].dtype for name in kept} == kept | cast
        assert certify(base, adapter, out, dtype).failures == []


def test_every_section_of_the_config_that_names_the_main_dtype_names_the_new_one(tmp_path: Path) -> None:
    sections: dict[str, Any] = {
        "torch_dtype": "bfloat16",
        "text_config": {"dtype": "bfloat16", "mamba_ssm_dtype": "float32"},
        "vision_config": {"dtype": "float16", "inner": {"torch_dtype": "bfloat16"}},
    }
    base = base_at(tmp_path / "base", mixed(), **sections)
    adapter = adapter_at(tmp_path / "adapter", {W: (6, 10)})
    out = merged_at(tmp_path / "out", base, adapter, torch.float32)
    config = json.loads((out / "config.json").read_text())
    assert config == {
        "model_type": "llama",
        "dtype": "float32",
        "text_config": {"dtype": "float32", "mamba_ssm_dtype": "float32"},
        "vision_config": {"dtype": "float16", "inner": {"torch_dtype": "float32"}},
    }
    found = certify(base, adapter, out, torch.float32)
    assert (found.failures, found.files) == ([], {"config.json": "identical but for dtype"})

    def failures_with(**changes: Any) -> list[str]:
        (out / "config.json").write_text(json.dumps({**config, **changes}))
        return certify(base, adapter, out, torch.float32).failures

    assert failures_with(text_config=sections["text_config"]) == []  # the base's own
    assert failures_with(dtype="bfloat16") == ["config.json says dtype is bfloat16, not float32"]
    assert failures_with(torch_dtype="float16") == ["config.json says torch_dtype is float16, not float32"]
    assert failures_with(vision_config={"dtype": "bfloat16", "inner": {"torch_dtype": "float32"}}) == [
        "config.json says vision_config.dtype is bfloat16, in the base float16"
    ]
    assert failures_with(text_config={"mamba_ssm_dtype": "float32"}) == [
        "config.json says text_config.dtype is None, in the base bfloat16"
    ]


def test_other_forms_of_the_weights_are_left_and_further_templates_are_not(tmp_path: Path) -> None:
    base, adapter = base_at(tmp_path / "base", mixed()), adapter_at(tmp_path / "adapter", {W: (6, 10)})
    save_file(mixed(), base / "consolidated.safetensors")
    for name in ("model.onnx", "rust_model.ot", "model.ckpt", "tf_model.h5", "flax_model.msgpack", ".hidden"):
        (base / name).write_text("x")
    templates = base / "additional_chat_templates"
    templates.mkdir()
    (templates / "rag.jinja").write_text("{{ 1 }}")
    out = merged_at(tmp_path / "out", base, adapter, torch.bfloat16)
    names = {path.relative_to(out).as_posix() for path in out.rglob("*")}
    assert names == {
        *("model.safetensors", "config.json", "additional_chat_templates", "additional_chat_templates/rag.jinja")
    }
    found = certify(base, adapter, out, torch.bfloat16)
    assert found.failures == []
    assert found.files == {"additional_chat_templates/rag.jinja": "identical", "config.json": "identical but for dtype"}
    assert file_hashes(out).keys() == names - {"additional_chat_templates"}
    (out / "additional_chat_templates" / "rag.jinja").write_text("{{ 2 }}")
    assert certify(base, adapter, out, torch.bfloat16).failures == [
        "additional_chat_templates/rag.jinja differs from the base's"
    ]
    (out / "additional_chat_templates" / "rag.jinja").unlink()
    save_file(mixed(), out / "consolidated.safetensors")
    assert certify(base, adapter, out, torch.bfloat16).failures == [
        "consolidated.safetensors is no file of the checkpoint",
        "additional_chat_templates/rag.jinja is missing",
    ]


NF4 = {W.replace("weight", "weight.quant_state.bitsandbytes__nf4"): torch.zeros(8, dtype=torch.uint8)}


@pytest.mark.parametrize(
    ("extra", "config"),
    [
        (NF4, {}),
        ({"x.weight.absmax": torch.zeros(2)}, {}),
        ({"x.weight": torch.zeros(2, 2).to(torch.float8_e4m3fn)}, {}),
        ({}, {"quantization_config": {"quant_method": "bitsandbytes"}}),
        ({}, {"text_config": {"quantization_config": {"quant_method": "fp8"}}}),
    ],
)
def test_a_quantised_base_is_refused_before_anything_is_written(
    tmp_path: Path, extra: dict[str, Any], config: dict[str, Any]
) -> None:
    base = base_at(tmp_path / "base", {**mixed(), **extra}, **config)
    adapter = adapter_at(tmp_path / "adapter", {W: (6, 10)})
    (tmp_path / "out").mkdir()
    with pytest.raises(DataError, match="give the 16-bit base"):
        merge_weights(base, Adapter(adapter), tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())


@pytest.mark.parametrize("left", [0, 5, 100, -1])
def test_a_damaged_base_is_refused(tmp_path: Path, left: int) -> None:
    base, adapter = base_at(tmp_path / "base", mixed()), adapter_at(tmp_path / "adapter", {W: (6, 10)})
    file = base / "model.safetensors"
    file.write_bytes(file.read_bytes()[:left])
    with pytest.raises(DataError, match="is no whole safetensors file"):
        merge_weights(base, Adapter(adapter), tmp_path)
    file.unlink()
    index = {"weight_map": {W: "model.safetensors"}}
    (base / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(DataError, match=r"model\.safetensors is missing"):
        merge_weights(base, Adapter(adapter), tmp_path)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors.index.json"])
@pytest.mark.parametrize("text", ['{"weight_map": {', "[]", "\x00"])
def test_damaged_json_of_the_base_is_one_sentence(tmp_path: Path, name: str, text: str) -> None:
    base, adapter = base_at(tmp_path / "base", mixed()), adapter_at(tmp_path / "adapter", {W: (6, 10)})
    (base / name).write_text(text)
    with pytest.raises(DataError, match=r"\.json (is not valid JSON|is no JSON object): get the model again\.$"):
        merge_weights(base, Adapter(adapter), tmp_path)


def tensors_only(folder: Path, **tensors: Any) -> None:
    save_file({name.replace("__", "."): t for name, t in tensors.items()}, folder / "adapter_model.safetensors")


def truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


DAMAGED_ADAPTERS: dict[str, tuple[Any, str]] = {
    "truncated weights": (lambda a: truncated(a / "adapter_model.safetensors"), "holds no whole adapter"),
    "no weights": (lambda a: (a / "adapter_model.safetensors").unlink(), "holds no whole adapter"),
    "truncated config": (lambda a: truncated(a / "adapter_config.json"), "holds no whole adapter"),
    "no rank": (lambda a: (a / "adapter_config.json").write_text('{"lora_alpha": 8}'), "holds no whole adapter"),
    "rank 0": (lambda a: (a / "adapter_config.json").write_text('{"r": 0, "lora_alpha": 8}'), "holds no whole"),
    "a list": (lambda a: (a / "adapter_config.json").write_text("[]"), "holds no whole adapter"),
    "no tensors": (lambda a: tensors_only(a), "holds no tensors"),
    "half a pair": (lambda a: tensors_only(a, x__lora_A__weight=torch.ones(4, 2)), "besides lora_A and lora_B pairs"),
    "another rank": (
        lambda a: (a / "adapter_config.json").write_text('{"r": 2, "lora_alpha": 4}'),
        "are not of its rank 2",
    ),
}


@pytest.mark.parametrize("damage", DAMAGED_ADAPTERS)
def test_a_damaged_adapter_is_one_sentence(tmp_path: Path, damage: str) -> None:
    base, adapter = base_at(tmp_path / "base", mixed()), adapter_at(tmp_path / "adapter", {W: (6, 10)})
    change, why = DAMAGED_ADAPTERS[damage]
    change(adapter)
    with pytest.raises(DataError, match=f"{why}.*: (run `sdft train` again|merge it with peft)\\.$"):
        merge_weights(base, Adapter(adapter), tmp_path)


def test_an_adapter_of_another_shape_is_refused(tmp_path: Path) -> None:
    base, adapter = base_at(tmp_path / "base", mixed()), adapter_at(tmp_path / "adapter", {W: (1, 10)})
    (tmp_path / "out").mkdir()
    with pytest.raises(VerificationError, match=r"is \(6, 10\) in the base and \(1, 10\) in the adapter"):
        merge_weights(base, Adapter(adapter), tmp_path / "out")


MEASURE = """
import sys
from pathlib import Path
import torch
from sdft_cli.merging.tensor_check import certify
from sdft_cli.merging.adapter import Adapter
from sdft_cli.merging.weights import copy_companions, merge_weights

def megabytes():
    return next(int(x.split()[1]) / 1024 for x in open("/proc/self/status") if x.startswith("VmHWM"))

base, adapter, out = map(Path, sys.argv[1:])
torch.ones(64, 64) @ torch.ones(64, 64)
before = megabytes()
merge_weights(base, Adapter(adapter), out)
copy_companions(base, out)
merged = megabytes()
assert certify(base, adapter, out, torch.bfloat16).failures == []
print(merged - before, megabytes() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="needs Linux's count of peak memory")
@pytest.mark.parametrize("count", [24, 48])
def test_memory_does_not_grow_with_the_file(tmp_path: Path, count: int) -> None:
    """A file of 8 MiB tensors: neither merge nor certificate may hold them all, or keep their pages mapped."""
    names = [f"model.layers.{i}.mlp.up_proj.weight" for i in range(count)]
    base = base_at(tmp_path / "base", {name: torch.full((1024, 4096), 0.5).bfloat16() for name in names})
    adapter = adapter_at(tmp_path / "adapter", dict.fromkeys(names[::2], (1024, 4096)))
    (tmp_path / "out").mkdir()
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, base, adapter, tmp_path / "out"],
        capture_output=True,
        text=True,
        check=True,
        # Freed buffers go back to the system at once, so that the peak is what was alive.
        env={**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_ARENA_MAX": "1"},
    )
    merged, certified = map(float, done.stdout.split())
    assert merged < 70  # MiB; the smaller file has 192, and so has its copy
    assert certified < 100
