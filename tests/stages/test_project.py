"""`sdft.yaml`: what is refused, and what goes before what."""

from __future__ import annotations

from pathlib import Path

import pytest

from sdft_cli.errors import UsageError
from sdft_cli.stages.project import Project, fitting, parse_project, read_project

FILE = Path("sdft.yaml")


def parse(text: str) -> Project:
    return parse_project(text, FILE)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("sorce: x", r"^sdft\.yaml: sorce is no setting: did you mean source or train\.rollout\.source\?$"),
        ("prepare: {max_seq_token: 3}", r"did you mean prepare\.max_seq_tokens"),
        ("train: {optim: {lr: 1}}", r"^sdft\.yaml: train\.optim\.lr is no setting: did you mean train\.optim\.learn"),
        ("max_steps: 3", r"max_steps is no setting: did you mean train\.optim\.max_steps"),
        ("merge: {dtyp: float32}", r"did you mean merge\.dtype"),
        ("eval: {question: 3}", r"did you mean eval\.questions"),
        ("train: cpu-demo", r"^sdft\.yaml: train is a section: write its settings below it"),
        ("train: {optim: 3}", r"train\.optim is a section"),
        ("prepare: {source: x}", r"prepare\.source is no setting: did you mean source"),
        ("source: 3", r"source is no text"),
        ("train: {profile: cpu_demo}", r"^sdft\.yaml, train: Profile cpu_demo is unknown: did you mean cpu-demo\?"),
        (
            "train: {optim: {max_steps: 0}}",
            r"^sdft\.yaml, train: optim\.max_steps: .* greater than 0: correct the file",
        ),
        ("prepare: {max_seq_tokens: 9}", r"^sdft\.yaml, prepare: .*max_prompt_tokens \(57344\) is above"),
        ("prepare: {license: '<b>'}", r"^sdft\.yaml, prepare: license"),
        ("merge: {dtype: int8}", r"^sdft\.yaml, merge: dtype"),
        ("eval: {limit: x}", r"^sdft\.yaml, eval: limit"),
        ("- 1", r"is not a YAML mapping"),
        ("a: [", r"is not valid YAML \(line 1: "),
        ("a: !!python/object:os.system x", r"is not valid YAML"),
        ("1: 2", r"^sdft\.yaml: 1 is no setting"),
    ],
)
def test_what_is_wrong_is_one_sentence_that_names_the_file(text: str, told: str) -> None:
    with pytest.raises(UsageError, match=told) as error:
        parse(text)
    assert "\n" not in str(error.value)


def test_options_go_before_the_file_and_the_file_before_profile_and_card() -> None:
    project = parse(
        "model: m\ntrain:\n  profile: cpu-demo\n  heldout: {every: null}\n"
        "  optim: {max_steps: 5, learning_rate: 1e-5}\n"
        "prepare: {seed: 3, workers: 2}\nmerge: {dtype: float32}\neval: {questions: 0}\n"
    )
    config = project.train_config(None, ["optim.max_steps=6"], {"optim.max_steps": 7})
    assert (config.model, config.profile, config.optim.max_steps) == ("m", "cpu-demo", 7)
    assert project.train_config(None, ["optim.max_steps=6"], {}).optim.max_steps == 6
    assert project.train_config(None, [], {}).optim.max_steps == 5
    assert config.heldout.every is None
    assert config.optim.learning_rate == 1e-5
    assert config.lora.rank == 16  # the profile's
    assert project.train_config("qwen3.5-9b-64k", [], {}).lora.rank == 64
    assert project.train_config(None, [], {"model": "other"}).model == "other"
    prepare = project.prepare_config("s", {"workers": 4}, {"seed": 9, "tools": "all"})
    assert (prepare.model, prepare.seed, prepare.workers, prepare.tools) == ("m", 3, 4, "all")
    assert project.merge_config().dtype == "float32"
    assert project.of("eval") == {"questions": 0}


def test_empty_files_and_sections_say_nothing() -> None:
    assert parse("").of("train") == {}
    assert parse("train:\n  optim:\neval:\n").of("train") == {}
    with pytest.raises(UsageError, match="let `sdft init` find them"):
        Project().source_of(None)


def test_without_a_file_all_is_default_and_one_that_is_named_must_be_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert read_project() == Project()
    assert capsys.readouterr().err == ""
    with pytest.raises(UsageError, match=r"^Project file other\.yaml cannot be read \(no such file"):
        read_project(Path("other.yaml"))
    FILE.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UsageError, match="no UTF-8 text"):
        read_project()
    FILE.write_text("source: here\n")
    assert read_project().source == "here"
    assert capsys.readouterr().err == "Settings: sdft.yaml\n"


def test_a_preparation_fits_its_training() -> None:
    small = fitting(Project().train_config("cpu-demo", (), {"model": "m"}))
    assert small == {
        "model": "m",
        "max_seq_tokens": 8192,
        "max_prompt_tokens": 7168,
        "max_rollout_tokens": 256,
        "teacher_template": "again",
    }
    assert fitting(Project().train_config(None, (), {}))["max_rollout_tokens"] == 8192
