from __future__ import annotations

from typing import Any

import pytest

torch = pytest.importorskip("torch")

from transformers.integrations.sdpa_attention import sdpa_attention_forward  # noqa: E402

from sdft_cli.engine.passes import attention as module  # noqa: E402
from sdft_cli.engine.passes.attention import TREE, attend_in_blocks, use_tree_attention  # noqa: E402
from sdft_cli.engine.passes.executors import student_passes  # noqa: E402
from sdft_cli.engine.passes.packed import build_tree  # noqa: E402
from tests.engine.trees import ANSWERS, PROMPTS, error, go_back, gradient, independent, leaf_loss, make  # noqa: E402


class Layer(torch.nn.Module):
    num_key_value_groups = 3
    is_causal = True


def inputs(tokens: int, heads: tuple[int, int] = (6, 2), size: int = 4) -> list[Any]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(1, n, tokens, size, generator=generator).requires_grad_() for n in (heads[0], *heads[1:] * 2)]


@pytest.mark.parametrize("block", [1, 7, 16, 1000])
def test_blocks_give_stock_attention_and_its_gradient(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BLOCK", block)
    tree = build_tree([[*x, *y] for x, y in zip(PROMPTS, ANSWERS, strict=True)])
    mask = torch.from_numpy(tree.mask())[None, None]
    found = []
    for function in (attend_in_blocks, sdpa_attention_forward):
        tensors = inputs(len(tree))
        output = function(Layer(), *tensors, mask, scaling=0.3)[0]
        output.sin().sum().backward()
        found.append([output.detach(), *(t.grad for t in tensors)])
    for ours, stock in zip(*found, strict=True):
        assert ours.shape == stock.shape
        assert torch.allclose(ours, stock, atol=1e-5)


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
def test_a_packed_step_in_blocks_has_the_gradient_of_its_turns_alone(
    checkpointing: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "BLOCK", 16)
    backend = make("llama")
    expected = independent(backend, PROMPTS, ANSWERS)
    backend.sharing = "packed"
    use_tree_attention(backend.base.config)
    assert backend.base.config._attn_implementation == TREE
    if checkpointing:
        backend.model.enable_input_require_grads()
        backend.base.gradient_checkpointing_enable({"use_reentrant": False})
        backend.model.train()

    def loss(turns: Any, states: Any) -> Any:
        parts = states.split([len(ANSWERS[i]) for i in turns])
        return sum((leaf_loss(i, part) for i, part in zip(turns, parts, strict=True)), torch.zeros(()))

    found = gradient(backend, lambda: go_back(student_passes(backend, PROMPTS, ANSWERS, 0, 100_000), loss))
    assert error(found, expected) <= 1e-5


def test_what_is_no_square_mask_is_stock_attention() -> None:
    query, key, value = inputs(8)
    for mask in (None, torch.ones(1, 1, 8, 8, dtype=torch.bool).tril()):
        ours, stock = (
            function(Layer(), query, key, value, mask, scaling=0.3)[0]
            for function in (attend_in_blocks, sdpa_attention_forward)
        )
        assert torch.equal(ours, stock)
    config = make("llama").base.config
    config._attn_implementation = "eager"
    use_tree_attention(config)
    assert config._attn_implementation == "eager"
