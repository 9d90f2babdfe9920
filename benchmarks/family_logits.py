"""Are likelihood and divergence those of the model's own logits, in every family? `python -m benchmarks.family_logits`.

For each tiny random model of `tests/families/tiny.py`, in fp32: the NLL of 20 tokens behind a prompt, and the reverse
KL between two prompts at them, as train, gate and evaluation compute them, and from the logits of the model's own
forward pass. The largest difference is printed; the exit code is 1 if one is over 1e-5 nats per token. About a minute.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import torch
from torch import Tensor

from sdft_cli.config import DistillSettings
from sdft_cli.engine.models.backend import Backend
from sdft_cli.engine.models.load import open_for_eval
from sdft_cli.engine.models.quiet import quiet_libraries
from sdft_cli.engine.objective.loss import distillation_loss, token_log_likelihood
from sdft_cli.engine.passes.executors import answer_states
from sdft_cli.errors import SdftError
from tests.families.tiny import FAMILIES, make_model

LIMIT = 1e-5


def difference(backend: Backend) -> float:
    """Return the larger difference of NLL and of KL, in nats per token."""
    generator = torch.Generator().manual_seed(0)
    prompt, answer, other = (torch.randint(10, 1000, (n,), generator=generator).tolist() for n in (40, 20, 55))
    student, teacher = (answer_states(backend, [ids], [answer], 2) for ids in (prompt, other))
    ours = token_log_likelihood(student, backend.head, torch.tensor(answer)).mean()
    kl = distillation_loss(student, teacher, backend.head, torch.ones(len(answer)), DistillSettings()).per_token.mean()
    p, q = (own_log_probabilities(backend, ids, answer) for ids in (prompt, other))
    own = p.gather(-1, torch.tensor(answer)[:, None]).mean()
    return float(max((ours - own).abs(), (kl - (p.exp() * (p - q)).sum(-1).mean()).abs()))


@torch.no_grad()
def own_log_probabilities(backend: Backend, prompt: list[int], answer: list[int]) -> Tensor:
    """Return log-probabilities (answer, V) of the model's own forward pass."""
    ids = torch.tensor([[*prompt, *answer]])
    logits = backend.full_pass(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
    log_p: Tensor = logits[0, len(prompt) - 1 : -1].float().log_softmax(-1)
    return log_p


def main() -> int:
    """Compare every family; return the exit code."""
    quiet_libraries()
    found: dict[str, float] = {}
    for family in FAMILIES:
        with tempfile.TemporaryDirectory() as folder:
            try:
                model = make_model(family, Path(folder) / "model")
                found[family] = difference(open_for_eval(str(model), "float32", None, None))
            except SdftError as error:
                print(f"{family} is refused: {error}")
    worst = max(found, key=lambda family: found[family])
    print(f"{len(found)} families; the largest difference is {found[worst]:.1e} nats per token ({worst})")
    return int(found[worst] > LIMIT)


if __name__ == "__main__":
    sys.exit(main())
