"""The page of a run: whole, old, damaged and hostile; parsed as HTML."""

from __future__ import annotations

import io
import json
import re
from hashlib import sha256
from pathlib import Path

import pytest
from rich.console import Console

from sdft_cli.errors import DataError
from sdft_cli.report.run.page import render_evaluation, render_run
from sdft_cli.report.run.summary import run_report
from sdft_cli.stages.report import read_evaluation_of, run_parts
from tests.report.run.made import HOSTILE, documents, hostile_run, made_run, write_evaluation, write_run
from tests.report.test_page import ALLOWED, Page

TAGS = ALLOWED | {
    *("h3", "nav", "a", "ul", "li", "polyline", "polygon", "circle", "details", "summary", "pre", "code", "strong"),
}


def checked(source: str) -> Page:
    """A page that is whole, runs nothing, asks for nothing, and has no text that steers what is around it."""
    source.encode()
    page = Page(source)
    assert page.open == []
    assert page.tags <= TAGS
    assert [name for name, _ in page.attributes if name.startswith("on") or name in ("src", "srcset", "action")] == []
    assert all((value or "").startswith("#") for name, value in page.attributes if name == "href")
    styles = [value for name, value in page.attributes if name == "style"]
    assert [style for style in styles if not re.fullmatch(r"width: \d+\.\d%", style or "")] == []
    assert len([value for _, value in page.attributes if value and "default-src 'none'" in value]) == 1
    assert source.count("<style>") == source.count("</style>") == 1 + source.count('<svg xmlns="http://www.w3.org')
    assert re.findall("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]", source) == []
    return page


def terminal(folder: Path) -> str:
    console = Console(file=io.StringIO(), width=80, highlight=False)
    console.print(run_report(run_parts(folder)))
    return console.file.getvalue()  # type: ignore[attr-defined,no-any-return]


def test_a_whole_run_has_every_part(tmp_path: Path) -> None:
    source = render_run(run_parts(made_run(tmp_path / "r")))
    text = " ".join(" ".join(checked(source).texts).split())
    for part in (
        "finished, 20 of 20 steps",
        "The gate passes.",
        "KL(teacher || student), nats per token",
        "Mean loss in the student's rollouts",
        "Mean loss in the expert's turns",
        "step 1, record s/1: sampled by the student, 9 tokens, finished",
        "step 4, record s/4: the expert's turn",
        "What is missing The dataset mine is not where it was.",
        "h/0 4 evaluation(s), always the same answer",
        "h/1 4 evaluation(s), 4 different answers in a row",
        "tuned - base",
        "New skill against forgetting",
        "The merge certificate did not pass: weights differ",
        "optim.max_steps",
        "c0ffee",
    ):
        assert part in text
    assert '<span class="t5" title="KL 5.000 nats, tool name">Read</span>' in source
    assert "\u23ce\n" in source  # a line break with a loss is seen


def test_an_old_run_has_a_page_that_says_what_it_lacks(tmp_path: Path) -> None:
    """Before samples had kinds, answers were kept, and the environment was written down."""
    found = {name: documents(6)[name] for name in ("run.json", "config.json", "metrics.jsonl", "samples.jsonl")}
    del found["run.json"]["environment"]
    for line in found["samples.jsonl"]:
        for key in ("kinds", "worst", "sums", "measure", "first_with_loss"):
            del line[key]
    source = render_run(run_parts(write_run(tmp_path / "old", found)))
    text = " ".join(" ".join(checked(source).texts).split())
    assert "This sample lacks kinds and worst: it was recorded by an older version." in text
    assert "recorded no sums by kind and position" in text
    assert "kept no answers" in text
    assert "There is no evaluation yet" in text
    assert "heldout.jsonl is not there." in text
    assert 'title="loss 5.000 nats"' in source


def test_a_run_that_was_just_started_and_one_that_is_damaged(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "new", {"run.json": documents(1)["run.json"]})
    assert "No step is recorded." in " ".join(checked(render_run(run_parts(folder))).texts)
    made_run(tmp_path / "torn")
    for name in ("metrics.jsonl", "samples.jsonl"):
        with (tmp_path / "torn" / name).open("ab") as file:
            file.write(b'{"step": 21, "lo\xff\n[1]\n')
    (tmp_path / "torn" / "gate.json").write_text("{")
    (tmp_path / "torn" / "eval.json").write_text("{}")
    parts = run_parts(tmp_path / "torn")
    assert parts.steps == 20
    checked(render_run(parts))
    told = " ".join(parts.notes)
    assert "2 line(s) of metrics.jsonl are damaged" in told
    assert "gate.json is not valid JSON" in told
    assert "eval.json was not written by this version" in told
    (tmp_path / "torn" / "run.json").write_text("{}")
    with pytest.raises(DataError, match="was not written by `sdft train`"):
        run_parts(tmp_path / "torn")


def test_hostile_text_in_every_field_does_nothing(tmp_path: Path) -> None:
    folder = hostile_run(tmp_path / "r")
    source = render_run(run_parts(folder))
    page = checked(source)
    assert len(source) < 2_000_000
    text = "".join(page.texts)
    assert HOSTILE[0] in text  # shown as it is, as text
    assert r"\x1b[31mred" in text
    assert r"abc\u202edcba" in text
    assert r"\ud800" in text
    assert "characters left out]" in text
    assert "[+999,920]" in text  # a token
    assert "more token(s) are in samples.jsonl" in " ".join(page.texts)
    shown = terminal(folder)
    assert re.findall("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", shown) == []
    assert "[bold red]markup[/bold red]" in " ".join(shown.split())


@pytest.mark.parametrize("value", [None, 3, "x", [], {}, [[1]], {"a": {"b": []}}, 1e308, True])
def test_values_of_any_type_break_no_page(value: object, tmp_path: Path) -> None:
    """Every key of every file once, one file at a time."""
    for name, content in documents(6).items():
        if name == "eval.json":
            continue
        first = content[0] if isinstance(content, list) else content
        odd = {key: first[key] if key == "format" else value for key in first}
        more = {name: [odd, *content[1:]] if isinstance(content, list) else odd}
        folder = write_run(tmp_path / name.replace("/", "-"), {**documents(6), **more})
        checked(render_run(run_parts(folder)))
        terminal(folder)


def test_the_page_of_an_evaluation(tmp_path: Path) -> None:
    one = read_evaluation_of(write_evaluation(tmp_path / "eval-x.json"))
    source = render_evaluation(one)
    text = " ".join(" ".join(checked(source).texts).split())
    assert "Evaluation eval-x.json" in text
    assert "24 held-out records of 8 sessions" in text
    assert "<b>answer</b>" in text
    assert "New skill against forgetting" in text
    document = json.loads((tmp_path / "eval-x.json").read_text())
    del document["facts"]
    (tmp_path / "eval-x.json").write_text(json.dumps(document))
    with pytest.raises(DataError, match="lacks facts"):
        read_evaluation_of(tmp_path / "eval-x.json")


def test_a_long_run_stays_small(tmp_path: Path) -> None:
    found = documents(3_000)
    for line in found["samples.jsonl"]:
        line["tokens"], line["kinds"], line["per_token"] = ["word "] * 8_000, ["prose"] * 8_000, [0.4] * 8_000
    found["samples.jsonl"] = found["samples.jsonl"][:60]
    source = render_run(run_parts(write_run(tmp_path / "r", found)))
    assert len(source.encode()) < 2_000_000
    assert "Each point is the mean of some steps." in source
    assert "10 of 60 sample(s) are shown." in source
    assert source.count("7,600 more token(s)") == 10


def test_a_merge_and_an_evaluation_of_an_earlier_adapter_are_left_out(tmp_path: Path) -> None:
    run = made_run(tmp_path / "r")
    (run / "adapter").mkdir(exist_ok=True)
    (run / "adapter" / "adapter_model.safetensors").write_bytes(b"now")
    for name in ("eval.json", "merged/merge-certificate.json"):
        document = json.loads((run / name).read_text())
        for weights, there in ((b"now", True), (b"before", False)):
            adapter = {"name": "adapter", "sha256": sha256(weights).hexdigest()}
            (run / name).write_text(json.dumps({**document, "adapter": adapter}))
            parts = run_parts(run)
            assert bool(parts.evaluations if name == "eval.json" else parts.certificate) is there
            assert any("of an earlier adapter of this run" in note for note in parts.notes) is not there
        (run / name).write_text(json.dumps(document))
