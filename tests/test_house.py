"""The house: which room may import which, and that the shipped data files are there and load."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from sdft_cli.config import load_train_config, profile_names

ROOT = Path(__file__).resolve().parent.parent
LEAVES = {
    *("errors", "resources", "texts", "intervals", "choices"),
    *("metrics", "threads", "notices", "places", "addresses"),
}
ENGINE = ("kernels", "models", "passes", "parallel", "objective", "remote", "plan", "score", "train", "doctor")
"""The rooms of the engine, each may import those before it."""
BELOW_ENGINE = {*LEAVES, "config", "records", "run_folder", "prompts"}
MAY_IMPORT: dict[str, set[str]] = {
    "errors": set(),
    "resources": {"errors"},
    "texts": {"errors"},
    "notices": {"errors"},
    "places": {"errors"},
    "addresses": {"errors"},
    "intervals": set(),
    "choices": set(),
    "threads": set(),
    "metrics": set(),
    "config": {*LEAVES},
    "records": {*LEAVES},
    "run_folder": {*LEAVES, "config", "records"},
    "traces": {*LEAVES, "records"},
    "prompts": {*LEAVES, "records"},
    "redaction": {*LEAVES, "records"},
    "preparation": {*LEAVES, "config", "records", "traces", "prompts", "redaction"},
    **{
        f"engine.{room}": {*BELOW_ENGINE, *(f"engine.{before}" for before in ENGINE[:place])}
        for place, room in enumerate(ENGINE)
    },
    "merging": {*BELOW_ENGINE, "redaction", "engine.models", "engine.passes"},
    "evaluation": {*BELOW_ENGINE, "engine.models", "engine.passes", "engine.objective", "engine.score", "engine.train"},
    "report": {*LEAVES, "config", "records"},
    "inspection": {*LEAVES, "config", "records", "prompts", "report"},
    "chat": {*LEAVES, "records", "prompts"},
}
"""Room -> rooms it may import. `stages` may import all of them, and `cli` and `api` `stages` too, inside functions."""
LAZY = {"stages", "cli", "api"}
VERSION = "sdft_cli.__version__"
"""Stands before all that the package hands on from `api`, so it may be imported from anywhere."""
MOST_MODULES = 16
NO_TORCH = {name for name in MAY_IMPORT if not name.startswith(("engine.", "merging", "evaluation"))} | LAZY
NO_TORCH_MODULES = {f"sdft_cli.evaluation.{name}" for name in ("compare", "differences", "document")}
"""Of `evaluation`, for `sdft compare`; they may import only each other and rooms without torch."""
TORCH_FAMILY = {"torch", "peft", "accelerate", "unsloth", "unsloth_zoo", "safetensors", "trl"}
HEAVY_ROOMS = {"engine", "preparation", "report", "evaluation", "merging", "inspection"}
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


def room_of(module: str) -> str:
    """Return the room of a dotted module: `engine.passes` of `sdft_cli.engine.passes.padded`, else the first part."""
    parts = module.split(".")[1:] or [""]
    return ".".join(parts[:2] if parts[0] == "engine" else parts[:1])


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


FILES = sorted((ROOT / "sdft_cli").rglob("*.py"))
MODULES = {module_of(path): path for path in FILES}
ROOMS = sorted({path.parent for path in FILES})


@pytest.mark.parametrize("module", sorted(MODULES))
def test_rooms_import_one_way(module: str) -> None:
    here = room_of(module) if module != "sdft_cli" else ""
    for name, _ in imports(MODULES[module]):
        if name.startswith("sdft_cli.") and here in MAY_IMPORT and name != VERSION:
            assert room_of(name) in {*MAY_IMPORT[here], here}, f"{here} imports {name}"
        if module in NO_TORCH_MODULES and name.startswith("sdft_cli."):
            assert room_of(name) in NO_TORCH or name.rpartition(".")[0] in NO_TORCH_MODULES, f"{module} imports {name}"
        if here in NO_TORCH or module in NO_TORCH_MODULES:
            assert name.split(".")[0] not in TORCH_FAMILY or here in LAZY, f"{here} imports {name}"


def circle_in(graph: dict[str, set[str]]) -> list[str]:
    """Return a circle of a graph as a path from a node back to itself; empty if there is none."""
    done: set[str] = set()

    def visit(node: str, path: list[str]) -> list[str]:
        if node in path:
            return [*path[path.index(node) :], node]
        if node not in done:
            for following in sorted(graph.get(node, ())):
                if circle := visit(following, [*path, node]):
                    return circle
            done.add(node)
        return []

    return next((circle for node in sorted(graph) if (circle := visit(node, []))), [])


def test_a_circle_is_found() -> None:
    assert circle_in({"a": {"b"}, "b": {"c", "d"}, "c": set(), "d": {"b"}}) == ["b", "d", "b"]
    assert circle_in({"a": {"b", "c"}, "b": {"c"}}) == []


def test_there_are_no_circles_of_files_or_rooms() -> None:
    """Imports inside functions count too: a circle that is hidden there is one all the same."""
    files: dict[str, set[str]] = {}
    for module, path in MODULES.items():
        found = {name if name in MODULES else name.rpartition(".")[0] for name, _ in imports(path) if name != VERSION}
        files[module] = {name for name in found if name in MODULES} - {module}
    assert circle_in(files) == []
    rooms: dict[str, set[str]] = {}
    for module, others in files.items():
        if module != "sdft_cli":
            rooms.setdefault(room_of(module), set()).update(room_of(m) for m in others if m != "sdft_cli")
    assert circle_in({name: others - {name} for name, others in rooms.items()}) == []


@pytest.mark.parametrize("folder", ROOMS, ids=lambda p: str(p.relative_to(ROOT)))
def test_rooms_are_small_and_have_a_map(folder: Path) -> None:
    """The docstring of a room names each of its modules (and rooms) with a phrase, and nothing that is not there."""
    modules = {p.stem for p in folder.glob("*.py")} - {"__init__", "__main__"}
    assert len(modules) <= MOST_MODULES
    inner = {p.parent.name for p in folder.glob("*/__init__.py")}
    text = ast.get_docstring(ast.parse((folder / "__init__.py").read_text(encoding="utf-8"))) or ""
    rows = [line.split(maxsplit=1) for line in text.split("\n\n", 1)[-1].splitlines()]
    told = {row[0].rstrip("/") for row in rows if len(row) == 2}
    assert told == modules | inner
    if len(rows) != len(told):
        raise AssertionError(f"the map of {folder.name} has a name without a phrase, or one twice")


@pytest.mark.parametrize(
    "path",
    [p for p in FILES if room_of(module_of(p)) in LAZY or p.name == "__main__.py"],
    ids=lambda p: str(p.relative_to(ROOT)),
)
def test_commands_import_lazily(path: Path) -> None:
    for module, at_top in imports(path):
        if at_top:
            assert module.split(".")[0] not in LAZY_IN_CLI, f"{path.name} imports {module} at start-up"
            assert not module.startswith(
                (
                    "sdft_cli.engine",
                    "sdft_cli.preparation",
                    "sdft_cli.report",
                    "sdft_cli.inspection",
                    "sdft_cli.evaluation",
                    "sdft_cli.merging",
                )
            ), module


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


def test_a_step_is_read_in_four_short_modules() -> None:
    """Those that docs/design.md names."""
    text = (ROOT / "docs" / "design.md").read_text(encoding="utf-8")
    listed = re.findall(r"^\| `(\S+\.py)` \|", text.split("## Where to start reading")[1].split("## ")[0], re.MULTILINE)
    assert 1 <= len(listed) <= 4
    assert sum(len((ROOT / "sdft_cli" / name).read_text(encoding="utf-8").splitlines()) for name in listed) <= 600


@pytest.mark.parametrize(
    "page", ["README.md", *(str(p.relative_to(ROOT)) for p in sorted((ROOT / "docs").rglob("*.md")))]
)
def test_modules_and_folders_that_pages_name_exist(page: str) -> None:
    """As `engine/train/` or `sdft_cli/config.py`: from the root, or inside the package."""
    named = re.findall(r"`([\w./-]+(?:\.py|/))`", (ROOT / page).read_text(encoding="utf-8"))
    assert [name for name in named if not any((ROOT / top / name).exists() for top in ("", "sdft_cli"))] == []


def test_the_readme_lists_every_file_and_room() -> None:
    tree = (ROOT / "README.md").read_text(encoding="utf-8").split("## The files\n")[1]
    listed = {indent: set(re.findall(rf"^ {{{indent}}}(\S+)", tree, re.MULTILINE)) for indent in (4, 6)}
    assert [name for name in listed[4] if not (ROOT / name).exists()] == []
    rooms = {f"{folder.relative_to(ROOT / 'sdft_cli')}/" for folder in ROOMS} - {"./", "engine/"}
    modules = {path.name for path in FILES if path.parent.name == "sdft_cli"} - {"__init__.py", "__main__.py"}
    assert listed[6] == rooms | modules


def test_every_profile_loads() -> None:
    assert profile_names() == ["cpu-demo", "qwen3.5-9b-64k", "recommended-qwen3.5-9b-64k"]
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


def test_the_recommended_profile_has_the_target_runs_caps() -> None:
    target, other = (load_train_config(name) for name in ("qwen3.5-9b-64k", "recommended-qwen3.5-9b-64k"))
    differs = {
        f"{section}.{key}"
        for section, fields in target.model_dump().items()
        if isinstance(fields, dict)
        for key, value in fields.items()
        if value != other.model_dump()[section][key]
    }
    changed = {"learning_rate", "schedule", "max_steps", "turns_per_step"}
    assert differs == {"distill.divergence", *(f"optim.{key}" for key in changed)}
    assert (
        other.model_copy(update={"profile": target.profile, "distill": target.distill, "optim": target.optim}) == target
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
