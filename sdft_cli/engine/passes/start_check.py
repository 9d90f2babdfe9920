"""On the loaded model, before step 1: how it decodes; is that what it scores; which adapted layers get a gradient."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from sdft_cli.engine.kernels.halves import Halves, pack_halves
from sdft_cli.engine.kernels.joint import reading_together
from sdft_cli.engine.kernels.packed import packable, packs
from sdft_cli.engine.models.adapters import SamplingWeights, lora_layers
from sdft_cli.engine.models.backend import Backend
from sdft_cli.engine.models.device_memory import free_memory, is_out_of_memory
from sdft_cli.engine.models.head_check import runs
from sdft_cli.engine.models.modes import without_dropout
from sdft_cli.engine.passes.decode import generate
from sdft_cli.engine.passes.decode_steps import PACKED_FROM, steps_obstacle
from sdft_cli.engine.passes.padded import padded_states
from sdft_cli.engine.passes.replay import WARM
from sdft_cli.errors import WARNING, MachineError

GAP = {torch.float32: 1e-3}
"""Mean difference of log-probabilities, nats per token, that counts as rounding, by dtype; of other ones `COARSE`."""
COARSE = 0.3
LENGTHS = (23, 11, 17)
DECODED = 3
"""Tokens of each answer that are decoded."""


def choose_decoding(backend: Backend, asked: Literal["auto", "off"] = "auto") -> str:
    """Set `backend.decoder` and `backend.packed_steps`, how tokens are decoded; return a sentence that says so."""
    backend.decoder, backend.packed_steps, backend.halves = "generate", False, None
    if asked == "off":
        return "Decoding: step by step with transformers' generate (rollout.graphs is off)"
    gpu = backend.device.type == "cuda"
    if gpu and backend.sharded:
        return "Decoding: step by step with transformers' generate (no graph of the device holds layers in shards)"
    told = None if gpu else _choose_packed(backend)
    trouble = steps_trouble(backend, "fixed" if gpu else "growing")
    if trouble and gpu:
        return f"{WARNING}decoding is step by step with transformers' generate, which is slow on a GPU ({trouble})"
    if trouble:
        backend.packed_steps, backend.halves = False, None
        return f"Decoding: step by step with transformers' generate ({trouble})"
    backend.decoder = "fixed" if gpu else "growing"
    if gpu:
        return "Decoding: steps are replayed as CUDA graphs (checked on this model)"
    return f"Decoding: steps over a growing cache, {told} (checked on this model)"


def _choose_packed(backend: Backend) -> str:
    """Set `backend.packed_steps` and `backend.halves`, what a CPU reads while it decodes; return what that is.

    Nothing is timed: a choice by time would differ from run to run, and with it the last bits of what is sampled.
    """
    if backend.sharded:
        return "weights as they are (they are in shards)"
    weights = [layer.weight for layer in packable(backend.trunk)] if packs() else []
    if not weights or backend.head.weight.dtype != torch.float32:
        return "weights as they are"
    size, free = sum(weight.nbytes for weight in weights) + backend.head.weight.nbytes, free_memory(backend.device)
    if free is None or 2 * size > free:
        return f"weights as they are (a packed copy takes {size / 1e9:.2f} GB, more than half of what is free)"
    backend.packed_steps = True
    backend.halves = base_in_halves(backend)
    return "weights packed" if backend.halves is None else "base weights read as float16, which holds them"


def answering_weights(backend: Backend) -> SamplingWeights:
    """Return which case of `adapters.weights` an adapted model answers with fastest, by `choose_decoding`."""
    return "merged" if backend.halves is None else "adapter"


def base_in_halves(backend: Backend) -> Halves | None:
    """Pack the base's weights as float16, those of layers that read the same tensor together; None: it cannot be."""
    layers = _frozen_layers(backend)
    with runs(backend):
        groups = reading_together(layers, lambda: padded_states(backend, made_up_prompts(backend, (4,)), 0))
    together = [[layer.weight for layer in group] for group in groups]
    return pack_halves([*(layer.weight for layer in layers), backend.head.weight], together)


def _frozen_layers(backend: Backend) -> list[nn.Linear]:
    """Return the base's layers that can be packed, without the factors of an adapter."""
    adapted = lora_layers(backend.trunk).values()
    factors = {inside for layer in adapted for inside in layer.modules()} - {
        layer.get_base_layer() for layer in adapted
    }
    return [layer for layer in packable(backend.trunk) if layer not in factors]


def steps_trouble(backend: Backend, decoder: Literal["fixed", "growing"] = "fixed") -> str | None:
    """Decode a few tokens in steps, on a GPU as a graph, and compare their log-probabilities with a pass's.

    Returns why the model is not to be decoded that way, or None. `backend.decoder` is `generate` afterwards.
    """
    obstacle = steps_obstacle(backend)
    if obstacle:
        return obstacle
    prompts = made_up_prompts(backend, (LENGTHS[0],) * 2)
    backend.decoder = decoder
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", RuntimeWarning)
            gap = float(decoding_gaps(backend, prompts, max(WARM + DECODED, PACKED_FROM)).mean())
        stopped = backend.decoder != decoder
    except (AttributeError, IndexError, NotImplementedError, RuntimeError, TypeError, ValueError) as error:
        if is_out_of_memory(error):
            raise
        reason = str(error).strip().splitlines() or ["no reason given"]
        return f"steps of our own end in an error, {type(error).__name__}: {reason[0]}"
    finally:
        backend.decoder = "generate"
    if stopped:
        return next((str(w.message).removeprefix(WARNING) for w in caught if WARNING in str(w.message)), "it stopped")
    if not gap <= GAP.get(backend.head.weight.dtype, COARSE):
        return f"log-probabilities of these steps differ from those of a pass by {gap:.2g} nats per token"
    return None


def made_up_prompts(backend: Backend, lengths: Sequence[int]) -> list[list[int]]:
    """Return prompts of these lengths, of ids that the model has."""
    words = min(backend.head.words, backend.base.get_input_embeddings().weight.shape[0])
    return [[(7919 * i + 101 * n) % words for i in range(n)] for n in lengths]


def check_decoding(backend: Backend) -> str | None:
    """Compare log-probabilities of decoded tokens with those of a plain pass; prompts are of several lengths.

    A model that reads padding gets prompts of one length together: `backend.left_pads` is switched off.

    Returns a sentence if it was.

    Raises:
        MachineError: what it decodes is another distribution even so.
    """
    prompts = made_up_prompts(backend, LENGTHS)
    allowed = GAP.get(backend.head.weight.dtype, COARSE)
    with runs(backend):
        if float(decoding_gaps(backend, prompts).mean()) <= allowed:
            return None
        backend.left_pads = False
        found = float(decoding_gaps(backend, prompts).mean())
    kind = backend.base.config.model_type
    if found <= allowed:
        return f"Decoding: only prompts of one length together, since {kind} does not leave padding out"
    raise MachineError(
        f"{kind} decodes another distribution than its forward pass gives (log-probabilities differ by {found:.2g} "
        "nats per token): update transformers, or use a model of another family."
    )


@torch.no_grad()
def decoding_gaps(backend: Backend, prompts: Sequence[list[int]], tokens: int = DECODED) -> Tensor:
    """Return how far log-probabilities of a few greedy tokens are from those of a plain pass over each answer, in nats.

    One number for each decoded token, without sign.
    """
    decoded = generate(backend, prompts, tokens, (), 0, record_log_probs=True)
    gaps = []
    for prompt, rollout in zip(prompts, decoded, strict=True):
        with without_dropout(backend.model):
            states = padded_states(backend, [[*prompt, *rollout.ids]], 0)[0][len(prompt) - 1 : -1]
        chosen = torch.tensor(rollout.ids, device=states.device)[:, None]
        scored = backend.head.logits(states).log_softmax(-1).gather(-1, chosen)[:, 0]
        gaps.append((scored.cpu() - torch.tensor(rollout.log_probs)).abs())
    return torch.cat(gaps)


def check_reach(backend: Backend) -> str | None:
    """Return a warning about adapted layers that get no gradient in a small pass; parameters are left as they were.

    Raises:
        MachineError: none gets one.
    """
    factors = {name: p for name, p in backend.model.named_parameters() if p.requires_grad and ".lora_B." in name}
    own = [p.grad for p in backend.parameters()]
    words = min(backend.head.words, backend.base.get_input_embeddings().weight.shape[0])
    with runs(backend):
        states = padded_states(backend, [[(7919 * i + 101) % words for i in range(64)]], 0)[0]
        (states.float() * torch.linspace(-1, 1, states.shape[1], device=states.device)).sum().backward()
    missed = [name for name, p in factors.items() if p.grad is None or not p.grad.any()]
    for parameter, gradient in zip(backend.parameters(), own, strict=True):
        parameter.grad = gradient
    if not missed:
        return None
    first = missed[0].removeprefix("base_model.model.").partition(".lora_B.")[0]
    if len(missed) == len(factors):
        raise MachineError(f"No gradient reaches the adapter ({first} and all others): use a model of another family.")
    return (
        f"{WARNING}no gradient reaches {len(missed)} of {len(factors)} adapted layers ({first}): they stay as they are"
    )
