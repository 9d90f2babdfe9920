from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from sdft_cli.engine.models.backend import Backend  # noqa: E402
from sdft_cli.engine.passes.executors import answer_states  # noqa: E402
from sdft_cli.engine.score.scoring import (  # noqa: E402
    Item,
    Role,
    choose_records,
    decode,
    encode,
    plan,
    score_records,
    token_scores,
)
from sdft_cli.prompts.answers import Score, score  # noqa: E402
from sdft_cli.prompts.chat import ChatPrompts, open_prompts  # noqa: E402
from sdft_cli.records import Dataset  # noqa: E402
from tests.engine.prepared import adapted, prepared, state_of  # noqa: E402


@pytest.fixture(scope="module")
def data(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return prepared(tiny_model, tmp_path_factory.mktemp("measure"), 12, 0.4)


@pytest.fixture(scope="module")
def prompts(tiny_model: Path, data: Dataset) -> ChatPrompts:
    return open_prompts(str(tiny_model), data.manifest)


@pytest.fixture(scope="module")
def backend(tiny_model: Path) -> Backend:
    return adapted(tiny_model)


def log_probabilities(backend: Backend, prompt: list[int], answer: list[int]) -> Any:
    """(|y|, V) of one sequence alone, from plain logits."""
    logits = backend.model(input_ids=torch.tensor([[*prompt, *answer]])).logits[0].double()
    return logits[len(prompt) - 1 : -1].log_softmax(-1)


def test_an_answer_is_greedy_to_its_last_token_or_not(backend: Backend, prompts: ChatPrompts, data: Dataset) -> None:
    record = data.validation[0]
    role, prompt = Role(backend, "adapter", "adapter"), prompts.student_ids(record)
    (answer,) = decode(role, [prompt], prompts, 5)
    other = [*answer.ids[:-1], answer.ids[-1] ^ 1]
    with role.weights("adapter"):
        states = answer_states(backend, [prompt, prompt], [answer.ids, other], 0)
        whole, changed = token_scores(states, backend, [answer.ids, other])
        log_p = log_probabilities(backend, prompt, answer.ids)
    expected = [float(log_p[place, token]) for place, token in enumerate(answer.ids)]
    assert (whole.is_greedy, changed.is_greedy) == (True, False)
    assert whole.log_probs == pytest.approx(expected, rel=1e-4)
    assert whole.first == pytest.approx(float(log_p[0, answer.ids[0]].exp()), rel=1e-4)
    assert whole.nll == pytest.approx(-sum(expected), rel=1e-4)


@pytest.mark.parametrize("sharing", ["none", "packed", "depth_first"])
def test_the_numbers_are_those_of_plain_logits(
    backend: Backend, prompts: ChatPrompts, data: Dataset, sharing: Any
) -> None:
    backend.sharing = sharing
    batch = encode(data.validation[:4], prompts)
    student, teacher = Role(backend, "adapter", "merged"), Role(backend, "base", "base")
    answers = decode(student, [e.student for e in batch], prompts, 5)
    items = score_records(student, teacher, batch, prompts, 5)
    assert [i.rollout_tokens for i in items] == [len(a.ids) for a in answers]
    for e, answer, item in zip(batch, answers, items, strict=True):
        assert item.record_id == e.record.record_id
        with torch.no_grad():
            p = log_probabilities(backend, e.student, answer.ids)
            expert = log_probabilities(backend, e.student, e.reference)
            with backend.model.disable_adapter():
                q = log_probabilities(backend, e.teacher, answer.ids)
        # Greedy: each token is the student's likeliest one (the merged weights round a little differently).
        best = p.max(-1).values
        assert (best - p.gather(-1, torch.tensor(answer.ids)[:, None]).squeeze(-1)).max() < 1e-3
        assert item.kl == pytest.approx(float((p.exp() * (p - q)).sum()), rel=1e-4, abs=1e-4)
        assert item.nll == pytest.approx(-float(expert.gather(-1, torch.tensor(e.reference)[:, None]).sum()), rel=1e-4)
        assert item.reference_tokens == len(e.reference)
        assert bool(item.score.flags) == e.record.row.has_tool_call
        assert item.score == score(e.record, item.text, None)


def test_the_divergence_is_measured_on_what_the_student_samples(
    backend: Backend, prompts: ChatPrompts, data: Dataset
) -> None:
    backend.sharing = "packed"
    batch = encode(data.validation[:4], prompts)
    student, teacher = Role(backend, "adapter", "merged"), Role(backend, "base", "base")
    state = torch.get_rng_state()
    items = score_records(student, teacher, batch, prompts, 5, seed=3)
    assert torch.equal(torch.get_rng_state(), state)
    assert items == score_records(student, teacher, batch, prompts, 5, seed=3)
    names = [e.record.record_id for e in batch]
    rollouts = decode(student, [e.student for e in batch], prompts, 5, seed=3, names=names)
    greedy = score_records(student, teacher, batch, prompts, 5)
    assert [i.text for i in items] == [i.text for i in greedy]  # the calls are those of the greedy answers
    assert [i.nll for i in items] == [i.nll for i in greedy]
    assert all(item.kl != one.kl for item, one in zip(items, greedy, strict=True))
    for e, rollout, item in zip(batch, rollouts, items, strict=True):
        with torch.no_grad():
            p = log_probabilities(backend, e.student, rollout.ids)
            with backend.model.disable_adapter():
                q = log_probabilities(backend, e.teacher, rollout.ids)
        assert item.kl == pytest.approx(float((p.exp() * (p - q)).sum()), rel=1e-4, abs=1e-4)
        assert (item.rollout_tokens, item.finished) == (len(rollout.ids), rollout.finished)


def test_samples_are_drawn_from_the_whole_distribution(backend: Backend, prompts: ChatPrompts, data: Dataset) -> None:
    backend.sharing = "none"
    prompt = encode(data.validation[:1], prompts)[0].student
    role = Role(backend, "adapter", "merged")
    drawn = [r.ids[0] for r in decode(role, [prompt] * 400, prompts, 1, seed=1)]
    with torch.no_grad():
        p = log_probabilities(backend, prompt, [0]).exp()[0]
    expected = float((p * p.log()).sum())  # the mean of log p over draws is minus the entropy
    found = float(p[drawn].log().mean())
    spread = float((p * (p.log() - expected) ** 2).sum().sqrt()) / 20
    assert found == pytest.approx(expected, abs=4 * spread)
    assert decode(role, [prompt] * 3, prompts, 4, seed=1) != decode(role, [prompt] * 3, prompts, 4, seed=2)


def test_decoding_in_passes_of_any_size_gives_the_same_answers(
    backend: Backend, prompts: ChatPrompts, data: Dataset
) -> None:
    backend.sharing = "none"
    role = Role(backend, "adapter", "merged")
    ids = [e.student for e in encode(data.validation[:5], prompts)]
    together = decode(role, ids, prompts, 4)
    assert decode(role, ids, prompts, 4, max_tokens=400) == together
    assert decode(role, ids, prompts, 4, max_tokens=1) == together


def test_a_plan_holds_each_record_once(backend: Backend, prompts: ChatPrompts, data: Dataset) -> None:
    backend.sharing = "none"
    passes = plan(backend, data.validation, prompts, 5, 900, 3)
    assert sorted(i for rows in passes for i in rows) == list(range(len(data.validation)))
    assert max(map(len, passes)) <= 3
    for rows in passes:
        longest = max(
            len(prompts.teacher_ids(data.validation[i])) + max(5, data.validation[i].row.reference_tokens) for i in rows
        )
        assert len(rows) == 1 or len(rows) * longest <= 900


def test_weights_and_the_mode_of_every_module_are_put_back(backend: Backend, prompts: ChatPrompts) -> None:
    modules = list(backend.model.modules())
    for number, module in enumerate(modules):
        module.training = number % 2 == 0
    before = state_of(backend)
    with Role(backend, "adapter", "merged").weights("merged"):
        assert not any(module.training for module in modules)
        assert not torch.is_grad_enabled()
    with pytest.raises(ZeroDivisionError), Role(backend, "adapter", "merged").weights("merged"):
        raise ZeroDivisionError
    after = state_of(backend)
    backend.model.eval()
    assert after["training"] == before["training"]
    assert after["requires_grad"] == before["requires_grad"]
    assert all(torch.equal(after["tensors"][name], tensor) for name, tensor in before["tensors"].items())


def test_the_choice_is_spread_over_sessions_and_always_the_same(data: Dataset) -> None:
    records = [*data.train, *data.validation]
    sessions = Counter(r.row.session_id for r in records)
    for count in (1, 5, len(sessions), len(sessions) + 3, len(records), 1000):
        chosen = choose_records(records, count)
        assert len(chosen) == min(count, len(records))
        assert [r for r in records if r in chosen] == chosen  # in their order
        per_session = Counter(r.row.session_id for r in chosen)
        level = max(per_session.values())
        assert all(per_session[s] >= min(level - 1, total) for s, total in sessions.items())
        again = choose_records(records[::-1], count)
        assert {r.record_id for r in again} == {r.record_id for r in chosen}
    one_each = choose_records(records, len(sessions))
    assert [r.record_id for r in one_each] != [r.record_id for r in records[: len(sessions)]]
    assert len({r.row.turn_index for r in one_each}) > 1  # not every session's first turn


def test_an_item_is_flat_as_in_the_evaluation_file() -> None:
    flags = dict.fromkeys(("terminated", "parsed", "named", "required", "known", "valid", "exact"), True)
    score = Score("Read", "first turn", flags | {"valid": False, "exact": False})
    found = Item("a", "s", "g", 3.0, 4, True, 6.0, 2, "text", score).to_json()
    numbers = {"kl": 3.0, "rollout_tokens": 4, "finished": True, "nll": 6.0, "reference_tokens": 2, "text": "text"}
    assert found == {
        "record_id": "a",
        "session_id": "s",
        "group": "g",
        **numbers,
        "tools": "Read",
        "position": "first turn",
        "flags": score.flags,
        "chrf": None,
        "calls_unasked": False,
        "mentions_reference": False,
        "copied_share": 0.0,
        "unknown_paths": [],
        "is_tool_turn": True,
        "parsed": True,
        "named": True,
        "valid": False,
    }
    unknown = Item("a", "s", "g", 3.0, 4, True, 6.0, 2, "text", Score("Read", "first turn", {})).to_json()
    assert [unknown[key] for key in ("is_tool_turn", "parsed", "named", "valid")] == [True, None, None, None]
    prose = Item("a", "s", "g", 3.0, 4, True, 6.0, 2, "text", Score("", "first turn")).to_json()
    assert [prose[key] for key in ("is_tool_turn", "parsed", "named", "valid", "flags")] == [False] * 4 + [{}]
