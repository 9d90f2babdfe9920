"""On the loaded model, before step 1: is what it decodes what it scores, and does each adapted layer get a gradient?"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from sdft_cli.engine.models.backend import Backend
from sdft_cli.engine.models.head_check import runs
from sdft_cli.engine.passes.decode import generate
from sdft_cli.engine.passes.padded import padded_states
from sdft_cli.errors import WARNING, MachineError

GAP = {torch.float32: 1e-3}
"""Mean difference of log-probabilities, nats per token, that counts as rounding, by dtype; of other ones `COARSE`."""
COARSE = 0.3
LENGTHS = (23, 11, 17)
DECODED = 3
"""Tokens of each answer that are decoded."""


def check_decoding(backend: Backend) -> str | None:
    """Compare log-probabilities of decoded tokens with those of a plain pass; prompts are of several lengths.

    A model that reads padding gets prompts of one length together: `backend.left_pads` is switched off.

    Returns a sentence if it was.

    Raises:
        MachineError: what it decodes is another distribution even so.
    """
    words = min(backend.head.words, backend.base.get_input_embeddings().weight.shape[0])
    prompts = [[(7919 * i + 101 * n) % words for i in range(n)] for n in LENGTHS]
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
def decoding_gaps(backend: Backend, prompts: Sequence[list[int]]) -> Tensor:
    """Return how far log-probabilities of a few greedy tokens are from those of a plain pass over each answer, in nats.

    One number for each decoded token, without sign.
    """
    decoded = generate(backend, prompts, DECODED, (), 0, record_log_probs=True)
    gaps = []
    for prompt, rollout in zip(prompts, decoded, strict=True):
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
