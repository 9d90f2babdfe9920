from __future__ import annotations

from typing import Any

import pytest

torch = pytest.importorskip("torch")

from transformers.cache_utils import DynamicCache  # noqa: E402
from transformers.integrations.sdpa_attention import sdpa_attention_forward  # noqa: E402

from sdft_cli.engine.passes.attention import GROUPED, attend_in_groups, grouped_attention  # noqa: E402
from sdft_cli.engine.passes.decode_cache import RoomyLayer, batch_cache, roomy_cache  # noqa: E402
from tests.engine.trees import make  # noqa: E402


def states(length: int, seed: int = 0) -> tuple[Any, Any]:
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(2, 3, length, 4, generator=generator) for _ in range(2))


@pytest.mark.parametrize("capacity", [1, 9, 40])
def test_a_layer_holds_what_a_stock_one_holds(capacity: int) -> None:
    ours, stock = RoomyLayer(capacity), DynamicCache()
    for step, length in enumerate((5, 1, 1, 7)):
        new = states(length, step)
        found, expected = ours.update(*new), stock.update(*new, 0)
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
        assert ours.get_seq_length() == stock.get_seq_length()
    assert ours.capacity == max(capacity, 14)


def test_a_token_is_written_into_the_buffer_and_nothing_is_copied() -> None:
    layer = RoomyLayer(8)
    layer.update(*states(5))
    where = layer.keys.data_ptr()
    layer.update(*states(1))
    assert layer.keys.data_ptr() == where
    filled = RoomyLayer(0)
    buffers = states(8)
    filled.fill(*buffers, 6)
    assert filled.get_seq_length() == 6
    filled.update(*states(1, 5))
    assert filled.keys.data_ptr() == buffers[0].data_ptr()
    assert torch.equal(buffers[0][:, :, 6:7], states(1, 5)[0])


def test_hybrids_keep_their_recurrent_layers() -> None:
    config = make("hybrid").base.config.get_text_config()
    kinds = [type(layer).__name__ for layer in roomy_cache(config, 8).layers]
    assert kinds == ["LinearAttentionLayer"] * 3 + ["RoomyLayer"]
    keys = torch.zeros(2, 2, 9, 8)
    recurrent = [torch.zeros(2, 3, 4), torch.zeros(2, 2, 8, 8)] * 3
    assert batch_cache(config, [(keys, keys)], recurrent, room=3).get_seq_length(3) == 6


@pytest.mark.parametrize(("heads", "queries", "masked"), [(6, 1, True), (3, 1, True), (6, 1, False), (6, 4, True)])
def test_grouped_attention_is_stock_attention(heads: int, queries: int, masked: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(2, heads, queries, 4, generator=generator)
    key, value = states(10)
    mask = None
    if masked:
        mask = torch.ones(2, 1, queries, 10, dtype=torch.bool)
        mask[0, :, :, :6] = False
    module = torch.nn.Module()
    module.num_key_value_groups = heads // 3  # type: ignore[assignment]
    found, _ = attend_in_groups(module, query, key, value, mask, scaling=0.3)
    expected, _ = sdpa_attention_forward(module, query, key, value, mask, scaling=0.3)
    assert found.shape == expected.shape == (2, queries, heads, 4)
    assert torch.allclose(found, expected, atol=1e-6)


def test_only_sdpa_is_replaced_and_only_for_the_while() -> None:
    config = make("llama").base.config
    with grouped_attention(config):
        assert config._attn_implementation == GROUPED
    assert config._attn_implementation == "sdpa"
    config._attn_implementation = "eager"
    with grouped_attention(config):
        assert config._attn_implementation == "eager"
