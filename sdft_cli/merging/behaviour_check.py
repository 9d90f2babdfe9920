"""Is the checkpoint on disk the model that was trained? Loaded and compared with base + adapter over real prompts.

The checkpoint answers the prompts greedily. At the tokens of these answers the distributions of both, and of the base,
are compared and judged. Whether the trained model would give the same answers, tool calls mostly, is told and not
judged: a near tie changes all that follows. Models run by their own `forward` and `generate`, as they will wherever the
checkpoint goes; one is in memory.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from sdft_cli.engine.models.adapters import lora_layers, weights
from sdft_cli.engine.models.backend_transformers import load_model
from sdft_cli.engine.models.quiet import quiet_libraries
from sdft_cli.engine.passes.decode import decoding_config, left_padded, own_settings_off
from sdft_cli.engine.passes.padded import padded_passes
from sdft_cli.errors import DataError
from sdft_cli.notices import tracked
from sdft_cli.prompts.chat import ChatPrompts
from sdft_cli.prompts.teacher import load_teacher_template
from sdft_cli.prompts.tool_calls import Syntax, parse_turn
from sdft_cli.run_folder import CheckPrompt

MAX_MEAN_KL = 0.01
"""Nats. Casting W + delta to bf16 is a relative error of at most 2^-9 a weight; what it costs is measured, and a
merge that costs more than this is not the model that was trained."""
MIN_GAIN = 5.0
"""Where the adapter moves the model by more than `MAX_MEAN_KL`, the merge must be this many times nearer to it than the
base is."""
SAME_KL = 1e-3
"""Nats. The checkpoint and base + adapter, each sum rounded in memory as the merge rounds it, are the same weights."""

DECODE_TOKENS = 16_384
"""Padded tokens, answers included, of prompts that are decoded together."""


def compare_models(
    base: Path,
    adapter: Path,
    merged: Path,
    prompts: Sequence[CheckPrompt],
    dtype: torch.dtype,
    cls: Any = None,
    written: torch.dtype | None = None,
) -> dict[str, Any]:
    """Compare a checkpoint, loaded from disk, with base + adapter: distributions, and greedy answers.

    On the GPU if there is one and the models fit into its memory, else on the CPU; `device` of the result says which.

    Args:
        base, adapter, merged: folders.
        prompts: what to compare on.
        dtype: to load all weights in.
        cls: the class of model that the adapter is put on; left out, the one that is trained here.
        written: the type of the merged weights, where the adapter does no more than add B A and the base's weights have
            that type too; then base + adapter is rounded alike and compared, too.
    """
    if torch.cuda.is_available():
        try:
            return _compared(base, adapter, merged, prompts, dtype, torch.device("cuda"), cls, written)
        except torch.OutOfMemoryError:
            pass  # out of the handler first: its traceback holds the models
        gc.collect()
        torch.cuda.empty_cache()
    return _compared(base, adapter, merged, prompts, dtype, torch.device("cpu"), cls, written)


def _compared(
    base: Path,
    adapter: Path,
    merged: Path,
    prompts: Sequence[CheckPrompt],
    dtype: torch.dtype,
    device: torch.device,
    cls: Any,
    written: torch.dtype | None,
) -> dict[str, Any]:
    quiet_libraries()
    from peft import PeftModel
    from transformers import AutoTokenizer

    model = load_model(str(merged), dtype, device)
    answers, merged_log_p = greedy_answers(model, prompts, device)
    replays = [CheckPrompt(item.prompt, answer) for item, answer in zip(prompts, answers, strict=True)]
    del model
    gc.collect()
    adapted: Any = PeftModel.from_pretrained(
        load_model(str(base), dtype, device, cls=cls), str(adapter), low_cpu_mem_usage=True
    )
    trained_log_p = log_probabilities(adapted.eval(), replays, device)
    with weights(adapted, "base"):
        base_log_p = log_probabilities(adapted, replays, device)
    tokenizer: Any = AutoTokenizer.from_pretrained(str(merged))
    found = compare(trained_log_p, merged_log_p, base_log_p)
    if written is not None:
        with rounded(adapted, written):
            found["as_written_kl"] = _mean_kl(log_probabilities(adapted, replays, device), merged_log_p)
    templated = bool(tokenizer.chat_template)  # the base of another trainer's adapter may have no template
    syntax = ChatPrompts(tokenizer, load_teacher_template()).syntax.syntax if templated else None
    texts = [tokenizer.decode(answer, clean_up_tokenization_spaces=False) for answer in answers]
    return {"device": device.type, **found, **same_answers(answers, texts, trained_log_p.argmax(-1).tolist(), syntax)}


@contextmanager
def rounded(model: Any, dtype: torch.dtype) -> Iterator[None]:
    """Put the adapter into the base's weights, each sum rounded once to `dtype`, as a merge writes it."""
    with weights(model, "merged"):
        for layer in lora_layers(model).values():
            weight = layer.get_base_layer().weight
            weight.data = weight.data.to(dtype).to(weight.dtype)
        yield


def _mean_kl(own: torch.Tensor, other: torch.Tensor) -> float:
    return float((own.exp() * (own - other)).sum(-1).mean())


TEXTS = (
    "Write a Python function that finds duplicate files in a folder.",
    "What does `git rebase --onto` do? Give an example.",
    "Tests fail with `KeyError: 'id'` after my last change. Where do I look first?",
    "Explain the difference between a process and a thread in two sentences.",
    "Translate to French: the meeting was moved to Thursday morning.",
    "List the files of a folder by size, largest first, in bash.",
    "Name three causes of the First World War.",
    "Summarise: the committee met twice, agreed on the budget and put off the vote on the bylaws.",
)
"""On what an adapter without a run is compared."""
TOKENS = 32
"""Tokens of an answer to them, at most."""


def fixed_prompts(base: Path, count: int) -> list[CheckPrompt]:
    """Return prompts of a few fixed texts, through the base's chat template if it has one.

    Raises:
        DataError: the base has no tokenizer that can be loaded, or its template refuses a single user message.
    """
    from jinja2 import TemplateError
    from transformers import AutoTokenizer

    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(str(base))
        found = []
        for text in TEXTS[:count]:
            if tokenizer.chat_template:
                message = [{"role": "user", "content": text}]
                text = tokenizer.apply_chat_template(message, add_generation_prompt=True, tokenize=False)
            ids = tokenizer(text, add_special_tokens=not tokenizer.chat_template)["input_ids"]
            found.append(CheckPrompt(list(ids), [0] * TOKENS))
    except (OSError, ValueError, TemplateError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise DataError(
            f"No prompts could be made with the tokenizer of {base} ({reason}): repair its files."
        ) from error
    return found


@torch.no_grad()
def log_probabilities(model: Any, prompts: Sequence[CheckPrompt], device: torch.device) -> torch.Tensor:
    """Return log-probabilities (positions, V), fp32 on the CPU, at every answer position."""
    found = []
    for item in tracked(prompts, "Comparing answers"):
        ids = torch.tensor([[*item.prompt, *item.answer]], device=device)
        logits = model(input_ids=ids, logits_to_keep=len(item.answer) + 1).logits[0, :-1]
        found.append(logits.float().log_softmax(-1).cpu())
    return torch.cat(found)


@torch.no_grad()
def greedy_answers(
    model: Any, prompts: Sequence[CheckPrompt], device: torch.device
) -> tuple[list[list[int]], torch.Tensor]:
    """Return greedy answers, each with the token that ends it, and log-probabilities at their positions.

    Of the model's own generation settings only its stop tokens have a say. Prompts are decoded together, padded on the
    left, up to `DECODE_TOKENS` a batch.

    Args:
        prompts: of which no answer is longer than the longest that is there.

    Returns token ids, and log-probabilities as `log_probabilities` gives them.
    """
    stops = sorted(_stops(model))
    pad, cap = min(stops, default=0), max(len(item.answer) for item in prompts)
    found: dict[int, tuple[list[int], torch.Tensor]] = {}
    for rows in padded_passes([len(item.prompt) + cap for item in prompts], DECODE_TOKENS):
        ids, mask = (t.to(device) for t in left_padded([prompts[i].prompt for i in rows], pad))
        with own_settings_off(model):
            output = model.generate(
                input_ids=ids,
                attention_mask=mask,
                generation_config=decoding_config(cap, stops, pad),
                output_logits=True,
                return_dict_in_generate=True,
            )
        for n, i in enumerate(rows):
            row = output.sequences[n, ids.shape[1] :].tolist()
            size = next((place + 1 for place, token in enumerate(row) if token in stops), len(row))
            logits = torch.stack([step[n] for step in output.logits[:size]])
            found[i] = row[:size], logits.float().log_softmax(-1).cpu()
    in_order = [found[i] for i in range(len(prompts))]
    return [answer for answer, _ in in_order], torch.cat([log_p for _, log_p in in_order])


def _stops(model: Any) -> set[int]:
    ends = model.generation_config.eos_token_id
    return set(ends if isinstance(ends, list) else [] if ends is None else [ends])


def same_answers(
    answers: Sequence[list[int]], texts: Sequence[str], likeliest: Sequence[int], syntax: Syntax | None
) -> dict[str, int | None]:
    """Count the checkpoint's greedy answers that the trained model would give too, all of them and those with a call.

    Args:
        answers: token ids.
        texts: the same, as text.
        likeliest: the trained model's likeliest token at every position of every answer. Where each of them is the
            answer's, the answer is its own greedy one, without decoding it again.
        syntax: the model's, in which calls are written; where it is None, those with a call are not counted: None.
    """
    found, place = [], 0
    for answer in answers:
        found.append(list(likeliest[place : place + len(answer)]) == answer)
        place += len(answer)
    calls = [has_call(text, syntax) for text in texts] if syntax else None
    both = [same and call for same, call in zip(found, calls, strict=True)] if calls is not None else None
    return {
        "answers": len(answers),
        "same_answers": sum(found),
        "answers_with_calls": None if calls is None else sum(calls),
        "same_answers_with_calls": None if both is None else sum(both),
    }


def has_call(text: str, syntax: Syntax) -> bool:
    """Say whether an answer holds a tool call, or the beginning of one."""
    turn = parse_turn(text, (), syntax)
    return bool(turn.calls or turn.errors)


def compare(trained: torch.Tensor, merged: torch.Tensor, base: torch.Tensor) -> dict[str, Any]:
    """Compare log-probabilities (positions, V): KL in nats of merged and of base from the trained model.

    `base_is_told_apart`: the merge is `MIN_GAIN` times nearer than the base is. Where it is not, the update may be too
    small for this comparison, and the tensors alone say that it is there.
    """
    kl = (trained.exp() * (trained - merged)).sum(-1)
    base_kl = (trained.exp() * (trained - base)).sum(-1)
    return {
        "mean_kl": float(kl.mean()),
        "max_kl": float(kl.max()),
        "base_mean_kl": float(base_kl.mean()),
        "top1_agreement": float((trained.argmax(-1) == merged.argmax(-1)).float().mean()),
        "positions": len(kl),
        "base_is_told_apart": float(kl.mean()) * MIN_GAIN <= float(base_kl.mean()),
    }


def failures(check: dict[str, Any]) -> list[str]:
    """Return what is wrong with a merge; empty if it is the model that was trained.

    What rounding alone costs is no fault of a merge: where the checkpoint does what base + adapter, rounded alike, does
    (or is at least twice nearer to that than to the unrounded model), it is told and not judged.
    """
    same = check.get("as_written_kl")
    if same is not None and same <= max(SAME_KL, check["mean_kl"] / 2):
        return []
    found = []
    if not check["mean_kl"] <= MAX_MEAN_KL:  # NaN fails too
        found.append(f"mean KL {check['mean_kl']:.2e} is over {MAX_MEAN_KL}")
    if check["base_mean_kl"] > MAX_MEAN_KL and not check["base_is_told_apart"]:
        found.append(
            f"the base (KL {check['base_mean_kl']:.2e}) is about as near as the merge ({check['mean_kl']:.2e})"
        )
    return found
