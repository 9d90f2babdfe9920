"""`sdft.yaml`, the project file: settings that hold for every command of a working folder unless an option says else.

Of two that speak of a setting, the first wins: command line, project file, profile or data card, default. What stands
in the file is checked whole, whichever command reads it, so that a misspelt key of `eval` is found by `prepare`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdft_cli.choices import DEFAULT_PROFILE
from sdft_cli.errors import UsageError
from sdft_cli.notices import say
from sdft_cli.texts import parse_yaml, read_text

if TYPE_CHECKING:
    from sdft_cli.config import MergeConfig, PrepareConfig, TrainConfig

NAME = "sdft.yaml"
NOT_HERE = "prepare.source"
"""It is told once, as `source`, for all commands."""
_SECTIONS = ("prepare", "train", "merge", "eval")


@dataclass(frozen=True)
class Project:
    """What a project file says, empty without one: dotted keys -> values, by section, and the shared ones in each."""

    source: str | None = None
    sections: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def of(self, section: str) -> dict[str, Any]:
        """Return the settings of a section: dotted key -> value."""
        return dict(self.sections.get(section, {}))

    def profile(self, given: str | None) -> str:
        """Return the profile that was given by an option, or that of the file, or the default."""
        return given or self.of("train").get("profile") or DEFAULT_PROFILE

    def prepare_config(self, source: str | None, given: Mapping[str, Any], card: Mapping[str, Any]) -> PrepareConfig:
        """Resolve the settings of `prepare`; `card`: those of the source's data card.

        Raises:
            UsageError: nothing names a source, or a value is wrong.
        """
        from sdft_cli.config import PrepareConfig, build

        return build(PrepareConfig, {"source": self.source_of(source), **card, **self.of("prepare"), **given})

    def source_of(self, given: str | None) -> str:
        """Return the source that was named, or that of the file; raises `UsageError` if neither names one."""
        found = given or self.source
        if found is None:
            raise UsageError(
                "Name the sessions: a trace file, a folder of them or a Hub dataset id; or let `sdft init` find them."
            )
        return found

    def train_config(self, profile: str | None, overrides: Sequence[str], flags: Mapping[str, Any]) -> TrainConfig:
        """Resolve the settings of training, as `load_train_config`."""
        from sdft_cli.config import load_train_config

        settings = {key: value for key, value in self.of("train").items() if key != "profile"}
        return load_train_config(self.profile(profile), overrides, flags, settings)

    def merge_config(self) -> MergeConfig:
        """Return the settings of `merge`."""
        from sdft_cli.config import MergeConfig, build

        return build(MergeConfig, self.of("merge"))


OF_PROFILE: dict[str, dict[str, Any]] = {
    "cpu-demo": {"max_rollout_tokens": 256, "teacher_template": "again"},
    "recommended-qwen3.5-9b-64k": {"teacher_template": "own_turn"},
}
"""Profile -> settings of `prepare` that suit its model: a wording that a very small one follows, short turns."""


def fitting(config: TrainConfig) -> dict[str, Any]:
    """Return the settings of `prepare` that fit a training: its model, its caps, and what suits its profile."""
    return {
        "model": config.model,
        "max_seq_tokens": config.max_seq_tokens,
        "max_prompt_tokens": config.max_prompt_tokens,
        "max_rollout_tokens": config.max_seq_tokens - config.max_prompt_tokens,
        **OF_PROFILE.get(config.profile, {}),
    }


def read_project(path: Path | None = None) -> Project:
    """Read the project file that was named, or that of the working folder, and say so; without one all is default.

    Raises:
        UsageError: it cannot be read, is no YAML mapping, or has an unknown key or a wrong value.
    """
    file = path or Path(NAME)
    if path is None and not file.exists():
        return Project()
    text = read_text(file, "Project file", "name one as `sdft init` writes it")
    project = parse_project(text, file)
    say(f"Settings: {file}")
    return project


def parse_project(text: str, file: Path) -> Project:
    """Read and check the text of a project file; raises `UsageError`, which names `file`."""
    return _checked(_document(text, file), file)


def _document(text: str, file: Path) -> dict[str, Any]:
    try:
        document = parse_yaml(text)
    except ValueError as error:
        raise UsageError(f"{file} is not valid YAML ({error}): correct the file.") from error
    if document is None:
        return {}
    if not isinstance(document, dict):
        raise UsageError(f"{file} is not a YAML mapping: write `key: value` lines, as `sdft init` does.")
    return document


def _checked(document: dict[str, Any], file: Path) -> Project:
    """Check every key and every value of a project file."""
    from sdft_cli.config import ProjectConfig, fields_of, leaves, unknown

    known = [key for key in fields_of(ProjectConfig) if key != NOT_HERE]
    flat = leaves(_text_keys(document))
    inner = {key.rpartition(".")[0] for key in known}
    flat = {key: value for key, value in flat.items() if value is not None or key not in inner}  # empty sections
    for key in flat:
        if key in inner:
            raise UsageError(f"{file}: {key} is a section: write its settings below it, each with its key.")
        if key not in known:
            raise UsageError(f"{file}: {unknown(key, ProjectConfig, NOT_HERE)}")
    for key in ("source", "model"):
        if not isinstance(flat.get(key, ""), str):
            raise UsageError(f"{file}: {key} is no text: write a path or a name.")
    shared = {"model": flat["model"]} if "model" in flat else {}
    sections: dict[str, dict[str, Any]] = {
        name: {**(shared if name in ("prepare", "train") else {}), **_below(flat, name)} for name in _SECTIONS
    }
    project = Project(flat.get("source"), sections)
    try:
        _check_values(project)
    except UsageError as error:
        raise UsageError(f"{file}, {error}") from error
    return project


def _text_keys(document: Any) -> Any:
    """Return nested mappings with keys of text: YAML reads some as numbers, dates or truth values."""
    if not isinstance(document, dict):
        return document
    return {str(key): _text_keys(value) for key, value in document.items()}


def _below(flat: Mapping[str, Any], section: str) -> dict[str, Any]:
    return {key.removeprefix(f"{section}."): value for key, value in flat.items() if key.startswith(f"{section}.")}


def _check_values(project: Project) -> None:
    """Raises `UsageError`, which begins with the name of the section."""
    from sdft_cli.config import OF_AN_OPTION, EvalConfig, PrepareConfig, build

    checks = {
        "prepare": lambda: build(PrepareConfig, {"source": "", **project.of("prepare")}),
        "train": lambda: project.train_config(None, (), {}),
        "merge": project.merge_config,
        "eval": lambda: build(EvalConfig, project.of("eval")),
    }
    for section, check in checks.items():
        try:
            check()
        except UsageError as error:
            raise UsageError(f"{section}: {str(error).replace(OF_AN_OPTION, 'correct the file')}") from error
