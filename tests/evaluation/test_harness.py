"""Local tasks through lm-evaluation-harness: its numbers against the same sums made by hand."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("lm_eval")

from sdft_cli.config import EvalConfig  # noqa: E402
from sdft_cli.engine.models.backend import Backend  # noqa: E402
from sdft_cli.engine.models.backend_transformers import PlainModel  # noqa: E402
from sdft_cli.engine.models.load import open_for_eval  # noqa: E402
from sdft_cli.engine.score.scoring import Role  # noqa: E402
from sdft_cli.errors import DataError, InterruptedBySignal, UsageError  # noqa: E402
from sdft_cli.evaluation.evaluation import Contender, evaluate  # noqa: E402
from sdft_cli.evaluation.harness import _explained, kept, open_harness  # noqa: E402
from sdft_cli.prompts.chat import ChatPrompts, open_prompts  # noqa: E402
from sdft_cli.records import Dataset  # noqa: E402
from sdft_cli.report.evaluation import summaries, values_rows  # noqa: E402
from tests.engine.prepared import adapted, prepared  # noqa: E402

# lm-eval 0.4.9, which is allowed, has no other way to load tasks.
pytestmark = pytest.mark.filterwarnings("ignore:.*TaskManager.load:DeprecationWarning")
DOCUMENTS = [
    {"question": "The sky is", "choices": [" blue", " a list of files"], "answer": 0},
    {"question": "Two and two are", "choices": [" seven", " four"], "answer": 1},
    {"question": "def f(x): return", "choices": [" x", " banana bread"], "answer": 0},
]
TASK = """\
task: {name}
dataset_path: json
dataset_kwargs:
  data_files:
    test: {data}
test_split: test
output_type: {kind}
doc_to_text: "{{{{question}}}}"
target_delimiter: ""
{rest}
"""
CHOICE = """\
doc_to_target: answer
doc_to_choice: "{{choices}}"
metric_list:
  - metric: acc
    aggregation: mean
    higher_is_better: true"""
LIKELIHOOD = """\
doc_to_target: "{{choices[answer]}}"
metric_list:
  - metric: perplexity
    aggregation: perplexity
    higher_is_better: false"""
ANSWER = """\
doc_to_target: "{{choices[answer]}}"
generation_kwargs:
  max_gen_toks: 4
  do_sample: false
  until: ["zzz"]
metric_list:
  - metric: exact_match
    aggregation: mean
    higher_is_better: true"""
CUSTOM = CHOICE + "\nprocess_results: !function "
FAILING = """\
def uninstalled(doc, results):
    import no_such_package
"""


@pytest.fixture(scope="module")
def data(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return prepared(tiny_model, tmp_path_factory.mktemp("harness"), 12, 0.4)


@pytest.fixture(scope="module")
def prompts(tiny_model: Path, data: Dataset) -> ChatPrompts:
    return open_prompts(str(tiny_model), data.manifest)


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tasks")
    (folder / "data.jsonl").write_text("".join(json.dumps(d) + "\n" for d in DOCUMENTS))
    for name, kind, rest in (
        ("local_choice", "multiple_choice", CHOICE),
        ("local_answer", "generate_until", ANSWER),
        ("local_likelihood", "loglikelihood", LIKELIHOOD),
    ):
        text = TASK.format(name=name, data=folder / "data.jsonl", kind=kind, rest=rest)
        (folder / f"{name}.yaml").write_text(text)
    (folder / "failing.py").write_text(FAILING)
    for name, where, kind, rest in (
        ("local_missing", "missing.jsonl", "multiple_choice", CHOICE),
        ("local_nowhere", "data.jsonl", "multiple_choice", CUSTOM + "nowhere.at_all"),
        ("local_uninstalled", "data.jsonl", "multiple_choice", CUSTOM + "failing.uninstalled"),
        ("local_unsafe", "data.jsonl", "generate_until", ANSWER + "\nunsafe_code: true"),
    ):
        (folder / f"{name}.yaml").write_text(TASK.format(name=name, data=folder / where, kind=kind, rest=rest))
    (folder / "group.yaml").write_text("group: local_group\ntask: [local_choice, local_unsafe]\n")
    return folder


def config_of(tasks: Path, *names: str, **values: Any) -> EvalConfig:
    return EvalConfig(lm_eval=list(names), lm_eval_path=str(tasks), general=0, questions=0, max_new_tokens=3, **values)


def likelihoods(backend: Backend, prompts: ChatPrompts, case: Any) -> list[list[float]]:
    """log p of each choice behind the question, for each document, by plain transformers."""
    found = []
    role = Role(backend, case, case)
    model = backend.base if isinstance(backend.model, PlainModel) else backend.model
    for document in DOCUMENTS:
        sums = []
        for choice in document["choices"]:
            before = prompts.tokenizer.encode(document["question"], add_special_tokens=False)
            whole = prompts.tokenizer.encode(document["question"] + choice, add_special_tokens=False)
            assert whole[: len(before)] == before
            with role.weights(case):
                log_p = model(torch.tensor([whole])).logits[0].log_softmax(-1)
            sums.append(sum(float(log_p[i - 1, whole[i]]) for i in range(len(before), len(whole))))
        found.append(sums)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("sharing", ["none", "packed"])
def test_choices_are_scored_with_the_weights_of_each_model(
    tiny_model: Path, data: Dataset, prompts: ChatPrompts, tasks: Path, sharing: Any
) -> None:
    backend = adapted(tiny_model)
    backend.sharing = sharing
    base, tuned = Role(backend, "base", "base"), Role(backend, "adapter", "merged")
    config = config_of(tasks, "local_choice", "local_answer", "local_likelihood", limit=2)
    contenders = [Contender("base", "base", base, base), Contender("tuned", "tuned", tuned, base)]
    harness = open_harness(config, prompts)
    result = evaluate(contenders, data.validation, prompts, config, harness=harness)
    perplexities = []
    for name, case in (("base", "base"), ("tuned", "adapter")):
        sums = likelihoods(backend, prompts, case)
        right = [max(range(2), key=s.__getitem__) == d["answer"] for s, d in zip(sums, DOCUMENTS, strict=True)]
        found = result["contenders"][name]["harness"]
        answers = [s[d["answer"]] for s, d in zip(sums, DOCUMENTS, strict=True)]
        perplexities.append(found["summary"]["local_likelihood/perplexity"])
        assert perplexities[-1] == pytest.approx(math.exp(-sum(answers) / 3), rel=1e-4)
        assert [i["values"] for i in found["items"][:3]] == [{"local_choice/acc": float(r)} for r in right]
        assert found["summary"]["local_choice/acc"] == pytest.approx(sum(right) / 3)
        assert found["documents"] == {"local_choice": 3, "local_answer": 3, "local_likelihood": 3}
    assert abs(perplexities[0] / perplexities[1] - 1) > 1e-2  # the two are told apart
    gap = result["differences"]["tuned - base"]["local_choice/acc"]
    values = [result["contenders"][n]["harness"]["summary"]["local_choice/acc"] for n in ("tuned", "base")]
    assert gap["value"] == pytest.approx(values[0] - values[1])
    assert (gap["items"], gap["sessions"]) == (3, 3)
    assert "local_choice/acc" in [label for label, _ in values_rows(result)]
    assert "local_answer/exact_match" in summaries(result)["contenders"]["tuned"]["harness"]


@pytest.mark.slow
def test_a_model_without_an_adapter_is_scored(tiny_model: Path, prompts: ChatPrompts, tasks: Path) -> None:
    backend = open_for_eval(str(tiny_model), "float32", None, None)
    assert isinstance(backend.model, PlainModel)
    harness = open_harness(config_of(tasks, "local_choice", "local_answer", "local_likelihood"), prompts)
    assert harness is not None
    found = harness(Role(backend, "base", "base"))
    sums = likelihoods(backend, prompts, "base")
    right = [max(range(2), key=s.__getitem__) == d["answer"] for s, d in zip(sums, DOCUMENTS, strict=True)]
    answers = [s[d["answer"]] for s, d in zip(sums, DOCUMENTS, strict=True)]
    assert found["summary"]["local_choice/acc"] == pytest.approx(sum(right) / 3)
    assert found["summary"]["local_likelihood/perplexity"] == pytest.approx(math.exp(-sum(answers) / 3), rel=1e-4)
    assert found["documents"] == {"local_choice": 3, "local_answer": 3, "local_likelihood": 3}


@pytest.mark.slow
def test_what_cannot_be_loaded_is_said_before_anything_is_measured(prompts: ChatPrompts, tasks: Path) -> None:
    assert open_harness(EvalConfig(), prompts) is None
    for names, kind, reason in (
        (["local_choice", "no_such_task"], UsageError, r"has no task no_such_task: .*--lm-eval-path"),
        (["local_choice", "local_missing"], DataError, r"could not load local_choice, local_missing \(.*missing.jsonl"),
        (["local_nowhere"], DataError, r"could not load local_nowhere \(ImportError: .*nowhere.*\): tasks whose data"),
        (["local_group"], UsageError, "Task local_unsafe runs code"),
    ):
        with pytest.raises(kind, match=reason) as raised:
            open_harness(config_of(tasks, *names), prompts)
        assert len(str(raised.value).splitlines()) == 1


@pytest.mark.slow
def test_what_fails_while_it_runs_is_said(prompts: ChatPrompts, tiny_model: Path, tasks: Path) -> None:
    harness = open_harness(config_of(tasks, "local_uninstalled"), prompts)
    assert harness is not None
    with pytest.raises(DataError, match=r"could not run local_uninstalled \(ModuleNotFoundError: .*no_such_package"):
        harness(Role(adapted(tiny_model), "base", "base"))


@pytest.mark.parametrize("error", [MemoryError(), torch.OutOfMemoryError(), InterruptedBySignal()])
def test_what_is_not_the_tasks_fault_is_not_laid_on_it(error: BaseException) -> None:
    with pytest.raises(type(error)), _explained("could not run x", "leave it out"):
        raise error


def test_what_is_kept_of_a_result() -> None:
    rows = [
        {"doc_id": 0, "filter": "none", "metrics": ["acc", "perplexity"], "acc": 1.0, "perplexity": 2.0},
        {"doc_id": 1, "filter": "none", "metrics": ["acc", "perplexity"], "acc": 0, "perplexity": 8.0},
        {"doc_id": 0, "filter": "strict", "metrics": ["acc"], "acc": 0.0},
        {"doc_id": 1, "filter": "strict", "metrics": ["acc"], "acc": 0.0},
    ]
    numbers = {"alias": "t", "acc,none": 0.5, "acc_stderr,none": "N/A", "acc,strict": 0.0, "perplexity,none": 4.0}
    found = kept(
        {
            "results": {"t": numbers, "group": {"alias": "group", "acc,none": 0.5}},
            "higher_is_better": {"t": {"acc": True, "perplexity": False}},
            "n-samples": {"t": {"original": 9, "effective": 2}},
            "samples": {"t": rows},
        }
    )
    assert found["summary"] == {"t/acc": 0.5, "t/acc,strict": 0.0, "t/perplexity": 4.0, "group/acc": 0.5}
    better = {"t/acc": True, "t/acc,strict": True, "t/perplexity": False, "group/acc": None}
    assert found["higher_is_better"] == better
    # A perplexity is no mean over documents, so it has no items; a group has no documents of its own.
    assert found["items"] == [
        {"document": "t/0", "values": {"t/acc": 1.0, "t/acc,strict": 0.0}},
        {"document": "t/1", "values": {"t/acc": 0.0, "t/acc,strict": 0.0}},
    ]
    assert found["documents"] == {"t": 2}
