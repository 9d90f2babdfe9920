"""The output head of a model, as the model itself applies it to the trunk's hidden states.

    z = scale * (h W^T + b)        logits = cap * tanh(z / cap), or z where there is no cap

Scale and cap stand in the config under several names. That they are what the model does is checked when it is loaded
(`head_check.py`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sdft_cli.errors import UsageError

MULTIPLIES = ("logit_scale", "lm_head_multiplier", "output_multiplier")
"""Names of a factor of the logits: Cohere, Falcon-H1, Muse Glimmer."""
DIVIDES = ("logits_scaling",)
"""Names of a divisor of the logits: Granite, MiniCPM3."""
MULTIPLIES_BY_A_DIVISORS_NAME = ("hyperclovax",)
"""`model_type`s that multiply by what is a divisor elsewhere."""
CAPS = ("final_logit_softcapping", "logits_soft_cap", "output_logit_soft_cap")
"""Names of the cap: Gemma 2 to 4 and NanoChat, RecurrentGemma, xLSTM."""


@dataclass(frozen=True)
class Head:
    """`weight` (V, H), `bias` (V,), `scale` and `softcap` of the logits. `Head(weight)` is a plain matrix."""

    weight: Tensor
    bias: Tensor | None = None
    scale: float = 1.0
    softcap: float | None = None

    @property
    def words(self) -> int:
        """V, the number of words."""
        return self.weight.shape[0]

    @property
    def width(self) -> int:
        """H, the width of a hidden state."""
        return self.weight.shape[1]

    @property
    def T(self) -> Tensor:
        """(H, V): the weight alone, transposed."""
        return self.weight.T

    def plain(self) -> Head:
        """The same head without scale and cap."""
        return Head(self.weight, self.bias)

    def logits(self, hidden: Tensor, out: Tensor | None = None) -> Tensor:
        """Return the logits (R, V), at least fp32, of hidden states (R, H); in `out`, fp32, where it is given.

        The product is in the weight's type, all that follows in the result's. With `out` there is no gradient.
        """
        hidden = hidden.to(self.weight.dtype)  # Mamba's norm leaves fp32 ones
        if out is None:
            product = hidden @ self.weight.T
            logits = product.to(torch.promote_types(product.dtype, torch.float32))
            if self.bias is not None:
                logits = logits + self.bias
            if self.scale != 1.0:
                logits = logits * self.scale
            return logits if self.softcap is None else (logits / self.softcap).tanh() * self.softcap
        if self.weight.dtype == torch.float32:
            torch.mm(hidden, self.weight.T, out=out)
        else:
            out.copy_(torch.mm(hidden, self.weight.T))
        if self.bias is not None:
            out.add_(self.bias)
        if self.scale != 1.0:
            out.mul_(self.scale)
        return out if self.softcap is None else out.div_(self.softcap).tanh_().mul_(self.softcap)

    def slope(self, logits: Tensor, temperature: float = 1.0, out: Tensor | None = None) -> Tensor:
        """Return how capped logits follow the uncapped ones, 1 - (logits / cap)^2, of the same shape.

        Args:
            logits: as `logits` returns them, divided by `temperature`.
            temperature: see above.
            out: where to write it.

        Raises:
            ValueError: there is no cap, and the slope is 1.
        """
        if self.softcap is None:
            raise ValueError("a head without a cap has no slope")
        return torch.mul(logits, temperature / self.softcap, out=out).square_().neg_().add_(1.0)

    def into_hidden(self, dz: Tensor) -> Tensor:
        """Return the gradient in the hidden states (R, H), fp32, for one in the uncapped logits (R, V)."""
        found = torch.mm(dz.to(self.weight.dtype), self.weight).float()
        return found if self.scale == 1.0 else found.mul_(self.scale)


def head_of(model: Any) -> Head:
    """Return the head of a Hugging Face model, with scale and cap of its (text) config.

    Raises:
        UsageError: it has no output head, so it is no language model; or a scale or cap is no number above 0.
    """
    module = model.get_output_embeddings()
    if getattr(module, "weight", None) is None:
        raise UsageError(f"{model.config.model_type} has no output head: use a causal language model.")
    config = model.config.get_text_config()
    scale = 1.0
    for name in MULTIPLIES:
        scale *= _number(config, name) or 1.0
    for name in DIVIDES:
        divisor = _number(config, name) or 1.0
        scale *= divisor if config.model_type in MULTIPLIES_BY_A_DIVISORS_NAME else 1 / divisor
    caps = [cap for name in CAPS if (cap := _number(config, name)) is not None]
    return Head(module.weight, getattr(module, "bias", None), scale, caps[0] if caps else None)


def _number(config: Any, name: str) -> float | None:
    """Return a setting of the head; None where it is not set."""
    value = getattr(config, name, None)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
        raise UsageError(f"{name} of {config.model_type} is {value!r}, no number above 0: correct its config.json.")
    return float(value)
