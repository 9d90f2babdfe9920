from __future__ import annotations

from typing import Any

import pytest

torch = pytest.importorskip("torch")

from transformers.integrations.sdpa_attention import sdpa_attention_forward  # noqa: E402

from sdft_cli.engine.passes import attention as module  # noqa: E402
from sdft_cli.engine.passes.attention import TREE, attend_packed, use_tree_attention  # noqa: E402
from sdft_cli.engine.passes.executors import student_passes  # noqa: E402
from sdft_cli.engine.passes.packed import branches_of, build_tree  # noqa: E402
from tests.engine.trees import ANSWERS, PROMPTS, dense_mask, error, go_back, gradient, independent, leaf_loss, make  # noqa: E402


class Layer(torch.nn.Module):
    num_key_value_groups = 3
    is_causal = True


def inputs(tokens: int, heads: tuple[int, int] = (6, 2), size: int = 4) -> list[Any]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(1, n, tokens, size, generator=generator).requires_grad_() for n in (heads[0], *heads[1:] * 2)]


TREES = {
    "turns": [[*x, *y] for x, y in zip(PROMPTS, ANSWERS, strict=True)],
    "nothing shared": [[1, 2, 3], [4, 5], [6]],
    "a branch below a branch": [[1, 2, 3, 4, 5, 6], [1, 2, 3, 4, 7], [1, 2, 8, 9], [1, 2, 8, 10]],
}


@pytest.mark.parametrize("rows", TREES.values(), ids=TREES)
@pytest.mark.parametrize("heads", [(6, 2), (4, 4), (3, 1)])
@pytest.mark.parametrize("block", [1, 7, 128])
def test_branches_give_attention_behind_a_dense_mask_and_its_gradient(
    block: int, heads: tuple[int, int], rows: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PATH_BLOCK", block)
    tree = build_tree(rows)
    branches = branches_of(tree, torch.device("cpu"))
    assert branches.shape == (1, 1, len(tree), len(tree))
    hidden = ~dense_mask(tree.rows, len(tree))

    def plain(query: Any, key: Any, value: Any) -> Any:
        key, value = (x.repeat_interleave(heads[0] // heads[1], 1) for x in (key, value))
        return ((0.3 * query @ key.transpose(2, 3)).masked_fill(hidden, -torch.inf).softmax(-1) @ value).transpose(1, 2)

    found = []
    for function in (lambda q, k, v: attend_packed(Layer(), q, k, v, branches, scaling=0.3)[0], plain):
        tensors = inputs(len(tree), heads)
        output = function(*tensors)
        output.sin().sum().backward()
        found.append([output.detach(), *(t.grad for t in tensors)])
    for ours, expected in zip(*found, strict=True):
        assert ours.shape == expected.shape
        assert torch.allclose(ours, expected, atol=1e-5)


def test_branches_keep_nothing_but_queries_keys_and_values() -> None:
    tree = build_tree(TREES["turns"])
    tensors, kept = inputs(len(tree)), []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x.data_ptr()), lambda _: None):
        attend_packed(Layer(), *tensors, branches_of(tree, torch.device("cpu")), scaling=0.3)
    assert set(kept) == {x.data_ptr() for x in tensors}


@pytest.mark.parametrize("path", [0, 1, 30])
@pytest.mark.parametrize("block", [1, 7, 128])
def test_attention_behind_a_path_is_that_of_its_last_queries(
    path: int, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PATH_BLOCK", block)
    for name, distance in distances_behind(path, inputs(path + 20), 0.3, monkeypatch).items():
        assert distance < 1e-5, name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("heads", "size", "path", "queries"),
    [
        ((8, 2), 256, 77, 131),  # Qwen3.5's head, and nothing is a multiple of a block
        ((4, 4), 40, 130, 200),
        ((6, 1), 64, 256, 256),
        ((4, 2), 256, 300, 1),
    ],
)
def test_attention_behind_a_path_at_the_sizes_of_models(
    heads: tuple[int, int], size: int, path: int, queries: int, dtype: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    tensors = [x.detach().to(dtype) for x in inputs(path + queries, heads, size)]
    for name, distance in distances_behind(path, tensors, size**-0.5, monkeypatch).items():
        assert distance < (1e-5 if dtype == torch.float32 else 1.5e-2), name


@pytest.mark.parametrize(("path", "queries"), [(19, 12), (37, 20), (130, 300), (511, 129), (8, 8)])
def test_masks_lie_where_fused_kernels_of_a_gpu_take_them(
    path: int, queries: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They want 16 bytes, also of numbers of two bytes; at any number of keys, and behind any path."""
    seen = []

    def attend(query: Any, key: Any, value: Any, attn_mask: Any, scale: float) -> Any:
        seen.append((attn_mask.data_ptr() % 16, attn_mask.stride(-2) * attn_mask.element_size() % 16))
        return query

    monkeypatch.setattr(module.functional, "scaled_dot_product_attention", attend)
    for dtype in (torch.float32, torch.bfloat16):
        module.attend_behind(*(x.detach().to(dtype) for x in behind(path, queries)), 0.25)
    module.forget_masks()
    assert {*seen} == {(0, 0)}
    assert len(seen) == 2 * -(-queries // module.PATH_BLOCK)


def behind(path: int, queries: int) -> tuple[Any, Any, Any]:
    query, key, value = inputs(path + queries, (4, 2), 16)
    return query[:, :, path:], key, value


def distances_behind(path: int, tensors: list[Any], scale: float, monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """One call that is causal from the lower right, and blocks, against plain arithmetic: values and all gradients.

    Returns the largest relative distance (L2) of output and the gradients of queries, keys and values.
    """

    def run(function: Any, dtype: Any) -> list[Any]:
        query, key, value = (x.detach().to(dtype).requires_grad_() for x in tensors)
        output = function(query[:, :, path:], key, value)
        output.sin().sum().backward()
        return [output.detach(), query.grad, key.grad, value.grad]

    def along(q: Any, k: Any, v: Any) -> Any:
        return module.attend_along_path(None, q, k, v, None, scaling=scale)[0].transpose(1, 2)

    exact, found = run(lambda q, k, v: plain_attention(q, k, v, scale), torch.float64), {}
    for flash in (False, True):  # the call that a GPU makes; torch has it on a CPU too
        monkeypatch.setattr(module, "_flash_runs", lambda *_, flash=flash: flash)
        found[f"along a path, flash {flash}"] = run(along, tensors[0].dtype)
    found["blocks"] = run(lambda q, k, v: module.attend_behind(q, k, v, scale), tensors[0].dtype)
    return {name: max(error(a.double(), b) for a, b in zip(x, exact, strict=True)) for name, x in found.items()}


def plain_attention(query: Any, key: Any, value: Any, scale: float) -> Any:
    """Softmax of the scores of each query with the keys up to its own."""
    groups, path = query.shape[1] // key.shape[1], key.shape[2] - query.shape[2]
    key, value = (x.repeat_interleave(groups, 1) for x in (key, value))
    scores = scale * query @ key.transpose(2, 3)
    ahead = torch.arange(key.shape[2]) > path + torch.arange(query.shape[2])[:, None]
    return scores.masked_fill(ahead, -torch.inf).softmax(-1) @ value


@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_packed_step_has_the_gradient_of_its_turns_alone(
    checkpointing: bool,
) -> None:
    backend = make("llama")
    expected = independent(backend, PROMPTS, ANSWERS)
    backend.sharing = "packed"
    if checkpointing:
        backend.model.enable_input_require_grads()
        backend.base.gradient_checkpointing_enable({"use_reentrant": False})
        backend.model.train()

    def loss(turns: Any, states: Any) -> Any:
        parts = states.split([len(ANSWERS[i]) for i in turns])
        return sum((leaf_loss(i, part) for i, part in zip(turns, parts, strict=True)), torch.zeros(()))

    found = gradient(backend, lambda: go_back(student_passes(backend, PROMPTS, ANSWERS, 0, 100_000), loss))
    assert backend.base.config._attn_implementation == TREE
    assert error(found, expected) <= 1e-5


def test_what_is_no_tree_is_stock_attention() -> None:
    query, key, value = inputs(8)
    for mask in (None, torch.ones(1, 1, 8, 8, dtype=torch.bool).tril()):
        ours, stock = (
            function(Layer(), query, key, value, mask, scaling=0.3)[0]
            for function in (attend_packed, sdpa_attention_forward)
        )
        assert torch.equal(ours, stock)
    config = make("llama").base.config
    config._attn_implementation = "eager"
    use_tree_attention(config)
    assert config._attn_implementation == "eager"
