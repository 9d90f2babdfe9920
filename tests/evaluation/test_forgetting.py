from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from sdft_cli.engine.models.backend import Backend  # noqa: E402
from sdft_cli.engine.score.scoring import Role  # noqa: E402
from sdft_cli.evaluation.forgetting import ask, base_answers, drift, general_prompts, is_correct, questions  # noqa: E402
from sdft_cli.prompts.chat import ChatPrompts, load_tokenizer  # noqa: E402
from sdft_cli.prompts.teacher import load_teacher_template  # noqa: E402
from sdft_cli.resources import resource_text  # noqa: E402
from tests.engine.prepared import adapted  # noqa: E402

CAPS = 400, 3


@pytest.fixture(scope="module")
def prompts(tiny_model: Path) -> ChatPrompts:
    return ChatPrompts(load_tokenizer(tiny_model), load_teacher_template())


@pytest.fixture(scope="module")
def backend(tiny_model: Path) -> Backend:
    return adapted(tiny_model)


@pytest.mark.parametrize("sharing", ["none", "packed"])
def test_drift_is_that_of_plain_logits(backend: Backend, prompts: ChatPrompts, sharing: str) -> None:
    backend.sharing = sharing  # type: ignore[assignment]
    chosen = general_prompts(5)
    base, tuned = Role(backend, "base", "base"), Role(backend, "adapter", "merged")
    answers = base_answers(base, prompts, chosen, 6, CAPS)
    found = drift(tuned, answers, backend.head, prompts.turn_end_id, CAPS)
    assert [d.prompt_id for d in found] == [line["id"] for line in chosen]
    for one, ids, answer in zip(found, answers.prompt_ids, answers.answers, strict=True):
        with torch.no_grad():
            row = torch.tensor([[*ids, *answer]])
            q = backend.model(row).logits[0, len(ids) - 1 : -1].double().log_softmax(-1)
            with backend.model.disable_adapter():
                p = backend.model(row).logits[0, len(ids) - 1 : -1].double().log_softmax(-1)
        assert answer == p.argmax(-1).tolist()[: len(answer)]  # greedy
        kl = (p.exp() * (p - q)).sum(-1)
        assert one.tokens == len(answer)
        assert one.kl == pytest.approx(float(kl.sum()), rel=1e-4, abs=1e-5)
        assert one.token_kl == pytest.approx(kl.tolist(), rel=1e-3, abs=1e-5)
        assert one.same_top == int((p.argmax(-1) == q.argmax(-1)).sum())
        assert one.entropy == pytest.approx(float(-(q.exp() * q).sum()), rel=1e-4)
    assert sum(d.kl for d in found) > 0.01


def test_a_model_has_drifted_nowhere_from_itself(backend: Backend, prompts: ChatPrompts) -> None:
    backend.sharing = "none"
    base = Role(backend, "base", "base")
    answers = base_answers(base, prompts, general_prompts(4), 5, CAPS)
    for one in drift(base, answers, backend.head, prompts.turn_end_id, CAPS):
        assert (one.kl, one.same_top) == (0.0, one.tokens)
        assert set(one.token_kl) == {0.0}


def test_replies_are_scored(backend: Backend, prompts: ChatPrompts) -> None:
    backend.sharing = "none"
    asked = questions(3)
    base = Role(backend, "base", "base")
    said = [reply.text for reply in ask(base, prompts, asked, 4, CAPS)]
    lines = [text.strip().splitlines()[0] for text in said]
    assert len(set(lines)) == 3  # no reply passes for that to another question
    accepted = [[lines[0]], [lines[1] + "x", lines[0]], ["nothing", lines[2]]]
    replies = ask(base, prompts, [{**q, "answers": a} for q, a in zip(asked, accepted, strict=True)], 4, CAPS)
    assert [(r.question_id, r.kind) for r in replies] == [(line["id"], line["kind"]) for line in asked]
    assert [r.text for r in replies] == said
    assert [r.correct for r in replies] == [True, False, True]


@pytest.mark.parametrize(
    ("reply", "answers", "expected"),
    [
        ("Paris", ["Paris"], True),
        ("The capital is paris.", ["Paris"], True),
        ("\n**Paris**\nLondon", ["Paris"], True),
        ("London\nParis", ["Paris"], False),
        ("Parisian", ["Paris"], False),
        ("It is 8.", ["8"], True),
        ("It is 8.5", ["8"], False),
        ("1,800", ["800"], False),
        ("17.12", ["12"], False),
        ("twenty-seven", ["seven"], False),
        ("At 11:35.", ["11:35"], True),
        ("111:35", ["11:35"], False),
        ("$12$", ["12"], True),
        ("It is two.", ["2", "two"], True),
        ("It is two.", ["2", "three"], False),
        ("  \n\n8\n9", ["8"], True),
        ("  \n\n8\n9", ["9"], False),
        ("-8", ["8"], False),
        ("8:30", ["8"], False),
        ("I like C++.", ["C++"], True),  # an answer is no pattern
        ("Cs", ["C."], False),
        ("", ["x"], False),
    ],
)
def test_an_answer_is_whole_words_of_the_first_line(reply: str, answers: list[str], expected: bool) -> None:
    assert is_correct(reply, answers) is expected


def test_the_committed_sets_are_what_they_claim() -> None:
    prompts, asked = general_prompts(10_000), questions(10_000)
    assert len(prompts) == 240
    assert len(asked) == 120
    assert len({line["id"] for line in prompts}) == len({line["prompt"] for line in prompts}) == 240
    assert set(Counter(line["kind"] for line in prompts).values()) == {20}
    assert set(Counter(line["kind"] for line in asked).values()) == {15}
    for line in asked:
        assert line["answers"]
        assert not is_correct(line["question"], line["answers"]), line  # the question does not give it away
        assert all(is_correct(answer, line["answers"]) for answer in line["answers"])
    for line in asked:
        sums = re.fullmatch(r"What is (\d+) (plus|minus|times) (\d+)\?", line["question"])
        if sums:
            a, b = int(sums[1]), int(sums[3])
            assert str({"plus": a + b, "minus": a - b, "times": a * b}[sums[2]]) in line["answers"]


def test_a_part_is_spread_over_the_kinds() -> None:
    assert len({line["kind"] for line in general_prompts(12)}) == 12
    assert Counter(line["kind"] for line in general_prompts(30)).most_common(1)[0][1] == 3
    whole = [json.loads(x)["id"] for x in resource_text("templates", "eval", "general.jsonl").splitlines()]
    some = [line["id"] for line in general_prompts(30)]
    assert some == [name for name in whole if name in some]
