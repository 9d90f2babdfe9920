"""The longest step of the dataset, run once before step 1, so that out of memory comes in the first minute.

The longest prompts are decoded from for a few tokens, which holds the whole prompt's cache; then made-up answers, as
long as a rollout or the expert's turn may be, are scored forward and backward. No update is made, and the random
generators are left as they were.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from itertools import cycle, islice

import torch

from sdft_cli.config import TrainConfig
from sdft_cli.engine.models.device_memory import out_of_memory_explained
from sdft_cli.engine.passes.decode import Rollout
from sdft_cli.engine.passes.timing import Phases
from sdft_cli.engine.train.rollouts import sample_rollouts
from sdft_cli.engine.train.sdft_step import Trainer
from sdft_cli.records import Record

DECODED_TOKENS = 2


def longest_step(records: Sequence[Record], config: TrainConfig) -> list[Record]:
    """Return the records of the longest step that may come: the longest with their answers, the longest first."""

    def key(record: Record) -> tuple[int, int, str]:
        row = record.row
        return (
            -row.teacher_prompt_tokens - config.longest_answer(row.reference_tokens),
            -row.prompt_tokens,
            record.record_id,
        )

    order = sorted(records, key=key)
    return [order[i % len(order)] for i in range(config.optim.turns_per_step)]


def rehearse(trainer: Trainer, records: Sequence[Record]) -> str:
    """Run the longest step without an update; return a sentence with its size and time.

    Raises:
        MachineError: it does not fit into memory; says what to lower.
    """
    config, start = trainer.config, time.perf_counter()
    examples = [trainer.example(r) for r in longest_step(records, config)]
    tokens = max(len(e.teacher) for e in examples)
    where = f"the rehearsal of the longest step ({len(examples)} record(s), prompts of up to {tokens} tokens)"
    times = config.rollout.per_record if config.samples else 1
    repeated = [e for e in examples for _ in range(times)]
    with torch.random.fork_rng(), out_of_memory_explained(config, where):
        if config.samples and trainer.remote is None:
            few = config.rollout.model_copy(update={"max_new_tokens": DECODED_TOKENS})
            prompts = [e.student for e in repeated]
            own = [prompts[i] for i in trainer.processes.mine(prompts, trainer.backend.sharing != "none")]
            sample_rollouts(trainer.backend, own, few, [], trainer.pad_id, 0, trainer.sampling)
        rollouts = [_full_length(trainer, e.record) for e in repeated]
        trainer.backward(repeated, rollouts, Phases())
        trainer.optimizer.zero_grad(set_to_none=True)
    return f"Rehearsed the longest step: prompts of up to {tokens} tokens, {time.perf_counter() - start:.1f} s"


def _full_length(trainer: Trainer, record: Record) -> Rollout:
    ids = cycle(trainer.prompts.reference_ids(record))
    return Rollout(list(islice(ids, trainer.config.longest_answer(record.row.reference_tokens))), True)
