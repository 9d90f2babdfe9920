"""Run as a process of its own: one backend's loss and gradient on fixed rollouts, as JSON on the last line.

unsloth patches transformers when it is imported, so the two backends are never compared inside one process.
"""

from __future__ import annotations

import json
import sys

from sdft_cli.config import load_train_config


def main(name: str, model: str) -> None:
    config = load_train_config("cpu-demo", ["lora.rank=4", "lora.alpha=8"])
    if name == "unsloth":
        from sdft_cli.engine.backend_unsloth import import_unsloth

        import_unsloth()
    import torch

    from sdft_cli.engine.adapters import lora_layers, weights
    from sdft_cli.engine.backend import load_backend
    from sdft_cli.engine.forward import response_states
    from sdft_cli.engine.loss import distillation_loss

    backend = load_backend(config, name, model)
    generator = torch.Generator().manual_seed(0)
    for _, layer in sorted(lora_layers(backend.model).items()):
        for part in (layer.lora_A, layer.lora_B):
            weight = part["default"].weight
            weight.data.copy_(torch.randn(weight.shape, generator=generator) * 0.02)
    prompts = [[1, 9690, 198, 2683, 359, 253], [1, 4093, 198], [1, 520, 9531, 198, 28120]]
    teachers = [[1, 44, 55, 66, *p] for p in prompts]
    answers = [[504, 1029, 2], [3365, 28], [338, 1789, 30, 198]]
    student = response_states(backend, prompts, answers, 2)
    with weights(backend.model, "base"):
        teacher = response_states(backend, teachers, answers, 2)
    settings = config.distill.model_copy(update={"chunk_rows": 4})
    found = distillation_loss(student, teacher, backend.head, torch.full((9,), 1 / 9), settings)
    found.loss.backward()
    grads = {
        n.split("base_model.model.")[1]: float(p.grad.norm())
        for n, p in backend.model.named_parameters()
        if p.grad is not None
    }
    print(json.dumps({"backend": backend.name, "loss": found.loss.item(), "grads": grads}))


if __name__ == "__main__":
    main(*sys.argv[1:])
