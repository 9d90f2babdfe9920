"""Exact sharing is accepted and planted errors are refused, on models that are deep enough to round."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from sdft_cli.engine.passes.choose import choose_sharing  # noqa: E402
from sdft_cli.engine.passes.sharing_check import (  # noqa: E402
    SharingCheck,
    furthest,
    gradient_distance,
    matrices,
)
from tests.engine.passes import planted  # noqa: E402
from tests.engine.trees import make  # noqa: E402

KIND: dict[str, Any] = {"hybrid": "depth_first", "attention": "packed"}
FAULTS: dict[str, planted.Faults] = {"hybrid": planted.DEPTH_FIRST, "attention": planted.PACKED}
ONE_OF_EACH = {
    "mask: not itself",
    "state not rewound",
    "position shifted",
    "gradient without states",
    "wrong cache row",
}
MODELS = [("hybrid", 4, "float32"), ("hybrid", 4, "bfloat16"), ("attention", 4, "bfloat16")]
DEEP = [("hybrid", 32, "bfloat16"), ("attention", 32, "bfloat16")]
CASES = [(model, name) for model in MODELS for name in FAULTS[model[0]]]


@cache
def checked(kind: str, layers: int, dtype: str) -> SharingCheck:
    """A random model, hidden 128 or where it is deep 64, whose floor is measured once, and by no faulty pass."""
    check = SharingCheck(planted.deep(kind, layers, 128 if layers < 32 else 64, getattr(torch, dtype)))
    assert set(check.ways) == {"states", "caches", "gradients"}
    return check


@pytest.mark.parametrize("model", MODELS, ids=str)
def test_exact_sharing_is_accepted(model: tuple[str, int, str]) -> None:
    accept(model, checked(*model))


@pytest.mark.parametrize("model", DEEP, ids=str)
def test_of_deep_models_exact_sharing_is_accepted_and_one_error_of_each_kind_refused(
    model: tuple[str, int, str],
) -> None:
    """One test for each, as most of it is the floor, which is measured once."""
    check = checked(*model)
    accept(model, check)
    for name in FAULTS[model[0]]:
        if name in ONE_OF_EACH:
            refuse(model, name, check)


def accept(model: tuple[str, int, str], check: SharingCheck) -> None:
    assert check.refusal(KIND[model[0]]) is None
    found = check.measured[KIND[model[0]]]
    assert {distance.what for distance in found} == {"states", "caches", "log-probabilities", "gradients"}


@pytest.mark.parametrize(("model", "name"), CASES, ids=str)
def test_planted_errors_are_refused(model: tuple[str, int, str], name: str) -> None:
    """A mask off by one, a state not rewound, a position shifted, a missing part of the gradient, a wrong row."""
    refuse(model, name, checked(*model))


def refuse(model: tuple[str, int, str], name: str, check: SharingCheck) -> None:
    kind = KIND[model[0]]
    with FAULTS[model[0]][name](check.backend):
        refusal = check.refusal(kind)
    assert refusal is not None
    assert refusal.distance is not None, refusal.reason
    found = refusal.distance
    assert found.floor is not None
    assert found.found > found.allowed >= found.floor
    expected = {"g": "gradients", "w": "caches"}.get(name[0], "states")
    assert refusal.reason == (
        f"{kind} {expected} differ from those of independent turns by {found.found:.1e}, where ways that share "
        f"nothing differ by {found.floor:.1e} (up to {found.allowed:.1e} counts as rounding)"
    )


def test_a_kind_that_was_asked_for_runs_with_a_warning_and_auto_does_not_take_it() -> None:
    backend = make("hybrid")
    with planted.not_rewound(backend):
        told = choose_sharing(backend, "auto")
        assert told.startswith("WARNING: no prefix sharing, every turn pays for its whole prompt (not packed, since")
        assert "not depth_first, since depth_first states differ from those of independent turns by" in told
        assert backend.sharing == "none"
        told = choose_sharing(backend, "depth_first")
        assert told.startswith("WARNING: prefix sharing is depth_first as asked, although depth_first states differ")
        assert backend.sharing == "depth_first"


def test_the_floor_is_measured_only_where_it_decides() -> None:
    """In fp32 an exact way is closer than what always counts as rounding; a faulty one is not."""
    check = SharingCheck(make("hybrid"))
    assert check.refusal("depth_first") is None
    assert "ways" not in vars(check)
    assert [distance.floor for distance in check.measured["depth_first"]] == [None] * 4
    with planted.not_rewound(check.backend):
        refusal = check.refusal("depth_first")
    assert refusal is not None
    assert refusal.distance is not None
    assert refusal.distance.floor == max(check.ways["states"]) < 1e-4
    alone = SharingCheck(check.backend)
    assert alone.ways == check.ways  # the same adapter, whenever it is measured


def test_a_floor_that_is_no_rounding_is_not_believed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model whose padding is read: two plain ways differ, and a faulty way would look exact beside that."""
    backend = make("llama")
    own = backend.trunk_pass

    def reads_padding(**inputs: Any) -> Any:
        if len(inputs["input_ids"]) > 1 and "past_key_values" not in inputs:
            inputs["input_ids"] = inputs["input_ids"].roll(1, 0)
        return own(**inputs)

    monkeypatch.setattr(backend, "trunk_pass", reads_padding)
    with planted.PACKED["position shifted"](backend):
        refusal = SharingCheck(backend).refusal("packed")
    assert refusal is not None
    assert "states of ways that share nothing differ by" in refusal.reason
    assert "which is no rounding" in refusal.reason


def test_distances_are_relative_and_the_largest_one_counts() -> None:
    ones = torch.ones(2, 8)
    assert furthest([ones, ones + 0.5], [ones, ones]) == pytest.approx(0.5)
    assert furthest([2 * ones, 4 * ones], [2 * ones, 5 * ones]) == pytest.approx(0.2)


def test_a_gradient_is_compared_by_matrix() -> None:
    """Layers of a matrix together; what is missing is zero; a matrix with hardly a gradient is no reason."""
    a, b = torch.full((4,), 3.0), torch.full((4,), 4.0)
    assert gradient_distance(["q", "q"], [a, b], [a, b]) == 0
    assert gradient_distance(["q", "q"], [a, None], [a, b]) == pytest.approx(0.8)  # 4 / sqrt(3² + 4²)
    assert gradient_distance(["q", "k"], [a, None], [a, b]) == pytest.approx(1.0)
    assert gradient_distance(["q", "k"], [None, None], [None, None]) == 0
    tiny = torch.full((4,), 1e-6)
    assert gradient_distance(["q", "k"], [a, 2 * tiny], [a, tiny]) == pytest.approx(1e-6 / 0.03, rel=1e-3)
    names = matrices(make("hybrid"))
    assert "base_model.model.model.layers.*.self_attn.q_proj.lora_A.default.weight" in names
    assert len(names) > len(set(names))
