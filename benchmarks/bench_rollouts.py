"""Tokens per second of rollouts: together or one at a time, from a merged copy or with the adapter on.

    python -m benchmarks.bench_rollouts [--prompts 16] [--tokens 48] [--repetitions 3] [--dtype float32] [--json FILE]

SmolLM2-135M with a LoRA adapter on all seven projections whose B is random, the project's example sessions as prompts,
greedy decoding of exactly so many tokens (no stop token). Each repetition runs all of them; medians over repetitions.
Merging the weights is part of the time. Processor seconds are for a busy machine. Also: how many tokens differ from one
prompt at a time with the adapter on, and the gap between the log-probabilities of sampler and trainer.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from sdft_cli.config import PrepareConfig, RolloutSettings, load_train_config
from sdft_cli.engine.models.adapters import SamplingWeights, lora_layers, weights
from sdft_cli.engine.models.backend import Backend
from sdft_cli.engine.models.load import load_backend
from sdft_cli.engine.models.names import resolve_model
from sdft_cli.engine.objective.loss import token_log_likelihood
from sdft_cli.engine.passes.choose import choose_sharing
from sdft_cli.engine.passes.decode import generate
from sdft_cli.engine.passes.executors import response_states
from sdft_cli.engine.train.rollouts import sample_rollouts, sampler_gap
from sdft_cli.preparation.job import Job
from sdft_cli.preparation.pipeline import prepare
from sdft_cli.prompts.chat import ChatPrompts, load_tokenizer
from sdft_cli.prompts.teacher import load_teacher_template
from sdft_cli.records import Record
from sdft_cli.traces.examples import write_examples
from sdft_cli.traces.source import resolve_source

LENGTHS = (100, 400)
"""Tokens of the prompts that are taken."""


@dataclass(frozen=True)
class Decoding:
    """How the same prompts are decoded."""

    batch: int
    case: SamplingWeights
    packed: bool = False

    def __str__(self) -> str:
        prefill = ", common prefixes prefilled once" if self.packed else ""
        return f"batch {self.batch}, {self.case}{prefill}"


def example_prompts(model: str, count: int) -> list[list[int]]:
    """Return student prompts of the example sessions, evenly spread over their lengths within `LENGTHS`."""
    with tempfile.TemporaryDirectory() as scratch:
        write_examples(Path(scratch), 24)
        config = PrepareConfig(source=scratch, model=model, redact=False, validation_fraction=0)
        prompts = ChatPrompts(load_tokenizer(model), load_teacher_template())
        found = prepare(resolve_source(scratch), Job(config, prompts, None))
    sessions = {session.session_id: session for session in found.sessions}
    rows = [row for row in found.rows if LENGTHS[0] <= row.prompt_tokens <= LENGTHS[1]]
    rows.sort(key=lambda row: (row.prompt_tokens, row.record_id))
    if len(rows) < count:
        raise SystemExit(f"The example sessions have only {len(rows)} prompts of {LENGTHS} tokens: ask for fewer.")
    chosen = [rows[i * len(rows) // count] for i in range(count)]
    return [prompts.student_ids(Record(row, sessions[row.session_id])) for row in chosen]


def load(model: str, dtype: str) -> Backend:
    """Load the model with an adapter that looks trained: the demo's, with random B."""
    backend = load_backend(load_train_config("cpu-demo", [f"dtype={dtype}"]), "transformers", model)
    generator = torch.Generator().manual_seed(0)
    for layer in lora_layers(backend.model).values():
        weight = layer.lora_B["default"].weight.data
        weight.copy_(torch.randn(weight.shape, generator=generator) * 0.01)
    return backend


def run(
    backend: Backend, prompts: Sequence[Sequence[int]], decoding: Decoding, tokens: int
) -> tuple[float, float, list[list[int]]]:
    """Decode `tokens` tokens of each prompt; return seconds, processor seconds and ids."""
    backend.sharing = "packed" if decoding.packed else "none"
    found: list[list[int]] = []
    start, busy = time.perf_counter(), time.process_time()
    with weights(backend.model, decoding.case):
        for first in range(0, len(prompts), decoding.batch):
            batch = prompts[first : first + decoding.batch]
            found += [r.ids for r in generate(backend, batch, tokens, [], pad_id=2)]
    return time.perf_counter() - start, time.process_time() - busy, found


def gap(backend: Backend, prompts: Sequence[Sequence[int]], case: SamplingWeights, tokens: int) -> dict[str, float]:
    """Sample at temperature 1 and compare the sampler's log-probabilities with those of the training forward pass."""
    settings = RolloutSettings(max_new_tokens=tokens, temperature=1.0, top_p=1.0)
    sampled = sample_rollouts(backend, prompts, settings, [], 2, 0, case, record_log_probs=True)
    with torch.no_grad():
        states = response_states(backend, prompts, [r.ids for r in sampled], 2)
    targets = torch.tensor([i for r in sampled for i in r.ids])
    return sampler_gap(sampled, token_log_likelihood(states, backend.head, targets))


def measure(backend: Backend, prompts: Sequence[Sequence[int]], tokens: int, repetitions: int) -> dict[str, Any]:
    """Run every decoding `repetitions` times, in turn."""
    together = len(prompts)
    one_by_one, merged = Decoding(1, "adapter"), Decoding(together, "merged", packed=True)
    decodings = [
        one_by_one,
        Decoding(1, "merged"),
        *(Decoding(together, case, packed) for case in ("adapter", "merged") for packed in (False, True)),
    ]
    seconds: dict[Decoding, list[float]] = {decoding: [] for decoding in decodings}
    processor: dict[Decoding, list[float]] = {decoding: [] for decoding in decodings}
    answers: dict[Decoding, list[list[int]]] = {}
    for decoding in decodings:
        run(backend, prompts[: decoding.batch], decoding, 2)  # warm-up
    for _ in range(repetitions):
        for decoding in decodings:
            took, busy, answers[decoding] = run(backend, prompts, decoding, tokens)
            seconds[decoding].append(took)
            processor[decoding].append(busy)
    rate = {decoding: together * tokens / statistics.median(seconds[decoding]) for decoding in decodings}
    reference = [token for ids in answers[one_by_one] for token in ids]
    return {
        "tokens_per_second": {str(decoding): round(rate[decoding], 2) for decoding in decodings},
        "seconds": {str(decoding): [round(s, 2) for s in seconds[decoding]] for decoding in decodings},
        "processor_seconds": {str(decoding): [round(s, 2) for s in processor[decoding]] for decoding in decodings},
        "differing_tokens": {
            str(decoding): sum(
                a != b for a, b in zip(reference, (t for ids in answers[decoding] for t in ids), strict=True)
            )
            for decoding in decodings
        },
        "tokens_compared": len(reference),
        "ratio_merged_together_to_adapter_one_by_one": rate[merged] / rate[one_by_one],
        "ratio_in_processor_seconds": statistics.median(processor[one_by_one]) / statistics.median(processor[merged]),
        "ratio_without_shared_prefill": rate[Decoding(together, "merged")] / rate[one_by_one],
    }


def main() -> None:
    """Run the benchmark and print its numbers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=48)
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    model = resolve_model("smollm2-135m")
    prompts = example_prompts(model, arguments.prompts)
    backend = load(model, arguments.dtype)
    packing = choose_sharing(backend, "packed")
    if backend.sharing != "packed":
        raise SystemExit(packing)
    lora = backend.model.peft_config["default"]
    result = {
        "model": "smollm2-135m",
        "dtype": arguments.dtype,
        "threads": torch.get_num_threads(),
        "lora_rank": lora.r,
        "lora_layers": len(lora_layers(backend.model)),
        "prompts": len(prompts),
        "prompt_tokens": [len(p) for p in prompts],
        "new_tokens_each": arguments.tokens,
        "repetitions": arguments.repetitions,
        **measure(backend, prompts, arguments.tokens, arguments.repetitions),
        "sampler_gap_nats": {case: gap(backend, prompts, case, arguments.tokens) for case in ("adapter", "merged")},
    }
    print(json.dumps(result, indent=2))
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
