"""Run as a process of its own: one backend's numbers on fixed rollouts, as JSON on the last line.

Loss and gradient norms; greedy tokens of a padded batch and of single prompts; and, after three optimiser steps, the
adapter in `folder/<backend>`. unsloth patches transformers when it is imported, so the two backends are never compared
inside one process.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from sdft_cli.config import DistillSettings, load_train_config

PROMPTS = [[1, 9690, 198, 2683, 359, 253], [1, 4093, 198], [1, 520, 9531, 198, 28120]]
TEACHERS = [[1, 44, 55, 66, *p] for p in PROMPTS]
ANSWERS = [[504, 1029, 2], [3365, 28], [338, 1789, 30, 198]]
STEPS, NEW_TOKENS = 3, 12


def backward(backend: Any) -> float:
    import torch

    from sdft_cli.engine.models.adapters import weights
    from sdft_cli.engine.objective.loss import distillation_loss
    from sdft_cli.engine.passes.executors import response_states

    student = response_states(backend, PROMPTS, ANSWERS, 2)
    with weights(backend.model, "base"):
        teacher = response_states(backend, TEACHERS, ANSWERS, 2)
    settings = DistillSettings(chunk_rows=4)
    found = distillation_loss(student, teacher, backend.head, torch.full((9,), 1 / 9), settings)
    found.loss.backward()
    return found.loss.item()


def greedy(backend: Any) -> dict[str, list[list[int]]]:
    from sdft_cli.engine.models.adapters import weights
    from sdft_cli.engine.passes.decode import generate

    found = {}
    for case in ("adapter", "merged"):
        with weights(backend.model, case):  # type: ignore[arg-type]
            batch = generate(backend, PROMPTS, NEW_TOKENS, [2], 2)
            single = [generate(backend, [p], NEW_TOKENS, [2], 2)[0] for p in PROMPTS]
        found[f"{case}, batch"], found[f"{case}, single"] = [[r.ids for r in x] for x in (batch, single)]
    return found


def main(name: str, model: str, folder: str) -> None:
    config = load_train_config("cpu-demo", ["lora.rank=4", "lora.alpha=8"])
    if name == "unsloth":
        from sdft_cli.engine.models.backend_unsloth import import_unsloth

        import_unsloth()
    import torch

    from sdft_cli.engine.models.adapters import lora_layers
    from sdft_cli.engine.models.load import load_backend

    backend = load_backend(config, name, model)
    generator = torch.Generator().manual_seed(0)
    for _, layer in sorted(lora_layers(backend.model).items()):
        for part in (layer.lora_A, layer.lora_B):
            weight = part["default"].weight
            weight.data.copy_(torch.randn(weight.shape, generator=generator) * 0.02)
    optimizer = torch.optim.AdamW(backend.parameters(), lr=1e-3, weight_decay=0.0)
    losses = [backward(backend)]
    grads = {
        n.split("base_model.model.")[1]: float(p.grad.norm())
        for n, p in backend.model.named_parameters()
        if p.grad is not None
    }
    tokens = greedy(backend)
    for step in range(STEPS):
        if step:
            losses.append(backward(backend))
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    backend.save_adapter(Path(folder) / name)
    print(json.dumps({"backend": backend.name, "losses": losses, "grads": grads, "tokens": tokens}))


if __name__ == "__main__":
    main(*sys.argv[1:])
