"""The evaluation on held-out records while training: every so many steps, always the same records.

It leaves the run as it was: answers are decoded greedily, in eval mode, so no random number is drawn; weights and
modes are put back. A run with it computes the same steps as a run without it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import chain
from typing import Any

from sdft_cli.config import HeldoutSettings
from sdft_cli.engine.models.adapters import EmaAdapter, Weights
from sdft_cli.engine.models.backend import Backend
from sdft_cli.engine.parallel.processes import ALONE, Processes
from sdft_cli.engine.score.scoring import Item, Role, choose_records, encode, plan, score_records
from sdft_cli.metrics import HELDOUT, METRICS
from sdft_cli.notices import progress
from sdft_cli.prompts.chat import ChatPrompts
from sdft_cli.records import Record


class HeldOut:
    """A fixed set of validation records, encoded once, and the student and teacher that are evaluated on them."""

    def __init__(
        self,
        backend: Backend,
        prompts: ChatPrompts,
        records: Sequence[Record],
        settings: HeldoutSettings,
        teacher_case: Weights = "base",
        ema: EmaAdapter | None = None,
        *,
        decoding: Weights = "merged",
        max_tokens_per_pass: int,
        max_decode_tokens: int,
        notify: Callable[[str], None],
        processes: Processes = ALONE,
    ) -> None:
        """Choose and encode the records.

        Args:
            records: the validation records; `settings.records` of them are used, spread over the sessions.
            teacher_case: whose weights the teacher has: `base`, `ema`, or `adapter` for a live one.
            ema: the averaged adapter, for `ema`.
            decoding: the student's weights in decoding: `merged`, or `adapter` where memory allows no second copy.
            max_tokens_per_pass, max_decode_tokens: caps on a scoring pass and on a decoding pass, as in training.
            notify: is told once if there are no validation records, so that nothing will be evaluated.
            processes: each scores a share of the records.
        """
        self.settings = settings
        self.prompts = prompts
        self.student = Role(backend, "adapter", decoding)
        self.teacher = Role(backend, teacher_case, teacher_case, ema)
        self.max_decode_tokens = max_decode_tokens
        chosen = choose_records(records, settings.records) if settings.every else []
        if settings.every and not chosen:
            notify(
                "Held-out evaluation: off, because the dataset has no validation record "
                "(prepare it with --validation-fraction above 0)."
            )
        self.processes = processes

        def planned(records: Sequence[Record]) -> list[list[Record]]:
            cut = plan(backend, records, prompts, settings.max_new_tokens, max_tokens_per_pass) if records else []
            return [[records[i] for i in rows] for rows in cut]

        # In the order of the passes of one process, also where several have passes of their own.
        passes = planned(chosen)
        self.records = list(chain.from_iterable(passes))
        if processes.count > 1:
            rows = [prompts.student_ids(record) for record in self.records]
            mine = processes.mine(rows, backend.sharing != "none")
            passes = planned([self.records[i] for i in mine])
        self.passes = [encode(records, prompts) for records in passes]

    @property
    def on(self) -> bool:
        """Say whether there is anything to evaluate."""
        return bool(self.records)

    def due(self, step: int) -> bool:
        """Say whether this step's end is a time to evaluate; step 0 is the untrained student."""
        return self.on and self.settings.every is not None and step % self.settings.every == 0

    def items(self) -> list[Item]:
        """Score the student as it is now, record by record; of several processes, all get all items."""
        found = {item.record_id: item for items in self.processes.gather(self._own_items()) for item in items}
        return [found[record.record_id] for record in self.records]

    def _own_items(self) -> list[Item]:
        found: list[Item] = []
        total = sum(map(len, self.passes))
        for batch in self.passes:
            told = partial(_told, len(found), total)
            found += score_records(
                self.student,
                self.teacher,
                batch,
                self.prompts,
                self.settings.max_new_tokens,
                self.max_decode_tokens,
                told=told,
            )
        return found

    def answers(self, items: Sequence[Item], with_reference: bool) -> list[dict[str, Any]]:
        """Return a line for each record, to read how its answer changes: the text, and what was found about it.

        Args:
            items: of an evaluation.
            with_reference: put the expert's turn beside it, as the model would write it.
        """
        records = {record.record_id: record for record in self.records}
        return [_answer(item, records[item.record_id], self.prompts if with_reference else None) for item in items]


def metrics_of(items: Sequence[Item]) -> dict[str, Any]:
    """Return the number of records and the metrics `HELDOUT`.

    KL(student||teacher) and the expert's NLL are in nats per token, shares in [0, 1], the mean length of an answer in
    tokens. Shares of tool turns are None if no record is one.
    """
    rows = [item.to_json() for item in items]
    return {"records": len(rows), **{key: METRICS[key].of(rows) for key in HELDOUT}}


def _told(before: int, total: int, phase: str, done: float) -> None:
    progress(f"held out: {phase}", before + done, total)


def _answer(item: Item, record: Record, prompts: ChatPrompts | None) -> dict[str, Any]:
    row = item.to_json()
    kept = ("record_id", "text", "finished", "kl", "rollout_tokens", "nll", "reference_tokens", "tools", "flags")
    reference = {} if prompts is None else {"reference": prompts.reference_text(record.reference)}
    return {**{key: row[key] for key in kept}, **reference}
