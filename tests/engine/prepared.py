"""A prepared dataset of example sessions and a backend with a random adapter, for tests on the tiny model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sdft_cli.config import PrepareConfig, load_train_config
from sdft_cli.engine.models.adapters import lora_layers
from sdft_cli.engine.models.backend import Backend
from sdft_cli.engine.models.load import load_backend
from sdft_cli.preparation.job import Job
from sdft_cli.preparation.pipeline import manifest_of, prepare, write
from sdft_cli.prompts.chat import ChatPrompts, load_tokenizer
from sdft_cli.prompts.teacher import load_teacher_template
from sdft_cli.records import Dataset, read_dataset
from sdft_cli.traces.examples import Subset, write_examples
from sdft_cli.traces.source import resolve_source


def prepared(
    model: Path, folder: Path, sessions: int, validation: float, template: str = "repeat", subset: Subset = "all"
) -> Dataset:
    """Prepare example sessions for a model, as `sdft prepare` does."""
    write_examples(folder / "sessions", sessions, subset=subset)
    source = resolve_source(str(folder / "sessions"))
    config = PrepareConfig(
        source=str(folder / "sessions"),
        model=str(model),
        redact=False,
        validation_fraction=validation,
        teacher_template=template,
    )
    prompts = ChatPrompts(load_tokenizer(model), load_teacher_template(template))
    found = prepare(source, Job(config, prompts, None))
    return read_dataset(write(found, manifest_of(config, source, prompts, found), folder / "data", ""))


def adapted(model: Path, *overrides: str, scale: float = 0.3) -> Backend:
    """Load a model with an adapter whose B has values, as after training."""
    import torch

    config = load_train_config("cpu-demo", ["lora.rank=4", *overrides])
    backend = load_backend(config, "transformers", str(model))
    generator = torch.Generator().manual_seed(3)
    for layer in lora_layers(backend.model).values():
        layer.lora_B["default"].weight.data.normal_(generator=generator).mul_(scale)
    return backend


def state_of(backend: Backend) -> dict[str, Any]:
    """Copy everything that a measurement must leave as it is: tensors, modes, gradients' flags."""
    return {
        "tensors": {name: tensor.clone() for name, tensor in backend.model.state_dict().items()},
        "training": [module.training for module in backend.model.modules()],
        "requires_grad": [p.requires_grad for p in backend.model.parameters()],
    }
