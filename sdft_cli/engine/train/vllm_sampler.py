"""Rollouts from unsloth's vLLM engine (`fast_inference`), which shares the base's weights with the trainer.

The adapter goes to the engine as it is in memory, anew for every step, as a LoRA request; base weights are not written.
unsloth starts the engine so that the log-probabilities of sampled tokens are those behind temperature and top-p, which
the trainer does not have. Where they are wanted, a second request therefore scores prompt and answer: vLLM tells a
prompt's tokens from the model's own distribution. The bound on the gap between sampler and trainer
(`stop.max_sampler_gap`) then judges the engine like any other sampler.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Any

from sdft_cli.config import RolloutSettings
from sdft_cli.engine.models.interrupts import interruptible
from sdft_cli.engine.passes.decode import Rollout, until_stop
from sdft_cli.errors import MachineError


class VllmSampler:
    """Samples rollouts with an engine of vLLM."""

    def __init__(self, engine: Any, lora_request: Callable[[], Any]) -> None:
        """Take a `vllm.LLM`, and what makes a LoRA request of the adapter as it is now."""
        self._engine = engine
        self._lora_request = lora_request

    def sample(
        self,
        prompts: Sequence[Sequence[int]],
        settings: RolloutSettings,
        stop_ids: Sequence[int],
        seed: int,
        record_log_probs: bool,
    ) -> list[Rollout]:
        """Sample one rollout per prompt; arguments as those of `rollout.sample_rollouts`.

        Every prompt has a seed of its own. Which kernels run depends on what is decoded together, so the same seed
        gives the same tokens only as far as the machine's arithmetic does.

        Raises:
            MachineError: the engine cannot serve the adapter.
        """
        from vllm import SamplingParams

        parameters = [
            SamplingParams(
                temperature=settings.temperature,
                top_p=settings.top_p,
                max_tokens=settings.max_new_tokens,
                stop_token_ids=list(stop_ids),
                ignore_eos=True,  # the stop tokens are all there is
                detokenize=False,
                seed=_seed_of(seed, place),
            )
            for place in range(len(prompts))
        ]
        request = self._adapter()
        found = self._generate(prompts, parameters, request)
        answers = [list(output.outputs[0].token_ids) for output in found]
        logs = self._score(prompts, answers, request) if record_log_probs else [None] * len(answers)
        return [until_stop(ids, stop_ids, log) for ids, log in zip(answers, logs, strict=True)]

    def _adapter(self) -> Any:
        try:
            return self._lora_request()
        except (NotImplementedError, RuntimeError, ValueError) as error:
            reason = str(error).strip().splitlines() or ["no reason given"]
            raise MachineError(
                f"unsloth's vLLM engine does not take this adapter ({reason[0]}): leave fast_inference out "
                "(--set fast_inference=false)."
            ) from error

    def _score(
        self, prompts: Sequence[Sequence[int]], answers: Sequence[Sequence[int]], request: Any
    ) -> list[list[float]]:
        """Return log p of each token of the answers, in nats, at temperature 1 over the whole vocabulary."""
        from vllm import SamplingParams

        whole = [[*prompt, *answer] for prompt, answer in zip(prompts, answers, strict=True)]
        parameters = SamplingParams(temperature=0.0, max_tokens=1, prompt_logprobs=0, detokenize=False)
        found = self._generate(whole, parameters, request)
        return [
            [output.prompt_logprobs[place][ids[place]].logprob for place in range(len(prompt), len(ids))]
            for prompt, ids, output in zip(prompts, whole, found, strict=True)
        ]

    def _generate(self, prompts: Sequence[Sequence[int]], parameters: Any, request: Any) -> Any:
        inputs = [{"prompt_token_ids": list(prompt)} for prompt in prompts]
        with interruptible():
            return self._engine.generate(inputs, parameters, use_tqdm=False, lora_request=request)


def _seed_of(seed: int, place: int) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed}/{place}".encode()).digest()[:4])
