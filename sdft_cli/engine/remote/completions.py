"""A prompt of token ids -> a request for `/v1/completions`; its answer -> a rollout with log-probabilities.

Ids go both ways as ids: text that is encoded again has other ones. An answer has them in `token_ids`
(`return_token_ids`, vLLM 0.10.2 and later) or, of older versions, in its log-probabilities
(`return_tokens_as_token_ids`: tokens are written as `token_id:17`). Log-probabilities are those of the sampled token at
temperature 1 over the whole vocabulary, which is `--logprobs-mode raw_logprobs`, vLLM's default.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sdft_cli.config import RolloutSettings
from sdft_cli.engine.passes.decode import Rollout, until_stop
from sdft_cli.engine.remote.client import GO_ON, ServerError

PATH = "/v1/completions"
AS_ID = "token_id:"


@dataclass(frozen=True)
class Decoding:
    """How a server is to decode. `words`: the size of the vocabulary. `temperature` 0 is greedy."""

    max_new_tokens: int
    temperature: float
    top_p: float
    stop_ids: tuple[int, ...]
    words: int

    @classmethod
    def of(cls, settings: RolloutSettings, stop_ids: Sequence[int], words: int) -> Decoding:
        """Return how rollouts are sampled by these settings."""
        return cls(settings.max_new_tokens, settings.temperature, settings.top_p, tuple(stop_ids), words)


def request_for(model: str, prompt: Sequence[int], seed: int, how: Decoding) -> dict[str, Any]:
    """Return the body of a request for one answer.

    A request has one prompt, since a server gives all prompts of a request the same seed. Whatever is left out a server
    fills from the model's own generation config, so nothing that changes the distribution is.

    Args:
        model: a name that the server knows: its base, or an adapter that was loaded.
        prompt: token ids.
        seed: of what is drawn, 64 bits; servers take 32 of them everywhere.
        how: how to decode.
    """
    return {
        "model": model,
        "prompt": [list(prompt)],
        "max_tokens": how.max_new_tokens,
        "temperature": how.temperature,
        "top_p": how.top_p,
        "top_k": 0,
        "min_p": 0.0,
        "repetition_penalty": 1.0,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "seed": seed >> 32,
        "stop_token_ids": list(how.stop_ids),
        "ignore_eos": True,  # the stop tokens are all there is
        "logprobs": 0,  # of the sampled token, and of no other
        "return_token_ids": True,
        "return_tokens_as_token_ids": True,
    }


def rollout_of(answer: Any, prompt: Sequence[int], how: Decoding, url: str, staleness: int = 0) -> Rollout:
    """Return the rollout that an answer holds.

    Raises:
        ServerError: it holds none, or one that this model or these settings cannot have.
    """
    choice = _choice(answer, url)
    echoed = choice.get("prompt_token_ids")
    if echoed is not None and list(echoed) != list(prompt):
        raise _wrong(url, "read other token ids than it was sent", "serve the run's model with its own tokenizer")
    ids, log_probs = _tokens(choice, url)
    if any(not 0 <= token < how.words for token in ids):
        raise _wrong(
            url,
            f"answered token {max(ids)}, and this model has {how.words} words",
            "serve the run's model with its own tokenizer",
        )
    found = until_stop(ids, how.stop_ids, log_probs)
    if found.finished or len(ids) == how.max_new_tokens:
        return Rollout(found.ids, found.finished, found.log_probs, staleness)
    if choice.get("finish_reason") == "length" or not ids:
        raise _wrong(url, f"cut an answer at {len(ids)} tokens", "serve with a larger --max-model-len")
    raise _wrong(
        url,
        f"ended an answer at token {ids[-1]} ({choice.get('finish_reason')}), which is no end of a turn here",
        "serve with --generation-config vllm",
    )


def _choice(answer: Any, url: str) -> dict[str, Any]:
    choices = answer.get("choices") if isinstance(answer, dict) else None
    if not isinstance(choices, list) or len(choices) != 1 or not isinstance(choices[0], dict):
        raise _wrong(url, "answered no completion", "name a server of vLLM by --vllm-url")
    return choices[0]


def _tokens(choice: dict[str, Any], url: str) -> tuple[list[int], list[float]]:
    told = choice.get("logprobs") or {}
    ids, log_probs = choice.get("token_ids"), told.get("token_logprobs")
    if ids is None and all(str(name).startswith(AS_ID) for name in told.get("tokens") or [""]):
        ids = [int(str(name).removeprefix(AS_ID)) for name in told["tokens"]]
    if ids is None or log_probs is None or len(ids) != len(log_probs) or None in log_probs:
        raise _wrong(url, "tells no token ids with their log-probabilities", "serve with vLLM 0.10.2 or later")
    return [int(token) for token in ids], [float(x) for x in log_probs]


def _wrong(url: str, what: str, advice: str) -> ServerError:
    return ServerError(f"The rollout server {url} {what}: {advice}; {GO_ON}.")
