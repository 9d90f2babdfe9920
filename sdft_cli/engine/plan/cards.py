"""Cards by name: memory, arithmetic and bandwidth, of `templates/gpus.yaml` or of this machine."""

from __future__ import annotations

import re
from dataclasses import dataclass

import yaml

from sdft_cli.errors import UsageError, did_you_mean
from sdft_cli.resources import resource_text

RESERVE = 0.06
"""Share of a card's memory left to the CUDA context, libraries and fragmentation; an assumption."""


@dataclass(frozen=True)
class Gpu:
    """A card: memory in GB of 2^30 bytes, dense TFLOP/s of the compute dtype, GB/s of memory bandwidth.

    `link_gb_per_s`: GB/s in each direction between two such cards of a machine.
    """

    name: str
    memory_gb: float
    tflops: float | None
    gb_per_s: float | None
    note: str = ""
    link_gb_per_s: float | None = None

    @property
    def usable(self) -> int:
        return int(self.memory_gb * 2**30 * (1 - RESERVE))


def known_gpus() -> list[Gpu]:
    """Return the cards of `templates/gpus.yaml`."""
    return [Gpu(**entry) for entry in yaml.safe_load(resource_text("templates", "gpus.yaml"))]


def find_gpu(text: str) -> Gpu:
    """Return a card by name (`h100-80gb`), or one of a size (`80GB`): then the slowest known card of that size speaks.

    Raises:
        UsageError: it is neither a known name nor a size.
    """
    cards = known_gpus()
    for card in cards:
        if card.name == text.lower():
            return card
    size = re.fullmatch(r"(\d+(?:\.\d+)?)\s*gi?b", text.lower())
    if not size or float(size[1]) == 0:
        near = did_you_mean(text, [card.name for card in cards])
        raise UsageError(f"--gpu {text} is no size (80GB) and no card: {near}")
    memory = float(size[1])
    alike = min(cards, key=lambda c: (abs(c.memory_gb - memory), c.tflops))
    return Gpu(text, memory, alike.tflops, alike.gb_per_s, f"speed of {alike.name}", alike.link_gb_per_s)


def machine_gpu() -> Gpu | None:
    """Return this machine's first CUDA device, with the speed of the known card that its name contains, or None."""
    import torch

    if not torch.cuda.is_available():
        return None
    device = torch.cuda.get_device_properties(0)
    memory = device.total_memory / 2**30
    name = re.sub(r"[^a-z0-9]", "", device.name.lower())
    alike = [c for c in known_gpus() if c.name.rsplit("-", 1)[0].replace("-", "") in name]
    if not alike:
        return Gpu(device.name, memory, None, None, "its speed is not known: name a card with --gpu for hours")
    card = min(alike, key=lambda c: abs(c.memory_gb - memory))
    return Gpu(device.name, memory, card.tflops, card.gb_per_s, f"speed of {card.name}", card.link_gb_per_s)
