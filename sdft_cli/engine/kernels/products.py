"""Products of fp32 matrices by 16-bit factors, where a processor has units for them: chosen by measuring at the start.

Factors are rounded to bfloat16, products are summed in fp32, and nothing else is rounded: neither weights nor what lies
between products. A CPU with AMX has units for bfloat16; where one is no faster with it, products stay exact.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal

import torch

Products = Literal["highest", "medium"]
"""As torch calls them: exact in fp32, or by bfloat16 factors."""

SHAPE = (1024, 576, 1536)
"""Rows, inputs and outputs of the product that is timed: a matrix of a small model in a pass over 1,024 tokens."""
ROUNDS = 5
GAIN = 1.5
"""16-bit factors are taken if they are so many times as fast."""


@contextmanager
def products(kind: Products) -> Iterator[None]:
    """Products of fp32 matrices are of this kind; afterwards of the one that they were."""
    own = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(kind)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(own)


def gain(clock: Callable[[], float] = time.perf_counter) -> float:
    """Return how many times as fast a product by 16-bit factors is on this CPU; `clock` returns seconds."""
    rows, width, out = SHAPE
    x, weight = torch.ones(rows, width), torch.ones(out, width)
    best = {"highest": float("inf"), "medium": float("inf")}
    for _ in range(ROUNDS):
        for kind in best:
            with torch.no_grad(), products(kind):  # type: ignore[arg-type]
                start = clock()
                torch.nn.functional.linear(x, weight)
                best[kind] = min(best[kind], clock() - start)
    return best["highest"] / best["medium"]


def choose_products(
    asked: Literal["auto", "exact"],
    device: torch.device,
    dtype: torch.dtype,
    known: Products | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> tuple[Products, str | None]:
    """Return the kind of product of training steps, and a sentence that says so where there was a choice.

    Args:
        asked: the setting `products`.
        device, dtype: of the model; other than fp32 on a CPU, products are as they are.
        known: what a run that goes on began with; it is not asked again.
        clock: returns seconds.
    """
    if asked == "exact" or device.type != "cpu" or dtype != torch.float32:
        return "highest", None
    if known:
        return known, f"Products: {known} precision of torch, as the run began"
    faster = gain(clock)
    if faster < GAIN:
        return "highest", f"Products: exact in fp32 (by bfloat16 factors they are {faster:.1f} times as fast here)"
    return "medium", (
        f"Products: of training steps, by factors rounded to bfloat16 with fp32 sums ({faster:.1f} times as fast here; "
        "products=exact leaves them in fp32); steps of decoding, gate and evaluation are exact"
    )
