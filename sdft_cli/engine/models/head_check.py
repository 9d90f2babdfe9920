"""Are our logits the model's? One comparison of a few positions with its own forward pass, when it was loaded."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from sdft_cli.engine.models.adapters import weights
from sdft_cli.engine.models.backend import Backend
from sdft_cli.engine.models.device_memory import is_out_of_memory
from sdft_cli.engine.models.head import Head
from sdft_cli.errors import MachineError, SdftError

TOKENS = 12
ROUNDING = 1e-4
"""Nats by which log-probabilities in fp32 may differ."""
ROUNDINGS = 3
"""Half an eps of a number's size is lost when it is rounded to the model's type: six halves on the way to its own
log-probabilities, of product, scale and cap, and each again in the logarithm of the sum. Ours are not rounded."""


def check_head(backend: Backend) -> None:
    """Compare log-probabilities of the base at a few random tokens, our way and the model's own.

    A model that leaves out what its config says of the head, as some multimodal ones do, gets the plain head. Weights,
    modes and generators are left as they were.

    Raises:
        MachineError: neither is what the model computes; training and evaluation would be of another distribution.
    """
    ids = _tokens(backend)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "use_cache": False}
    with runs(backend), torch.no_grad(), weights(backend.model, "base"), backend.decoding():
        states = backend.trunk_pass(**inputs).last_hidden_state[0]
        own = backend.full_pass(**inputs).logits[0]
    found, allowed = difference(backend.head, states, own)
    if found <= allowed:
        return
    plain = backend.head.plain()
    other, allowed = difference(plain, states, own)
    if other <= allowed:
        backend.plain_head = True
        return
    raise MachineError(
        f"{backend.base.config.model_type} computes its logits in a way that sdft does not reproduce "
        f"(log-probabilities differ by up to {found:.3g} nats): use a model whose output head is one matrix with a "
        "scale, a cap or a bias."
    )


@contextmanager
def runs(backend: Backend) -> Iterator[None]:
    """Let what a model raises in a small pass before step 1 be one sentence: some families cannot be run in this way.

    Raises:
        MachineError: it raised something; memory that ran out goes through.
    """
    try:
        yield
    except Exception as error:  # each family's code fails in its own way
        if isinstance(error, SdftError) or is_out_of_memory(error):
            raise
        reason = (str(error).splitlines() or ["no reason given"])[0]
        raise MachineError(
            f"{backend.base.config.model_type} cannot be run by this version of transformers as sdft runs it "
            f"({type(error).__name__}: {reason}): update transformers, or use a model of another family."
        ) from error


@torch.no_grad()
def difference(head: Head, states: Tensor, logits: Tensor) -> tuple[float, float]:
    """Return the largest difference of log-probabilities in nats, and what rounding can explain.

    Args:
        head: whose logits are compared.
        states: (R, H) hidden states.
        logits: (R, V) of the model's own forward pass.
    """
    ours = head.logits(states)
    if ours.shape != logits.shape:
        return float("inf"), 0.0
    found = (ours.log_softmax(-1) - logits.float().log_softmax(-1)).abs().max()
    eps = torch.finfo(head.weight.dtype).eps
    return float(found), ROUNDING + ROUNDINGS * eps * float(ours.abs().max())


def _tokens(backend: Backend) -> Tensor:
    """Return a few random words (1, `TOKENS`), none of which stands for an image or another special thing."""
    config = backend.base.config
    named = {**vars(config), **vars(config.get_text_config())}
    special = {v for name, v in named.items() if name.endswith(("_token_id", "_token_index")) and isinstance(v, int)}
    words = min(backend.head.words, backend.base.get_input_embeddings().weight.shape[0])
    drawn = torch.randint(words, (8 * TOKENS,), generator=torch.Generator().manual_seed(0)).tolist()
    plain = [token for token in drawn if token not in special][:TOKENS]
    return torch.tensor([plain], device=backend.device)
