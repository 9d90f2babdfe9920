"""The pages: those that are made are not stale, all can be reached, and everything that a user can type is told."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from docs import make_commands
from sdft_cli.config import profile_names
from sdft_cli.resources import resource

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"


def pages_in(node: Any) -> list[str]:
    """Return the pages of a navigation, depth first."""
    if isinstance(node, str):
        return [node]
    return [page for child in (node.values() if isinstance(node, dict) else node) for page in pages_in(child)]


@pytest.mark.parametrize("path", make_commands.pages(), ids=lambda path: path.name)
def test_a_made_page_is_not_stale(path: Path) -> None:
    assert path.read_text(encoding="utf-8") == make_commands.pages()[path], "run `make pages`"


def test_every_page_is_in_the_navigation_once() -> None:
    nav = pages_in(yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))["nav"])
    assert sorted(nav) == sorted(str(path.relative_to(DOCS)) for path in DOCS.rglob("*.md"))


def test_no_page_is_of_a_command_that_is_gone() -> None:
    assert {path.stem for path in (DOCS / "commands").glob("*.md")} == set(make_commands.commands())


@pytest.mark.parametrize("name", make_commands.commands())
def test_every_option_of_a_command_is_on_its_page(name: str) -> None:
    page = (DOCS / "commands" / f"{name}.md").read_text(encoding="utf-8")
    told = set(re.findall(r"`(--[a-z0-9-]+)", page))
    options = {
        word
        for parameter in make_commands.commands()[name].params
        if parameter.param_type_name == "option" and parameter.name != "help"
        for word in (*parameter.opts, *parameter.secondary_opts)
        if word.startswith("--")
    }
    assert options <= told


def test_every_profile_wording_and_chat_template_is_told() -> None:
    page = (DOCS / "templates.md").read_text(encoding="utf-8")
    told = set(re.findall(r"^(?:\| `|### )([\w.-]+)", page, re.MULTILINE))
    shipped = [path.name for kind in ("teacher", "chat") for path in resource("templates", kind).iterdir()]
    assert {name.rsplit(".", 1)[0] for name in shipped} | set(profile_names()) == told


def test_every_exit_code_is_told() -> None:
    page = (DOCS / "exit-codes.md").read_text(encoding="utf-8")
    assert re.findall(r"^\| (\d+) \| \S", page, re.MULTILINE) == ["0", "1", "2", "3", "4", "130"]


@pytest.mark.parametrize(
    "path", [*DOCS.rglob("*.md"), ROOT / "README.md"], ids=lambda path: str(path.relative_to(ROOT))
)
def test_commands_in_pages_exist_with_their_options(path: Path) -> None:
    """Lines of code blocks that begin with `sdft`; whether values fit is not asked."""
    known = make_commands.commands()
    text = re.sub(r"\\\n\s+", "", path.read_text(encoding="utf-8"))
    for line in re.findall(r"^    !?sdft ([a-z]+[^#;\n]*)", text, re.MULTILINE):
        name, *words = line.split()
        assert name in known, line
        options = {word for parameter in known[name].params for word in (*parameter.opts, *parameter.secondary_opts)}
        assert {word.split("=")[0] for word in words if word.startswith("--")} <= options, line
