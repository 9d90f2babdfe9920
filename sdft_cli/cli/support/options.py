"""Options: those that give a setting take their words from the configuration; help says what holds without each."""

from __future__ import annotations

import functools
import importlib
import inspect
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any, Literal, get_args, get_origin

import typer
from typer.core import TyperCommand, TyperGroup

from sdft_cli.choices import DEFAULT_PROFILE as DEFAULT_PROFILE
from sdft_cli.cli.support import completion


class _Key(str):
    """Which setting an option gives: a key of `config.MODELS`, a dot, and the setting's dotted key."""


def option(*names: str, help: str | None, left_out: str | bool = True, panel: str | None = None, **more: Any) -> Any:
    """Return an option.

    Args:
        names: its names, if they are not that of the parameter.
        help: what it does.
        left_out: what holds without it, if that is not the parameter's default.
        panel: the group in which help shows it and the options behind it, up to the next that names one.
        more: arguments of `typer.Option`.
    """
    return typer.Option(*names, help=help, show_default=left_out, rich_help_panel=panel, **more)


def setting(key: str, *names: str, help: str | None = None, panel: str | None = None, **more: Any) -> Any:
    """Return an option that gives a setting, e.g. `train.optim.max_steps`; help describes it as the configuration does.

    Args:
        key: a key of `config.MODELS`, a dot, and the setting's dotted key.
        names, panel, more: as of `option`.
        help: what help says instead of the setting's description.
    """
    return option(*names, help=help, left_out=_Key(key), panel=panel, **more)


def given_settings(context: typer.Context) -> dict[str, Any]:
    """Return the settings that were given by options of `setting`: dotted key -> value."""
    keys = {parameter.name: getattr(parameter, "show_default", None) for parameter in context.command.params}
    found = {key: context.params[name] for name, key in keys.items() if name and isinstance(key, _Key)}
    return {key.partition(".")[2]: value for key, value in found.items() if value not in (None, (), [])}


class Command(TyperCommand):
    """A command whose help says of every option what holds when it is left out, in groups.

    Settings are looked up when help is shown: `sdft --help` and a command's start do not wait for pydantic.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # What is the same everywhere comes last.
        self.params.sort(key=lambda parameter: getattr(parameter, "rich_help_panel", None) == OUTPUT)

    def get_params(self, ctx: Any) -> list[Any]:
        return _unprocessed_for_completion(ctx, super().get_params(ctx))

    def format_help(self, ctx: Any, formatter: Any) -> None:
        _import_rich_help()
        panel = None
        if help_option := self.get_help_option(ctx):
            help_option.rich_help_panel = OUTPUT  # type: ignore[attr-defined]
            help_option.metavar = ""
        for parameter in self.params:
            panel = complete_help(parameter, panel)
        # Lines end where the terminal does, not where those of the source do.
        self.help = re.sub(r"(?<!\n)\n(?!\n)", " ", inspect.cleandoc(self.help or ""))
        super().format_help(ctx, formatter)


class Group(TyperGroup):
    """The group of all commands."""

    def get_params(self, ctx: Any) -> list[Any]:
        return _unprocessed_for_completion(ctx, super().get_params(ctx))

    def format_help(self, ctx: Any, formatter: Any) -> None:
        _import_rich_help()
        for parameter in self.get_params(ctx):  # flags all: the type of one says nothing
            parameter.metavar = ""
        super().format_help(ctx, formatter)


def _unprocessed_for_completion(ctx: Any, params: list[Any]) -> list[Any]:
    """Leave values as they were typed where a shell asks for completions: types take pydantic, and time."""
    if ctx.resilient_parsing:
        for parameter in params:
            parameter.process_value = lambda ctx, value: value
    return params


def _import_rich_help() -> None:
    """Import what formats help, without its readers of Markdown and tracebacks, which would take half of the time.

    Nothing here is Markdown, and tracebacks are Python's own (`pretty_exceptions_enable`).
    """
    if "typer.rich_utils" in sys.modules:
        return
    for module, name in (("rich.markdown", "Markdown"), ("rich.traceback", "Traceback")):
        if module not in sys.modules:
            sys.modules[module] = ModuleType(module)
            setattr(sys.modules[module], name, type(name, (), {}))
    importlib.import_module("typer.rich_utils")
    for module in ("rich.markdown", "rich.traceback"):  # whoever wants them later gets the real ones
        if getattr(sys.modules[module], "__spec__", None) is None:
            del sys.modules[module]


def complete_help(parameter: Any, panel: str | None) -> str | None:
    """Write what holds without it behind a parameter's help, in its text; put it into the group, and return that.

    What is written already is left as it is.
    """
    parameter.rich_help_panel = parameter.rich_help_panel or panel
    shown, default = parameter.show_default, parameter.default
    if shown is False:
        return parameter.rich_help_panel  # type: ignore[no-any-return]
    if isinstance(shown, _Key):
        description, default = _help_of(shown)
        parameter.help = parameter.help or description
    elif isinstance(shown, str):
        default = shown
    if getattr(parameter, "is_flag", False):
        parameter.metavar = ""  # its type says nothing
        if not isinstance(shown, str) or isinstance(shown, _Key):
            on, off = (parameter.opts[0], *parameter.secondary_opts, "--off")[:2]
            default = (on if default in (True, "True") else off)[2:]
    if default is not None and not parameter.required:
        parameter.show_default = False
        parameter.help = f"{parameter.help} [dim]\\[default: {default}][/dim]"
    return parameter.rich_help_panel  # type: ignore[no-any-return]


def _help_of(path: str) -> tuple[str, str]:
    """Return what a setting is, and what holds when it is left out: the model's default, or the default profile's."""
    from sdft_cli.config import MODELS, fields_of, load_train_config

    command, _, key = path.partition(".")
    field = fields_of(MODELS[command])[key]
    what, _, null = (field.description or "").partition("; null: ")
    value = field.default
    if command == "train":
        value = functools.reduce(getattr, key.split("."), load_train_config(DEFAULT_PROFILE))
    literals = [kind for kind in (field.annotation, *get_args(field.annotation)) if get_origin(kind) is Literal]
    others = ", ".join(word for kind in literals for word in get_args(kind) if word != value)
    text = null if value is None else "none" if value in ((), []) else str(value)
    text = f"the profile's ({text})" if command == "train" else text
    return f"{what[:1].upper()}{what[1:]}.", f"{text}; or {others}" if others else text


OUTPUT = "Output"
"""The last group of every command's options."""
AsJson = Annotated[
    bool, option("--json", help="Print numbers as JSON on stdout, and nothing else there.", panel=OUTPUT)
]
Quiet = Annotated[bool, option("--quiet", "-q", help="Print warnings and errors only; no progress.", panel=OUTPUT)]
Verbose = Annotated[
    bool, option("--verbose", help="Print what libraries say, and where an error comes from.", panel=OUTPUT)
]
DatasetPath = Annotated[
    Path | None,
    typer.Argument(help="A dataset folder.", show_default="the newest under data/", autocompletion=completion.datasets),
]
Profile = Annotated[
    str | None,
    option(
        help="A shipped profile, or a YAML file.",
        left_out=DEFAULT_PROFILE,
        panel="Settings",
        autocompletion=completion.profiles,
    ),
]
Model = Annotated[str | None, setting("train.model")]
ProjectFile = Annotated[
    Path | None,
    option(
        "--config",
        help="The project file (`sdft init` writes one): what it sets holds where no option says otherwise.",
        left_out="sdft.yaml, if it is there",
    ),
]
Overrides = Annotated[
    list[str] | None,
    option(
        "--set",
        help="Any other setting: section.key=value. Repeatable; docs/settings.md lists them.",
        left_out="none",
        autocompletion=completion.setting_keys,
    ),
]
