"""A configuration -> a server that was looked at and has the adapter."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sdft_cli.config import TrainConfig
from sdft_cli.engine.models.backend import Backend
from sdft_cli.engine.parallel.processes import Processes
from sdft_cli.engine.remote import checks
from sdft_cli.engine.remote.client import Server
from sdft_cli.engine.remote.completions import Decoding
from sdft_cli.engine.remote.handover import Handover
from sdft_cli.engine.remote.sampler import RemoteSampler

PROBED = checks.PROBED


@dataclass(frozen=True)
class Run:
    """What a run wants of a server.

    `prompts`: short ones, for the comparison. `longest`: the tokens of its longest prompt. `folder`: where the adapter
    is handed over.
    """

    config: TrainConfig
    backend: Backend
    tokenizer: Any
    stop_ids: Sequence[int]
    pad_id: int
    prompts: list[list[int]]
    longest: int
    folder: Path


def open_sampler(run: Run, processes: Processes) -> tuple[RemoteSampler, str]:
    """Return what samples with the server, and a sentence that says so.

    The first process looks at it, and hands the adapter over once, so that what does not work is known before step 1.

    Raises:
        ServerError: as `checks` and `Handover`.
    """
    settings = run.config.rollout
    assert settings.vllm_url is not None
    server = Server(settings.vllm_url, settings.vllm_timeout)
    handover = Handover(server, run.folder, run.backend.save_adapter, settings.sync_every, processes)
    sentence = processes.same(_look(run, server) if processes.first else "")
    handover.bring(0)
    handover.forget()
    shared = run.backend.sharing != "none"
    return RemoteSampler(server, handover, run.stop_ids, run.backend.head.words, processes, shared), sentence


def _look(run: Run, server: Server) -> str:
    config, model = run.config, run.config.model
    settings = config.rollout
    served = checks.served_by(server)
    checks.check_length(server, served, run.longest + settings.max_new_tokens)
    checks.check_tokenizer(server, served, run.tokenizer, model)
    how = Decoding.of(settings, run.stop_ids, run.backend.head.words)
    gap = checks.base_gap(server, served, run.backend, run.prompts, how, run.pad_id)
    checks.check_base(server, served, gap, config.stop.max_sampler_gap, model)
    steps = "every step" if settings.sync_every == 1 else f"every {settings.sync_every} steps"
    ahead = ", a step ahead" if settings.ahead else ""
    return (
        f"Rollouts: sampled by {served.base} at {server.url}{ahead}, which gets the adapter anew for {steps} (its base "
        f"differs from this one by {gap:.2g} nats per token); the gate and held-out evaluations decode here"
    )
