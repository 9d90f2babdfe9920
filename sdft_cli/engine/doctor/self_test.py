"""Does a loaded model compute what a run relies on? Each check compares two ways; weights are left as they were."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from sdft_cli.config import DistillSettings, TrainConfig
from sdft_cli.engine.doctor.finding import Check
from sdft_cli.engine.kernels.check import check_kernels
from sdft_cli.engine.models.adapters import NOT_LANGUAGE, lora_layers, weights
from sdft_cli.engine.models.backend import Backend
from sdft_cli.engine.models.head import Head
from sdft_cli.engine.models.limits import check_ends, check_words
from sdft_cli.engine.objective import formula, loss
from sdft_cli.engine.objective.weights import Answers
from sdft_cli.engine.passes.choose import choose_sharing
from sdft_cli.engine.passes.decode import generate, stop_tokens
from sdft_cli.engine.passes.padded import padded_states
from sdft_cli.engine.passes.start_check import check_reach, choose_decoding
from sdft_cli.errors import WARNING, MachineError, VerificationError
from sdft_cli.prompts.chat import ChatPrompts
from sdft_cli.records import Message

ROUNDING = 1e-4
"""Relative difference of two fp32 computations of the same that is rounding."""
GAP = {torch.float32: 1e-3, torch.bfloat16: 0.3, torch.float16: 0.3}
"""Nats by which the sampler's log-probabilities may differ from the trainer's, by dtype."""
ROWS, WORDS, CHUNK = 37, 1000, 8
NEW = 12
"""Tokens of each answer that are decoded."""
STUDENT, TEACHER = (0.5, -1.0, 2.0, 0.0), (1.5, 0.25, -0.5, -2.0)
"""Logits of two distributions over four words, whose divergence is counted by hand."""


def engine_checks(backend: Backend, prompts: ChatPrompts, config: TrainConfig) -> dict[str, Check]:
    """Return the checks of a loaded model, in the order in which they should run."""
    return {
        "kernels": lambda: kernels(backend),
        "adapter": lambda: adapter(backend),
        "adapter off": lambda: adapter_off(backend),
        "loss in chunks": lambda: chunked_loss(backend, config),
        "divergence": lambda: divergence(config),
        "tokens": lambda: tokens(backend, prompts),
        "prefix sharing": lambda: choose_sharing(backend, config.prefix_sharing).replace("Prefix sharing: ", ""),
        "decoding": lambda: choose_decoding(backend, config.rollout.graphs).replace("Decoding: ", ""),
        "rollout": lambda: rollout(backend, prompts),
    }


def kernels(backend: Backend) -> str:
    """Say which kernels the gated delta layers run with, and how far from the reference they are.

    Raises:
        MachineError: one is wrong, or a GPU runs the reference, which is right and ten times slower.
    """
    found = check_kernels(backend.base, backend.device)
    if found is None:
        return "the model has no gated delta layers"
    if found.startswith(WARNING):
        raise MachineError(found.removeprefix(WARNING))
    return found.removeprefix("Kernels: ")


def adapter(backend: Backend) -> str:
    """Say where the adapter is.

    Raises:
        VerificationError: on a vision or audio module.
    """
    layers = sorted(lora_layers(backend.model))
    wrong = [name for name in layers if any(part in NOT_LANGUAGE for part in name.split("."))]
    if wrong:
        raise VerificationError(f"{wrong[0]} is adapted and no part of the language model: name other targets.")
    size = sum(p.numel() for p in backend.parameters())
    reach = check_reach(backend)
    return reach or f"on {len(layers)} layers of the language model, none elsewhere, {size:,} parameters in fp32"


@contextmanager
def _factors(backend: Backend, fill: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """The adapters' B replaced for a while."""
    own = [(p, p.data) for name, p in backend.model.named_parameters() if ".lora_B." in name]
    generator = torch.Generator().manual_seed(0)
    try:
        for p, data in own:
            p.data = fill(torch.randn(data.shape, generator=generator)).to(data)
        yield
    finally:
        for p, data in own:
            p.data = data


@torch.no_grad()
def adapter_off(backend: Backend) -> str:
    """Compare states of the model with its adapter off with those with an adapter that adds 0.

    Raises:
        VerificationError: they differ, so the teacher is not the base; or an adapter changes nothing when it is on.
    """
    rows = [_ids(backend, 24)]
    with _factors(backend, torch.zeros_like), backend.decoding():
        base = padded_states(backend, rows, 0)[0]
    with _factors(backend, lambda noise: 0.1 * noise), backend.decoding():
        with weights(backend.model, "adapter"):
            on = padded_states(backend, rows, 0)[0]
        with weights(backend.model, "base"):
            off = padded_states(backend, rows, 0)[0]
    if not torch.equal(off, base):
        raise VerificationError(
            f"With the adapter off, states differ from the base model's by {_distance(off, base):.1e}: the teacher "
            "would not be the base. Use another version of peft."
        )
    if torch.equal(on, base):
        raise VerificationError("An adapter changes nothing when it is on: use another version of peft.")
    return "states are those of the base, bit for bit"


def chunked_loss(backend: Backend, config: TrainConfig) -> str:
    """Compare the loss that trains with its plain form, on random states and a part of this model's head.

    Raises:
        VerificationError: value or gradient differ.
    """
    own = backend.head
    head = Head(
        own.weight[:WORDS].float(), None if own.bias is None else own.bias[:WORDS].float(), own.scale, own.softcap
    )
    generator = torch.Generator().manual_seed(0)
    draw = [torch.randn(ROWS, head.width, generator=generator).to(head.weight) for _ in range(2)]
    token_weights = torch.full((ROWS,), 1 / ROWS, device=head.weight.device)
    settings = config.distill.model_copy(update={"chunk_rows": CHUNK})
    tokens = torch.arange(ROWS, device=head.weight.device) % head.words
    answers = Answers(tokens, [ROWS], [True])
    found = []
    for compute in (lambda *a: loss.distillation_loss(*a).loss, formula.plain_loss):
        student = draw[0].clone().requires_grad_()
        value = compute(student, draw[1], head, token_weights, settings, answers)
        value.backward()
        found.append((value.detach()[None], student.grad))
    for name, ours, plain in zip(("value", "gradient"), *found, strict=True):
        if not (apart := _distance(ours, plain)) <= ROUNDING:
            raise VerificationError(f"The {name} of the loss in chunks differs from the plain one by {apart:.1e}.")
    apart = max(_distance(ours, plain) for ours, plain in zip(*found, strict=True))
    return f"value and gradient are the plain ones within {apart:.1e}"


def by_hand(settings: DistillSettings, student: tuple[float, ...], teacher: tuple[float, ...]) -> float:
    """Return a divergence in nats, in plain Python: of the student p from the teacher q, given by their logits."""
    beta, mix = settings.jsd_beta, settings.kl_mix

    def probabilities(logits: tuple[float, ...]) -> list[float]:
        total = sum(map(math.exp, logits))
        return [math.exp(z) / total for z in logits]

    def kl(a: list[float], b: list[float]) -> float:
        return sum(x * math.log(x / y) for x, y in zip(a, b, strict=True))

    def entropy(a: list[float]) -> float:
        return -sum(x * math.log(x) for x in a)

    p, q = probabilities(student), probabilities(teacher)
    middle = [beta * y + (1 - beta) * x for x, y in zip(p, q, strict=True)]
    found = {
        "reverse_kl": lambda: kl(p, q),
        "forward_kl": lambda: kl(q, p),
        "jsd": lambda: beta * kl(q, middle) + (1 - beta) * kl(p, middle),
        "mixed_kl": lambda: mix * kl(q, p) + (1 - mix) * kl(p, q),
        "entropy_aware_kl": lambda: kl(p, q) + (entropy(q) > settings.entropy_threshold) * kl(q, p),
    }
    return found[settings.divergence]()


def divergence(config: TrainConfig) -> str:
    """Compare value, direction and sign of the configured divergence with arithmetic by hand.

    Raises:
        VerificationError: another divergence is computed, or a step against the gradient makes it larger.
    """
    plain = {"support": "full", "kl_temperature": 1.0, "token_clip": None, "token_weights": "none"}
    name, settings = config.distill.divergence, config.distill.model_copy(update=plain)
    head = Head(torch.eye(len(STUDENT)))
    student = torch.tensor([STUDENT], requires_grad=True)
    output = loss.distillation_loss(student, torch.tensor([TEACHER]), head, torch.ones(1), settings)
    expected, found = by_hand(settings, STUDENT, TEACHER), float(output.loss.detach())
    if not abs(found - expected) <= ROUNDING * expected:
        raise VerificationError(f"{name} of two known distributions is {found:.6f} and by hand {expected:.6f} nats.")
    (gradient,) = torch.autograd.grad(output.loss, student)
    moved = by_hand(settings, tuple((student - 0.1 * gradient)[0].tolist()), TEACHER)
    if not moved < expected:
        raise VerificationError(f"A step against the gradient of {name} takes it from {expected:.4f} to {moved:.4f}.")
    return f"{name} is {found:.4f} nats, as by hand ({expected:.4f}); a step against its gradient: {moved:.4f}"


def tokens(backend: Backend, prompts: ChatPrompts) -> str:
    """Look whether tokenizer, chat template and model mean the same tokens.

    Raises:
        UsageError: an id is beyond the embedding, or the ends of turns are not the model's.
        VerificationError: text does not come back from its tokens.
    """
    config = backend.base.config
    check_words(prompts, config.get_text_config())
    check_ends(prompts, config, backend.base.generation_config)
    asked, turn = Message("user", "x = [1, 2] ; y"), prompts.turn(Message("assistant", "It's 3 , or 4."))
    ids, text = prompts.question_ids(asked.content), prompts.encoder.control.restore(turn.text)
    answer = prompts.turn_ids(turn)
    read = prompts.tokenizer.decode([*ids, *answer], clean_up_tokenization_spaces=False)
    if asked.content not in read or not read.endswith(f"{text}{turn.end}"):
        raise VerificationError(f"The tokenizer does not give back what it was given, but {read[-60:]!r}.")
    if answer[-1] not in stop_tokens(backend, prompts.turn_end_ids):
        raise VerificationError(f"{turn.end} ends the expert's turn and no rollout.")
    return f"text comes back from its tokens; {turn.end} ends references and rollouts, and the model knows it"


@torch.no_grad()
def rollout(backend: Backend, prompts: ChatPrompts) -> str:
    """Decode greedily, and compare each token and its log-probability with those of a training pass.

    Raises:
        VerificationError: a token is not the training pass's first choice, or its log-probability is another one.
    """
    questions = [prompts.question_ids(text) for text in ("Why?", "What is in the file, and who wrote it?")]
    with _factors(backend, lambda noise: 0.02 * noise):
        answers = generate(backend, questions, NEW, (), prompts.turn_end_id, record_log_probs=True)
        gaps, behind = [], []
        for question, answer in zip(questions, answers, strict=True):
            states = padded_states(backend, [[*question, *answer.ids]], 0)[0][len(question) - 1 : -1]
            scored = backend.head.logits(states).log_softmax(-1)
            own = scored.gather(-1, torch.tensor(answer.ids, device=scored.device)[:, None])[:, 0]
            gaps.append((own.cpu() - torch.tensor(answer.log_probs)).abs())
            behind.append(scored.amax(-1) - own)
    allowed = GAP.get(backend.head.weight.dtype, ROUNDING)
    gap, behind_best = float(torch.cat(gaps).max()), float(torch.cat(behind).max())
    if not (gap <= allowed and behind_best <= 2 * allowed):
        raise VerificationError(
            f"Decoded tokens are not those of a training pass: log-probabilities differ by up to {gap:.2g} nats, and "
            f"the first choice of the sampler is up to {behind_best:.2g} nats below that of the trainer."
        )
    return f"{2 * NEW} decoded tokens are those of a training pass; log-probabilities differ by at most {gap:.1e} nats"


def _ids(backend: Backend, count: int) -> list[int]:
    words = min(backend.head.words, backend.base.get_input_embeddings().weight.shape[0])
    return [(7919 * i + 101) % words for i in range(count)]


def _distance(found: Tensor, expected: Tensor) -> float:
    return float((found.float() - expected.float()).norm() / expected.float().norm())
