from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sdft_cli.config import load_train_config
from sdft_cli.report.cards import Evaluation, adapter_card, model_card, model_metadata
from sdft_cli.report.templates import cell
from tests.report.hostile import NAMES, SOURCE
from tests.report.test_cards import metadata_of

CONFIG = load_train_config("qwen3.5-9b-64k").model_dump(mode="json")
SFT = load_train_config("qwen3.5-9b-64k", ["objective=sft"]).model_dump(mode="json")
RUN: dict[str, Any] = {
    "backend": "unsloth",
    "best_step": 450,
    "dataset": {
        "source": {"name": "owner/traces", "kind": "hub", "revision": "0123abc"},
        "caps": {"max_seq_tokens": 65_536, "max_prompt_tokens": 57_344, "max_rollout_tokens": 8_192},
        "funnel": {
            "sessions": 72,
            "turns": 4_000,
            "kept": 2_793,
            "train": 2_693,
            "validation": 100,
            "rejected": {"over_prompt_cap": 1_200, "duplicate": 7},
        },
        "redaction": {"enabled": True, "counts": {"email": 12, "github_token": 3_000}},
    },
}
CERTIFICATE: dict[str, Any] = {
    "passed": True,
    "base": "unsloth/Qwen3.5-9B",
    "base_kind": "hub",
    "revision": None,
    "dtype": "bfloat16",
    "adapter": {"name": "adapter", "sha256": "x"},
    "adapted": [
        {"name": "a", "ulps": 0, "surviving_share": 0.25},
        {"name": "b", "ulps": 1, "surviving_share": 0.75},
    ],
    "untouched": {"identical": 500, "cast to bfloat16": 0},
    "files": {"config.json": "identical but for dtype", "tokenizer.json": "identical"},
    "behaviour": {
        "device": "cuda",
        "mean_kl": 1e-4,
        "base_mean_kl": 0.5,
        "max_kl": 2e-3,
        "top1_agreement": 0.995,
        "positions": 200,
        "same_answers": 7,
        "answers_with_calls": 6,
        "same_answers_with_calls": 6,
        "base_is_told_apart": True,
        "answers": 8,
    },
}
ROWS = [
    ("expert NLL per token (nats)", {"base": "1.089", "tuned": "0.844"}),
    ("KL(student||teacher) per token", {"base": "0.158", "tuned": "0.103", "sft": "0.2"}),
]
EVALUATION = Evaluation(31, 15, "my-sessions", ROWS)
APACHE = {"license": "apache-2.0"}


def tables(card: str) -> list[list[str]]:
    return [found.splitlines() for found in re.findall(r"(?:^\|.*\n)+", card, flags=re.MULTILINE)]


def changed(document: dict[str, Any], **values: Any) -> dict[str, Any]:
    return {**document, **values}


def test_metadata() -> None:
    assert metadata_of(model_card(CONFIG, RUN, CERTIFICATE, license=APACHE)) == {
        "license": "apache-2.0",
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "base_model": "unsloth/Qwen3.5-9B",
        "base_model_relation": "finetune",
        "datasets": ["owner/traces"],
        "tags": ["agent-traces", "tool-use", "sdft"],
    }
    own = changed(RUN, dataset={"source": {"name": "sessions", "kind": "folder", "revision": None}})
    local = model_card(CONFIG, own, changed(CERTIFICATE, base="mine", base_kind="folder"), vision=True)
    assert metadata_of(local) == {
        "library_name": "transformers",
        "pipeline_tag": "image-text-to-text",
        "tags": ["agent-traces", "tool-use", "sdft"],
    }
    assert "licence of the base is not known" in local


def test_the_hub_library_reads_the_metadata() -> None:
    from huggingface_hub import ModelCard, ModelCardData

    other = {"license": "other", "license_name": "mine", "license_link": "https://example.com/l"}
    data = ModelCard(model_card(CONFIG, RUN, CERTIFICATE, license=other, vision=True)).data
    assert isinstance(data, ModelCardData)
    assert (data.license, data.license_name, data.license_link) == ("other", "mine", "https://example.com/l")
    assert (data.base_model, data.datasets) == ("unsloth/Qwen3.5-9B", ["owner/traces"])
    assert data.get("base_model_relation") == "finetune"
    assert (data.library_name, data.pipeline_tag) == ("transformers", "image-text-to-text")


def test_the_settings_are_those_of_the_run() -> None:
    """Each value that the target run's card shows, with its own spelling of it."""
    card = model_card(CONFIG, RUN, CERTIFICATE)
    for row in (
        "| base checkpoint | `unsloth/Qwen3.5-9B` |",
        "| max sequence length | 65536 |",
        "| max teacher prompt tokens | 57344 |",
        "| max rollout tokens | 8192 |",
        "| optimizer steps | 600 |",
        "| batch size (records of a step) | 1 |",
        "| learning rate | 1e-05, constant |",
        "| warmup steps | 20 |",
        "| weight decay | 0.0 |",
        "| LoRA rank | 64 |",
        "| LoRA alpha | 128 |",
        "| LoRA dropout | 0.0 |",
        "| LoRA targets | `q_proj`, `k_proj`, `v_proj`, `o_proj`, `gate_proj`, `up_proj`, `down_proj`, "
        "`in_proj_qkv`, `in_proj_z`, `out_proj` |",
        "| distillation loss | reverse KL |",
        "| KL temperature | 1.0 |",
        "| rollout temperature | 0.8 |",
        "| rollout top-p | 0.95 |",
        "| lambda on-policy | 1.0 |",
        "| teacher | base |",
        "| backend | `unsloth` |",
        "| seed | 0 |",
    ):
        assert f"\n{row}\n" in card
    other = ["optim.max_steps=7", "optim.learning_rate=3.25e-4", "lora.rank=3", "seed=9", "teacher.kind=ema"]
    other += ["distill.divergence=jsd", "distill.lambda_on_policy=0.25", "distill.support=top_k", "load_in_4bit=true"]
    card = model_card(load_train_config("qwen3.5-9b-64k", other).model_dump(mode="json"), RUN, CERTIFICATE)
    for text in (
        "| optimizer steps | 7 |",
        "| learning rate | 0.000325, constant |",
        "| LoRA rank | 3 |",
        "| seed | 9 |",
        "| teacher | ema, decay 0.98 |",
        "| frozen weights in training | 4 bits (NF4) |",
        "JSD(student, teacher)",
        "over the 100 likeliest tokens of the student, the others counted as one, at each token",
        "25% of the records were trained on the model's own answer, the others on the expert's text",
        "a moving average of the adapter",
    ):
        assert text in card
    assert "token weights" not in card
    other = ["distill.divergence=mixed_kl", "distill.kl_mix=0.75", "distill.token_clip=0.05"]
    other += ["distill.token_weights=prefix", "distill.lambda_start=0", "teacher.start=20", "optim.position_decay=0.6"]
    begun = {**RUN, "init_adapter": {"name": "before", "sha256": "ab" * 32}}
    card = model_card(load_train_config("qwen3.5-9b-64k", other).model_dump(mode="json"), begun, CERTIFICATE)
    for text in (
        "behind 20 steps of cross-entropy on the expert's turns, the share of records that were trained on the",
        "| begins with the adapter | `before`, sha256 abababababab |",
        "(weight of the forward one 0.75) over the whole vocabulary",
        "| distillation loss | mixed KL |",
        "| clip of a token's part of the loss | 0.05 nats |",
        "| token weights | prefix: tokens weigh less",
        "moved from 0% to 100% in 100 steps",
        "| lambda on-policy at first | 0.0, for 100 steps |",
        "| steps of cross-entropy before | 20 |",
        "| decay of later turns | 0.6 |",
        "the same model with the adapter as it was after 20 steps of cross-entropy on the expert's turns",
    ):
        assert text in card


def test_the_data_and_the_certificate_are_told() -> None:
    card = model_card(CONFIG, RUN, CERTIFICATE)
    for text in (
        "| sessions | 72 |",
        "| assistant turns | 4,000 |",
        "| left out: `over_prompt_cap` | 1,200 |",
        "| records for training | 2,693 |",
        "| records held out, of other sessions | 100 |",
        "`email` 12,\n`github_token` 3,000.",
        "teacher's prompt 57,344 tokens",
        "| of their updates, elements that survive bfloat16 | 25.0% to 75.0% |",
        "| untouched tensors, identical | 500 |",
        "| loaded and run on | cuda |",
        "| with a tool call | 6 of 6 |",
        "revision `0123abc`",
    ):
        assert text in card
    assert "cast to bfloat16" not in card
    raw = changed(RUN, dataset=changed(RUN["dataset"], redaction={"enabled": False, "counts": {}}))
    assert "**not** scanned" in model_card(CONFIG, raw, CERTIFICATE)
    best = changed(CERTIFICATE, adapter={"name": "adapter-best", "sha256": "x"})
    assert "best on held-out records, after step 450" in model_card(CONFIG, RUN, best)
    assert "best on held-out" not in card


def test_a_run_that_says_nothing_of_its_dataset_has_a_card_without_it() -> None:
    old = {"dataset": {"name": "d", "source": {"name": "owner/traces", "kind": "hub", "revision": None}}}
    card = model_card(CONFIG, old, CERTIFICATE)
    assert "Source: `owner/traces` (hub). A record is" in card
    for absent in ("records for training", "Training data: ", "A turn over a cap", "scanne", "pseudonyms"):
        assert absent not in card


def test_the_evaluation() -> None:
    assert "None yet" in model_card(CONFIG, RUN, CERTIFICATE)
    card = model_card(CONFIG, RUN, CERTIFICATE, evaluation=EVALUATION)
    assert "None yet" not in card
    assert "By `sdft eval` on 31 held-out records of 15 sessions of `my-sessions`:" in card
    assert (
        "| | `base` | `tuned` | `sft` |\n"
        "| --- | ---: | ---: | ---: |\n"
        "| expert NLL per token (nats) | 1.089 | 0.844 | - |\n"
        "| KL(student&#124;&#124;teacher) per token | 0.158 | 0.103 | 0.2 |\n"
    ) in card


@pytest.mark.parametrize("vision", [False, True])
def test_supervised_fine_tuning_is_never_called_sdft(vision: bool) -> None:
    card = model_card(SFT, RUN, CERTIFICATE, license=APACHE, vision=vision, evaluation=EVALUATION)
    assert metadata_of(card)["tags"] == ["agent-traces", "tool-use", "sft"]
    without_commands = re.sub(r"`sdft \w+`", "", card)
    assert not re.search(r"sdft|distill|2601\.19897|on-policy|rollout", without_commands, flags=re.IGNORECASE)
    assert "cross-entropy" in card
    assert "SDFT" in model_card(CONFIG, RUN, CERTIFICATE)


@pytest.mark.parametrize("config", [CONFIG, SFT])
@pytest.mark.parametrize("vision", [False, True])
def test_its_code_compiles_and_names_the_right_class(config: dict[str, Any], vision: bool) -> None:
    card = model_card(config, RUN, CERTIFICATE, vision=vision)
    (code,) = re.findall(r"```python\n(.*?)```", card, flags=re.DOTALL)
    compile(code, "card", "exec")
    assert ("AutoModelForMultimodalLM" in code) == vision
    assert ("AutoModelForCausalLM" in code) == (not vision)
    assert "torch.bfloat16" in code
    assert "trust_remote_code" not in card
    assert not re.search(r"\{\{|\{%|\n\n\n", card)
    assert card.endswith("\n")


def hostile_run() -> dict[str, Any]:
    dataset = {
        "source": {"name": SOURCE, "kind": NAMES[0], "revision": NAMES[1]},
        "caps": None,
        "funnel": {**RUN["dataset"]["funnel"], "rejected": dict.fromkeys(NAMES, 1)},
        "redaction": {"enabled": True, "counts": dict.fromkeys(NAMES, 1)},
    }
    return {"backend": NAMES[2], "dataset": dataset}


def test_hostile_names_are_no_markup() -> None:
    certificate = changed(CERTIFICATE, base=NAMES[3], revision=NAMES[2])
    rows = [(name, {name: name for name in NAMES}) for name in NAMES]
    lora = {**CONFIG["lora"], "target_modules": list(NAMES)}
    card = model_card(
        changed(CONFIG, lora=lora), hostile_run(), certificate, evaluation=Evaluation(2, 1, NAMES[0], rows)
    )
    assert "license" not in metadata_of(card)
    body = card.split("\n---\n", 1)[1]
    assert not re.search(r"<script|<img|^---", body, flags=re.MULTILINE)
    for table in tables(card):
        assert len({line.count("|") for line in table}) == 1, table


TEXT = st.text(st.characters(blacklist_categories=("Cs",)), max_size=30)


@settings(deadline=None)
@given(TEXT, TEXT, TEXT)
def test_metadata_survives_any_name(base: str, source: str, license_id: str) -> None:
    certificate = changed(CERTIFICATE, base=base)
    run = changed(RUN, dataset=changed(RUN["dataset"], source={"name": source, "kind": "hub", "revision": source}))
    license = {"license": license_id}
    card = model_card(CONFIG, run, certificate, license=license)
    assert metadata_of(card) == model_metadata(changed(run, objective="sdft"), certificate, license, False)


@settings(deadline=None)
@given(TEXT)
def test_a_cell_is_no_markup(text: str) -> None:
    inner = re.sub(r"&#\d+;", "", cell(text))
    assert not re.search(r"[<>`|*_\[\]\n\r\\&#~!\"']", inner)


COMMIT = "0123456789abcdef0123456789abcdef01234567"


def adapters_card(base: dict[str, str], vision: bool = True) -> str:
    run = {**RUN, "base": {"commit": COMMIT} if base["base_kind"] == "hub" else {"config.json": "x"}}
    return adapter_card(
        CONFIG, run, base, license={"license": "mit"}, vision=vision, targets=("q_proj", "o_a"), steps=7
    )


def test_an_adapters_card_says_base_commit_targets_and_how_to_load_it() -> None:
    card = adapters_card({"base": "owner/base", "base_kind": "hub"})
    assert metadata_of(card) == {
        "license": "mit",
        "library_name": "peft",
        "pipeline_tag": "image-text-to-text",
        "base_model": "owner/base",
        "base_model_relation": "adapter",
        "tags": ["lora", "agent-traces", "tool-use", "sdft"],
    }
    for row in (
        "| base | `owner/base` (on the Hub) |",
        f"| commit of the base | `{COMMIT}` |",
        "| trained modules | `q_proj`, `o_a`, of the language model |",
        "| LoRA rank, alpha, dropout | 64, 128, 0.0 |",
        "| optimizer steps | 7 |",
    ):
        assert row in card
    (code,) = re.findall(r"```python\n(.*?)```", card, flags=re.DOTALL)
    assert f'AutoModelForMultimodalLM.from_pretrained(base_id, revision="{COMMIT}", dtype=torch.bfloat16' in code
    assert "AutoModelForMultimodalLM` and no other class" in card
    text = adapters_card({"base": "owner/base", "base_kind": "hub"}, vision=False)
    assert "AutoModelForCausalLM.from_pretrained(base_id" in text
    assert "Multimodal" not in text


@settings(deadline=None)
@given(st.text() | st.sampled_from(NAMES))
def test_an_adapters_card_of_a_folder_pins_nothing_and_its_code_compiles(name: str) -> None:
    card = adapters_card({"base": name, "base_kind": "folder"})
    assert "not a Hub model" in card
    assert "revision=" not in card
    assert "base_model" not in metadata_of(card)
    block = card.split("```python\n")[1].split("\n```")[0]
    line = next(x for x in block.splitlines() if x.startswith("base_id = "))
    scope: dict[str, Any] = {}
    exec(line, scope)
    assert scope["base_id"] == name
