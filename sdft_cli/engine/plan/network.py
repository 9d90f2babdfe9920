"""What passing data between cards takes: a ring, as nccl and gloo make one, with a bandwidth and a time per hop."""

from __future__ import annotations

from dataclasses import dataclass

from sdft_cli.engine.plan.cards import Gpu

LINK_SHARE = 0.7
"""Share of a link's bandwidth that collectives reach; an assumption."""
HOP, NETWORK_HOP = 5e-6, 20e-6
"""Seconds of a hop from card to card in a machine, and over the network; assumptions."""


@dataclass(frozen=True)
class Ring:
    """So many cards in a ring: bytes per second of its slowest link, and seconds of a hop. One card sends nothing."""

    count: int
    bytes_per_s: float
    hop: float = 0.0

    def all_reduce(self, size: float) -> float:
        """Return the seconds in which all cards get the sum of `size` bytes of each: scattered, then gathered."""
        return 2 * self.all_gather(size)

    def all_gather(self, size: float) -> float:
        """Return the seconds in which all cards get the `size` bytes of which each holds an equal part."""
        return (self.count - 1) * (self.hop + size / self.count / self.bytes_per_s)


def ring_of(card: Gpu, count: int, nodes: int, network: float) -> Ring | None:
    """Return the ring of so many cards over so many machines; None: the card's link is not known.

    Args:
        network: GB/s of a machine's network; of several machines the slower one of it and the link counts.
    """
    if card.link_gb_per_s is None:
        return None
    slowest = card.link_gb_per_s if nodes == 1 else min(card.link_gb_per_s, network)
    return Ring(count, LINK_SHARE * slowest * 1e9, HOP if nodes == 1 else NETWORK_HOP)
