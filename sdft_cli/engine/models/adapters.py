"""Which weights are on: `weights` below is the only place that switches adapters or touches weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from sdft_cli.config import TrainConfig
from sdft_cli.engine.models.names import known_as
from sdft_cli.errors import DataError, UsageError
from sdft_cli.run_folder import TrainedAdapter

Weights = Literal["student", "adapter", "base", "ema", "merged"]
SamplingWeights = Literal["merged", "adapter"]

NOT_LANGUAGE = (
    "visual",
    "vision_tower",
    "vision_model",
    "vision_embed_tokens",
    "multi_modal_projector",
    "audio_tower",
    "mtp",
)
"""Names of sub-modules that are no part of the language trunk."""


def lora_layers(model: nn.Module) -> dict[str, Any]:
    """Return the LoRA layers of a peft model by name."""
    from peft.tuners.lora import LoraLayer

    return {name: module for name, module in model.named_modules() if isinstance(module, LoraLayer)}


def decide_weights(
    asked: Literal["auto", "merged", "adapter"], size: int, free: int | None, quantised: str | None
) -> tuple[SamplingWeights, str]:
    """Decide which weights sample rollouts; return the case of `weights`, and a sentence that says it and why.

    `auto` takes the merged copy if it fits in half of the free memory.

    Args:
        asked: `rollout.weights`.
        size: bytes of a copy of the adapted weights.
        free: bytes of free memory; None if the system does not tell.
        quantised: the kind of a base layer that cannot be added to, if there is one.
    """
    if asked == "merged" and quantised:
        raise UsageError(
            f"rollout.weights is merged, but the base layers ({quantised}) are quantised and nothing can be added to "
            "them: use --set rollout.weights=adapter."
        )
    copy = f"{size / 1e9:.2f} GB"
    if asked == "adapter":
        return "adapter", "Rollouts: sampled with the adapter on (as asked)"
    if asked == "merged":
        return "merged", f"Rollouts: sampled from a merged copy of the adapted weights, {copy} (as asked)"
    if quantised:
        return "adapter", f"Rollouts: sampled with the adapter on (the base layers are quantised: {quantised})"
    if free is None:
        return "adapter", f"Rollouts: sampled with the adapter on (a merged copy takes {copy}; free memory is unknown)"
    room = f"half of the {free / 1e9:.2f} GB that are free"
    if 2 * size > free:
        return "adapter", f"Rollouts: sampled with the adapter on (a merged copy takes {copy}, more than {room})"
    return "merged", f"Rollouts: sampled from a merged copy of the adapted weights ({copy}, fits in {room})"


class EmaAdapter:
    """A second adapter: the exponential moving average of the first, in fp32, one tensor per trainable parameter.

    With a decay of 1 it stays what it was when it was made, or last restarted.
    """

    def __init__(self, model: Any, decay: float) -> None:
        """Start as a copy of the adapter as it is."""
        self.decay = decay
        self.parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.tensors = {name: p.detach().clone().float() for name, p in self.parameters.items()}

    @torch.no_grad()
    def update(self) -> None:
        """ema <- decay * ema + (1 - decay) * adapter."""
        for name, parameter in self.parameters.items():
            self.tensors[name].lerp_(parameter.float(), 1 - self.decay)

    @torch.no_grad()
    def restart(self) -> None:
        """Become a copy of the adapter as it is now."""
        for name, parameter in self.parameters.items():
            self.tensors[name].copy_(parameter)

    @contextmanager
    def swapped_in(self) -> Iterator[None]:
        """The adapter's parameters hold the average; their own tensors are put back untouched."""
        own = {name: p.data for name, p in self.parameters.items()}
        try:
            for name, parameter in self.parameters.items():
                parameter.data = self.tensors[name].to(parameter.dtype)
            yield
        finally:
            for name, parameter in self.parameters.items():
                parameter.data = own[name]


FEATURES = (
    *("use_rslora", "use_dora", "rank_pattern", "alpha_pattern", "target_parameters", "trainable_token_indices"),
    *("modules_to_save", "lora_bias"),
)
"""What an adapter of peft may have besides plain LoRA, and ours has not."""


def check_adapter_fits(found: TrainedAdapter, config: TrainConfig) -> None:
    """Refuse an adapter whose settings or base are not those of a run that is to begin with its weights.

    Raises:
        UsageError: they differ, or it is no plain LoRA adapter; the sentence names the first difference.
    """
    own, name = found.config, found.name
    if own.get("peft_type") != "LORA" or any(own.get(key) for key in FEATURES) or own.get("bias", "none") != "none":
        raise UsageError(f"{name} is no plain LoRA adapter, and that of a run is: train from a fresh one.")
    for key, asked, setting in (("r", config.lora.rank, "rank"), ("lora_alpha", config.lora.alpha, "alpha")):
        if own.get(key) != asked:
            raise UsageError(
                f"{name} has {setting} {own.get(key)}, this run has {asked}: use --set lora.{setting}={own.get(key)}."
            )
    base, ours = str(found.run.get("model") or own.get("base_model_name_or_path")), known_as(config.model)["base"]
    if known_as(base)["base"] != ours and Path(base).name != ours:
        raise UsageError(f"{name} was trained on {base}, this run trains {ours}: begin with an adapter of that model.")


def take_weights(model: nn.Module, found: TrainedAdapter) -> str:
    """Copy the weights of an adapter on disk into the model's own; return the sha256 of their file.

    Raises:
        UsageError: it adapts other modules, or matrices of another size.
        DataError: its file is damaged.
    """
    from peft import get_peft_model_state_dict
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        data = found.weights.read_bytes()
        theirs = load(data)
    except (OSError, SafetensorError) as error:
        raise DataError(f"{found.weights} is damaged ({error}): name another adapter.") from error
    state = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}
    own = get_peft_model_state_dict(model, state, save_embedding_layers=False)
    if odd := sorted(own.keys() ^ theirs.keys()):
        lacks = "does not adapt" if odd[0] in own else "adapts, unlike this run,"
        module = odd[0].removeprefix("base_model.model.").partition(".lora_")[0]
        raise UsageError(f"{found.name} {lacks} {module}: set lora.target_modules to those that it was trained with.")
    for name, tensor in theirs.items():
        if own[name].shape != tensor.shape:
            sizes = f"{tuple(tensor.shape)}, here it is {tuple(own[name].shape)}"
            raise UsageError(f"{found.name} has {name} of {sizes}: begin with an adapter of this model.")
        own[name].copy_(tensor)
    return sha256(data).hexdigest()


@contextmanager
def weights(model: Any, case: Weights, ema: EmaAdapter | None = None) -> Iterator[None]:
    """Switch weights on for a while; what was on before is restored, bit for bit, whatever happens inside.

    | case       | adapter      | weights in the forward pass   | gradient | used for                                |
    | ---------- | ------------ | ----------------------------- | -------- | --------------------------------------- |
    | `student`  | on           | base, and B A beside it       | yes      | the student's forward and backward      |
    | `adapter`  | on           | the same                      | no       | teacher `live`; rollouts; evaluation    |
    | `base`     | off          | base                          | no       | teacher `base`; the base model in eval  |
    | `ema`      | second one   | base, and its B A beside it   | no       | teacher `ema`; `base` after a start     |
    | `merged`   | off          | base + (alpha/r) B A          | no       | rollouts and evaluation, faster         |

    With `merged` each adapted weight is replaced by the sum, added in fp32 from the pristine weight and cast once. The
    pristine tensors are kept aside and put back, so the base never drifts; it takes their memory a second time.

    Raises:
        ValueError: `ema` without an averaged adapter.
    """
    with ExitStack() as stack:
        if case != "student":
            stack.enter_context(torch.no_grad())
        if case in ("base", "merged"):
            stack.enter_context(model.disable_adapter())
        if case == "merged":
            stack.enter_context(_merged(model))
        if case == "ema":
            if ema is None:
                raise ValueError("case ema needs the averaged adapter")
            stack.enter_context(ema.swapped_in())
        yield


@contextmanager
def _merged(model: Any) -> Iterator[None]:
    pristine: list[tuple[nn.Parameter, torch.Tensor]] = []
    try:
        for layer in lora_layers(model).values():
            weight = layer.get_base_layer().weight
            delta = layer.get_delta_weight(layer.active_adapters[0]).float()
            pristine.append((weight, weight.data))
            weight.data = (weight.data.float() + delta).to(weight.dtype)
        yield
    finally:
        for weight, data in pristine:
            weight.data = data
