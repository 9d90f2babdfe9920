"""All findings of `sdft doctor`, in order: the machine, the model that was named, the engine."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace

import torch

from sdft_cli.config import TrainConfig, with_settings
from sdft_cli.engine.doctor.finding import Finding, fail, run_checks
from sdft_cli.engine.doctor.machine import examine_machine
from sdft_cli.engine.doctor.model import examine_model
from sdft_cli.engine.doctor.self_test import engine_checks
from sdft_cli.engine.doctor.small import ON_CPU, small_backend, small_config, small_prompts
from sdft_cli.engine.models.backend import Backend
from sdft_cli.engine.models.backend_transformers import empty_model
from sdft_cli.engine.models.load import choose_library, load_backend
from sdft_cli.engine.models.targets import targets_told
from sdft_cli.errors import SdftError
from sdft_cli.prompts.chat import ChatPrompts, prompts_for


@dataclass(frozen=True)
class Question:
    """What is asked: a configuration; perhaps a model, as folder or Hub id, and a chat template for it.

    `load`: test the engine on that model's weights, not on a small random one. `gpu`: without a GPU the machine fails.
    """

    config: TrainConfig
    model: str | None = None
    chat_template: str | None = None
    load: bool = False
    gpu: bool = False


def examine(asked: Question) -> Iterator[Finding]:
    """Yield every finding; what cannot be checked because something before it failed is left out."""
    if asked.load and asked.model is not None:
        with suppress(SdftError):  # the same call below says what is wrong; here it imports unsloth before transformers
            choose_library(asked.config.backend, asked.model, asked.config.revision)
    yield from examine_machine(asked.gpu)
    if asked.model is not None:
        yield from examine_model(asked.config, asked.model, asked.chat_template)
    elif (found := _targets(asked.config)).code:
        yield found
        asked = replace(asked, config=with_settings(asked.config, {"lora.target_modules": "all-linear"}))
    try:
        backend, prompts, what = _loaded(asked) if asked.load else _small(asked)
    except SdftError as error:
        yield fail("engine", str(error), error.exit_code)
        return
    yield Finding("engine", what)
    yield from run_checks(engine_checks(backend, prompts, asked.config))


def _targets(config: TrainConfig) -> Finding:
    """Look for the targets of an adapter in a model of Qwen3.5's architecture."""
    empty = empty_model(small_config(ON_CPU))
    (found,) = run_checks({"targets": lambda: "; ".join(targets_told(empty, config.lora.target_modules))})
    return found


def _small(asked: Question) -> tuple[Backend, ChatPrompts, str]:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    # The targets of a named model were looked for in that one; they may be of another family.
    changed = {} if asked.model is None else {"lora.target_modules": "all-linear"}
    backend = small_backend(with_settings(asked.config, changed), device)
    dtype = str(backend.head.weight.dtype).removeprefix("torch.")
    return backend, small_prompts(), f"on a small random {backend.base.config.model_type} model in {dtype}, {device}"


def _loaded(asked: Question) -> tuple[Backend, ChatPrompts, str]:
    assert asked.model is not None
    config, model = asked.config, asked.model
    name, why = choose_library(config.backend, model, config.revision)
    backend = load_backend(config, name, model)
    prompts = prompts_for(model, "expert_reference", asked.chat_template, None, config.revision)
    return backend, prompts, f"on {model} by {name} ({why}), {backend.device}"
