"""The output head of a model, as the model itself applies it to the trunk's hidden states.

    z = scale * (h W^T + b)        logits = cap * tanh(z / cap), or z where there is no cap

Scale and cap stand in the config under several names. That they are what the model does is checked when it is loaded
(`head_check.py`). The model itself rounds the product to its own type, here it stays in fp32: the divergence of two
distributions that are nearly equal would drown in that rounding (docs/design.md, The model's own logits).
"""

from __future__ import annotations

from collections.abc import Callable
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

WORDS = 2048
"""Words whose weights are held in fp32 at once, where torch has no product of 16-bit numbers into fp32."""


@dataclass(frozen=True)
class Head:
    """`weight` (V, H), `bias` (V,), `scale` and `softcap` of the logits. `Head(weight)` is a plain matrix.

    `product`: what computes h W^T without gradient, in place of a plain product.
    """

    weight: Tensor
    bias: Tensor | None = None
    scale: float = 1.0
    softcap: float | None = None
    product: Callable[[Tensor], Tensor] | None = None

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

        Hidden states are rounded to the weight's type, nothing that follows is. With `out` there is no gradient.
        """
        if out is None:
            logits = self._product(hidden)
            if self.bias is not None:
                logits = logits + self.bias
            if self.scale != 1.0:
                logits = logits * self.scale
            return logits if self.softcap is None else (logits / self.softcap).tanh() * self.softcap
        self._product_into(hidden, out)
        if self.bias is not None:
            out.add_(self.bias)
        if self.scale != 1.0:
            out.mul_(self.scale)
        return out if self.softcap is None else out.div_(self.softcap).tanh_().mul_(self.softcap)

    def _product(self, hidden: Tensor) -> Tensor:
        """Return h W^T (R, V) with its gradient, at least fp32."""
        hidden = hidden.to(self.weight.dtype)  # Mamba's norm leaves fp32 ones
        if self.product is not None:
            return self.product(hidden)
        if not self._narrow:
            return hidden @ self.weight.T
        if torch.is_grad_enabled() and hidden.requires_grad:
            return torch.cat([hidden.float() @ part.float().T for part in self.weight.split(WORDS)], -1)
        out = torch.empty(len(hidden), self.words, dtype=torch.float32, device=hidden.device)
        self._product_into(hidden, out)
        return out

    @torch.no_grad()
    def _product_into(self, hidden: Tensor, out: Tensor) -> None:
        """Write h W^T into fp32 `out` (R, V): 16-bit factors, fp32 products and sums."""
        hidden = hidden.to(self.weight.dtype)
        if not self._narrow:
            torch.mm(hidden, self.weight.T, out=out)
        elif hidden.device.type != "cpu":
            torch.mm(hidden, self.weight.T, out_dtype=torch.float32, out=out)
        else:
            wide = hidden.float()
            for part, place in zip(self.weight.split(WORDS), out.split(WORDS, -1), strict=True):
                torch.mm(wide, part.float().T, out=place)

    @property
    def _narrow(self) -> bool:
        return self.weight.dtype in (torch.bfloat16, torch.float16)

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
        """Return the gradient in the hidden states (R, H), fp32, for one in the uncapped logits (R, V).

        On a GPU each entry of a 16-bit head's `dz` is rounded to that type, which has its range; sums are fp32.
        """
        if not self._narrow:
            found = torch.mm(dz.to(self.weight.dtype), self.weight).float()
        elif dz.device.type != "cpu":
            found = torch.mm(dz.to(self.weight.dtype), self.weight, out_dtype=torch.float32)
        else:
            found = dz.new_zeros(len(dz), self.width)
            for part, weight in zip(dz.split(WORDS, -1), self.weight.split(WORDS), strict=True):
                found.addmm_(part, weight.float())
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
