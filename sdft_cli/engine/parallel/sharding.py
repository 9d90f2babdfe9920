"""Whether the processes of a run share one copy of the base: what accelerate's configuration says of FSDP.

`accelerate launch --use_fsdp --fsdp_version 2` hands its configuration on in the environment, and so may anybody who
starts processes in another way. What is said there is done, or refused by its name.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from sdft_cli.errors import UsageError

USE, VERSION = "ACCELERATE_USE_FSDP", "FSDP_VERSION"
BLOCKS, ONE_READS, PRECISION = "FSDP_TRANSFORMER_CLS_TO_WRAP", "FSDP_CPU_RAM_EFFICIENT_LOADING", "MIXED_PRECISION"
TRUE = ("1", "true", "yes", "y", "t", "on")
OFF = ("", "0", "false", "no", "n", "f", "off", "none")
ONLY = {
    "FSDP_OFFLOAD_PARAMS": (OFF, "weights stay on the cards: launch without --fsdp_offload_params"),
    "FSDP_RESHARD_AFTER_FORWARD": (
        ("", *TRUE, "full_shard"),
        "a layer's weights are given back after each pass: launch with --fsdp_reshard_after_forward true",
    ),
    "FSDP_AUTO_WRAP_POLICY": (
        ("", "transformer_based_wrap"),
        "the layers of the model are sharded one by one: launch with --fsdp_auto_wrap_policy TRANSFORMER_BASED_WRAP",
    ),
    "FSDP_FORWARD_PREFETCH": (OFF, "FSDP2 has no such setting: launch without --fsdp_forward_prefetch"),
    "FSDP_ACTIVATION_CHECKPOINTING": (
        OFF,
        "it is a setting of the profile: launch without --fsdp_activation_checkpointing, and add "
        "--set gradient_checkpointing=true",
    ),
    "FSDP_IGNORED_MODULES": (("", "none"), "all layers are sharded: launch without --fsdp_ignored_modules"),
    "ACCELERATE_USE_PARALLELISM_CONFIG": (
        OFF,
        "layers are sharded over all processes and nothing else is: launch without --use_parallelism_config",
    ),
}
"""A variable of accelerate -> the values that it may have here, in small letters; why, and what to do otherwise."""


@dataclass(frozen=True)
class Sharding:
    """`blocks`: classes whose modules are sharded; None: those that the model names. `one_reads`: see `layers.py`."""

    blocks: tuple[str, ...] | None
    one_reads: bool


def asked_sharding(dtype: str) -> Sharding | None:
    """Return how accelerate's configuration asks for the base to be sharded; None: it does not.

    Args:
        dtype: of the base, by the profile: `--mixed_precision` may only say the same.

    Raises:
        UsageError: it asks for something that is not done here; names the setting.
    """
    if _value(USE) not in TRUE:
        return None
    if (version := _value(VERSION) or "1") != "2":
        raise UsageError(f"FSDP version {version} is not supported: launch with --fsdp_version 2, or without FSDP.")
    for name, (allowed, otherwise) in ONLY.items():
        if (value := _value(name)) not in allowed:
            raise UsageError(f"{name} is {value}, but {otherwise}.")
    precision = {"bf16": "bfloat16", "fp16": "float16"}.get(asked := _value(f"ACCELERATE_{PRECISION}"), asked)
    if precision not in (*OFF, dtype):
        raise UsageError(
            f"--mixed_precision is {asked}, but the base of this run is {dtype}: launch with --mixed_precision no, and "
            "set the type by --set dtype=..."
        )
    named = os.environ.get(BLOCKS, "")
    blocks = tuple(name.strip() for name in named.split(",") if name.strip()) if named.lower() != "none" else ()
    return Sharding(blocks or None, _value(ONE_READS) in TRUE)


def _value(name: str) -> str:
    return os.environ.get(name, "").strip().lower()


@contextmanager
def hidden_from_accelerate() -> Iterator[None]:
    """accelerate's own plugin stays off: it would wrap model and optimiser, and average over processes."""
    asked = os.environ.pop(USE, None)
    try:
        yield
    finally:
        if asked is not None:
            os.environ[USE] = asked
