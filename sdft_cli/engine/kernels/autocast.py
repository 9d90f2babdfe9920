"""Passes under autocast: the products of an fp32 adapter are done in the type of a 16-bit base."""

from __future__ import annotations

from typing import Any

import torch


def needs_autocast(dtype: torch.dtype, device: torch.device) -> bool:
    """Say whether passes run under autocast: on a GPU, where the base has 16 bits and its adapter 32.

    Without it the adapter's products are done in fp32, which takes longer than the base's own, and peft makes an fp32
    copy of every adapted input, kept for the backward pass. On a CPU fp32 is no slower, and exact.
    """
    return device.type != "cpu" and dtype in (torch.bfloat16, torch.float16)


def autocast_passes(model: Any, dtype: torch.dtype, device: torch.device | None = None) -> None:
    """Let all forward passes of a Hugging Face model, or of its trunk alone, run under autocast to a 16-bit type.

    Whoever runs the model: teacher, student, `generate`, evaluation and the certificate compute the same. The passes
    that gradient checkpointing repeats are under it too. No cast of an adapter's weight is kept beyond its use: a pass
    uses each once, and a kept one would be that of an older step, or without gradient. `device`: where they will run;
    None: where the model is.
    """
    modules = {id(module): module for module in (model, model.base_model)}
    for module in modules.values():
        autocast = torch.autocast((device or model.device).type, dtype=dtype, cache_enabled=False)
        module.forward = autocast(module.forward)


def leave_inputs(model: Any) -> None:
    """Let peft's LoRA layers take their inputs as they are, for good: only for passes under autocast.

    Without that they make an fp32 copy of each, which autocast then rounds again.
    """
    from peft.tuners.lora import LoraLayer

    for module in model.modules():
        if isinstance(module, LoraLayer):
            module.cast_input_dtype_enabled = False
