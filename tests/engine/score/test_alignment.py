from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from sdft_cli.config import DistillSettings, load_train_config  # noqa: E402
from sdft_cli.engine.models.adapters import weights  # noqa: E402
from sdft_cli.engine.models.backend import Backend  # noqa: E402
from sdft_cli.engine.passes.decode import Rollout  # noqa: E402
from sdft_cli.engine.score.alignment import alignments  # noqa: E402
from sdft_cli.engine.score.ranking import rank  # noqa: E402
from sdft_cli.engine.score.scoring import Encoded, encode, group_of  # noqa: E402
from sdft_cli.errors import UsageError  # noqa: E402
from sdft_cli.prompts.chat import ChatPrompts, open_prompts  # noqa: E402
from sdft_cli.prompts.teacher import load_teacher_template  # noqa: E402
from sdft_cli.records import Dataset  # noqa: E402
from tests.engine.prepared import adapted, prepared  # noqa: E402

WORDINGS = ("again", "repeat")
ANSWERS = [[7, 8, 9], [10, 11], [12], [7, 9, 11, 13]]


@pytest.fixture(scope="module")
def data(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return prepared(tiny_model, tmp_path_factory.mktemp("alignment"), 12, 0.4)


@pytest.fixture(scope="module")
def backend(tiny_model: Path) -> Backend:
    return adapted(tiny_model)


@pytest.fixture(scope="module")
def wordings(tiny_model: Path, data: Dataset) -> dict[str, ChatPrompts]:
    own = open_prompts(str(tiny_model), data.manifest)
    return {name: ChatPrompts(own.tokenizer, load_teacher_template(name), own.template) for name in WORDINGS}


def log_softmax(backend: Backend, prompt: list[int], answer: list[int]) -> Any:
    """The plain way: the whole model on one sequence, (|answer|, V)."""
    logits = backend.model(input_ids=torch.tensor([[*prompt, *answer]])).logits[0].double()
    return logits[len(prompt) - 1 : -1].log_softmax(-1)


def flat(backend: Backend, value: Any) -> Any:
    found = torch.autograd.grad(value, backend.parameters(), allow_unused=True)
    pairs = zip(found, backend.parameters(), strict=True)
    return torch.cat([(torch.zeros_like(p) if g is None else g).flatten() for g, p in pairs]).double()


def by_hand(backend: Backend, rows: list[Encoded], divergence: str) -> tuple[float, dict[str, float]]:
    """<g, e> / (|g| |e|), one sequence at a time with all logits, and each group's part."""
    count = sum(len(e.reference) for e in rows)
    expert: Any = 0.0
    for e in rows:
        log_p = log_softmax(backend, e.student, e.reference)
        chosen = log_p[torch.arange(len(e.reference)), torch.tensor(e.reference)]
        expert = expert + flat(backend, -chosen.sum() / count)
    total: Any = 0.0
    parts: dict[str, Any] = {}
    for e, answer in zip(rows, ANSWERS, strict=True):
        log_p = log_softmax(backend, e.student, answer)
        with torch.no_grad(), weights(backend.model, "base"):
            log_q = log_softmax(backend, e.teacher, answer)
        p, q = log_p.exp(), log_q.exp()
        kl = q * (log_q - log_p) if divergence == "forward_kl" else p * (log_p - log_q)
        g = flat(backend, kl.sum() / sum(map(len, ANSWERS)))
        total = total + g
        group = group_of(e.record)
        parts[group] = parts.get(group, 0.0) + g
    size = total.norm() * expert.norm()
    return float(total @ expert / size), {name: float(g @ expert / size) for name, g in parts.items()}


@pytest.mark.parametrize("sharing", ["none", "packed"])
def test_it_is_the_cosine_of_two_gradients(
    backend: Backend, wordings: dict[str, ChatPrompts], data: Dataset, sharing: Any
) -> None:
    backend.sharing = sharing
    encoded = {name: encode(data.validation[:4], prompts) for name, prompts in wordings.items()}
    rollouts = [Rollout(ids, True) for ids in ANSWERS]
    objectives = {name: DistillSettings(divergence=name) for name in ("forward_kl", "reverse_kl")}
    found = alignments(backend, encoded, rollouts, objectives, 0, 4096)
    assert list(found) == [(w, d) for w in WORDINGS for d in objectives]
    for (wording, divergence), one in found.items():
        value, parts = by_hand(backend, encoded[wording], divergence)
        assert one.value == pytest.approx(value, abs=2e-4)
        assert one.parts == pytest.approx(parts, abs=2e-4)
        assert sum(one.parts.values()) == pytest.approx(one.value)
    assert len({round(one.value, 4) for one in found.values()}) == 4
    assert all(p.grad is None for p in backend.parameters())


def test_a_walk_that_goes_backwards_by_itself_is_refused(backend: Backend) -> None:
    backend.sharing = "depth_first"
    with pytest.raises(ValueError, match="padded or packed"):
        alignments(backend, {}, [], {}, 0, 100)


def test_masked_answers_count_for_nothing(backend: Backend, wordings: dict[str, ChatPrompts], data: Dataset) -> None:
    backend.sharing = "packed"
    encoded = {"again": encode(data.validation[:4], wordings["again"])}
    cut = [Rollout(ids, i != 1) for i, ids in enumerate(ANSWERS)]
    masked = {"jsd": DistillSettings(divergence="jsd", truncated_rollouts="mask")}
    (one,) = alignments(backend, encoded, cut, masked, 0, 4096).values()
    without = {"again": [e for i, e in enumerate(encoded["again"]) if i != 1]}
    kept = [rollout for rollout in cut if rollout.finished]
    references = alignments(
        backend, {"again": encoded["again"]}, cut, {"jsd": DistillSettings(divergence="jsd")}, 0, 4096
    )
    assert one.value != pytest.approx(next(iter(references.values())).value, abs=1e-6)
    with pytest.raises(UsageError, match="has a token with loss"):
        alignments(backend, without, [Rollout(r.ids, False) for r in kept], masked, 0, 4096)


def test_wordings_that_pass_come_first_then_the_likelier_expert_then_the_larger_alignment(
    backend: Backend, wordings: dict[str, ChatPrompts], data: Dataset
) -> None:
    backend.sharing = "packed"
    config = load_train_config("cpu-demo", ["gate.max_new_tokens=4", "gate.resamples=200", "gate.first_token=0"])
    divergences = ["forward_kl", "reverse_kl", "jsd"]
    told: list[str] = []

    def progress(name: str) -> Any:
        return lambda what, done, total: told.append(name)

    ranked = rank(backend, wordings, divergences, data.validation[:8], config, "validation", progress)
    assert {(one.template, one.divergence) for one in ranked} == {(w, d) for w in WORDINGS for d in divergences}
    keys = [(not one.gate.passed, one.gate.to_json()["summary"]["nll_with"], -one.alignment.value) for one in ranked]
    assert keys == sorted(keys)
    assert len({one.teacher_nll for one in ranked}) == len(WORDINGS)
    assert set(told) == {*WORDINGS, "all wordings"}
    document = ranked[0].to_json()
    assert document["alignment"]["value"] == ranked[0].alignment.value
    assert "items" not in document["gate"]
