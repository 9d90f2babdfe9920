"""Out of memory becomes one sentence that says what to lower."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from sdft_cli.config import TrainConfig
from sdft_cli.errors import MachineError

CPU_ALLOCATION_FAILED = "can't allocate memory"


def is_out_of_memory(error: BaseException) -> bool:
    """Say whether an error is torch's for memory that cannot be had, on a GPU or on the CPU."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or (
        isinstance(error, RuntimeError) and CPU_ALLOCATION_FAILED in str(error)
    )


def what_to_lower(config: TrainConfig) -> str:
    """Name the settings that lower the peak, the one that costs least first."""
    optim = config.optim
    advice = []
    if optim.turns_per_step * config.rollout.per_record > 1:
        advice.append(f"optim.max_tokens_per_pass (now {optim.max_tokens_per_pass})")
    if not config.gradient_checkpointing:
        advice.append("gradient_checkpointing to true")
    if config.rollout.weights != "adapter":
        advice.append("rollout.weights to adapter")
    advice.append(f"rollout.max_tokens_per_pass (now {config.rollout.max_tokens_per_pass})")
    advice.append(f"max_prompt_tokens (now {config.max_prompt_tokens}; prepare again with the same cap)")
    return "lower or set, in this order, " + ", ".join(advice)


@contextmanager
def out_of_memory_explained(config: TrainConfig, where: str) -> Iterator[None]:
    """Turn an allocation failure into a `MachineError` of one sentence; other errors pass."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise MachineError(f"Out of memory in {where}: {what_to_lower(config)}.") from error
