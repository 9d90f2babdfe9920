from __future__ import annotations

from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from sdft_cli.engine.models.backend_transformers import load_model  # noqa: E402


def test_a_model_is_loaded_without_cudnns_attention(tiny_model: Path) -> None:
    """It builds a plan for every length, and gave wrong gradients (docs/gpu.md); a CPU has the flag too."""
    torch.backends.cuda.enable_cudnn_sdp(True)
    load_model(str(tiny_model), torch.float32, torch.device("cpu"))
    assert not torch.backends.cuda.cudnn_sdp_enabled()
    assert torch.backends.cuda.flash_sdp_enabled()
