"""Families of models through all commands: right, or refused before step 1 with a sentence; the rest in benchmarks."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("peft")

from benchmarks.family_logits import difference  # noqa: E402
from sdft_cli.engine.models.load import open_for_eval  # noqa: E402
from tests.families.matrix import STAGES, run_family, sdft, write_sessions  # noqa: E402
from tests.families.tiny import FAMILIES, make_model  # noqa: E402

WHOLE = (
    *("llama_dropout", "gemma2", "gemma3", "qwen3_5_text", "qwen3_vl", "phi", "phi3", "opt", "gpt_neox", "falcon"),
    *("granite", "cohere", "mixtral", "mistral3", "lfm2", "mamba", "nemotron_h"),
)
"""Families that go through all; dropout, caps, scales, biases, towers, hybrids, experts and odd names among them."""
REFUSED = {
    "gpt2": r"The trunk of this gpt2 model has no linear layer for an adapter, only Conv1D, .*: train a model",
    "rwkv": r"rwkv rescales its own weights while it runs \(rescale_every\), which no adapter follows: train a",
    "llama4_text": r"llama4_text has no trunk apart from its output head",
    "paligemma": r"paligemma decodes another distribution than its forward pass gives .*: update transformers",
}
"""Family -> what `sdft train` says before step 1."""


@pytest.fixture(scope="module")
def sessions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sessions(tmp_path_factory.mktemp("families") / "sessions")


def own_nll(model: Path, data: Path) -> dict[str, float]:
    """Return -log p of each held-out turn, in nats, from the logits that transformers' own model gives."""
    from transformers import AutoConfig

    from sdft_cli.engine.models.backend_transformers import model_class
    from sdft_cli.prompts.chat import open_prompts
    from sdft_cli.records import read_dataset

    found, dataset = {}, read_dataset(data)
    prompts = open_prompts(str(model), dataset.manifest)
    loaded = model_class(AutoConfig.from_pretrained(model)).from_pretrained(model, dtype=torch.float32).eval()
    for record in dataset.validation:
        prompt, answer = prompts.student_ids(record), prompts.reference_ids(record)
        with torch.no_grad():
            logits = loaded(input_ids=torch.tensor([[*prompt, *answer]])).logits[0, len(prompt) - 1 : -1]
        chosen = logits.log_softmax(-1).gather(-1, torch.tensor(answer)[:, None])
        found[record.record_id] = -float(chosen.sum())
    return found


@pytest.mark.slow
@pytest.mark.parametrize("family", WHOLE)
def test_a_family_goes_through_all_commands(family: str, sessions: Path, tmp_path: Path) -> None:
    model = make_model(family, tmp_path / family)
    cells = run_family(model, sessions, tmp_path)
    assert {stage: (cell.code, cell.sentence, cell.crash) for stage, cell in cells.items()} == dict.fromkeys(
        STAGES, (0, "", "")
    )
    document = json.loads((tmp_path / "run" / "eval.json").read_text())
    expected = own_nll(model, tmp_path / "data")
    items = document["contenders"]["base"]["items"]
    assert {item["record_id"] for item in items} <= expected.keys()
    for item in items:
        assert item["nll"] == pytest.approx(expected[item["record_id"]], rel=1e-5)
    assert difference(open_for_eval(str(model), "float32", None, None)) <= 1e-5  # of NLL and of KL
    certificate = json.loads((tmp_path / "run" / "merged" / "merge-certificate.json").read_text())
    assert certificate["passed"]


@pytest.mark.slow
@pytest.mark.parametrize("family", REFUSED)
def test_a_family_is_refused_before_step_1(family: str, sessions: Path, tmp_path: Path) -> None:
    cells = run_family(make_model(family, tmp_path / family), sessions, tmp_path)
    assert list(cells) == ["prepare", "train"]
    refused = cells["train"]
    assert refused.code in (1, 2)
    assert not refused.crash
    assert re.match(REFUSED[family], refused.sentence), refused.sentence
    assert not (tmp_path / "run").exists()


def test_a_default_profile_names_the_familys_own_modules(sessions: Path, tmp_path: Path) -> None:
    model = make_model("phi", tmp_path / "phi")
    given = {"lora.target_modules": "[q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj]"}
    refused = run_family(model, sessions, tmp_path, given)["train"]
    assert refused.code == 2
    assert "no language module named o_proj, gate_proj, up_proj, down_proj" in refused.sentence
    assert "--set 'lora.target_modules=[q_proj, k_proj, v_proj, dense, fc1, fc2]'" in refused.sentence


def test_every_family_can_be_made() -> None:
    assert len(FAMILIES) >= 100
    assert {*WHOLE, *REFUSED} <= FAMILIES.keys()
    assert sdft("--version").code == 0
