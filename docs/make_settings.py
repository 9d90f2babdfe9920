"""Writes docs/settings.md from the configuration: `make pages`. A test fails when the page is stale."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from sdft_cli.config import MODELS, TrainConfig, fields_of, load_train_config, profile_names, sections_of

PAGE = Path(__file__).parent / "settings.md"
_TYPES = {"integer": "integer", "number": "number", "string": "text", "boolean": "true, false", "null": "null"}
_BOUNDS = {"exclusiveMinimum": ">", "minimum": ">=", "exclusiveMaximum": "<", "maximum": "<="}
_HEAD = """# Settings

Made from `sdft_cli/config.py` by `make pages`; do not edit. `sdft train`, `gate` and `plan` take the settings of
training from a profile; where a profile's cell is empty, it has the default. `--set key=value` changes any of them:
`--set optim.learning_rate=1e-4`."""


def _schema(kind: type[BaseModel], key: str) -> dict[str, Any]:
    """Return the JSON schema of one setting."""
    section, _, name = key.rpartition(".")
    owner = sections_of(kind)[section] if section else kind
    found: dict[str, Any] = owner.model_json_schema()["properties"][name]
    return found


def _values(schema: Mapping[str, Any]) -> str:
    """Say which values a JSON schema allows: the choices, or a type with its range."""
    if "anyOf" in schema:
        return ", ".join(map(_values, schema["anyOf"]))
    if "enum" in schema:
        return ", ".join(schema["enum"])
    if "const" in schema:
        return str(schema["const"])
    if "prefixItems" in schema:
        return f"list of {len(schema['prefixItems'])}: {_values(schema['prefixItems'][0])}"
    if "items" in schema:
        return f"list of {_values(schema['items'])}"
    bounds = [f"{sign} {schema[name]:g}" for name, sign in _BOUNDS.items() if name in schema]
    return " ".join([_TYPES[schema["type"]], ", ".join(bounds)]).strip()


def _text(value: Any) -> str:
    """Write a value as YAML would, on one line."""
    if isinstance(value, tuple | list):
        return f"[{', '.join(map(_text, value))}]"
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    return f"{value:g}" if isinstance(value, float) else str(value)


def _value(config: BaseModel, key: str) -> Any:
    """Return the value of a setting by its dotted key."""
    return functools.reduce(getattr, key.split("."), config)


def _row(kind: type[BaseModel], key: str, profiles: Mapping[str, TrainConfig]) -> list[str]:
    field = fields_of(kind)[key]
    default = "required" if field.is_required() else f"`{_text(field.default)}`"
    theirs = [_value(config, key) for config in profiles.values()]
    told = ["" if value == field.default else f"`{_text(value)}`" for value in theirs]
    return [f"`{key}`", _values(_schema(kind, key)), default, *told, (field.description or "").replace("|", "\\|")]


def _tables(command: str) -> Iterator[str]:
    kind = MODELS[command]
    profiles = {name: load_train_config(name) for name in profile_names()} if command == "train" else {}
    for name, section in {"": kind, **sections_of(kind)}.items():
        yield f"\n### {name}\n" if name else f"\n## sdft {command}\n"
        yield f"{inspect.getdoc(section)}\n"
        head = ["setting", "values", "default", *profiles, "what it is"]
        rows = [_row(kind, key, profiles) for key in fields_of(kind) if key.rpartition(".")[0] == name]
        yield from (f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows))


def settings_page() -> str:
    """Return docs/settings.md: every setting with its values, its default, the profiles' values and what it is."""
    return "\n".join([_HEAD, *(line for command in MODELS for line in _tables(command))]) + "\n"


if __name__ == "__main__":
    PAGE.write_text(settings_page(), encoding="utf-8")
