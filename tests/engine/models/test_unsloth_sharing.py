"""Prefix sharing with unsloth's CPU backend, against the transformers backend on the same rollouts."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from sdft_cli.engine.models.load import has_package  # noqa: E402
from tests.engine.models.families import make_model  # noqa: E402
from tests.engine.trees import tiny  # noqa: E402

pytestmark = [
    pytest.mark.skipif(not has_package("unsloth"), reason="unsloth is not installed"),
    pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU"),
]
ROOT = Path(__file__).resolve().parents[3]
KINDS = {"qwen3_5_text": "depth_first", "olmo2": "packed", "llama": "none"}
"""The first two are loaded by `FastModel`, the last one by `FastLanguageModel`."""


@pytest.fixture(scope="module")
def folders(smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    made = {"qwen3_5_text": tiny("hybrid"), "olmo2": make_model("olmo2"), "llama": make_model("llama")}
    found = {}
    for name, model in made.items():
        folder = tmp_path_factory.mktemp("models") / name
        model.save_pretrained(folder)
        for file in ("tokenizer.json", "tokenizer_config.json"):  # unsloth loads one; nothing reads it here
            shutil.copyfile(smollm2 / file, folder / file)
        found[name] = str(folder)
    return found


@pytest.fixture(scope="module")
def found(folders: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """What each library says and computes, one process each."""
    results = {}
    for library in ("transformers", "unsloth"):
        work = tmp_path_factory.mktemp(library)
        done = subprocess.run(
            [sys.executable, "-m", "tests.engine.models.unsloth_probe", library, *folders.values()],
            cwd=work,
            env={**os.environ, "PYTHONPATH": str(ROOT), "XDG_CACHE_HOME": str(work)},
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        results[library] = json.loads(done.stdout.strip().splitlines()[-1])
    return results


@pytest.mark.slow
def test_what_fast_model_loads_is_shared_and_what_fast_language_model_loads_is_not(
    folders: dict[str, str], found: dict[str, dict[str, Any]]
) -> None:
    for name, kind in KINDS.items():
        ours = found["unsloth"]["found"][folders[name]]
        assert ours["sharing"] == kind
        if kind != "none":
            assert ours["said"].startswith(f"Prefix sharing: {kind} (checked on this model")
        else:
            assert "unsloth's FastLanguageModel runs llama with an attention of its own, for which its" in ours["said"]
            assert found["transformers"]["found"][folders[name]]["sharing"] == "packed"


@pytest.mark.slow
@pytest.mark.parametrize("name", KINDS)
def test_loss_and_gradient_are_those_of_the_transformers_backend(
    name: str, folders: dict[str, str], found: dict[str, dict[str, Any]]
) -> None:
    plain, ours = (found[library]["found"][folders[name]] for library in ("transformers", "unsloth"))
    assert plain["loss"] > 1e-3
    assert ours["loss"] == pytest.approx(plain["loss"], rel=1e-3)
    assert ours["gradient"].keys() == plain["gradient"].keys()
    for parameter, numbers in plain["gradient"].items():
        expected, other = torch.tensor(numbers), torch.tensor(ours["gradient"][parameter])
        assert float((other - expected).norm()) <= 1e-3 * float(expected.norm()), parameter


@pytest.mark.slow
def test_unsloth_is_imported_before_transformers(found: dict[str, dict[str, Any]]) -> None:
    """It warns if it is not."""
    assert found["unsloth"]["before"] is False
    assert found["unsloth"]["order"] == []
