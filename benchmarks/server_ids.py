"""Are greedy ids of a rollout server those of decoding here? By the base, and by an adapter that is handed over.

    python -m benchmarks.server_ids MODEL --vllm-url http://localhost:8000 [--prompts 64] [--tokens 16] [--rank 16]
                                          [--dtype float32] [--folder FOLDER] [--timeout 600]

Prompts are random ids, 5 to 36 of them; the adapter is a random one. Prints, for either, how many answers are equal,
and the mean difference of log-probabilities at the server's tokens, in nats.
"""

from __future__ import annotations

import argparse
import random
import tempfile
from functools import partial
from pathlib import Path

import torch

from sdft_cli.config import load_train_config
from sdft_cli.engine.models.adapters import Weights, lora_layers, weights
from sdft_cli.engine.models.backend import Backend
from sdft_cli.engine.models.load import load_backend
from sdft_cli.engine.objective.loss import token_log_likelihood
from sdft_cli.engine.passes.decode import Rollout, generate, stop_tokens
from sdft_cli.engine.passes.executors import teacher_passes
from sdft_cli.engine.remote.checks import served_by
from sdft_cli.engine.remote.client import Server
from sdft_cli.engine.remote.completions import PATH, Decoding, request_for, rollout_of
from sdft_cli.engine.remote.flight import Flight
from sdft_cli.engine.remote.handover import Handover

TOGETHER = 16
"""Prompts that are decoded here at once."""


def with_random_adapter(model: str, rank: int, dtype: str) -> Backend:
    """Load a model with an adapter that changes what it says."""
    settings = [f"lora.rank={rank}", f"lora.alpha={2 * rank}", f"dtype={dtype}", "products=exact"]
    backend = load_backend(load_train_config("cpu-demo", settings), "transformers", model)
    torch.manual_seed(3)
    for layer in lora_layers(backend.model).values():
        torch.nn.init.normal_(layer.lora_B["default"].weight, std=0.01)
    return backend


def local(backend: Backend, case: Weights, prompts: list[list[int]], how: Decoding, pad: int) -> list[Rollout]:
    """Decode greedily here."""
    with weights(backend.model, case):
        parts = [prompts[i : i + TOGETHER] for i in range(0, len(prompts), TOGETHER)]
        return [y for part in parts for y in generate(backend, part, how.max_new_tokens, how.stop_ids, pad)]


def gap(backend: Backend, case: Weights, prompts: list[list[int]], answers: list[Rollout], pad: int) -> float:
    """Return the mean |log p(server) - log p(here)| at the tokens of the answers."""
    ids = [y.ids for y in answers]
    tokens = torch.tensor([token for row in ids for token in row], device=backend.device)
    with weights(backend.model, case):
        states = torch.cat(teacher_passes(backend, prompts, ids, pad, 2048))
    told = torch.tensor([x for y in answers for x in y.log_probs or ()])
    return float((token_log_likelihood(states, backend.head, tokens).cpu() - told).abs().mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--vllm-url", required=True)
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=16)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--folder", type=Path, default=None)
    parser.add_argument("--timeout", type=float, default=600)
    given = parser.parse_args()
    backend, draw = with_random_adapter(given.model, given.rank, given.dtype), random.Random(1)
    words = backend.head.words
    prompts = [[draw.randrange(words) for _ in range(5 + i % 32)] for i in range(given.prompts)]
    stops = stop_tokens(backend, [])
    how = Decoding(given.tokens, 0.0, 1.0, tuple(stops), words)
    server = Server(given.vllm_url, given.timeout)
    folder = given.folder or Path(tempfile.mkdtemp())
    handover = Handover(server, folder / "handover", backend.save_adapter, 1)
    cases: tuple[Weights, ...] = ("base", "adapter")
    for case in cases:
        name = handover.bring(0) if case == "adapter" else served_by(server).base

        def ask(prompt: list[int], name: str = name) -> Rollout:
            return rollout_of(server.post(PATH, request_for(name, prompt, 0, how)), prompt, how, server.url)

        theirs = Flight([partial(ask, prompt) for prompt in prompts]).results()
        equal = sum(a.ids == b.ids for a, b in zip(theirs, local(backend, case, prompts, how, stops[0]), strict=True))
        difference = gap(backend, case, prompts, theirs, stops[0])
        print(f"{case}: {equal} of {len(prompts)} answers are equal, log-probabilities differ by {difference:.2g} nats")
    handover.take_back()


if __name__ == "__main__":
    main()
