from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from sdft_cli.config import EvalConfig  # noqa: E402
from sdft_cli.engine.models.backend import Backend  # noqa: E402
from sdft_cli.engine.score.scoring import Role  # noqa: E402
from sdft_cli.errors import VerificationError  # noqa: E402
from sdft_cli.evaluation.evaluation import Contender, evaluate  # noqa: E402
from sdft_cli.metrics import METRICS  # noqa: E402
from sdft_cli.prompts.chat import ChatPrompts, open_prompts  # noqa: E402
from sdft_cli.records import Dataset, Record  # noqa: E402
from tests.engine.prepared import adapted, prepared  # noqa: E402

CONFIG = EvalConfig(max_new_tokens=5, general=6, drift_tokens=4, questions=4, question_tokens=3, resamples=200)


@pytest.fixture(scope="module")
def data(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return prepared(tiny_model, tmp_path_factory.mktemp("evaluate"), 12, 0.4)


@pytest.fixture(scope="module")
def prompts(tiny_model: Path, data: Dataset) -> ChatPrompts:
    return open_prompts(str(tiny_model), data.manifest)


def pair(backend: Backend) -> list[Contender]:
    base, tuned = Role(backend, "base", "base"), Role(backend, "adapter", "merged")
    return [Contender("base", "base", base, base), Contender("tuned", "tuned", tuned, base)]


def gaps(result: dict[str, Any], key: str = "tuned - base") -> dict[str, Any]:
    found: dict[str, Any] = result["differences"][key]
    return found


def joined(records: Sequence[Record]) -> list[Record]:
    """Say that the first two sessions of some records are continuations of one another: one group."""
    first, second = list(dict.fromkeys(r.session.group for r in records))[:2]
    return [
        replace(r, session=replace(r.session, group={second: first}.get(r.session.group, r.session.group)))
        for r in records
    ]


@pytest.mark.parametrize("sharing", ["none", "packed", "depth_first"])
def test_a_zero_adapter_differs_by_exactly_nothing(
    tiny_model: Path, data: Dataset, prompts: ChatPrompts, sharing: Any
) -> None:
    backend = adapted(tiny_model, scale=0.0)
    backend.sharing = sharing
    result = evaluate(pair(backend), data.validation, prompts, CONFIG)
    assert result["contenders"]["base"]["items"] == result["contenders"]["tuned"]["items"]
    for key, gap in gaps(result).items():
        if gap is not None:
            assert (gap["value"], gap["discordant"]) == (0.0, 0), key
            assert gap["low"] in (0.0, None) or (METRICS[key].yes_or_no and gap["low"] < 0 < gap["high"]), key
    drift = result["contenders"]["tuned"]["drift"]["summary"]
    assert (drift["drift_kl"], drift["drift_same_top"], drift["kl_p95_of_tokens"]) == (0.0, 1.0, 0.0)


def test_the_same_twice_and_a_trained_adapter_differs(tiny_model: Path, data: Dataset, prompts: ChatPrompts) -> None:
    backend = adapted(tiny_model)
    backend.sharing = "packed"
    records = joined(data.validation)
    result = evaluate(pair(backend), records, prompts, CONFIG)
    torch.manual_seed(123)  # nothing is drawn from torch
    again = evaluate(pair(backend), records, prompts, CONFIG)
    assert json.dumps(result, sort_keys=True) == json.dumps(again, sort_keys=True)
    gap = gaps(result)["expert_nll_per_token"]
    items = [result["contenders"][name]["items"] for name in ("tuned", "base")]
    tokens = sum(i["reference_tokens"] for i in items[0])
    expected = sum(a["nll"] - b["nll"] for a, b in zip(*items, strict=True)) / tokens
    assert gap["value"] == pytest.approx(expected)
    assert gap["low"] < gap["value"] < gap["high"]
    assert gap["items"] == gap["discordant"] == len(records) == result["records"]
    assert result["facts"]["sessions"] == len({r.row.session_id for r in records}) == 5
    assert gap["sessions"] == result["facts"]["groups"] == len({r.session.group for r in records}) == 4
    assert gaps(result)["drift_kl"]["value"] > 0
    assert gaps(result)["drift_kl"]["sessions"] == 6
    assert result["contenders"]["base"]["drift"]["summary"]["drift_kl"] == 0.0


def test_parts_can_be_left_out_and_models_come_one_by_one(
    tiny_model: Path, data: Dataset, prompts: ChatPrompts
) -> None:
    backend = adapted(tiny_model)
    backend.sharing = "none"
    taken: list[str] = []

    def one_by_one() -> Any:
        for contender in pair(backend):
            taken.append(contender.name)
            yield contender

    seen: list[tuple[list[str], str]] = []
    config = CONFIG.model_copy(update={"general": 0, "questions": 0, "limit": 3})
    result = evaluate(
        one_by_one(),
        data.validation,
        prompts,
        config,
        progress=lambda what, done, total: seen.append((list(taken), what)),
        harness=lambda role: {"higher_is_better": {}, "items": [], "of": role.scoring},
    )
    assert result["records"] == 3
    assert len({item["session_id"] for item in result["contenders"]["base"]["items"]}) == 3
    assert "drift" not in result["contenders"]["tuned"]
    assert "questions" not in result["contenders"]["tuned"]
    assert [result["contenders"][name]["harness"]["of"] for name in ("base", "tuned")] == ["base", "adapter"]
    assert set(gaps(result)) == {k for k in gaps(result) if not k.startswith(("drift", "entropy", "questions"))}
    assert all(names == ["base"] for names, what in seen if what.startswith("base"))


def test_facts_of_the_records(tiny_model: Path, data: Dataset, prompts: ChatPrompts) -> None:
    backend = adapted(tiny_model)
    backend.sharing = "none"
    config = CONFIG.model_copy(update={"general": 0, "questions": 0})
    result = evaluate(pair(backend)[:1], data.validation, prompts, config)
    assert result["facts"]["tool_turns"] == sum(r.row.has_tool_call for r in data.validation) > 0
    assert result["facts"]["tool_turns_that_the_syntax_cannot_represent"] == 0  # JSON escapes everything
    assert result["differences"] == {}
    assert result["facts"]["turns_over_the_cap"] == sum(len(prompts.reference_ids(r)) > 5 for r in data.validation) > 0
    groups = result["contenders"]["base"]["by_tool"]
    assert sum(g["records"] for g in groups.values()) == result["facts"]["tool_turns"]
    assert sum(g["records"] for g in result["contenders"]["base"]["by_position"].values()) == result["records"]


def test_a_model_that_has_diverged_is_refused_at_once(tiny_model: Path, data: Dataset, prompts: ChatPrompts) -> None:
    backend = adapted(tiny_model)
    backend.sharing = "none"
    for name, parameter in backend.model.named_parameters():
        if "lora_B" in name:
            parameter.data.fill_(torch.inf)
    tuned = Contender("tuned", "tuned", Role(backend, "adapter", "base"), Role(backend, "base", "base"))
    with pytest.raises(VerificationError, match=r"What tuned says on .* is not finite"):
        evaluate([pair(backend)[0], tuned], data.validation, prompts, CONFIG)
