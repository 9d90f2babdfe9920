from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import chain
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from sdft_cli.engine.kernels.products import choose_products, products  # noqa: E402

CPU = torch.device("cpu")


def times(exact: list[float], coarse: list[float]) -> Callable[[], float]:
    """A clock on which exact products and those by 16-bit factors take so long, in turns."""

    def ticks() -> Iterator[float]:
        now = 0.0
        for seconds in chain(*zip(exact, coarse, strict=True)):
            yield now
            now += seconds
            yield now

    found = ticks()
    return lambda: next(found)


def test_they_are_taken_where_they_are_clearly_faster_and_said() -> None:
    kind, said = choose_products(
        "auto", CPU, torch.float32, clock=times([5.0, 9.0, 9.0, 9.0, 9.0], [8.0, 8.0, 1.0, 8.0, 8.0])
    )
    assert kind == "medium"
    assert "(5.0 times as fast here; products=exact leaves them in fp32)" in str(said)
    kind, said = choose_products("auto", CPU, torch.float32, clock=times([1.4] * 5, [1.0] * 5))
    assert (kind, said) == ("highest", "Products: exact in fp32 (by bfloat16 factors they are 1.4 times as fast here)")


@pytest.mark.parametrize(
    ("asked", "device", "dtype"),
    [("exact", "cpu", torch.float32), ("auto", "cuda", torch.float32), ("auto", "cpu", torch.bfloat16)],
)
def test_elsewhere_nothing_is_measured(asked: Any, device: str, dtype: Any) -> None:
    assert choose_products(asked, torch.device(device), dtype, clock=times([], [])) == ("highest", None)


@pytest.mark.parametrize("known", ["highest", "medium"])
def test_a_run_that_goes_on_keeps_its_kind(known: Any) -> None:
    kind, said = choose_products("auto", CPU, torch.float32, known, times([], []))
    assert kind == known
    assert known in str(said)


def test_the_kind_holds_for_a_while_and_the_one_before_is_back_whatever_happens() -> None:
    def fail() -> None:
        with products("medium"):
            assert torch.get_float32_matmul_precision() == "medium"
            with products("highest"):
                assert torch.get_float32_matmul_precision() == "highest"
            assert torch.get_float32_matmul_precision() == "medium"
            raise RuntimeError("out of luck")

    with products("highest"):
        with pytest.raises(RuntimeError, match="out of luck"):
            fail()
        assert torch.get_float32_matmul_precision() == "highest"
