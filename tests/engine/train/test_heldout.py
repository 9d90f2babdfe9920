from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from sdft_cli.config import HeldoutSettings  # noqa: E402
from sdft_cli.engine.models.adapters import EmaAdapter  # noqa: E402
from sdft_cli.engine.models.backend import Backend  # noqa: E402
from sdft_cli.engine.score.scoring import choose_records  # noqa: E402
from sdft_cli.engine.train.heldout import HeldOut, metrics_of  # noqa: E402
from sdft_cli.metrics import HELDOUT  # noqa: E402
from sdft_cli.prompts.chat import ChatPrompts, open_prompts  # noqa: E402
from sdft_cli.records import Dataset  # noqa: E402
from tests.engine.prepared import adapted, prepared, state_of  # noqa: E402

SETTINGS = HeldoutSettings(every=2, records=4, max_new_tokens=4)


@pytest.fixture(scope="module")
def data(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return prepared(tiny_model, tmp_path_factory.mktemp("heldout"), 8, 0.5)


@pytest.fixture(scope="module")
def prompts(tiny_model: Path, data: Dataset) -> ChatPrompts:
    return open_prompts(str(tiny_model), data.manifest)


def held_out(
    backend: Backend,
    prompts: ChatPrompts,
    data: Dataset,
    *more: Any,
    settings: HeldoutSettings = SETTINGS,
    **named: Any,
) -> HeldOut:
    caps = {"max_tokens_per_pass": 1500, "max_decode_tokens": 1500, "notify": pytest.fail, **named}
    return HeldOut(backend, prompts, data.validation, settings, *more, **caps)


def random_states() -> list[Any]:
    return [torch.get_rng_state().tolist(), random.getstate(), np.random.get_state()[1].tolist()]


def test_an_evaluation_leaves_the_run_as_it_was(tiny_model: Path, prompts: ChatPrompts, data: Dataset) -> None:
    backend = adapted(tiny_model, "lora.dropout=0.3", "gradient_checkpointing=true")
    assert any(module.training for module in backend.model.modules())  # as in a training run
    evaluation = held_out(backend, prompts, data)
    before, states = state_of(backend), random_states()
    first = metrics_of(evaluation.items())
    assert random_states() == states
    after = state_of(backend)
    assert after["training"] == before["training"]
    assert after["requires_grad"] == before["requires_grad"]
    assert all(torch.equal(after["tensors"][name], tensor) for name, tensor in before["tensors"].items())
    assert all(p.grad is None for p in backend.model.parameters())
    torch.rand(5)
    assert metrics_of(evaluation.items()) == first  # dropout is off


def test_metrics_are_plain_numbers_of_the_chosen_records(tiny_model: Path, prompts: ChatPrompts, data: Dataset) -> None:
    backend = adapted(tiny_model)
    evaluation = held_out(backend, prompts, data)
    chosen = {r.record_id for r in choose_records(data.validation, 4)}
    assert {e.record.record_id for batch in evaluation.passes for e in batch} == chosen
    found = metrics_of(evaluation.items())
    assert tuple(found) == ("records", *HELDOUT)
    assert found["records"] == 4
    assert all(isinstance(value, (int, float)) for value in found.values())
    assert found["kl_per_token"] > 0
    assert 1 <= found["rollout_length"] <= 4
    # A live teacher, and an average that is the adapter itself, have the student's weights: another divergence.
    live = metrics_of(held_out(backend, prompts, data, "adapter").items())
    ema = metrics_of(held_out(backend, prompts, data, "ema", EmaAdapter(backend.model, 0.9)).items())
    assert ema == live
    assert live["kl_per_token"] != pytest.approx(found["kl_per_token"], rel=1e-3)
    assert live["expert_nll_per_token"] == found["expert_nll_per_token"]
    # The student is the adapter, not the base.
    base = metrics_of(held_out(adapted(tiny_model, scale=0.0), prompts, data).items())
    assert base["expert_nll_per_token"] != pytest.approx(found["expert_nll_per_token"], rel=1e-3)


def test_prose_alone_has_no_share_of_tool_turns(tiny_model: Path, prompts: ChatPrompts, data: Dataset) -> None:
    prose = [r for r in data.validation if not r.row.has_tool_call][:2]
    assert prose
    evaluation = HeldOut(
        adapted(tiny_model),
        prompts,
        prose,
        SETTINGS,
        max_tokens_per_pass=1500,
        max_decode_tokens=1500,
        notify=pytest.fail,
    )
    found = metrics_of(evaluation.items())
    assert found["tool_valid_share"] is None
    assert found["tool_named_share"] is None


def test_when_it_is_due(tiny_model: Path, prompts: ChatPrompts, data: Dataset) -> None:
    backend = adapted(tiny_model)
    evaluation = held_out(backend, prompts, data)
    assert [step for step in range(7) if evaluation.due(step)] == [0, 2, 4, 6]
    never = held_out(backend, prompts, data, settings=HeldoutSettings(every=None))
    assert not never.on
    assert not any(map(never.due, range(60)))


def test_without_validation_records_it_is_off_and_says_so_once(tiny_model: Path, prompts: ChatPrompts) -> None:
    said: list[str] = []
    evaluation = HeldOut(
        adapted(tiny_model), prompts, [], SETTINGS, max_tokens_per_pass=1500, max_decode_tokens=1500, notify=said.append
    )
    assert not any(map(evaluation.due, range(9)))
    assert said == [
        "Held-out evaluation: off, because the dataset has no validation record "
        "(prepare it with --validation-fraction above 0)."
    ]
