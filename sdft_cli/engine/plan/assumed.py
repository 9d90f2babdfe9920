"""What a plan takes for granted of the run that it plans: backend, sampling weights, kernels, decoding.

For this machine's card they are what `sdft train` would choose here. For a card that is named, perhaps of another
machine, they are assumed, and the plan says so.
"""

from __future__ import annotations

from dataclasses import dataclass

from sdft_cli.choices import BACKENDS
from sdft_cli.config import TrainConfig
from sdft_cli.engine.models.adapters import SamplingWeights, decide_weights
from sdft_cli.engine.models.backend import Backend
from sdft_cli.engine.models.load import backend_class, choose_backend, has_package
from sdft_cli.engine.plan.cards import Gpu
from sdft_cli.engine.plan.memory import static_parts
from sdft_cli.engine.plan.model_shape import BYTES, Shape
from sdft_cli.engine.plan.speed import Engine


@dataclass(frozen=True)
class Assumed:
    """The choices, and the sentences that say them."""

    backend: type[Backend]
    engine: Engine
    told: tuple[str, ...]


def assume(
    config: TrainConfig, shape: Shape, model_type: str, card: Gpu | None, elsewhere: bool, fused: bool | None
) -> Assumed:
    """Return what a run on a card would be computed with.

    Args:
        card: None: a machine without a GPU.
        elsewhere: the card was named, so it need not be this machine's.
        fused: has the gated delta rule fused kernels? None: what is installed here, or of another machine, yes.
    """
    name, why = planned_backend(config.backend, model_type, elsewhere)
    backend = backend_class(name)
    told = [f"backend: {name} ({why})"]
    weights, sentence = planned_weights(config, shape, card)
    if config.objective != "sft":
        told.append(sentence)
    kernels = _fused(name, elsewhere) if fused is None else fused
    if shape.delta_net:
        told.append(_kernels_told(kernels, fused, elsewhere))
    graphs, decoding = planned_decoding(config, backend.attends_itself(model_type), card)
    told.append(decoding)
    engine = Engine(kernels, graphs, weights == "merged", autocast=config.dtype != "float32")
    return Assumed(backend, engine, tuple(told))


def planned_backend(requested: str, model_type: str, elsewhere: bool) -> tuple[str, str]:
    """Return the backend that `sdft train` would take, and why.

    Raises:
        MachineError: on this machine there is none.
    """
    if not elsewhere and requested == "auto":
        return choose_backend(requested, model_type)
    if requested != "auto":
        return requested, "as asked"
    objections: list[str] = []
    for name in BACKENDS:
        backend = backend_class(name)
        missing = backend.package is not None and not has_package(backend.package)
        objection = f"{backend.package} is not installed here" if missing else backend.objection(model_type, gpu=True)
        if objection is None:
            return name, "assumed: " + ("; ".join(objections) or "it is installed here") + "; --backend plans another"
        objections.append(objection)
    return choose_backend(requested, model_type)


def planned_weights(config: TrainConfig, shape: Shape, card: Gpu | None) -> tuple[SamplingWeights, str]:
    """Return the weights that would sample rollouts on a card, by the rule of the run itself."""
    if config.fast_inference:
        return "adapter", "Rollouts: sampled by unsloth's vLLM engine"
    size = shape.adapted_parameters * BYTES[config.dtype]
    loaded = static_parts(shape, config, gradients=False)
    free = card.usable - loaded["frozen weights"] - loaded["adapter"] if card else None
    quantised = "4 bits" if config.load_in_4bit else None
    if config.rollout.weights == "auto" and card is None:
        return "merged", (
            "Rollouts: sampled from a merged copy (taken to fit, since no card is known); a CPU takes one in float16 "
            "instead, of half the size, where float16 holds the base"
        )
    return decide_weights(config.rollout.weights, size, free, quantised)


def planned_decoding(config: TrainConfig, own_attention: str | None, card: Gpu | None) -> tuple[bool, str]:
    """Return whether steps of decoding would be CUDA graphs, and a sentence about it.

    `own_attention`: `Backend.attends_itself` of the backend.
    """
    if config.fast_inference:
        return True, "decoding: by vLLM, taken to be as fast as replayed CUDA graphs"
    if config.rollout.graphs == "off":
        return False, "decoding: kernel by kernel (rollout.graphs is off)"
    if card is None:
        return False, "decoding: kernel by kernel (CUDA graphs need a GPU)"
    if own_attention:
        return False, f"decoding: kernel by kernel ({own_attention})"
    return True, "decoding: steps are replayed as CUDA graphs; --set rollout.graphs=off plans without"


def _fused(backend: str, elsewhere: bool) -> bool:
    """Say whether fla is there: of another machine it is assumed, and unsloth brings its own copy."""
    return elsewhere or backend == "unsloth" or has_package("fla")


def _kernels_told(fused: bool, given: bool | None, elsewhere: bool) -> str:
    what = "fused kernels (the extra gpu)" if fused else "transformers' reference, without fused kernels"
    why = "as asked" if given is not None else "assumed" if elsewhere else "what is installed here"
    return f"gated delta rule: {what}, {why}" + ("; --no-fused plans without" if fused and given is None else "")
