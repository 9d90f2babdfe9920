"""Attention on a GPU without cuDNN."""

from __future__ import annotations

import torch


def leave_cudnn_attention() -> None:
    """Take cuDNN out of the kernels that torch chooses from for attention; nothing changes without a GPU.

    On Hopper torch prefers cuDNN, which builds a plan for every shape that it has not seen, tens of milliseconds each.
    Here hardly a shape comes twice: the path grows with every segment, and with every decoded token. A step of one turn
    of 16k tokens took 36 s because of that (docs/gpu.md). Flash attention, the next in line, has no plans.
    """
    torch.backends.cuda.enable_cudnn_sdp(False)
