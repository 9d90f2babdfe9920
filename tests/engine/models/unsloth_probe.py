"""Run as a process of its own: one library's loss and gradient on fixed rollouts, as JSON on the last line.

For each model folder: what was said of prefix sharing, and the loss and the gradient of a step of turns with common
prefixes, run the way that was chosen. unsloth patches transformers when it is imported, so the two libraries are never
compared inside one process.
"""

from __future__ import annotations

import json
import sys
import warnings
from typing import Any

IDS = [(7919 * i + 101) % 97 for i in range(96)]
PROMPTS = [IDS[:60], IDS[:38], IDS[:38], [*IDS[:19], *IDS[80:83]], IDS[90:93]]
ANSWERS = [IDS[60:66], IDS[38:48], IDS[3:4], IDS[5:10], IDS[7:11]]
SETTINGS = ["lora.rank=4", "lora.alpha=8", "lora.target_modules=all-linear", "dtype=float32"]
SHORT = ["max_seq_tokens=100", "max_prompt_tokens=80", "rollout.max_new_tokens=10"]


def step(backend: Any) -> tuple[float, dict[str, list[float]]]:
    """Return the loss of a step in nats, and each parameter's gradient."""
    import torch

    from sdft_cli.config import DistillSettings
    from sdft_cli.engine.models.adapters import weights
    from sdft_cli.engine.objective.loss import distillation_loss
    from sdft_cli.engine.passes.executors import student_passes, teacher_passes

    with weights(backend.model, "base"):
        teacher = teacher_passes(backend, PROMPTS, ANSWERS, 2, 1000)
    total, count = 0.0, sum(map(len, ANSWERS))
    for turns, states in student_passes(backend, PROMPTS, ANSWERS, 2, 1000):
        target = torch.cat([teacher[i] for i in turns])
        each = torch.full((len(target),), 1 / count)
        found = distillation_loss(states, target, backend.head, each, DistillSettings(chunk_rows=4))
        found.loss.backward()
        total += found.loss.item()
    named = [(n.split("base_model.model.")[1], p) for n, p in backend.model.named_parameters() if p.requires_grad]
    return total, {name: p.grad.flatten().tolist() for name, p in named}


def measure(name: str, folder: str) -> dict[str, Any]:
    """Load a model with an adapter that does something, choose how to share, and run a step."""
    import torch

    from sdft_cli.config import load_train_config
    from sdft_cli.engine.models.adapters import lora_layers
    from sdft_cli.engine.models.load import load_backend
    from sdft_cli.engine.passes.choose import choose_sharing

    backend = load_backend(load_train_config("cpu-demo", [*SETTINGS, *SHORT]), name, folder)
    generator = torch.Generator().manual_seed(0)
    for _, layer in sorted(lora_layers(backend.model).items()):
        for part in (layer.lora_A, layer.lora_B):
            weight = part["default"].weight
            weight.data.copy_(torch.randn(weight.shape, generator=generator) * 0.1)
    said = choose_sharing(backend, "auto")
    loss, gradient = step(backend)
    return {"said": said, "sharing": backend.sharing, "loss": loss, "gradient": gradient}


def main(name: str, folders: list[str]) -> None:
    from sdft_cli.engine.models.load import choose_library

    before = "transformers" in sys.modules
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        choose_library(name, folders[0], None)
    order = [str(warning.message) for warning in caught if "should be imported before" in str(warning.message)]
    found = {folder: measure(name, folder) for folder in folders}
    print(json.dumps({"before": before, "order": order, "found": found}))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
