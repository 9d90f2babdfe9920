"""Cards: the README.md of a dataset folder and of a merged checkpoint, with Hub metadata, from `templates/cards/`."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from sdft_cli.choices import DIVERGENCES, TOKEN_WEIGHTS
from sdft_cli.report.merge_rows import merge_rows
from sdft_cli.report.statistics import Statistics, cells_of
from sdft_cli.report.templates import code_span, render
from sdft_cli.report.told import sentences

_SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))
_LARGEST = "1M<n<10M"


def _config(name: str, files: Mapping[str, str], **more: Any) -> dict[str, Any]:
    return {"config_name": name, **more, "data_files": [{"split": s, "path": path} for s, path in files.items()]}


def hub_metadata(manifest: Mapping[str, Any], license_id: str | None = None) -> dict[str, Any]:
    """Return the metadata that the Hub reads from the top of the card; `configs` is what `datasets` loads."""
    funnel, source = manifest["funnel"], manifest["source"]
    splits = [split for split in ("train", "validation") if funnel[split]]
    metadata: dict[str, Any] = {"license": license_id} if license_id else {}
    metadata["pretty_name"] = f"Per-turn records from {source['name']}"
    if source["kind"] == "hub":
        metadata["source_datasets"] = [source["name"]]
    metadata["task_categories"] = ["text-generation"]
    metadata["tags"] = ["agent-traces", "tool-use", "sdft"]
    metadata["size_categories"] = [next((name for limit, name in _SIZES if funnel["kept"] < limit), _LARGEST)]
    metadata["configs"] = [
        _config("records", {split: f"{split}.parquet" for split in splits}, default=True),
        _config("sessions", {"train": "sessions.parquet"}),
        _config("rejected", {"train": "rejected.parquet"}),
    ]
    return metadata


def dataset_card(
    manifest: Mapping[str, Any], license_id: str | None = None, statistics: Statistics | None = None
) -> str:
    """Return the card of a prepared dataset.

    Args:
        manifest: what `sdft prepare` writes; `redaction`, if there, is `{"enabled": bool, "counts": {kind: n}}`.
        license_id: the source's licence where it is known.
        statistics: of the same records; without them the card has no table of lengths and of tools.
    """
    return render(
        "cards/dataset.md.jinja",
        metadata=yaml.safe_dump(hub_metadata(manifest, license_id), sort_keys=False),
        manifest=manifest,
        license=license_id,
        funnel=manifest["funnel"],
        told=sentences(manifest, code_span),
        config=manifest["config"],
        statistics=statistics,
        cells=lambda summary: " | ".join(cells_of(summary)),
    )


MODEL_ID = "your-name/your-model"
"""Stands in a model card's code until it is known where the checkpoint will be."""


@dataclass(frozen=True)
class Evaluation:
    """What a model card says of an evaluation. `rows`: a label, and the text of each contender."""

    records: int
    sessions: int
    dataset: str
    rows: Sequence[tuple[str, Mapping[str, str]]]

    @classmethod
    def of(cls, document: Mapping[str, Any], rows: Sequence[tuple[str, Mapping[str, str]]]) -> Evaluation:
        """Take the counts from what `sdft eval` wrote."""
        return cls(document["records"], document["facts"]["sessions"], document["dataset"]["name"], rows)


_TEACHERS = {
    "base": "the base model itself, with the adapter switched off",
    "ema": "the same model with a moving average of the adapter",
    "live": "the same model as it is at that step, adapter included",
}


def model_metadata(
    run: Mapping[str, Any], certificate: Mapping[str, Any], license: Mapping[str, str], vision: bool
) -> dict[str, Any]:
    """Return the metadata that the Hub reads from the top of a model card; names that it does not know are left out."""
    source = run["dataset"]["source"]
    metadata: dict[str, Any] = {**license, "library_name": "transformers"}
    metadata["pipeline_tag"] = "image-text-to-text" if vision else "text-generation"
    if certificate["base_kind"] == "hub":
        metadata |= {"base_model": certificate["base"], "base_model_relation": "finetune"}
    if source["kind"] == "hub":
        metadata["datasets"] = [source["name"]]
    metadata["tags"] = ["agent-traces", "tool-use", "sft" if run.get("objective") == "sft" else "sdft"]
    return metadata


def model_card(
    config: Mapping[str, Any],
    run: Mapping[str, Any],
    certificate: Mapping[str, Any],
    *,
    license: Mapping[str, str] | None = None,
    vision: bool = False,
    evaluation: Evaluation | None = None,
) -> str:
    """Return the card of a merged checkpoint.

    Args:
        config: the run's resolved training configuration.
        run: what `run.json` says; what it does not say about the dataset is left out.
        certificate: of the merge, one that passed.
        license: the Hub's keys `license`, `license_name`, `license_link` of the base, where they are known.
        vision: the base has a vision tower.
        evaluation: None: there was none.
    """
    sdft = config["objective"] == "sdft"
    best = certificate["adapter"]["name"] == "adapter-best"
    rows = evaluation.rows if evaluation else ()
    contenders = list(dict.fromkeys(name for _, values in rows for name in values))
    metadata = model_metadata({**run, "objective": config["objective"]}, certificate, license or {}, vision)
    return render(
        "cards/model.md.jinja",
        metadata=yaml.safe_dump(metadata, sort_keys=False),
        base=certificate["base"],
        sdft=sdft,
        config=config,
        certificate=certificate,
        dataset={"funnel": None, "caps": None, "redaction": None, **run["dataset"]},
        teacher=_teacher(config["teacher"]),
        divergence=dict(zip(("short", "long"), _divergence(config["distill"]), strict=True)),
        share=_share(config["distill"], config["teacher"].get("start", 0)),
        best_note=f"; of the adapter that was best on held-out records, after step {run.get('best_step')}"
        if best
        else "",
        settings=_settings(config, run, certificate, sdft),
        contenders=contenders,
        evaluated=evaluation,
        evaluation=[(label, [values.get(name, "-") for name in contenders]) for label, values in rows],
        merge=merge_rows(certificate),
        model_id=MODEL_ID,
        license=license,
        vision=vision,
    )


_KINDS = {"hub": "on the Hub", "package": "in a Python package, converted by `sdft`", "folder": "a folder"}


def _literal(text: str) -> str:
    """Return a text as a Python string."""
    return f'"{text}"' if re.fullmatch(r"[A-Za-z0-9 ._/:@+-]*", text) else repr(text)


def adapter_card(
    config: Mapping[str, Any],
    run: Mapping[str, Any],
    base: Mapping[str, str],
    *,
    license: Mapping[str, str] | None = None,
    vision: bool = False,
    targets: Sequence[str],
    steps: int,
) -> str:
    """Return the card of an adapter that training left behind.

    Args:
        config: the run's resolved training configuration.
        run: what `run.json` says.
        base: `base`, its name as others read it, and `base_kind`: hub, package or folder.
        license: the Hub's keys `license`, `license_name`, `license_link` of the base, where they are known.
        vision: the base has a vision tower.
        targets: names of the modules that it sits on.
        steps: optimizer steps behind this adapter.
    """
    hub = base["base_kind"] == "hub"
    commit = (run.get("base") or {}).get("commit") or (config["revision"] if hub else None)
    sdft = config["objective"] == "sdft"
    metadata: dict[str, Any] = {**(license or {}), "library_name": "peft"}
    metadata["pipeline_tag"] = "image-text-to-text" if vision else "text-generation"
    if hub:
        metadata |= {"base_model": base["base"], "base_model_relation": "adapter"}
    metadata["tags"] = ["lora", "agent-traces", "tool-use", "sdft" if sdft else "sft"]
    return render(
        "cards/adapter.md.jinja",
        metadata=yaml.safe_dump(metadata, sort_keys=False),
        base=base["base"],
        base_id=_literal(base["base"]),
        kind=base["base_kind"],
        kinds=_KINDS,
        revision=commit,
        pinned=f", revision={_literal(commit)}" if commit else "",
        config=config,
        backend=run["backend"],
        targets=targets,
        steps=steps,
        begins_with=run.get("init_adapter"),
        sdft=sdft,
        loader="AutoModelForMultimodalLM" if vision else "AutoModelForCausalLM",
        model_id="your-name/your-adapter",
        license=license,
        vision=vision,
    )


def adapted_card(certificate: Mapping[str, Any], vision: bool) -> str:
    """Return the card of a checkpoint that an adapter of another trainer was merged into.

    Args:
        certificate: of the merge, one that passed.
        vision: the base has a vision tower.
    """
    license = certificate["license"]
    metadata: dict[str, Any] = {**license, "library_name": "transformers"}
    metadata["pipeline_tag"] = "image-text-to-text" if vision else "text-generation"
    if certificate["base_kind"] == "hub":
        metadata |= {"base_model": certificate["base"], "base_model_relation": "finetune"}
    return render(
        "cards/adapted.md.jinja",
        metadata=yaml.safe_dump(metadata, sort_keys=False),
        certificate=certificate,
        merge=merge_rows(certificate),
        model_id=MODEL_ID,
        license=license,
        vision=vision,
    )


def _divergence(distill: Mapping[str, Any]) -> tuple[str, str]:
    named = DIVERGENCES[distill["divergence"]]
    short, long = named.symbol, named.phrase
    if distill["divergence"] == "jsd":
        long += f" (weight of the teacher {distill['jsd_beta']})"
    if distill["divergence"] == "mixed_kl":
        long += f" (weight of the forward one {distill['kl_mix']})"
    if distill["divergence"] == "entropy_aware_kl":
        long += f" (above {distill['entropy_threshold']} nats)"
    if distill["support"] == "full":
        return short, f"{long} over the whole vocabulary"
    rest = "the others counted as one" if distill["top_k_tail"] else "renormalised"
    return short, f"{long} over the {distill['top_k']} likeliest tokens of the {distill['top_k_of']}, {rest},"


def _teacher(teacher: Mapping[str, Any]) -> str:
    if teacher["kind"] == "base" and (start := teacher.get("start", 0)):
        return f"the same model with the adapter as it was after {start} steps of cross-entropy on the expert's turns"
    return _TEACHERS[teacher["kind"]]


def _share(distill: Mapping[str, Any], steps: int) -> str:
    """Say whose answers were trained on; `steps` of cross-entropy came before."""
    before = f"behind {steps} steps of cross-entropy on the expert's turns, " if steps else ""
    return before + _share_of_own(distill)


def _share_of_own(distill: Mapping[str, Any]) -> str:
    on_policy, start = distill["lambda_on_policy"], distill.get("lambda_start")
    if start is not None:
        return (
            f"the share of records that were trained on the model's own answer moved from {start:.0%} to "
            f"{on_policy:.0%} in {distill['lambda_steps']} steps, the others on the expert's text"
        )
    if on_policy == 1:
        return "every record was trained on the model's own answer, none on the expert's text"
    if on_policy == 0:
        return "no record was trained on the model's own answer: the teacher read the expert's text"
    return f"{on_policy:.0%} of the records were trained on the model's own answer, the others on the expert's text"


def _targets(names: list[str] | str) -> str:
    return code_span(names) if isinstance(names, str) else ", ".join(map(code_span, names))


def _additions(config: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """Return what a run added to the objective; runs of earlier versions have none of these settings."""
    distill, rollout, start = config["distill"], config["rollout"], config["teacher"].get("start")
    weights, share = distill.get("token_weights", "none"), distill.get("lambda_start")
    tokens = rollout.get("start_tokens")
    found = {
        "steps of cross-entropy before": start,
        "lambda on-policy at first": share is not None and f"{share}, for {distill['lambda_steps']} steps",
        "max rollout tokens at first": tokens
        and tokens < rollout["max_new_tokens"]
        and f"{tokens}, for {rollout['grow_steps']} steps",
        "decay of later turns": config["optim"].get("position_decay"),
        "clip of a token's part of the loss": distill.get("token_clip") and f"{distill['token_clip']} nats",
        "token weights": weights != "none" and f"{weights}: {TOKEN_WEIGHTS[weights]}",
    }
    return [(name, value) for name, value in found.items() if value]


def _settings(
    config: Mapping[str, Any], run: Mapping[str, Any], certificate: Mapping[str, Any], sdft: bool
) -> list[tuple[str, str]]:
    lora, optim, rollout, distill = (config[key] for key in ("lora", "optim", "rollout", "distill"))
    frozen = "4 bits (NF4)" if config["load_in_4bit"] else config["dtype"]
    rows: list[tuple[str, Any]] = [
        ("base checkpoint", code_span(certificate["base"])),
        ("objective", "SDFT" if sdft else "SFT (cross-entropy)"),
        ("backend", code_span(run["backend"]) if "backend" in run else "-"),
        ("frozen weights in training", frozen),
        ("max sequence length", config["max_seq_tokens"]),
        ("max teacher prompt tokens", config["max_prompt_tokens"]),
        ("optimizer steps", optim["max_steps"]),
        ("batch size (records of a step)", optim["turns_per_step"]),
        ("learning rate", f"{optim['learning_rate']:g}, {optim['schedule']}"),
        ("warmup steps", optim["warmup_steps"]),
        ("weight decay", optim["weight_decay"]),
        ("LoRA rank", lora["rank"]),
        ("LoRA alpha", lora["alpha"]),
        ("LoRA dropout", lora["dropout"]),
        ("LoRA targets", _targets(lora["target_modules"])),
    ]
    if first := run.get("init_adapter"):
        rows.append(("begins with the adapter", f"{code_span(first['name'])}, sha256 {first['sha256'][:12]}"))
    if sdft:
        decay = f", decay {config['teacher']['ema_decay']}" if config["teacher"]["kind"] == "ema" else ""
        rows += [
            ("max rollout tokens", rollout["max_new_tokens"]),
            ("rollout temperature", rollout["temperature"]),
            ("rollout top-p", rollout["top_p"]),
            ("rollouts of a record", rollout["per_record"]),
            ("teacher", f"{config['teacher']['kind']}{decay}"),
            ("distillation loss", distill["divergence"].replace("_", " ").replace("kl", "KL")),
            ("KL temperature", distill["kl_temperature"]),
            ("lambda on-policy", distill["lambda_on_policy"]),
            *_additions(config),
        ]
    return [(name, str(value)) for name, value in [*rows, ("seed", config["seed"])]]
