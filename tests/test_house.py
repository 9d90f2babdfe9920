"""The house: which room may import which, and that the shipped data files are there and load."""

from __future__ import annotations

import ast
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from sdft_cli.config import load_train_config, profile_names

ROOT = Path(__file__).resolve().parent.parent
LEAVES = {"errors", "resources"}
MAY_IMPORT: dict[str, set[str]] = {
    "errors": set(),
    "resources": {"errors"},
    "config": {*LEAVES},
    "records": {*LEAVES},
    "traces": {*LEAVES, "records"},
    "prompts": {*LEAVES, "records"},
    "prepare": {*LEAVES, "config", "records", "traces", "prompts"},
    "engine": {*LEAVES, "config", "records", "prompts"},
    "merge": {*LEAVES, "config", "records", "prompts", "engine"},
    "evaluate": {*LEAVES, "config", "records", "prompts", "engine"},
    "report": {*LEAVES, "config", "records"},
}
NO_TORCH = {"records", "traces", "prepare", "prompts", "report", "cli", "config", "errors", "resources"}
TORCH_FAMILY = {"torch", "peft", "accelerate", "unsloth", "unsloth_zoo", "safetensors", "trl"}
LAZY_IN_CLI = {"datasets", "transformers", "polars", "huggingface_hub", *TORCH_FAMILY}


def imports(path: Path) -> list[tuple[str, bool]]:
    """Every imported module of a file, and whether the import stands at module level."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    top = {id(node) for node in tree.body}
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(alias.name, id(node) in top) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"relative import in {path}"
            found += [(f"{node.module}.{alias.name}", id(node) in top) for alias in node.names]
    return found


def room(path: Path) -> str:
    return path.relative_to(ROOT / "sdft_cli").parts[0].removesuffix(".py")


FILES = sorted((ROOT / "sdft_cli").rglob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_rooms_import_one_way(path: Path) -> None:
    here = room(path)
    for module, _ in imports(path):
        parts = module.split(".")
        if parts[0] == "sdft_cli" and here in MAY_IMPORT and parts[1] not in ("__version__", here):
            assert parts[1] in MAY_IMPORT[here], f"{here} imports {module}"
        if here in NO_TORCH:
            assert parts[0] not in TORCH_FAMILY or here == "cli", f"{here} imports {module}"


@pytest.mark.parametrize("path", [p for p in FILES if room(p) in ("cli", "__main__")], ids=lambda p: p.name)
def test_commands_import_lazily(path: Path) -> None:
    for module, at_top in imports(path):
        if at_top:
            assert module.split(".")[0] not in LAZY_IN_CLI, f"{path.name} imports {module} at start-up"
            assert not module.startswith(("sdft_cli.engine", "sdft_cli.prepare", "sdft_cli.report")), module


def test_help_loads_no_heavy_module() -> None:
    code = (
        "import sys\nfrom sdft_cli.cli.main import app\n"
        "try: app(['--help'])\nexcept SystemExit as e: assert e.code == 0\n"
        f"heavy = {sorted(LAZY_IN_CLI | {'numpy', 'pydantic', 'jinja2'})}\n"
        "print([m for m in heavy if m in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "[]"
    assert "prepare" in done.stdout


def test_every_profile_loads() -> None:
    assert profile_names() == ["cpu-demo", "qwen3.5-9b-64k"]
    for name in profile_names():
        assert load_train_config(name).profile == name


def test_the_default_profile_is_the_target_run() -> None:
    config = load_train_config("qwen3.5-9b-64k")
    assert config.model == "unsloth/Qwen3.5-9B"
    assert (config.max_seq_tokens, config.max_prompt_tokens, config.rollout.max_new_tokens) == (65_536, 57_344, 8_192)
    assert (config.optim.max_steps, config.optim.turns_per_step, config.optim.warmup_steps) == (600, 1, 20)
    assert (config.optim.learning_rate, config.optim.weight_decay) == (1e-5, 0.0)
    assert (config.lora.rank, config.lora.alpha, config.lora.dropout) == (64, 128, 0.0)
    assert (config.rollout.temperature, config.rollout.top_p) == (0.8, 0.95)
    assert (config.distill.divergence, config.distill.kl_temperature, config.distill.lambda_on_policy) == (
        "reverse_kl",
        1.0,
        1.0,
    )


def test_the_wheel_carries_templates_and_data_cards(tmp_path: Path) -> None:
    pytest.importorskip("hatchling")
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)],
        cwd=ROOT,
        check=True,
        capture_output=True,
    )
    (wheel,) = tmp_path.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    for folder in ("templates", "data_cards"):
        for path in (ROOT / folder).rglob("*.*"):
            assert f"sdft_cli/{path.relative_to(ROOT)}" in names
    # Installed from the wheel, the files are found inside the package.
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    code = "from sdft_cli.resources import resource; print(resource('templates', 'chat', 'smollm2.jinja'))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path / "site", capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == str(tmp_path / "site" / "sdft_cli" / "templates" / "chat" / "smollm2.jinja")
