"""What a model's config and tokenizer rule out, known before any weight is loaded: positions, words, ends of turns."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from sdft_cli.engine.models.load import config_of
from sdft_cli.errors import UsageError
from sdft_cli.prompts.chat import ChatPrompts
from sdft_cli.records import RecordRow


def longest_sequence(rows: Iterable[RecordRow], max_new_tokens: int) -> int:
    """Return the most tokens that a pass over one record can have: the longer prompt, and the longer answer."""
    return max(
        (max(r.prompt_tokens, r.teacher_prompt_tokens) + max(r.reference_tokens, max_new_tokens) for r in rows),
        default=0,
    )


def check_limits(
    model: str, revision: str | None, rows: Iterable[RecordRow], max_new_tokens: int, prompts: ChatPrompts | None = None
) -> None:
    """Refuse records that are longer than a model's positions, and a tokenizer that is not the model's.

    Args:
        model: a folder or Hub id; only its config is read.
        revision: of a Hub id.
        rows: of all records that will be run.
        max_new_tokens: cap on a decoded answer.
        prompts: with the tokenizer, which is checked too where there is one.

    Raises:
        UsageError: says which limit, and what to do.
        MachineError: the config cannot be had.
    """
    config = config_of(model, revision).get_text_config()
    longest, positions = longest_sequence(rows, max_new_tokens), positions_of(config)
    if positions is not None and longest > positions:
        raise UsageError(
            f"A record takes up to {longest} tokens with its answer and {config.model_type} has {positions} positions: "
            "prepare with a lower --max-prompt-tokens, lower the cap on answers, or use a model with a longer context."
        )
    if prompts is not None:
        check_words(prompts, config)


def positions_of(config: Any) -> int | None:
    """Return how many tokens a model reaches by its (text) config; None: its layers count no positions, or no limit.

    Of rotary positions that are scaled it is what the scaling reaches.
    """
    if getattr(config, "alibi", False) or config.model_type in ("bloom", "mpt"):
        return None
    found = getattr(config, "max_position_embeddings", None)
    if not isinstance(found, int) or found <= 0:
        return None
    rope = getattr(config, "rope_parameters", None) or {}
    kinds = [rope, *(kind for kind in rope.values() if isinstance(kind, dict))]
    return max(found, *(_scaled(kind, found) for kind in kinds))


def _scaled(rope: dict[str, Any], positions: int) -> int:
    """Return how far one kind of rotary positions reaches: factor times what the model was made for."""
    factor, original = rope.get("factor"), rope.get("original_max_position_embeddings") or positions
    if rope.get("rope_type", "default") in ("default", "longrope", "llama3") or not factor:
        return 0
    return int(factor * original)


def check_words(prompts: ChatPrompts, config: Any) -> None:
    """Refuse a tokenizer that gives ids which the model has no embedding for.

    A special token beyond the embedding is no harm where the template does not use it, as Gemma 3's image token in its
    text models.

    Raises:
        UsageError: names a token.
    """
    tokenizer, words = prompts.tokenizer, config.vocab_size
    special = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    used = {*prompts.question_ids("a"), *prompts.turn_end_ids}
    beyond = sorted((i, word) for word, i in tokenizer.get_vocab().items() if i >= words)
    wrong = next(((i, word) for i, word in beyond if i not in special or i in used), None)
    if wrong:
        raise UsageError(
            f"The tokenizer's {wrong[1]!r} has id {wrong[0]} and the model has {words} words: use the tokenizer that "
            "belongs to the model, or resize its embedding."
        )


def check_ends(prompts: ChatPrompts, config: Any, generation_config: Any = None) -> None:
    """Refuse a tokenizer none of whose ends is one of the model's: it is another model's, or is off by a token.

    A base model may end texts with another token than its chat template ends turns with: the tokenizer's own end of
    text, or the token that it pads with (Qwen's `<|endoftext|>`). A config that names no end says nothing.

    Raises:
        UsageError: names both.
    """
    named = [getattr(owner, "eos_token_id", None) for owner in (config, config.get_text_config(), generation_config)]
    known = {i for found in named if found is not None for i in (found if isinstance(found, list) else [found])}
    tokenizer = prompts.tokenizer
    ends = {*prompts.turn_end_ids, *(i for i in (tokenizer.eos_token_id, tokenizer.pad_token_id) if i is not None)}
    if known and not known & ends:
        names = ", ".join(f"{tokenizer.convert_ids_to_tokens(i)} ({i})" for i in sorted(ends))
        raise UsageError(
            f"Turns end with {names} by the tokenizer, and with {', '.join(map(str, sorted(known)))} by the model's "
            "config: use the tokenizer that belongs to the model, or correct eos_token_id."
        )
