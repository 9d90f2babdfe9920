"""Writes a page per command, and the pages of templates and exit codes: `make pages`. A test fails when one is stale.

What the pages say is what the program says: help texts, the profiles' and templates' own files, the classes of errors.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer.main

from sdft_cli import errors
from sdft_cli.cli.main import app
from sdft_cli.cli.support.options import complete_help
from sdft_cli.config import profile_names
from sdft_cli.resources import resource, resource_text

DOCS = Path(__file__).parent
_MADE = "Made from {} by `make pages`; do not edit."
_HELP = {"help", "install_completion", "show_completion"}


def commands() -> dict[str, Any]:
    """Return every command by its name, in the order of `sdft --help`."""
    return dict(typer.main.get_command(app).commands)  # type: ignore[attr-defined]


def _plain(text: str) -> str:
    """Return a help text as Markdown: without rich's markup, angle brackets and pipes escaped."""
    text = re.sub(r"(?<!\\)\[/?(?:dim|bold|red|italic)?\]", "", text).replace("\\[", "[")
    return text.replace("|", "\\|").replace("<", "&lt;").replace(">", "&gt;")


def _row(parameter: Any, context: Any) -> str:
    if parameter.param_type_name == "argument":
        names, value = [(parameter.metavar or parameter.name.upper()).strip("[]").replace("|", "\\|")], ""
    else:
        names = [*parameter.opts, *parameter.secondary_opts]
        value = "" if parameter.is_flag else f" {_value_of(parameter, context)}"
    shown = ", ".join(f"`{name}{value}`" for name in names)
    return f"| {shown} | {_plain(parameter.help or '')} |"


def _value_of(parameter: Any, context: Any) -> str:
    """Return the word that stands for an option's value: N, PATH, TEXT."""
    word = parameter.metavar or re.sub(r"^list\[(.*)\]$", r"\1", parameter.display_type(context).strip("<>"))
    return {"str": "TEXT", "int": "N", "float": "X", "int range": "N", "float range": "X"}.get(word, word.upper())


def _table(title: str, parameters: list[Any], context: Any) -> Iterator[str]:
    if parameters:
        yield f"\n## {title}\n"
        yield f"| {'argument' if title == 'Arguments' else 'option'} | what it does |\n| --- | --- |"
        yield from (_row(parameter, context) for parameter in parameters)


def command_page(name: str, command: Any) -> str:
    """Return the page of a command: what it does, an example, arguments and options by group."""
    context, panel = command.context_class(command, info_name=name), None
    for parameter in command.params:
        panel = complete_help(parameter, panel)
    text, _, example = inspect.cleandoc(command.callback.__doc__ or "").partition("Example: ")
    usage = " ".join([f"sdft {name}", "[OPTIONS]", *_arguments_of(command)])
    lines = [f"# sdft {name}\n", f"{_MADE.format('the command itself')}\n", f"    {usage}\n", text.strip()]
    lines += [f"\nFor example:\n\n    {example.strip()}"] if example else []
    options = [p for p in command.params if p.param_type_name == "option" and p.name not in _HELP and not p.hidden]
    lines += _table("Arguments", [p for p in command.params if p.param_type_name == "argument"], context)
    for group in dict.fromkeys(p.rich_help_panel for p in options):
        lines += _table(group or "Options", [p for p in options if p.rich_help_panel == group], context)
    lines.append("\nExit codes: see [exit codes](../exit-codes.md).")
    return "\n".join(lines) + "\n"


def _arguments_of(command: Any) -> list[str]:
    found = [p for p in command.params if p.param_type_name == "argument"]
    return [(p.metavar or (p.name.upper() if p.required else f"[{p.name.upper()}]")) for p in found]


def _first_comment(text: str) -> str:
    """Return the comment at a file's beginning: lines with `#`, or Jinja's."""
    if found := re.match(r"\{#-?\s*(.*?)\s*-?#\}", text, re.DOTALL):
        return re.sub(r"\s+", " ", found[1])
    lines = []
    for line in text.splitlines():
        if not line.startswith("#"):
            break
        lines.append(line.lstrip("# "))
    return " ".join(lines)


WORDINGS = {
    "expert_reference": "The target run's: the expert's turn in a block, in a last user message. The default.",
    "again": "The expert's turn five times in the model's own turns, each asked for again. The demo's.",
    "own_turn": "The expert's turn once in the model's own turn, then asked for again.",
    "examples": "Three short examples of repeating, then the expert's turn to be repeated.",
    "repeat": "A block and the order to repeat it. Small models begin their answer with the block's tag.",
}
"""What each wording of the teacher's message is; the files hold nothing but the wording."""


def _names(folder: str, suffix: str) -> list[str]:
    return sorted(path.name for path in resource("templates", folder).iterdir() if path.name.endswith(suffix))


def templates_page() -> str:
    """Return the page of profiles, teacher's wordings and chat templates."""
    lines = ["# Profiles and templates\n", _MADE.format("`templates/`"), "\n## Profiles\n"]
    lines.append("`sdft train --profile NAME`, or a YAML file of your own; [settings](settings.md) have all values.\n")
    lines += ["| profile | what it is for |\n| --- | --- |"]
    for name in profile_names():
        lines.append(f"| `{name}` | {_first_comment(resource_text('templates', 'profiles', f'{name}.yaml'))} |")
    lines.append("\n## Teacher's wordings\n")
    lines.append(
        "`sdft prepare --teacher-template NAME`; a text file of your own works as well: `{reference}` is where the "
        "expert's turn goes, and lines `[user]` and `[assistant]` begin messages. `sdft gate --templates A,B` ranks "
        "them.\n"
    )
    for file in _names("teacher", ".txt"):
        name = file.removesuffix(".txt")
        text = resource_text("templates", "teacher", file).strip()
        lines.append(f"### {name}\n\n{WORDINGS[name]}\n\n```text\n{text}\n```\n")
    lines += ["## Chat templates\n", "`sdft prepare --chat-template NAME`, for families whose own writes no tools.\n"]
    lines += ["| template | what it is |\n| --- | --- |"]
    for file in _names("chat", ".jinja"):
        lines.append(
            f"| `{file.removesuffix('.jinja')}` | {_first_comment(resource_text('templates', 'chat', file))} |"
        )
    return "\n".join(lines) + "\n"


def exit_codes_page() -> str:
    """Return the page of exit codes, from the classes of errors."""
    by_code: dict[int, list[str]] = {0: ["Everything was done."]}
    for kind in sorted(errors.SdftError.__subclasses__(), key=lambda kind: kind.exit_code):
        told = inspect.cleandoc(kind.__doc__ or "").splitlines()[0]
        by_code.setdefault(kind.exit_code, []).append(told)
    rows = [f"| {code} | {' '.join(told)} |" for code, told in sorted(by_code.items())]
    head = ["# Exit codes\n", f"{_MADE.format('`sdft_cli/errors.py`')}\n", "| code | when |\n| ---: | --- |"]
    foot = "\nEvery error is one sentence on stderr that says what to do next. Results are on stdout."
    return "\n".join([*head, *rows, foot]) + "\n"


def pages() -> dict[Path, str]:
    """Return every page that is made, by its path."""
    found = {DOCS / "commands" / f"{name}.md": command_page(name, command) for name, command in commands().items()}
    return found | {DOCS / "templates.md": templates_page(), DOCS / "exit-codes.md": exit_codes_page()}


if __name__ == "__main__":
    for path, text in pages().items():
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
