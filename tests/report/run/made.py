"""A run folder from made-up numbers, as `sdft train` writes one; and the same with hostile text in every field."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from sdft_cli.records.json_files import write_json
from tests.evaluation.documents import document

HOSTILE = (
    "</script><script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "\x1b[31mred\x1b[0m\x1b]0;title\x07",
    "[bold red]markup[/bold red] [/foo] [link=http://x]y[/link]",
    "abc\u202edcba\u202c\u2066x\u2069",
    "</pre></details></table></style><style>*{display:none}</style>",
    "{{ 7 * 7 }}{% raw %}<!--",
    "' onmouseover='alert(1)' style='position:fixed",
    "line\r\nbreak\x00\x08\u2028\ud800",
    "a" * 1_000_000,
)


def metrics(steps: int) -> list[dict[str, Any]]:
    return [
        {
            "step": step,
            "loss": 2 / step,
            "kl_per_token": 2 / step,
            "rollout_length": 20.0 + step,
            "finished_share": min(1.0, step / steps),
            "tool_valid_share": None if step % 2 else 0.5,
            "learning_rate": 1e-3 * (1 - step / (steps + 1)),
            "grad_norm": 1.0,
            "updated": True,
            "tokens_per_second": 100.0,
            "seconds": 3.0,
            "phase_seconds": {"rollout": 1.5, "teacher": 0.5, "student": 1.0},
        }
        for step in range(1, steps + 1)
    ]


def sample(step: int, own: bool = True) -> dict[str, Any]:
    tokens = ["Let", " me", " read", ".", "\n", "<tool_call>", "Read", "a.py", "<|im_end|>"]
    kinds = ["prose"] * 5 + ["control", "tool", "argument", "control"]
    losses = [0.0, 0.01, 0.1, 0.5, 1.5, 3.0, 5.0, 0.0, 0.2]
    choices = [[1, "Read", 0.6], [2, "Write", 0.3], [3, "Bash", 0.05]]
    role = {"p": 0.6, "choices": choices}
    worst = [{"at": at, "token": 1, "student": role, "teacher": {**role, "p": 0.3}} for at in (4, 5, 6)]
    sums = {
        "trajectories": 2,
        "kinds": {"prose": [2.1, 10], "tool": [5.0, 2]},
        "positions": {"0": [0.5, 2], "3": [9.0, 8]},
    }
    return {
        "step": step,
        "record_id": f"s/{step}",
        "on_policy": own,
        "finished": True,
        "rollout": "".join(tokens),
        "reference": "Read(a.py)",
        "measure": "kl_per_token",
        "tokens": tokens,
        "kinds": kinds,
        "first_with_loss": 0,
        "per_token": losses,
        "worst": worst,
        "sums": {"rollouts" if own else "expert": sums},
    }


def answers(step: int, texts: list[str], reference: bool) -> dict[str, Any]:
    facts = {"finished": True, "kl": 1.0, "rollout_tokens": 4, "nll": 3.0, "reference_tokens": 6, "tools": ""}
    more = {"reference": "The expert's."} if reference else {}
    found = [{"record_id": f"h/{i}", "text": text, "flags": {}, **facts, **more} for i, text in enumerate(texts)]
    return {"step": step, "answers": found}


HELDOUT = {"kl_per_token": 1.0, "expert_nll_per_token": 0.5, "tool_valid_share": 0.5, "finished_share": 1.0}


def documents(steps: int) -> dict[str, Any]:
    """The JSON of a run folder: file -> document, or list of lines."""
    dataset = {"name": "mine", "path": "data/mine", "records_hash": "h", "funnel": {"train": 5}}
    said = [answers(step, ["Yes.", f"At {step}."], step == 0) for step in range(0, steps, 5)]
    return {
        "run.json": {
            "format": "sdft-run",
            "status": "finished",
            "objective": "sdft",
            "backend": "transformers",
            "backend_reason": "no GPU",
            "model": "m",
            "base": {"commit": "c0ffee", "name": "m"},
            "dataset": dataset,
            "environment": {"sdft": "0.1", "torch": "2.12"},
        },
        "config.json": {"optim": {"max_steps": steps}, "distill": {"divergence": "forward_kl"}, "seed": 0},
        "gate.json": {
            "passed": True,
            "verdict": "The gate passes.",
            "lifts": {"likelihood": {"value": 1.0, "low": 0.5, "high": 1.5, "rule": "above 0", "passed": True}},
            "conduct": {},
        },
        "metrics.jsonl": metrics(steps),
        "heldout.jsonl": [{"step": step, **HELDOUT} for step in range(0, steps, 5)],
        "heldout_answers.jsonl": said,
        "samples.jsonl": [sample(step, step % 2 == 1) for step in range(1, steps, 3)],
        "eval.json": document(tuned=("tuned", 0.5)),
        "merged/merge-certificate.json": {
            "passed": False,
            "failures": ["weights differ"],
            "base": "m",
            "dtype": "bfloat16",
        },
    }


KEPT = {"format", "divergence", "kind", "objective", "rule", "sdft-run"}
"""Keys whose values the code compares with; hostile ones are tried one by one."""


def poisoned(value: Any, number: int = 0, key: str = "") -> Any:
    """Return a document with a hostile text in the place of every text, each time another one."""
    if isinstance(value, dict):
        return {k: poisoned(v, number + i, k) for i, (k, v) in enumerate(value.items())}
    if isinstance(value, list):
        return [poisoned(v, number + i, key) for i, v in enumerate(value)]
    if isinstance(value, str) and key not in KEPT:
        return HOSTILE[(number * 7 + len(key)) % (len(HOSTILE) - 1)]  # the million apart: it takes time
    return value


def write_run(folder: Path, found: dict[str, Any]) -> Path:
    for name, content in found.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if name.endswith(".jsonl"):
            path.write_text("".join(f"{json.dumps(line)}\n" for line in content))
        else:
            path.write_text(json.dumps(content))
    return folder


def made_run(folder: Path, steps: int = 20) -> Path:
    """A whole run."""
    return write_run(folder, documents(steps))


def hostile_run(folder: Path) -> Path:
    """A run with hostile text in every field, in names of models, phases and packages too."""
    found = {name: poisoned(content, len(name)) for name, content in documents(20).items()}
    found["run.json"]["environment"] = dict.fromkeys(HOSTILE, "1")
    found["run.json"]["status"] = HOSTILE[-1]
    for i, line in enumerate(found["metrics.jsonl"]):
        line["phase_seconds"] = {HOSTILE[i % 9]: 1.0, "x": 0.5}
        line[f"{HOSTILE[0]}_per_token"] = 0.5
        line["grad_norm"] = math.inf if i == 3 else "text"
    for i, line in enumerate(found["samples.jsonl"]):
        line["tokens"] = [*HOSTILE, *(["t"] * 3_000)]
        line["kinds"] = [*reversed(HOSTILE)]
        line["per_token"] = [5.0, *([0.3] * 8), 9.0, *([0.5] * 3_000)]
        line["worst"] = [
            {"at": 9, "token": 1, "student": {"p": 0.1, "choices": [[1, text, 0.5] for text in HOSTILE]}},
            {"at": -4, "student": 3},
            {"at": "x"},
            "no mapping",
        ]
        line["sums"] = {"rollouts": {"kinds": {HOSTILE[i % 9]: [1, 2], "tool": [1, 2]}, "positions": {"1e9": [1, 1]}}}
    result = document(**{text[:60]: ("control", 0.5) for text in HOSTILE[:4]})
    for found_model in result["contenders"].values():
        for i, item in enumerate(found_model["items"]):
            item["text"] = item["record_id"] = HOSTILE[i % len(HOSTILE)] + str(i)
    found["eval.json"] = result
    return write_run(folder, found)


def write_evaluation(path: Path) -> Path:
    write_json(path, document(tuned=("tuned", 0.5)))
    return path
