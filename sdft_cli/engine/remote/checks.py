"""Before step 1: does the server serve this model, by its tokenizer and by its probabilities?

Names say little: a server elsewhere has the same files under another path. So a text is encoded by both, and the base
answers a few prompts, whose log-probabilities are compared with those that this process computes for the same tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from sdft_cli.engine.models.adapters import weights
from sdft_cli.engine.models.backend import Backend
from sdft_cli.engine.objective.loss import token_log_likelihood
from sdft_cli.engine.passes.decode import Rollout
from sdft_cli.engine.passes.executors import teacher_passes
from sdft_cli.engine.remote.client import Refused, Server, ServerError
from sdft_cli.engine.remote.completions import PATH, Decoding, request_for, rollout_of

PROBED, PROBE_TOKENS = 3, 32
"""Prompts, and tokens of each answer, that are compared."""
SPECIAL_TOKENS = 64
TEXT = "Read src/übung.py;\n\tdef f(x):\n        return x ** 2  # 1,024 → ok\r\n日本語 😀 <|im_start|>user"


@dataclass(frozen=True)
class Served:
    """What a server serves: the name of its base, and the tokens of prompt and answer that it takes, if it says so."""

    base: str
    tokens: int | None


def served_by(server: Server) -> Served:
    """Return what a server serves; raises `ServerError` where it lists no model."""
    answer = server.get("/v1/models")
    cards = answer.get("data") if isinstance(answer, dict) else None
    bases = [card for card in cards or [] if isinstance(card, dict) and card.get("id") and not card.get("parent")]
    if not bases:
        raise ServerError(f"{server.url} lists no model: name a server of vLLM by --vllm-url, without /v1.")
    length = bases[0].get("max_model_len")
    return Served(str(bases[0]["id"]), length if isinstance(length, int) else None)


def check_length(server: Server, served: Served, tokens: int) -> None:
    """Refuse a server that takes fewer tokens than the longest prompt and answer have together."""
    if served.tokens is not None and served.tokens < tokens:
        raise ServerError(
            f"The rollout server {server.url} takes {served.tokens} tokens, and the longest prompt with its answer has "
            f"{tokens}: start it with --max-model-len {tokens}."
        )


def check_tokenizer(server: Server, served: Served, tokenizer: Any, model: str) -> None:
    """Refuse a server whose tokenizer makes other ids of a text with special tokens than the run's."""
    special = [t.content for t in tokenizer.added_tokens_decoder.values() if t.special]
    text = TEXT + "".join(special[:SPECIAL_TOKENS])
    body = {"model": served.base, "prompt": text, "add_special_tokens": False}
    found = server.post("/tokenize", body)
    theirs = found.get("tokens") if isinstance(found, dict) else None
    ours = tokenizer(text, add_special_tokens=False)["input_ids"]
    if theirs != list(ours):
        raise ServerError(
            f"The rollout server {server.url} serves {served.base} with another tokenizer than that of {model}: start "
            f"it with {model} itself, without --tokenizer."
        )


def base_gap(
    server: Server, served: Served, backend: Backend, prompts: Sequence[Sequence[int]], how: Decoding, pad_id: int
) -> float:
    """Return the mean |log p(server) - log p(here)| of tokens that the server's base samples, in nats."""
    short = replace(how, max_new_tokens=min(PROBE_TOKENS, how.max_new_tokens))
    answers = [_answer(server, served, prompt, seed, short) for seed, prompt in enumerate(prompts[:PROBED])]
    ids = [answer.ids for answer in answers]
    with torch.no_grad(), weights(backend.model, "base"):
        states = teacher_passes(backend, prompts[:PROBED], ids, pad_id, sum(map(len, prompts)) + PROBED * PROBE_TOKENS)
        tokens = torch.tensor([token for each in ids for token in each], device=backend.device)
        ours = token_log_likelihood(torch.cat(states), backend.head, tokens)
    theirs = torch.tensor([x for answer in answers for x in answer.log_probs or ()], dtype=torch.float64)
    return float((theirs - ours.to("cpu", torch.float64)).abs().mean())


def _answer(server: Server, served: Served, prompt: Sequence[int], seed: int, how: Decoding) -> Rollout:
    body = request_for(served.base, prompt, seed << 32, how)
    try:
        return rollout_of(server.post(PATH, body), prompt, how, server.url)
    except Refused as error:
        if "vocabulary" not in error.reason:
            raise
        raise ServerError(
            f"The rollout server {server.url} serves {served.base}, which lacks words of this model ({error.reason}): "
            "serve the run's model with its own tokenizer."
        ) from error


def check_base(server: Server, served: Served, gap: float, limit: float, model: str) -> None:
    """Refuse a server whose base thinks otherwise than the run's by more than `limit` nats per token."""
    if not gap <= limit:
        raise ServerError(
            f"The rollout server {server.url} serves {served.base}, whose log-probabilities differ from those of "
            f"{model} by {gap:.3g} nats per token (limit {limit:g}): start it with {model}, the run's revision and "
            "dtype, and --logprobs-mode raw_logprobs."
        )
