"""Tiny models of several architectures, turns whose prompts form a tree, and the plain way to their gradient."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from sdft_cli.config import load_train_config
from sdft_cli.engine.models.backend import Backend
from sdft_cli.engine.models.backend_transformers import TransformersBackend, attach_lora
from sdft_cli.engine.passes.padded import padded_states

WORDS, HIDDEN = 128, 32
SIZES = {
    "vocab_size": WORDS,
    "hidden_size": HIDDEN,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "initializer_range": 0.2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
LINEAR_SIZES = {
    "initializer_range": 0.02,  # the reference code of the delta rule computes in fp32 and amplifies rounding at 0.2
    "num_hidden_layers": 4,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "layer_types": ["linear_attention", "linear_attention", "linear_attention", "full_attention"],
}
VISION = {
    "depth": 1,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_heads": 4,
    "out_hidden_size": HIDDEN,
    "num_position_embeddings": 16,
}
PROFILE = {"llama": "cpu-demo", "qwen3": "cpu-demo", "hybrid": "qwen3.5-9b-64k", "multimodal": "qwen3.5-9b-64k"}
KINDS = list(PROFILE)
PROFILE["qwen2"] = "cpu-demo"


def tiny(kind: str) -> Any:
    import transformers as t

    torch.manual_seed(0)
    if kind == "llama":
        return t.LlamaForCausalLM(t.LlamaConfig(**SIZES))
    if kind == "qwen3":
        return t.Qwen3ForCausalLM(t.Qwen3Config(**SIZES))
    if kind == "qwen2":
        return with_bias(t.Qwen2ForCausalLM(t.Qwen2Config(**SIZES)))
    text = {**SIZES, **LINEAR_SIZES}
    if kind == "hybrid":
        return t.Qwen3_5ForCausalLM(t.Qwen3_5TextConfig(**text))
    return t.Qwen3_5ForConditionalGeneration(t.Qwen3_5Config(text_config=text, vision_config=VISION))


def with_bias(model: Any) -> Any:
    """The model, its biases drawn too: they start at zero."""
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            parameter.data.normal_(std=0.2)
    return model


def make(kind: str, dtype: Any = torch.float32) -> Backend:
    """A tiny model whose adapter has weights everywhere, in eval mode."""
    config = load_train_config(PROFILE[kind], ["lora.rank=4", "lora.alpha=8"])
    model = tiny(kind).to(dtype).eval().requires_grad_(False)
    backend = TransformersBackend(attach_lora(model, config).eval(), torch.device("cpu"))
    generator = torch.Generator().manual_seed(3)
    for p in backend.parameters():
        p.data = torch.randn(p.shape, generator=generator) * 0.1
    return backend


def ids(count: int, seed: int) -> list[int]:
    return torch.randint(3, WORDS, (count,), generator=torch.Generator().manual_seed(seed)).tolist()  # type: ignore[no-any-return]


def dense_mask(rows: Sequence[Any], tokens: int) -> Any:
    """The mask of a tree (N, N) from the places of each sequence: a token sees its own past and nothing else."""
    seen = torch.zeros(tokens, tokens, dtype=torch.bool)
    for row in rows:
        for position, place in enumerate(row):
            seen[place, row[: position + 1]] = True
    return seen


TRUNK = ids(120, 0)
PROMPTS = [
    TRUNK[:70],
    TRUNK[:120],
    TRUNK[:30],
    [*TRUNK[:50], *ids(9, 1)],  # leaves the trunk in its middle
    ids(3, 2),  # shares nothing
    TRUNK[:71],  # one token more than the first
    TRUNK[:70],  # the first one's second rollout
    TRUNK[:70],
]
ANSWERS = [ids(n, 10 + n) for n in (12, 33, 1, 7, 5, 1, 2)] + [[]]


def alone(backend: Backend, prompt: Sequence[int], answer: Sequence[int]) -> Any:
    """The plain way: the states that predict the answer, from a padded pass over one sequence."""
    return padded_states(backend, [[*prompt, *answer]], 0)[0][len(prompt) - 1 : len(prompt) - 1 + len(answer)]


def leaf_loss(index: int, states: Any) -> Any:
    """Something uneven; the second turn has no token with loss."""
    if index == 1:
        return torch.zeros(())
    weight = torch.linspace(-1, 1, states.numel(), dtype=states.dtype).view_as(states)
    return (states * weight).sin().sum() * (1 + index)


def gradient(backend: Backend, run: Callable[[], object]) -> Any:
    for p in backend.parameters():
        p.grad = None
    run()
    return torch.cat(
        [torch.zeros_like(p).flatten() if p.grad is None else p.grad.flatten() for p in backend.parameters()]
    )


def independent(backend: Backend, prompts: Any, answers: Any, loss: Any = leaf_loss) -> Any:
    def run() -> None:
        for i, (x, y) in enumerate(zip(prompts, answers, strict=True)):
            if y and (value := loss(i, alone(backend, x, y))).requires_grad:
                value.backward()

    return gradient(backend, run)


def go_back(passes: Any, loss: Any) -> None:
    """Go back from the loss of each pass's states before the next one, as a training step does."""
    for turns, states in passes:
        if (value := loss(turns, states)).requires_grad:
            value.backward()


def error(found: Any, expected: Any) -> float:
    return float((found - expected).norm() / expected.norm())


@torch.no_grad()
def as_stored(backend: Backend) -> None:
    """Round a base's fp32 weights to what a bfloat16 checkpoint holds."""
    for name, parameter in backend.model.named_parameters():
        if ".lora_" not in name:
            parameter.copy_(parameter.bfloat16())
