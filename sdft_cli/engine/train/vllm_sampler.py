"""Rollouts from unsloth's vLLM engine (`fast_inference`), which shares the base's weights with the trainer.

The adapter goes to the engine as it is in memory, anew for every step, as a LoRA request; base weights are not written.
The engine is started so that it tells log-probabilities of the model's own distribution (vLLM's `raw_logprobs`; see
`loader_arguments` of `backend_unsloth.py`), and tells that of the sampled token alone: nothing is scored a second time.
The bound on the gap between sampler and trainer (`stop.max_sampler_gap`) judges the engine like any other sampler, and
an engine that told those behind temperature and top-p.
"""

from __future__ import annotations

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
        seeds: Sequence[int],
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
                seed=seed >> 32,  # vLLM takes 32 bits
                logprobs=0 if record_log_probs else None,  # of the sampled token, and of no other
            )
            for seed in seeds
        ]
        inputs = [{"prompt_token_ids": list(prompt)} for prompt in prompts]
        request = self._adapter()
        with interruptible():
            found = self._engine.generate(inputs, parameters, use_tqdm=False, lora_request=request)
        rollouts = []
        for output in found:
            answer = output.outputs[0]
            ids, log_probs = list(answer.token_ids), None
            if record_log_probs:
                log_probs = [told[token].logprob for token, told in zip(ids, answer.logprobs, strict=True)]
            rollouts.append(until_stop(ids, stop_ids, log_probs))
        return rollouts

    def _adapter(self) -> Any:
        try:
            return self._lora_request()
        except (NotImplementedError, RuntimeError, ValueError) as error:
            reason = str(error).strip().splitlines() or ["no reason given"]
            raise MachineError(
                f"unsloth's vLLM engine does not take this adapter ({reason[0]}): leave fast_inference out "
                "(--set fast_inference=false)."
            ) from error
