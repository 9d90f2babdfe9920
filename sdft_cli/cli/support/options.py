"""Options: those that give a setting take their words from the configuration; help says what holds without each."""

from __future__ import annotations

import functools
import inspect
import re
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

import typer
from typer.core import TyperCommand

from sdft_cli.choices import DEFAULT_PROFILE as DEFAULT_PROFILE


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


def setting(key: str, *names: str, help: str | None = None, panel: str | None = None) -> Any:
    """Return an option that gives a setting, e.g. `train.optim.max_steps`; help describes it as the configuration does.

    Args:
        key: a key of `config.MODELS`, a dot, and the setting's dotted key.
        names, panel: as of `option`.
        help: what help says instead of the setting's description.
    """
    return option(*names, help=help, left_out=_Key(key), panel=panel)


def given_settings(context: typer.Context) -> dict[str, Any]:
    """Return the settings that were given by options of `setting`: dotted key -> value."""
    keys = {parameter.name: getattr(parameter, "show_default", None) for parameter in context.command.params}
    found = {key: context.params[name] for name, key in keys.items() if name and isinstance(key, _Key)}
    return {key.partition(".")[2]: value for key, value in found.items() if value not in (None, (), [])}


class Command(TyperCommand):
    """A command whose help says of every option what holds when it is left out, in groups.

    Settings are looked up when help is shown: `sdft --help` and a command's start do not wait for pydantic.
    """

    def format_help(self, ctx: Any, formatter: Any) -> None:
        panel = None
        for parameter in self.params:
            panel = complete_help(parameter, panel)
        # Lines end where the terminal does, not where those of the source do.
        self.help = re.sub(r"(?<!\n)\n(?!\n)", " ", inspect.cleandoc(self.help or ""))
        super().format_help(ctx, formatter)


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


DatasetPath = Annotated[Path | None, typer.Argument(help="A dataset folder.", show_default="the newest under data/")]
Profile = Annotated[
    str | None, option(help="A shipped profile, or a YAML file.", left_out=DEFAULT_PROFILE, panel="Settings")
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
        "--set", help="Any other setting: section.key=value. Repeatable; docs/settings.md lists them.", left_out="none"
    ),
]
