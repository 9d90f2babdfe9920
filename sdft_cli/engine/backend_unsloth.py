"""The unsloth backend: the same interface over `FastLanguageModel`.

Importing unsloth patches transformers, so it happens here and only when this backend is taken. Its compiled caches go
to the user's cache folder, never to the working folder. On a machine without a GPU its CPU backend runs.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch

from sdft_cli.config import TrainConfig
from sdft_cli.engine.adapters import check_targets, lora_layers, target_pattern
from sdft_cli.engine.backend import Backend
from sdft_cli.engine.models import cache_folder
from sdft_cli.errors import MachineError


def import_unsloth() -> Any:
    """Import unsloth with its caches outside the working folder; do it before transformers is imported."""
    os.environ.setdefault("UNSLOTH_COMPILE_LOCATION", str(cache_folder() / "unsloth_compiled_cache"))
    os.environ.setdefault("UNSLOTH_DISABLE_STATISTICS", "1")  # no phoning home
    try:
        import unsloth
    except Exception as error:  # its import runs probes of the machine that fail in many ways
        raise MachineError(
            f"unsloth is installed and does not import here ({type(error).__name__}: {str(error).splitlines()[0]}): "
            "use --backend transformers."
        ) from error
    return unsloth


class UnslothBackend(Backend):
    """unsloth's patched model with a peft adapter."""

    name = "unsloth"
    takes_masks = False  # its attention builds its own causal mask

    def __init__(self, model: Any, device: torch.device) -> None:
        self.model = model
        self.device = device

    @classmethod
    def load(cls, config: TrainConfig, model: str) -> UnslothBackend:
        """Load base and fresh adapter through unsloth.

        Raises:
            UsageError: a target name hits no module of the language trunk.
            MachineError: unsloth does not import, or would put the adapter on a module outside the language trunk.
        """
        unsloth = import_unsloth()
        checkpointing = "unsloth" if config.gradient_checkpointing else False
        base, _ = unsloth.FastLanguageModel.from_pretrained(
            model_name=model,
            max_seq_length=config.max_seq_tokens,
            dtype=getattr(torch, config.dtype),
            load_in_4bit=False,
            revision=config.revision,
            trust_remote_code=False,
            use_gradient_checkpointing=checkpointing,
        )
        names = config.lora.target_modules
        check_targets((name for name, _ in base.named_modules()), names)
        peft_model = unsloth.FastLanguageModel.get_peft_model(
            base,
            r=config.lora.rank,
            target_modules=list(names),
            lora_alpha=config.lora.alpha,
            lora_dropout=config.lora.dropout,
            bias="none",
            use_gradient_checkpointing=checkpointing,
            random_state=config.seed,
        )
        _refuse_strays(peft_model, names)
        if not config.gradient_checkpointing:
            peft_model.eval()
        return cls(peft_model, next(peft_model.parameters()).device)

    def save_adapter(self, folder: Path) -> None:
        self.model.save_pretrained(folder, safe_serialization=True)


def _refuse_strays(model: Any, names: tuple[str, ...]) -> None:
    import re

    pattern = re.compile(target_pattern(names))
    strays = [name for name in lora_layers(model) if not pattern.fullmatch(name)]
    if strays:
        raise MachineError(
            f"unsloth put the adapter on {strays[0]}, outside the language trunk: use --backend transformers."
        )
