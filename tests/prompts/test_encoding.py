from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from sdft_cli.prompts.chat import load_tokenizer
from sdft_cli.prompts.encoding import PieceEncoder


@pytest.fixture(scope="module")
def tokenizer(smollm2: Path) -> Any:
    return load_tokenizer(smollm2)


@pytest.fixture(scope="module")
def encoder(tokenizer: Any) -> PieceEncoder:
    return PieceEncoder(tokenizer)


PARTS = st.lists(
    st.sampled_from(["<|im_start|>", "<|im_end|>", "<|endoftext|>", "<file_sep>", "user\n", " ", "\n\n", "x", "<|im_"])
    | st.text(st.characters(codec="utf-8", max_codepoint=0x1FFFF), max_size=12),
    max_size=12,
).map("".join)


@settings(max_examples=100, deadline=None)
@given(PARTS, PARTS)
def test_pieces_give_the_ids_of_the_whole(tokenizer: Any, encoder: PieceEncoder, first: str, second: str) -> None:
    assert encoder.exact_pieces
    encoder.forget()
    unknown = tokenizer.unk_token_id
    assume(not any(unknown in tokenizer.encode(x, add_special_tokens=False) for x in {*first, *second}))
    for text in (first, first + second, second):  # the second and third reuse pieces of the first
        assert encoder.encode(text) == tokenizer.encode(text, add_special_tokens=False)


def test_without_the_conditions_every_text_is_encoded_in_full(tmp_path: Path) -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE({"a": 0, "▁": 1, "▁a": 2, "<s>": 3}, [("▁", "a")]))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    backend.decoder = decoders.Metaspace(prepend_scheme="first")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>")
    encoder = PieceEncoder(tokenizer)
    assert not encoder.exact_pieces
    text = "a<s>a"
    assert encoder.encode(text) == tokenizer.encode(text, add_special_tokens=False)
