"""The unsloth backend: the same interface over unsloth's loaders.

Importing unsloth patches transformers, so it happens here and only when this backend is taken. Its compiled caches go
to the user's cache folder, never to the working folder. On a machine without a GPU its CPU backend runs.

unsloth changes settings that it cannot honour and prints a line about it: another repository of the same name, 16-bit
instead of 4-bit weights, rescaled positions, shorter inputs. Here such a change is refused: before loading where it
can be known, and by `check_loaded` on what was really loaded.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from sdft_cli.config import TrainConfig
from sdft_cli.engine.kernels.autocast import autocast_passes, needs_autocast
from sdft_cli.engine.kernels.cudnn import leave_cudnn_attention
from sdft_cli.engine.models.adapters import lora_layers
from sdft_cli.engine.models.backend import Backend
from sdft_cli.engine.models.modes import modes_kept, switch_off_dropout
from sdft_cli.engine.models.names import cache_folder, local_folder
from sdft_cli.engine.models.targets import hits, target_pattern, with_targets
from sdft_cli.errors import DataError, MachineError, UsageError

FAST_TYPES = frozenset({"llama", "mistral", "gemma", "gemma2", "qwen2", "qwen3"})
"""`model_type`s for which `FastLanguageModel` has kernels of its own; it hands all others to `FastModel`."""

VISION_TYPES = frozenset({"qwen3_5", "qwen3_5_moe", "gemma3"})
"""`model_type`s with a vision tower that `FastModel` names. They need a GPU: its CPU backend loads text models only."""

OTHER_BACKEND = "use --backend transformers."


def import_unsloth() -> Any:
    """Import unsloth with its caches outside the working folder; do it before transformers is imported.

    Raises:
        MachineError: its import fails on this machine.
    """
    os.environ.setdefault("UNSLOTH_COMPILE_LOCATION", str(cache_folder() / "unsloth_compiled_cache"))
    os.environ.setdefault("UNSLOTH_DISABLE_STATISTICS", "1")  # no phoning home
    # vLLM gets the adapter beside the base; folded into it, the weights that the teacher reads would be written.
    os.environ["UNSLOTH_VLLM_MERGED_ROLLOUT"] = "0"
    try:
        import unsloth
    except Exception as error:  # its import runs probes of the machine that fail in many ways
        reason = (str(error).splitlines() or [""])[0]
        raise MachineError(
            f"unsloth is installed and does not import here ({type(error).__name__}: {reason}): {OTHER_BACKEND}"
        ) from error
    return unsloth


def loader_arguments(config: TrainConfig, model: str, cuda: bool) -> dict[str, Any]:
    """Return the arguments of `from_pretrained`: each is a named parameter of it or of `load_vllm`, by test."""
    common = {
        "model_name": model,
        "max_seq_length": config.max_seq_tokens,
        "dtype": getattr(torch, config.dtype),
        "load_in_4bit": config.load_in_4bit,
        "load_in_16bit": not config.load_in_4bit and config.dtype != "float32",
        "revision": config.revision,
        "trust_remote_code": False,
        "use_gradient_checkpointing": _checkpointing(config),
        "fast_inference": config.fast_inference,
    }
    if not cuda:
        return common
    if config.fast_inference:
        common |= {"gpu_memory_utilization": config.fast_inference_memory, "max_lora_rank": config.lora.rank}
        # Not for its own trainers: log-probabilities are then the model's, not those behind temperature and top-p.
        common["training"] = False
    # This very repository; one device; the tokenizer is ours; the embedding stays beside the other weights.
    exact = {"use_exact_model_name": True, "device_map": {"": 0}, "fix_tokenizer": False, "offload_embedding": False}
    return {**common, **exact}


def pinned(config: TrainConfig, model: str) -> tuple[str, TrainConfig]:
    """Return the model and configuration to load; with `fast_inference` a folder with the very commit of a Hub model.

    vLLM would load the default branch, and unsloth then drops the revision for the trainer too.

    Raises:
        MachineError: the Hub cannot be reached, and the cache does not hold this revision.
    """
    if not config.fast_inference:
        return model, config
    folder = local_folder(model, config.revision)
    return str(folder), config.model_copy(update={"revision": None})


def adapter_arguments(config: TrainConfig, pattern: str | None, cuda: bool) -> dict[str, Any]:
    """Return the arguments of `get_peft_model`, of `FastModel`'s if it gets the targets as a pattern."""
    common = {
        "r": config.lora.rank,
        "target_modules": list(config.lora.target_modules),
        "lora_alpha": config.lora.alpha,
        "lora_dropout": config.lora.dropout,
        "bias": "none",
        "use_gradient_checkpointing": _checkpointing(config),
        "random_state": config.seed,
    }
    if pattern is None:
        return common
    # A pattern is taken as it is; a list would be filtered by names that do not know every language module.
    common["target_modules"] = pattern
    if not cuda:
        return common
    return {
        **common,
        "finetune_vision_layers": False,
        "finetune_language_layers": True,
        "finetune_attention_modules": True,
        "finetune_mlp_modules": True,
    }


def _checkpointing(config: TrainConfig) -> str | bool:
    return "unsloth" if config.gradient_checkpointing else False


def check_model(config: TrainConfig, model_config: Any, cuda: bool) -> None:
    """Refuse, before loading, what unsloth would change without being asked.

    Raises:
        MachineError: without a GPU, a checkpoint with a vision tower, which unsloth's CPU backend would drop.
        UsageError: `max_seq_tokens` is above what the model's positions reach; unsloth would rescale them.
    """
    if not cuda and getattr(model_config, "vision_config", None) is not None:
        raise MachineError(
            f"unsloth's CPU backend would drop the vision tower of this {model_config.model_type} checkpoint: "
            f"{OTHER_BACKEND}"
        )
    positions = getattr(model_config.get_text_config(), "max_position_embeddings", None)
    if positions and config.max_seq_tokens > positions:
        raise UsageError(
            f"max_seq_tokens is {config.max_seq_tokens} and the model has {positions} positions, which unsloth would "
            f"rescale: lower max_seq_tokens, max_prompt_tokens and rollout.max_new_tokens, or {OTHER_BACKEND}"
        )


def check_loaded(model: Any, config: TrainConfig, model_config: Any) -> None:
    """Compare what unsloth loaded with what was asked for.

    Raises:
        MachineError: names the first difference, and the backend that would not make it.
    """
    wrong = _difference(model, config, model_config)
    if wrong:
        raise MachineError(f"unsloth {wrong}: {OTHER_BACKEND}")


def _difference(model: Any, config: TrainConfig, model_config: Any) -> str | None:
    base = model.get_base_model()
    asked = set(hits(base, config.lora.target_modules))
    layers = lora_layers(base)
    if asked != layers.keys():
        name = min(asked ^ layers.keys())
        return f"{'put an adapter on' if name in layers else 'left out the adapter of'} {name}"
    bits = [type(layer.get_base_layer()).__name__ == "Linear4bit" for layer in layers.values()]
    if config.load_in_4bit and 2 * sum(bits) < len(bits):
        return f"loaded {sum(bits)} of {len(bits)} adapted modules in 4 bits"
    if not config.load_in_4bit and any(type(m).__name__ == "Linear4bit" for m in base.modules()):
        return "loaded 4-bit weights, which this run did not ask for"
    if config.fast_inference and getattr(model, "vllm_engine", None) is None:
        return "loaded the model without its vLLM engine, for which it printed a reason"
    dtype = getattr(torch, config.dtype)
    plain = [layer.get_base_layer().weight for layer, four in zip(layers.values(), bits, strict=True) if not four]
    other = next((w.dtype for w in [*plain, base.get_input_embeddings().weight] if w.dtype != dtype), None)
    if other is not None:
        return f"loaded weights as {other} instead of {dtype}"
    trainable = {p.dtype for p in model.parameters() if p.requires_grad}
    if trainable != {torch.float32}:
        return f"made the adapter of {', '.join(sorted(map(str, trainable))) or 'no'} parameters instead of float32"
    words = model_config.get_text_config().vocab_size
    if base.get_output_embeddings().weight.shape[0] != words:
        return f"changed the number of words from {words} to {base.get_output_embeddings().weight.shape[0]}"
    if getattr(model_config, "vision_config", None) is not None and not any(
        "visual" in name or "vision" in name for name, _ in base.named_modules()
    ):
        return "dropped the vision tower"
    return None


def _loaded(loader: Any, arguments: dict[str, Any]) -> Any:
    """Load the base; what unsloth says of a model that its vLLM engine cannot run is one sentence.

    Raises:
        MachineError: with `fast_inference`, it cannot be loaded.
    """
    if not arguments["fast_inference"]:
        return loader.from_pretrained(**arguments)[0]
    try:
        return loader.from_pretrained(**arguments)[0]
    except (ImportError, NotImplementedError, RuntimeError, TypeError, ValueError) as error:
        reason = str(error).strip().splitlines() or ["no reason given"]
        raise MachineError(
            f"unsloth cannot load this model with its vLLM engine ({type(error).__name__}: {reason[0]}): leave "
            f"fast_inference out (--set fast_inference=false), or {OTHER_BACKEND}"
        ) from error


class UnslothBackend(Backend):
    """unsloth's patched model with a peft adapter.

    `FastLanguageModel` replaces the attention of its families by one of its own, so nothing of ours can go into it.
    `FastModel` runs transformers' layers, which ask for their attention by name at each pass: in eval mode or behind a
    cache as they are, in training with each block compiled. There the check of prefix sharing decides. On a GPU the
    `generate` of both takes no cache of ours: it names one to transformers, which refuses two.
    """

    name = "unsloth"
    package = "unsloth"
    features = frozenset({"load_in_4bit", "fast_inference"})

    def __init__(self, model: Any, loader: Any, config: TrainConfig, own_attention: str | None = None) -> None:
        self.model = model
        self.own_attention = own_attention
        self.takes_cache = own_attention is None and not torch.cuda.is_available()
        self.device = model.get_base_model().get_output_embeddings().weight.device
        self.max_tokens = config.max_seq_tokens
        self.mergeable = not config.load_in_4bit
        self._loader = loader
        self._checkpointing = _checkpointing(config)
        if config.fast_inference:
            folder = str(cache_folder() / "vllm_adapter")  # unsloth writes the adapter's configuration there
            self.vllm = model.vllm_engine, lambda: model.load_lora(folder, load_tensors=True)

    @classmethod
    def objection(cls, model_type: str, gpu: bool | None = None) -> str | None:
        """Say why unsloth is not taken unasked: an unknown model, or one that it would change on this machine."""
        if model_type not in FAST_TYPES | VISION_TYPES:
            return f"unsloth is not known to support {model_type}"
        if model_type in VISION_TYPES and not (torch.cuda.is_available() if gpu is None else gpu):
            return f"without a GPU, unsloth would drop the vision tower of {model_type}"
        return None

    @classmethod
    def attends_itself(cls, model_type: str) -> str | None:
        """Say that `FastLanguageModel` loads a family. Without a GPU too: its CPU backend rehearses what a GPU runs."""
        if model_type not in FAST_TYPES:
            return None
        here = "" if torch.cuda.is_available() else ", for which its CPU backend stands in"
        return f"unsloth's FastLanguageModel runs {model_type} with an attention of its own{here}"

    @classmethod
    def import_first(cls) -> None:
        """Import unsloth, which patches transformers."""
        import_unsloth()

    @classmethod
    def load(cls, config: TrainConfig, model: str) -> UnslothBackend:
        """Load base and fresh adapter through unsloth.

        Raises:
            UsageError: a target name hits no module of the language trunk, or `max_seq_tokens` is above the model's
                positions.
            MachineError: unsloth does not import, or does something else than it was asked to.
        """
        unsloth = import_unsloth()
        leave_cudnn_attention()
        from transformers import AutoConfig

        model_config = AutoConfig.from_pretrained(model, revision=config.revision or "main")
        cuda = torch.cuda.is_available()
        check_model(config, model_config, cuda)
        model, config = pinned(config, model)
        # FastLanguageModel has kernels of its own for a few text models and hands all others to FastModel. Without a
        # GPU both names are one class, stock transformers.
        fast = model_config.model_type in FAST_TYPES
        loader = unsloth.FastLanguageModel if fast else unsloth.FastModel
        base = _loaded(loader, loader_arguments(config, model, cuda))
        switch_off_dropout(base)
        config = with_targets(config, base)
        pattern = None if fast else target_pattern(base, config.lora.target_modules)
        peft_model = loader.get_peft_model(base, **adapter_arguments(config, pattern, cuda))
        check_loaded(peft_model, config, model_config)
        backend = cls(peft_model, loader, config, cls.attends_itself(model_config.model_type))
        # As its own trainers and its `generate` do; outside autocast its LoRA layers compute in fp32.
        if needs_autocast(getattr(torch, config.dtype), backend.device):
            autocast_passes(peft_model.get_base_model(), getattr(torch, config.dtype))
        if not config.gradient_checkpointing:
            peft_model.eval()
        return backend

    @contextmanager
    def decoding(self) -> Iterator[None]:
        """Put the model into unsloth's inference mode and back.

        Its `generate` switches gradient checkpointing off and, called in eval mode, does not switch it on again.
        """
        with modes_kept(self.model):
            self._loader.for_inference(self.model)
            try:
                yield
            finally:
                self._loader.for_training(self.model, use_gradient_checkpointing=self._checkpointing)

    def check_width(self, tokens: int) -> None:
        """Refuse a sequence that unsloth would cut to `max_seq_tokens`."""
        if tokens > self.max_tokens:
            raise DataError(
                f"A sequence has {tokens} tokens and unsloth cuts at max_seq_tokens ({self.max_tokens}): raise "
                f"max_seq_tokens, or {OTHER_BACKEND}"
            )

    def save_adapter(self, folder: Path) -> None:
        self.model.save_pretrained(folder, safe_serialization=True)
