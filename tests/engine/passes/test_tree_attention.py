from __future__ import annotations

from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch.nn.attention import flex_attention as flex  # noqa: E402

from sdft_cli.engine.passes.attention import TREE, attend_packed  # noqa: E402
from sdft_cli.engine.passes.executors import response_states  # noqa: E402
from sdft_cli.engine.passes.packed import build_tree, packed_states  # noqa: E402
from sdft_cli.engine.passes.tree_attention import (  # noqa: E402
    SIDE,
    SMALL,
    attend_in_tree,
    choose_tree_attention,
    tree_mask,
    tree_trouble,
)
from tests.engine.trees import ANSWERS, PROMPTS, dense_mask, error, gradient, ids, leaf_loss, make  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore:.*flex_attention called without torch.compile.*")


def trees() -> list[Any]:
    generator = np.random.default_rng(0)
    found = [build_tree(PROMPTS), build_tree([[1, 2], [1, 2], [3]]), build_tree([ids(5, 1)])]
    for _ in range(20):
        trunk = ids(400, 3)
        cut = generator.integers(0, 400, 6)
        found.append(build_tree([[*trunk[:c], *ids(int(n), int(n))] for c, n in zip(cut, cut[::-1], strict=True)]))
    return found


def test_the_ends_of_a_tree_say_what_its_mask_says() -> None:
    for tree in trees():
        places = np.arange(len(tree))
        seen = (places <= places[:, None]) & (places[:, None] < tree.ends())
        assert np.array_equal(seen, dense_mask(tree.rows, len(tree)))


def test_blocks_are_left_out_if_they_hide_all_and_unmasked_if_they_show_all() -> None:
    whole = some = 0
    for tree in trees():
        mask = tree_mask(torch.from_numpy(tree.ends()))
        dense = dense_mask(tree.rows, len(tree))
        count = -(-len(tree) // SIDE)
        full, partial = (np.zeros((count, count), bool) for _ in "fp")
        for row in range(count):
            for place, numbers, indices in (
                (full, mask.full_kv_num_blocks, mask.full_kv_indices),
                (partial, mask.kv_num_blocks, mask.kv_indices),
            ):
                place[row, indices[0, 0, row, : int(numbers[0, 0, row])]] = True
        for row in range(count):
            for column in range(count):
                part = dense[row * SIDE : (row + 1) * SIDE, column * SIDE : (column + 1) * SIDE]
                if full[row, column]:
                    assert part.all()
                assert bool(part.any()) <= bool(full[row, column] or partial[row, column])
                if not part.any():
                    assert not full[row, column]
                    assert not partial[row, column]
        whole, some = whole + full.sum(), some + partial.sum()
        assert mask.shape == (1, 1, len(tree), len(tree))
    assert whole > 20
    assert some > 20


@pytest.mark.parametrize("heads", [2, 4, 6])
def test_values_and_gradients_are_those_of_a_dense_mask(heads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    # torch refuses a backward pass on a CPU, where it has no kernel for it; its plain code can go back.
    monkeypatch.setattr(flex, "_validate_device", lambda *_: None)
    tree = build_tree([[*ids(140, 1), *ids(60, 2)], [*ids(140, 1), *ids(150, 3)], ids(30, 4), ids(100, 1)])
    generator = torch.Generator().manual_seed(0)
    shapes = [(1, n, len(tree), 8) for n in (heads, 2, 2)]
    inputs = [torch.randn(shape, generator=generator, requires_grad=True) for shape in shapes]
    module = torch.nn.Module()
    module.num_key_value_groups = heads // 2  # type: ignore[assignment]
    found, expected = (
        attend_packed(module, *inputs, mask, scaling=0.4)[0]
        for mask in (tree_mask(torch.from_numpy(tree.ends())), dense_mask(tree.rows, len(tree))[None, None])
    )
    assert found.shape == (1, len(tree), heads, 8)
    assert torch.allclose(found, expected, atol=1e-5)
    weight = torch.randn(found.shape, generator=generator)
    gradients = [torch.autograd.grad((x * weight).sum(), inputs) for x in (found, expected)]
    for ours, theirs in zip(*gradients, strict=True):
        assert error(ours, theirs) < 1e-5


@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3"])
def test_a_packed_pass_with_blocks_is_the_packed_pass(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    backend = make(kind)
    backend.sharing = "packed"
    with torch.no_grad():
        expected = packed_states(backend, PROMPTS)
        backend.block_masks = True
        found = packed_states(backend, PROMPTS)
    assert backend.base.config._attn_implementation == TREE
    assert not all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))  # it was another kernel
    assert error(torch.cat(found), torch.cat(expected)) < 1e-5
    monkeypatch.setattr(flex, "_validate_device", lambda *_: None)

    def step() -> None:
        states = response_states(backend, PROMPTS, ANSWERS, 0)
        sum(leaf_loss(i, part) for i, part in enumerate(states.split([len(y) for y in ANSWERS]))).backward()

    ours = gradient(backend, step)
    backend.block_masks = False
    assert error(ours, gradient(backend, step)) < 1e-5


def test_a_cpu_keeps_its_branches_and_the_comparison_finds_a_wrong_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    backend = make("llama")
    backend.block_masks = True
    assert choose_tree_attention(backend) is None
    assert backend.block_masks is False
    assert tree_trouble(backend) is None
    own = tree_mask
    monkeypatch.setattr(
        "sdft_cli.engine.passes.tree_attention.tree_mask", lambda ends: own((ends + 1).clamp(max=len(SMALL)))
    )
    assert "differs from a dense mask by" in str(tree_trouble(backend))

    def none_here(*_: Any, **__: Any) -> Any:
        raise RuntimeError("no valid triton configs\nout of shared memory")

    monkeypatch.setattr("sdft_cli.engine.passes.tree_attention.flex_attention", none_here)
    assert tree_trouble(backend) == "FlexAttention ends in an error, RuntimeError: no valid triton configs"


def test_a_tree_of_one_token_and_of_one_block() -> None:
    for ends in ([1], [2, 2], [3, 2, 3]):
        mask = tree_mask(torch.tensor(ends))
        query, key, value = (torch.randn(1, 2, len(ends), 16) for _ in "qkv")
        found = attend_in_tree(query, key, value, mask, None)
        places = torch.arange(len(ends))
        seen = (places <= places[:, None]) & (places[:, None] < torch.tensor(ends))
        expected = torch.nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=seen)
        assert torch.allclose(found, expected, atol=1e-6)
