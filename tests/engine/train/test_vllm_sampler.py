"""The sampler over a stand-in of vLLM: the same call, answered by transformers, since vLLM itself needs a GPU."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from sdft_cli.config import RolloutSettings, StopSettings  # noqa: E402
from sdft_cli.engine.models.adapters import weights  # noqa: E402
from sdft_cli.engine.train.rollouts import choose_sampling_weights, sample_rollouts, sampler_gap  # noqa: E402
from sdft_cli.engine.train.vllm_sampler import VllmSampler  # noqa: E402
from sdft_cli.errors import MachineError  # noqa: E402
from tests.engine.prepared import adapted  # noqa: E402

PROMPTS = [[1, 5, 9], [2, 7, 11, 4, 8], [1, 5, 9]]
STOPS = [3, 6]


@dataclass
class SamplingParams:
    """Those fields of vLLM's class that are used; an unknown name fails."""

    temperature: float = 1.0
    top_p: float = 1.0
    max_tokens: int = 16
    stop_token_ids: list[int] = field(default_factory=list)
    ignore_eos: bool = False
    detokenize: bool = True
    seed: int | None = None
    logprobs: int | None = None


class Engine:
    """`vllm.LLM.generate` for a peft model: its outputs have the parts that vLLM's have.

    `raw`: how it was started; as unsloth starts it for its own trainers, it tells the log-probabilities behind
    temperature and top-p.
    """

    def __init__(self, model: Any) -> None:
        self.model = model
        self.raw = True
        self.calls: list[tuple[Any, Any]] = []

    def generate(self, prompts: Any, parameters: Any, *, use_tqdm: bool, lora_request: Any) -> list[Any]:
        assert not use_tqdm
        self.calls.append((parameters, lora_request))
        each = parameters if isinstance(parameters, list) else [parameters] * len(prompts)
        with torch.no_grad(), weights(self.model, "adapter" if lora_request else "base"):
            return [self._one(p["prompt_token_ids"], s) for p, s in zip(prompts, each, strict=True)]

    def _one(self, prompt: list[int], settings: SamplingParams) -> Any:
        generator = torch.Generator().manual_seed(settings.seed or 0)
        ids: list[int] = []
        told = []
        while len(ids) < settings.max_tokens:
            logits = self.model(torch.tensor([[*prompt, *ids]])).logits[0, -1]
            drawn = logits / settings.temperature
            ids.append(int(torch.multinomial(drawn.softmax(-1), 1, generator=generator)))
            log_p = (logits if self.raw else drawn).log_softmax(-1)
            told.append({ids[-1]: SimpleNamespace(logprob=float(log_p[ids[-1]]))})
            if ids[-1] in settings.stop_token_ids:
                break
        answer = SimpleNamespace(token_ids=ids, logprobs=told if settings.logprobs is not None else None)
        return SimpleNamespace(outputs=[answer])


@pytest.fixture
def engine(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> Engine:
    module = ModuleType("vllm")
    module.SamplingParams = SamplingParams  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "vllm", module)
    return Engine(adapted(tiny_model).model)


@torch.no_grad()
def trained(backend: Any, rollouts: Any) -> Any:
    """Log p of each sampled token by the trainer's model, prompt by prompt."""
    found = []
    for prompt, rollout in zip(PROMPTS, rollouts, strict=True):
        log_p = backend.model(torch.tensor([[*prompt, *rollout.ids]])).logits[0].log_softmax(-1)
        found += [float(log_p[len(prompt) - 1 + i, token]) for i, token in enumerate(rollout.ids)]
    return torch.tensor(found)


def test_rollouts_and_their_log_probabilities(tiny_model: Path, engine: Engine) -> None:
    backend = adapted(tiny_model)
    requests = iter(["request 1", "request 2"])
    backend.vllm = engine, lambda: next(requests)
    settings = RolloutSettings(max_new_tokens=6, temperature=0.9, top_p=0.95)
    assert "vLLM engine" in choose_sampling_weights(backend, settings)[1]
    found = sample_rollouts(backend, PROMPTS, settings, STOPS, 0, seed=7, record_log_probs=True)
    ((sampled, request),) = engine.calls  # nothing is scored a second time
    assert request == "request 1"
    for parameters in sampled:
        assert (parameters.temperature, parameters.top_p, parameters.max_tokens) == (0.9, 0.95, 6)
        assert (parameters.stop_token_ids, parameters.ignore_eos, parameters.logprobs) == (STOPS, True, 0)
    assert len({parameters.seed for parameters in sampled}) == 3  # equal prompts have samples of their own
    for rollout in found:
        assert 1 <= len(rollout.ids) <= 6
        assert rollout.finished == (rollout.ids[-1] in STOPS)
        assert not set(rollout.ids[:-1]) & set(STOPS)
    assert sampler_gap(found, trained(backend, found))["sampler_gap_max"] < 1e-5
    again = sample_rollouts(backend, PROMPTS, settings, STOPS, 0, seed=7)
    assert [r.ids for r in again] == [r.ids for r in found]
    assert again[0].log_probs is None
    assert engine.calls[-1][0][0].logprobs is None
    assert engine.calls[-1][1] == "request 2"  # the adapter as it is now
    assert len(engine.calls) == 2


def test_an_engine_that_tells_what_is_behind_the_temperature_is_stopped(tiny_model: Path, engine: Engine) -> None:
    backend = adapted(tiny_model)
    engine.raw = False
    backend.vllm = engine, lambda: "request"
    settings = RolloutSettings(max_new_tokens=6, temperature=0.5)
    found = sample_rollouts(backend, PROMPTS, settings, STOPS, 0, seed=7, record_log_probs=True)
    assert sampler_gap(found, trained(backend, found))["sampler_gap"] > StopSettings().max_sampler_gap


def test_an_adapter_that_the_engine_does_not_take(tiny_model: Path, engine: Engine) -> None:
    def refuse() -> Any:
        raise RuntimeError("Unsloth: vLLM would drop in_proj_qkv\nand more")

    sampler = VllmSampler(engine, refuse)
    with pytest.raises(MachineError, match=r"does not take this adapter \(Unsloth: vLLM would drop in_proj_qkv\)"):
        sampler.sample(PROMPTS, RolloutSettings(max_new_tokens=2), STOPS, [0] * len(PROMPTS), False)
