from __future__ import annotations

import json
import math
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from sdft_cli.config import GateSettings  # noqa: E402
from sdft_cli.engine.models.backend import Backend, Sharing  # noqa: E402
from sdft_cli.engine.score.gate import _begins_with, run_gate  # noqa: E402
from sdft_cli.engine.score.gate_records import gate_records, other_records  # noqa: E402
from sdft_cli.engine.score.scoring import choose_records  # noqa: E402
from sdft_cli.engine.score.verdict import GateItem, GateResult, judge  # noqa: E402
from sdft_cli.errors import DataError, UsageError, VerificationError  # noqa: E402
from sdft_cli.prompts.chat import ChatPrompts, open_prompts  # noqa: E402
from sdft_cli.prompts.teacher import load_teacher_template  # noqa: E402
from sdft_cli.prompts.template import ChatTemplate  # noqa: E402
from sdft_cli.records import Dataset, Message, Record, RecordRow, Session, ToolCall  # noqa: E402
from tests.engine.prepared import adapted, prepared, state_of  # noqa: E402

SETTINGS = GateSettings(records=6, max_new_tokens=8, resamples=200)


@pytest.fixture(scope="module")
def data(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return prepared(tiny_model, tmp_path_factory.mktemp("gate"), 12, 0.4)


@pytest.fixture(scope="module")
def prompts(tiny_model: Path, data: Dataset) -> ChatPrompts:
    return open_prompts(str(tiny_model), data.manifest)


def gate(
    backend: Backend, prompts: ChatPrompts, records: list[Record], shuffle: bool = False, cap: int = 2000
) -> GateResult:
    return run_gate(
        backend, prompts, records, SETTINGS, max_tokens_per_pass=cap, max_decode_tokens=cap, seed=0, shuffle=shuffle
    )


# Hand-made numbers: 8 sessions, a record of 10 tokens each.


def item(
    session: int, own: float, control: float, agreement: tuple[bool | None, bool | None], without: float = 20.0
) -> GateItem:
    return GateItem(
        record_id=f"s{session}/1",
        session_id=f"s{session}",
        group=f"g{session}",
        is_tool_turn=True,
        reference_tokens=10,
        shown_record_id=f"s{session}/1",
        control_record_id="other",
        nll_without=without,
        nll_with=without - own,
        nll_control=without - own + control,
        first_without=0.5,
        first_with=0.9,
        copied=True,
        begins_with_block=False,
        agrees_without=agreement[0],
        agrees_with=agreement[1],
        text_without="",
        text_with="",
    )


def judged(own: float, control: float, agreement: tuple[bool, bool]) -> GateResult:
    """Lifts that differ a little between sessions."""
    items = [item(i, own + 0.1 * i, control + 0.1 * i, agreement) for i in range(8)]
    return judge(items, GateSettings(), seed=0)


def test_a_teacher_that_teaches_passes_and_the_numbers_are_per_token() -> None:
    found = judged(5.0, 3.0, (False, True))
    assert found.passed
    lift = found.lifts["likelihood"].interval
    assert lift.value == pytest.approx((5 + 0.35) / 10)
    assert lift.low is not None
    assert 0.5 <= lift.low < lift.value
    assert found.lifts["likelihood_over_control"].interval.value == pytest.approx(0.335)
    agreement = found.lifts["agreement"].interval
    assert (agreement.value, agreement.low, agreement.high, agreement.degenerate) == (1, 1, 1, True)
    assert found.verdict == (
        "The teacher-lift gate passes: on 8 validation records the reference makes the expert's turn likelier by "
        "0.535 nats per token, by 0.335 more than another record's reference does."
    )
    assert found.notes == ()


@pytest.mark.parametrize(
    ("own", "control", "agreement", "failed"),
    [
        (-1.0, 3.0, (False, True), ["likelihood"]),
        (-0.35, 3.0, (False, True), ["likelihood"]),  # the mean is 0
        (5.0, -1.0, (False, True), ["likelihood_over_control"]),  # any reference would do
        (5.0, 3.0, (True, False), ["agreement"]),
        (5.0, 3.0, (True, True), []),  # no room to rise
        (-5.0, -5.0, (True, False), ["likelihood", "likelihood_over_control", "agreement"]),
    ],
)
def test_each_criterion_can_fail(own: float, control: float, agreement: tuple[bool, bool], failed: list[str]) -> None:
    found = judged(own, control, agreement)
    assert [name for name, lift in found.lifts.items() if not lift.passed] == failed
    assert found.passed == (not failed)
    if failed:
        assert "fails: on 8 validation records the reference does not lift" in found.verdict
        assert "gate.action=warn" in found.verdict


def test_agreement_may_fall_within_noise_but_not_beyond() -> None:
    def fallen(count: int) -> bool:
        items = [item(i, 5.0 + 0.1 * i, 3.0, (i < count, False)) for i in range(8)]
        return judge(items, GateSettings(), seed=0).passed

    assert [fallen(n) for n in (0, 1, 2, 8)] == [True, True, True, False]


def test_long_turns_weigh_more_in_likelihood_and_the_same_in_agreement() -> None:
    long = replace(item(1, 4.0, 4.0, (True, False)), reference_tokens=90)
    found = judge([item(0, 3.0, 1.0, (False, False)), long], GateSettings(), seed=0)
    assert found.lifts["likelihood"].interval.value == pytest.approx(7 / 100)
    assert found.lifts["likelihood_over_control"].interval.value == pytest.approx(5 / 100)
    assert found.lifts["agreement"].interval.value == -0.5
    assert found.to_json()["summary"]["nll_without"] == pytest.approx(40 / 100)


@pytest.mark.parametrize(
    ("change", "failed", "said"),
    [
        ({"first_with": 0.05}, "first_token", "gives the expert's first token a probability of 0.05"),
        ({"begins_with_block": True}, "begins_with_block", "begins 100% of its own answers with its block"),
        ({"copied": False}, None, ""),  # by default no one asks for it
        ({"begins_with_block": None}, None, ""),  # the wording has no block
        ({"first_with": 0.11}, None, ""),
    ],
)
@pytest.mark.parametrize("kind", ["tool", "prose"])
def test_what_the_teacher_does_is_judged_by_kind(
    change: dict[str, Any], failed: str | None, said: str, kind: str
) -> None:
    """The likelihood rises on all turns together, and the teacher is wrong on those of one kind."""
    sound = [item(i, 5.0 + 0.1 * i, 3.0, (False, True)) for i in range(8)]
    wrong = [replace(i, record_id=f"{i.record_id}b", is_tool_turn=kind == "tool", **change) for i in sound]
    others = [replace(i, is_tool_turn=kind != "tool") for i in sound]
    found = judge([*wrong, *others], GateSettings(), seed=0)
    assert all(lift.passed for lift in found.lifts.values())
    assert [name for name, x in found.conduct.items() if not x.passed] == ([f"{kind}.{failed}"] if failed else [])
    assert found.passed == (failed is None)
    assert said in found.verdict
    if failed:
        assert f"on {kind} turns the teacher" in found.verdict
        assert ("own_turn or again, which have no block" in found.verdict) == (failed == "begins_with_block")
        assert ("sdft gate --templates" in found.verdict) == (failed != "begins_with_block")
        for name, bound in (("first_token", 0.1), ("copied", 0.0)):
            assert (f"lower gate.{name} (now {bound:g})" in found.verdict) == (failed == name)
    if change.get("begins_with_block", 0) is None:
        assert f"{kind}.begins_with_block" not in found.conduct


def test_a_turn_that_begins_as_the_block_does_is_no_fault_of_its_answer() -> None:
    assert _begins_with("Answer:", " Answer: 4", "It is 4.")
    assert not _begins_with("Answer:", "It is 4.", "It is 4.")
    assert not _begins_with("Answer:", "Answer: 4", "Answer: 4")


def test_conduct_within_noise_passes_and_beyond_it_fails() -> None:
    def fails(count: int, of: int = 12) -> bool:
        items = [replace(item(i, 5.0 + 0.1 * i, 3.0, (False, True)), begins_with_block=i < count) for i in range(of)]
        return not judge(items, GateSettings(), seed=0).passed

    assert [fails(n) for n in (0, 1, 8, 12)] == [False, False, True, True]


def test_shares_stay_shares_where_sessions_are_few() -> None:
    items = [replace(item(i, 5.0 + i, 3.0, (False, True)), copied=i > 0, first_with=0.05 * i) for i in range(4)]
    conduct = judge(items, GateSettings(), seed=0).conduct
    for name in ("copied", "first_token", "begins_with_block"):
        interval = conduct[f"tool.{name}"].interval
        assert interval.low is not None
        assert interval.high is not None
        assert 0 <= interval.low <= interval.value <= interval.high <= 1


def test_a_kind_of_one_session_is_not_judged() -> None:
    items = [item(i, 5.0 + 0.1 * i, 3.0, (False, True)) for i in range(8)]
    found = judge([replace(items[0], is_tool_turn=False, first_with=0.0), *items[1:]], GateSettings(), seed=0)
    assert found.passed
    assert {name.partition(".")[0] for name in found.conduct} == {"tool"}
    assert found.notes == (
        "Prose turns were not judged apart: 1 record(s) of one session allow no interval; raise gate.records, or hold "
        "out more sessions.",
    )


def test_few_sessions_and_training_records_are_said() -> None:
    items = [item(i, 5.0 + i, 3.0 + i, (False, True)) for i in range(5)]
    found = judge(items, GateSettings(), split="train", seed=0)
    assert found.passed
    assert "on 5 train records" in found.verdict
    assert found.notes == (
        "Fewer than 8 independent sessions are held out, so the gate scored training records.",
        "5 independent sessions are few: below 8, intervals take a normal distribution for granted; "
        "hold out more sessions.",
    )


def test_likelihoods_that_are_not_finite_are_no_result() -> None:
    with pytest.raises(VerificationError, match="not finite"):
        judge([item(0, math.nan, 1.0, (True, True)), item(1, 1.0, 1.0, (True, True))], GateSettings(), seed=0)


# The measurement, on a tiny model.


def nll(backend: Backend, prompt: list[int], answer: list[int]) -> float:
    with torch.no_grad(), backend.model.disable_adapter():
        logits = backend.model(input_ids=torch.tensor([[*prompt, *answer]])).logits[0, len(prompt) - 1 : -1]
    return float(torch.nn.functional.cross_entropy(logits.double(), torch.tensor(answer), reduction="sum"))


def is_greedy(backend: Backend, prompt: list[int], answer: list[int]) -> bool:
    with torch.no_grad(), backend.model.disable_adapter():
        logits = backend.model(input_ids=torch.tensor([[*prompt, *answer]])).logits[0, len(prompt) - 1 : -1]
    return bool((logits.argmax(-1) == torch.tensor(answer)).all())


@pytest.mark.parametrize(("sharing", "cap"), [("none", 2000), ("packed", 2000), ("packed", 300)])
def test_the_gate_measures_the_base_model_under_the_three_prompts(
    tiny_model: Path, prompts: ChatPrompts, data: Dataset, sharing: Sharing, cap: int
) -> None:
    backend = adapted(tiny_model, "lora.dropout=0.3", "gradient_checkpointing=true")
    backend.sharing = sharing
    records = choose_records(data.validation, 6)
    by_id = {r.record_id: r for r in records}
    before, random_state = state_of(backend), torch.get_rng_state()
    found = gate(backend, prompts, records, cap=cap)
    assert torch.equal(torch.get_rng_state(), random_state)
    after = state_of(backend)
    assert after["training"] == before["training"]
    assert all(torch.equal(after["tensors"][name], tensor) for name, tensor in before["tensors"].items())

    backend.model.eval()
    assert [i.record_id for i in found.items] == list(by_id)
    for one in found.items:
        record = by_id[one.record_id]
        control = by_id[one.control_record_id].reference
        answer = prompts.reference_ids(record)
        assert one.reference_tokens == len(answer)
        assert one.nll_without == pytest.approx(nll(backend, prompts.student_ids(record), answer), rel=1e-4)
        assert one.nll_with == pytest.approx(nll(backend, prompts.teacher_ids(record), answer), rel=1e-4)
        assert one.nll_control == pytest.approx(nll(backend, prompts.teacher_ids(record, control), answer), rel=1e-4)
        teacher, student = prompts.teacher_ids(record), prompts.student_ids(record)
        assert one.first_with == pytest.approx(math.exp(-nll(backend, teacher, answer[:1])), rel=1e-4)
        assert one.first_without == pytest.approx(math.exp(-nll(backend, student, answer[:1])), rel=1e-4)
        assert one.copied == is_greedy(backend, teacher, answer)
        assert one.begins_with_block == one.text_with.lstrip().startswith("<expert_reference>")
        assert one.shown_record_id == one.record_id != one.control_record_id
    assert not found.passed  # a random model learns nothing from a reference
    assert (
        json.loads(json.dumps(found.to_json(), allow_nan=False)) == gate(backend, prompts, records, cap=cap).to_json()
    )


def test_shuffled_references_are_others_and_so_is_their_control(
    tiny_model: Path, prompts: ChatPrompts, data: Dataset
) -> None:
    records = choose_records(data.validation, 6)
    found = gate(adapted(tiny_model), prompts, records, shuffle=True)
    for one in found.items:
        assert len({one.record_id, one.shown_record_id, one.control_record_id}) == 3
    assert len({i.shown_record_id for i in found.items}) == len({i.control_record_id for i in found.items}) == 6
    assert "with shuffled references" in found.verdict
    two = [records[0], next(r for r in records if r.row.session_id != records[0].row.session_id)]
    with pytest.raises(UsageError, match="at least three records"):
        gate(adapted(tiny_model), prompts, two, shuffle=True)


def test_one_session_allows_no_decision(tiny_model: Path, prompts: ChatPrompts, data: Dataset) -> None:
    session = data.validation[0].row.session_id
    found = gate(adapted(tiny_model), prompts, [r for r in data.validation if r.row.session_id == session])
    assert not found.passed
    assert "cannot decide" in found.verdict
    assert "larger --validation-fraction" in found.verdict
    assert found.items == ()
    assert found.to_json()["summary"] is None


def test_training_records_stand_in_where_little_is_held_out(data: Dataset) -> None:
    records, split = gate_records(replace(data, validation=[]), 5)
    assert split == "train"
    assert records == choose_records(data.train, 5)
    with pytest.raises(DataError, match="no training record"):
        gate_records(replace(data, validation=[], train=[]), 5)


def record(session: str, turn: int, *tools: str, text: str = "") -> Record:
    calls = tuple(ToolCall(str(i), name, json.dumps({"of": f"{session}{turn}"})) for i, name in enumerate(tools))
    messages = (Message("user", "hi"),) * turn + (Message("assistant", text, calls),)
    return Record(RecordRow(f"{session}/{turn}", session, turn, 1, 1, 1, bool(tools)), Session(session, messages))


def test_eight_independent_sessions_are_enough_or_as_many_as_there_are(data: Dataset) -> None:
    def split(held_out: int, trained_on: int, each: int = 1) -> str:
        some, others = (
            [replace(r, session=replace(r.session, group=f"{name}{i // each}")) for i, r in enumerate(records)]
            for name, records in (
                ("v", [record(f"v{i}", 1) for i in range(held_out)]),
                ("t", [record(f"t{i}", 1) for i in range(trained_on)]),
            )
        )
        return gate_records(replace(data, validation=some, train=others), 4)[1]

    assert [split(*counts) for counts in ((8, 40), (7, 40), (3, 3), (3, 4))] == ["validation", "train"] * 2
    assert split(8, 40, each=2) == "train"  # four groups


def test_another_records_reference_is_of_another_session_and_tool_where_there_is_one() -> None:
    records = [record("a", 1, "Read"), record("a", 2, "Edit"), record("b", 1, "Read"), record("b", 2, "Edit")]
    found = other_records(records)
    assert len(found) == 3
    for of in found:
        assert sorted(of) == [0, 1, 2, 3]
        assert all(i != j for i, j in enumerate(of))
    assert all(len({of[i] for of in found}) == 3 for i in range(4))  # no two agree anywhere
    clashes = [sum("aabb"[i] == "aabb"[j] for i, j in enumerate(of)) for of in found]
    assert clashes == sorted(clashes)
    many = [record(f"s{i}", 1, ("Read", "Bash", "Grep", "Edit")[i % 4]) for i in range(12)]
    best = other_records(many)[0]
    assert all(many[i].reference.tool_calls[0].name != many[j].reference.tool_calls[0].name for i, j in enumerate(best))


def test_an_equal_turn_is_the_last_choice() -> None:
    said = [record("a", 1, text="Done."), record("b", 1, text="Done."), record("a", 2, text="No.")]
    of = other_records([*said, record("b", 2, text="Yes.")])[0]
    assert of[0] != 1
    assert of[1] != 0


@pytest.mark.slow
def test_the_real_small_model_passes_with_its_references_and_fails_with_others_or_with_a_wrong_wording(
    smollm2: Path, tmp_path: Path
) -> None:
    from sdft_cli.engine.models.load import open_for_eval
    from sdft_cli.engine.passes.choose import choose_sharing

    data = prepared(smollm2, tmp_path, 16, 0.4, "again", "few")  # as in the demo
    backend = open_for_eval(str(smollm2), "float32", None, None)
    choose_sharing(backend, "auto")
    prompts, (records, _) = open_prompts(str(smollm2), data.manifest), gate_records(data, 6)
    assert len({r.row.session_id for r in records}) == 6
    gate_of = partial(gate, backend, cap=16_384)  # many rows of a real model are decoded as fast as some
    found = gate_of(prompts, records)
    assert found.passed
    share = {key: x.interval.value for key, x in found.conduct.items()}
    for kind in ("tool", "prose"):
        assert share[f"{kind}.first_token"] >= 0.9  # what it has said twice, it says again
        assert share[f"{kind}.copied"] >= 0.75  # of turns as few as these, all but one
    assert not gate_of(prompts, records, shuffle=True).passed
    told = ChatPrompts(prompts.tokenizer, load_teacher_template("repeat"))
    texts = [r for r in (*data.train, *data.validation) if not r.row.has_tool_call]
    found = gate_of(told, texts[:6])
    assert not found.passed  # it answers turns of text with the tag of its block, and the likelihood rises all the same
    assert found.lifts["likelihood"].passed
    assert not found.conduct["prose.begins_with_block"].passed
    assert "begins" in found.verdict
    assert "--teacher-template own_turn or again" in found.verdict


def test_agreement_is_of_the_records_whose_calls_can_be_scored() -> None:
    some = [item(i, 5.0 + 0.1 * i, 3.0, (None, None) if i < 3 else (False, True)) for i in range(8)]
    found = judge(some, GateSettings(), seed=0)
    assert found.passed
    assert found.lifts["agreement"].interval.value == 1.0
    assert found.notes == ("The agreement of answers leaves out 3 of 8 records: their calls cannot be scored.",)
    summary = found.to_json()["summary"]
    assert [summary[f"agreement_{key}"] for key in ("records", "without", "with")] == [5, 0.0, 1.0]


def test_without_any_call_that_can_be_scored_the_gate_judges_the_likelihood_alone() -> None:
    for unscored in (8, 7):  # one session allows no interval
        items = [item(i, 5.0 + 0.1 * i, 3.0, (None, None) if i < unscored else (True, False)) for i in range(8)]
        found = judge(items, GateSettings(), seed=0)
        assert found.passed
        assert list(found.lifts) == ["likelihood", "likelihood_over_control"]
    assert judge(items[:7], GateSettings(), seed=0).to_json()["summary"]["agreement_with"] is None


def test_answers_of_a_model_without_a_known_syntax_are_not_judged_by_their_calls(
    tiny_model: Path, data: Dataset
) -> None:
    own = open_prompts(str(tiny_model), data.manifest)
    text = own.template.text.replace("<tool_call>", "<@>").replace("</tool_call>", "</@>")
    prompts = ChatPrompts(own.tokenizer, own.teacher, ChatTemplate(own.tokenizer, text))
    assert prompts.syntax.syntax is None
    found = gate(adapted(tiny_model), prompts, choose_records(data.validation, 4))
    assert {(i.agrees_without, i.agrees_with) for i in found.items} == {(None, None)}
