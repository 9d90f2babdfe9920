"""Why cuDNN's attention is not used: its gradients by layout, and what a new shape costs, against flash attention.

    python benchmarks/cudnn_attention.py        # on a GPU, seconds; needs torch alone

Distances are relative (L2) to fp32 without a fused kernel. `layout` is that of the incoming gradient: of the output as
the kernel wrote it (B, heads, N, d), or of what a model makes of it (B, N, heads, d).
"""

from __future__ import annotations

import sys
import time

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

HEADS, KEY_HEADS, SIZE = 16, 4, 256
TOKENS = 2048
KERNELS = {"cudnn": SDPBackend.CUDNN_ATTENTION, "flash": SDPBackend.FLASH_ATTENTION, "math": SDPBackend.MATH}


def gradients(
    kernel: str, layout: str, queries: int = TOKENS, keys: int = TOKENS, dtype: torch.dtype = torch.bfloat16
) -> tuple[list[Tensor], float]:
    """Return the gradients of queries, keys and values, and the milliseconds of the forward and backward pass."""
    torch.manual_seed(0)
    sizes = ((HEADS, queries), (KEY_HEADS, keys), (KEY_HEADS, keys))
    drawn = [torch.randn(1, *size, SIZE, device="cuda", dtype=torch.bfloat16).to(dtype) for size in sizes]
    query, key, value = (x.requires_grad_() for x in drawn)
    torch.cuda.synchronize()
    start = time.perf_counter()
    with sdpa_kernel(KERNELS[kernel]):
        out = scaled_dot_product_attention(query, key, value, is_causal=queries == keys, enable_gqa=True)
        if layout == "model":
            out = out.transpose(1, 2).contiguous()
        out.float().square().sum().backward()
    torch.cuda.synchronize()
    return [x.grad for x in (query, key, value) if x.grad is not None], 1e3 * (time.perf_counter() - start)


def main() -> int:
    """Print the distances and the times; return the exit code."""
    if not torch.cuda.is_available():
        print("This needs a GPU.", file=sys.stderr)
        return 6
    expected, _ = gradients("math", "model", dtype=torch.float32)
    for kernel in ("cudnn", "flash"):
        for layout in ("kernel", "model"):
            found, _ = gradients(kernel, layout)
            pairs = zip(found, expected, strict=True)
            distances = [f"{float((a.float() - b).norm() / b.norm()):.3g}" for a, b in pairs]
            print(f"{kernel}, gradient laid out as by the {layout}: dq, dk, dv {', '.join(distances)}")
    for kernel in ("cudnn", "flash"):
        gradients(kernel, "model", 500, 500)  # loads the library
        shapes = [gradients(kernel, "model", n, n)[1] for n in range(1000, 1032, 8)]
        single = [gradients(kernel, "model", 1, n)[1] for n in range(1000, 1004)]
        again = [gradients(kernel, "model", 1000, 1000)[1] for _ in range(2)]
        for name, times in (("new shapes", shapes), ("one query, one key more", single), ("a shape again", again)):
            print(f"{kernel}, {name}, ms: {', '.join(f'{x:.1f}' for x in times)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
