"""What we pass to unsloth, against the source of the installed one: read, not imported, so no GPU is needed."""

from __future__ import annotations

import ast
import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from sdft_cli.config import TrainConfig, load_train_config  # noqa: E402
from sdft_cli.engine.models.backend_transformers import TransformersBackend, attach_lora  # noqa: E402
from sdft_cli.engine.models.backend_unsloth import (  # noqa: E402
    FAST_TYPES,
    VISION_TYPES,
    UnslothBackend,
    _loaded,
    adapter_arguments,
    check_loaded,
    check_model,
    loader_arguments,
)
from sdft_cli.engine.models.load import (  # noqa: E402
    check_machine,
    choose_backend,
    has_package,
    load_backend,
)
from sdft_cli.errors import DataError, MachineError, UsageError  # noqa: E402

installed = pytest.mark.skipif(not has_package("unsloth"), reason="unsloth is not installed")
no_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")


def source(package: str, path: str) -> ast.Module:
    spec = importlib.util.find_spec(package)
    assert spec is not None
    assert spec.submodule_search_locations
    return ast.parse((Path(spec.submodule_search_locations[0]) / path).read_text(encoding="utf-8"))


def function(module: ast.Module, owner: str, name: str) -> ast.FunctionDef:
    for found in module.body:
        if isinstance(found, ast.ClassDef) and found.name == owner:
            (method,) = (f for f in found.body if isinstance(f, ast.FunctionDef) and f.name == name)
            return method
    raise AssertionError(f"unsloth has no {owner}.{name}")


def named(method: ast.FunctionDef) -> set[str]:
    """The parameters that have a name: what only **kwargs would swallow is not among them."""
    return {a.arg for a in (*method.args.posonlyargs, *method.args.args, *method.args.kwonlyargs)}


LOADER, LLAMA, VISION, CPU = (
    ("unsloth", "models/loader.py"),
    ("unsloth", "models/llama.py"),
    ("unsloth", "models/vision.py"),
    ("unsloth_zoo", "cpu/loader.py"),
)
CONFIGS = [
    load_train_config("cpu-demo"),
    load_train_config("qwen3.5-9b-64k", ["fast_inference=true"]),
    load_train_config("qwen3.5-9b-64k", ["load_in_4bit=true", "gradient_checkpointing=false"]),
]


@installed
@pytest.mark.parametrize("config", CONFIGS, ids=lambda c: c.profile)
@pytest.mark.parametrize(
    ("where", "owner", "cuda"),
    [(LOADER, "FastLanguageModel", True), (LOADER, "FastModel", True), (CPU, "FastCPUModel", False)],
)
def test_every_loader_argument_is_a_named_parameter(
    where: tuple[str, str], owner: str, cuda: bool, config: TrainConfig
) -> None:
    passed = loader_arguments(config, "some/model", cuda)
    assert passed.pop("training", None) is (False if config.fast_inference and cuda else None)  # of the engine
    assert passed.keys() <= named(function(source(*where), owner, "from_pretrained"))
    assert passed["load_in_4bit"] is config.load_in_4bit  # True where it is left out
    assert passed["use_gradient_checkpointing"] == ("unsloth" if config.gradient_checkpointing else False)
    assert not passed["load_in_4bit"] or not passed["load_in_16bit"]  # unsloth refuses both


@installed
@pytest.mark.parametrize(
    ("where", "owner", "pattern"),
    [
        (LLAMA, "FastLlamaModel", None),
        (VISION, "FastBaseModel", "a pattern"),
        (CPU, "FastCPUModel", None),
        (CPU, "FastCPUModel", "a pattern"),
    ],
)
def test_every_adapter_argument_is_a_named_parameter(where: tuple[str, str], owner: str, pattern: str | None) -> None:
    module = source(*where)
    passed = adapter_arguments(CONFIGS[2], pattern, where != CPU)
    assert passed.keys() <= named(function(module, owner, "get_peft_model"))
    assert "use_gradient_checkpointing" in named(function(module, owner, "for_training"))
    assert named(function(module, owner, "for_inference")) == {"model"}
    if pattern:
        assert passed["target_modules"] == pattern
        assert passed.get("finetune_vision_layers") is (False if where == VISION else None)


@installed
def test_the_wrappers_hand_their_arguments_on() -> None:
    """`FastLanguageModel` and `FastModel` take (model, *args, **kwargs) where the classes checked above take names."""
    module = source(*LOADER)
    bases = {c.name: [ast.unparse(b) for b in c.bases] for c in module.body if isinstance(c, ast.ClassDef)}
    for owner, base in (("FastLanguageModel", "FastLlamaModel"), ("FastModel", "FastBaseModel")):
        assert bases[owner] == [base]
        text = ast.unparse(function(module, owner, "get_peft_model"))
        assert f"return {base}.get_peft_model(model, *args, **kwargs)" in text


@installed
def test_the_model_types_are_those_that_unsloth_names() -> None:
    method = function(source(*LOADER), "FastLanguageModel", "from_pretrained")
    compared = {
        constant.value
        for node in ast.walk(method)
        if isinstance(node, ast.Compare) and isinstance(node.left, ast.Name) and node.left.id == "model_type"
        for constant in node.comparators
        if isinstance(constant, ast.Constant)
    }
    assert compared == FAST_TYPES
    texts = {
        node.value
        for node in ast.walk(source(*VISION))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    }
    assert texts >= VISION_TYPES


def test_the_vision_types_are_those_with_a_vision_tower() -> None:
    from transformers import CONFIG_MAPPING

    with_tower = {name for name in FAST_TYPES | VISION_TYPES if "vision_config" in CONFIG_MAPPING[name].sub_configs}
    assert with_tower == VISION_TYPES


@no_gpu
def test_options_that_need_a_gpu_are_refused_before_loading() -> None:
    for overrides, message in (
        (["load_in_4bit=true"], r"load_in_4bit needs a CUDA GPU .*--set load_in_4bit=false"),
        (["fast_inference=true"], r"fast_inference needs a CUDA GPU .*--set fast_inference=false"),
    ):
        config = load_train_config("cpu-demo", overrides)
        for refused in (check_machine, lambda c: load_backend(c, "transformers", "nowhere")):
            with pytest.raises(MachineError, match=message) as error:
                refused(config)
            assert "\n" not in str(error.value)


def test_vllm_has_to_be_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    config = load_train_config("cpu-demo", ["fast_inference=true"])
    if importlib.util.find_spec("vllm") is None:
        with pytest.raises(MachineError, match=r"vLLM, which is not installed: pip install vllm"):
            check_machine(config)
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object() if name == "vllm" else real(name))
    with pytest.raises(UsageError, match=r"no engine for sampling: use --backend unsloth, or leave fast_inference out"):
        load_backend(config, "transformers", "nowhere")
    with pytest.raises(UsageError, match=r"fast_inference samples with the adapter beside the base"):
        load_train_config("cpu-demo", ["fast_inference=true", "rollout.weights=merged"])


@installed
def test_what_the_sampler_uses_of_unsloth() -> None:
    """The engine and `load_lora` are put on the peft model; the adapter's tensors are handed over as they are."""
    utils, zoo = source("unsloth", "models/_utils.py"), source("unsloth_zoo", "vllm_utils.py")
    (patch,) = (f for f in utils.body if isinstance(f, ast.FunctionDef) and f.name == "patch_peft_fast_inference")
    text = ast.unparse(patch)
    assert "model.vllm_engine = model.model.vllm_engine" in text
    assert "model.load_lora = functools.partial(load_lora, model)" in text
    (load,) = (f for f in zoo.body if isinstance(f, ast.FunctionDef) and f.name == "load_lora")
    assert [a.arg for a in load.args.args][:3] == ["model", "save_directory", "load_tensors"]
    (mode,) = (f for f in zoo.body if isinstance(f, ast.FunctionDef) and f.name == "_merged_rollout_mode")
    assert "UNSLOTH_VLLM_MERGED_ROLLOUT" in ast.unparse(mode)
    for where, owner in ((LLAMA, "FastLlamaModel"), (VISION, "FastBaseModel")):
        module = source(*where)
        owners = [c for c in module.body if isinstance(c, ast.ClassDef) and c.name == owner]
        assert "patch_peft_fast_inference(model)" in ast.unparse(owners[0])


@installed
def test_the_engine_tells_the_models_own_log_probabilities() -> None:
    """`training` is an argument of `load_vllm`, to which both loaders hand it on; it chooses which ones are told."""
    (load,) = (f for f in source("unsloth_zoo", "vllm_utils.py").body if getattr(f, "name", "") == "load_vllm")
    assert isinstance(load, ast.FunctionDef)
    assert "training" in named(load)
    assert "logprobs_mode='processed_logprobs' if training else 'raw_logprobs'" in ast.unparse(load)
    for where in (LLAMA, VISION):
        text = ast.unparse(source(*where))
        assert "if allowed_arg not in load_vllm_kwargs and allowed_arg in kwargs:" in text


CACHED = """
import json, sys
from sdft_cli.config import load_train_config
from sdft_cli.engine.models.backend_unsloth import pinned
found = []
for extra in (["fast_inference=true"], []):
    model, config = pinned(load_train_config("cpu-demo", ["revision=" + sys.argv[1], *extra]), "o/m")
    found.append([model, config.revision])
print(json.dumps(found))
"""


def test_the_engine_loads_the_revision_that_was_asked_for(tmp_path: Path, tiny_model: Path) -> None:
    """vLLM would load the default branch: it gets the folder of the commit."""
    old, new = "a" * 40, "b" * 40
    repo = tmp_path / "hub" / "models--o--m"
    for commit in (old, new):
        shutil.copytree(tiny_model, repo / "snapshots" / commit)
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text(new)
    done = subprocess.run(
        [sys.executable, "-c", CACHED, old],
        env={**os.environ, "HF_HUB_CACHE": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [[str(repo / "snapshots" / old), None], ["o/m", old]]


def test_a_load_that_fails_with_the_engine_is_one_sentence() -> None:
    class Loader:
        @staticmethod
        def from_pretrained(**arguments: Any) -> Any:
            raise RuntimeError("Unsloth: qwen9 is not supported\nby vLLM")

    with pytest.raises(MachineError, match=r"vLLM engine \(RuntimeError: Unsloth: qwen9 .*--set fast_inf") as error:
        _loaded(Loader, {"fast_inference": True})
    assert "\n" not in str(error.value)
    with pytest.raises(RuntimeError):
        _loaded(Loader, {"fast_inference": False})


def test_the_transformers_backend_does_not_ignore_4_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(UsageError, match=r"no 4-bit weights: use --backend unsloth"):
        load_backend(load_train_config("cpu-demo", ["load_in_4bit=true"]), "transformers", "nowhere")
    with pytest.raises(UsageError, match=r"load_in_4bit has no merged weights"):
        load_train_config("cpu-demo", ["load_in_4bit=true", "rollout.weights=merged"])


@no_gpu
def test_a_vision_tower_is_not_dropped_without_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sdft_cli.engine.models.load.has_package", lambda name: True)
    assert choose_backend("auto", "qwen3_5") == (
        "transformers",
        "without a GPU, unsloth would drop the vision tower of qwen3_5",
    )
    multimodal = qwen_config()
    config = load_train_config("cpu-demo")
    with pytest.raises(MachineError, match=r"drop the vision tower of this qwen3_5 checkpoint: use --backend tr"):
        check_model(config, multimodal, cuda=False)
    check_model(config, multimodal, cuda=True)


def test_positions_are_not_rescaled() -> None:
    short = SimpleNamespace(model_type="llama", get_text_config=lambda: SimpleNamespace(max_position_embeddings=8191))
    with pytest.raises(UsageError, match=r"max_seq_tokens is 8192 and the model has 8191 positions"):
        check_model(load_train_config("cpu-demo"), short, cuda=True)


def qwen_config() -> Any:
    from transformers import Qwen3_5Config

    return Qwen3_5Config(
        text_config={
            "vocab_size": 128,
            "hidden_size": 16,
            "intermediate_size": 32,
            "num_hidden_layers": 2,
            "layer_types": ["linear_attention", "full_attention"],
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "head_dim": 8,
            "linear_num_key_heads": 2,
            "linear_num_value_heads": 2,
            "linear_key_head_dim": 8,
            "linear_value_head_dim": 8,
        },
        vision_config={
            "depth": 1,
            "hidden_size": 16,
            "intermediate_size": 16,
            "num_heads": 2,
            "out_hidden_size": 16,
            "patch_size": 4,
            "num_position_embeddings": 16,
        },
    )


TARGETS = "lora.target_modules=[q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj, in_proj_qkv, out_proj]"


def loaded(*overrides: str) -> tuple[Any, TrainConfig, Any]:
    """A tiny random Qwen3.5 with a vision tower and the adapter that was asked for."""
    from transformers import Qwen3_5ForConditionalGeneration

    config = load_train_config("cpu-demo", ["lora.rank=2", TARGETS, *overrides])
    model_config = qwen_config()
    torch.manual_seed(0)
    base = Qwen3_5ForConditionalGeneration(model_config).to(getattr(torch, config.dtype)).requires_grad_(False)
    return attach_lora(base, config), config, model_config


class Linear4bit(torch.nn.Linear):
    """What bitsandbytes calls its layer; the check goes by this name, since the package needs a GPU."""


def as_4bit(model: Any, every: int) -> None:
    from sdft_cli.engine.models.adapters import lora_layers

    for number, layer in enumerate(lora_layers(model).values()):
        if number % every == 0:
            layer.get_base_layer().__class__ = Linear4bit


def test_what_was_loaded_is_compared_with_what_was_asked_for() -> None:
    model, config, model_config = loaded()
    check_loaded(model, config, model_config)
    wider = config.model_copy(update={"lora": config.lora.model_copy(update={"target_modules": ("q_proj", "k_proj")})})
    more = config.model_copy(
        update={"lora": config.lora.model_copy(update={"target_modules": (*config.lora.target_modules, "in_proj_z")})}
    )
    for asked, message in (
        (wider, r"put an adapter on model\.language_model\.layers\.0\.linear_attn\.in_proj_qkv"),
        (more, r"left out the adapter of model\.language_model\.layers\.0\.linear_attn\.in_proj_z"),
        (config.model_copy(update={"dtype": "bfloat16"}), r"weights as torch\.float32 instead of torch\.bfloat16"),
        (config.model_copy(update={"load_in_4bit": True}), r"loaded 0 of 12 adapted modules in 4 bits"),
    ):
        with pytest.raises(MachineError, match=rf"unsloth .*{message}.*: use --backend transformers\.$"):
            check_loaded(model, asked, model_config)


def test_4_bit_layers_are_there_iff_asked_for() -> None:
    model, config, model_config = loaded()
    as_4bit(model, 1)
    check_loaded(model, config.model_copy(update={"load_in_4bit": True}), model_config)
    with pytest.raises(MachineError, match="loaded 4-bit weights, which this run did not ask for"):
        check_loaded(model, config, model_config)
    model, config, model_config = loaded()
    as_4bit(model, 3)
    with pytest.raises(MachineError, match="loaded 4 of 12 adapted modules in 4 bits"):
        check_loaded(model, config.model_copy(update={"load_in_4bit": True}), model_config)


def test_the_adapter_the_words_and_the_tower_are_checked() -> None:
    model, config, model_config = loaded("dtype=bfloat16")
    check_loaded(model, config, model_config)  # fp32 adapter on bf16 weights
    first = next(p for p in model.parameters() if p.requires_grad)
    first.data = first.data.bfloat16()
    with pytest.raises(MachineError, match=r"made the adapter of torch\.bfloat16, torch\.float32 parameters"):
        check_loaded(model, config, model_config)
    first.data = first.data.float()
    model.get_base_model().resize_token_embeddings(130)
    with pytest.raises(MachineError, match="changed the number of words from 128 to 130"):
        check_loaded(model, config, qwen_config())
    model, config, model_config = loaded()
    del model.get_base_model().model.visual
    with pytest.raises(MachineError, match="dropped the vision tower"):
        check_loaded(model, config, model_config)


def test_a_sequence_that_would_be_cut_is_refused(tiny_model: Path) -> None:
    from sdft_cli.engine.passes.decode import generate
    from sdft_cli.engine.passes.padded import padded_states

    config = load_train_config("cpu-demo", ["max_seq_tokens=8", "max_prompt_tokens=6", "rollout.max_new_tokens=2"])
    plain = TransformersBackend.load(config, str(tiny_model))
    backend = UnslothBackend(plain.model, None, config)
    backend.decoding = plain.decoding  # type: ignore[method-assign]  # unsloth itself is not needed here
    assert len(padded_states(backend, [list(range(3, 11))], 2)) == 1
    with pytest.raises(DataError, match=r"has 9 tokens and unsloth cuts at max_seq_tokens \(8\)"):
        padded_states(backend, [list(range(3, 12))], 2)
    assert generate(backend, [[3, 4, 5, 6]], 4, [2], 2)
    with pytest.raises(DataError, match="has 9 tokens"):
        generate(backend, [[3, 4, 5, 6, 7]], 4, [2], 2)
