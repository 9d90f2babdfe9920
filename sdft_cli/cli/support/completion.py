"""What a shell may offer for a word: datasets, runs, profiles and other names. Nothing heavy is imported.

A shell calls the command at every press of the key and waits. Names with characters that a shell would interpret are
not offered; where nothing is, the shell completes files.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from sdft_cli.places import DATA_ROOT, DATASET, EVALUATED_RUN, FINISHED_RUN, RUN, RUNS_ROOT, folders_with

Complete = Callable[[str], list[str]]
_PLAIN = re.compile(r"[\w./@+=,-]+")


def _matching(typed: str, names: Iterable[str]) -> list[str]:
    return [name for name in dict.fromkeys(names) if name.startswith(typed) and _PLAIN.fullmatch(name)]


def _folders(marker: str, root: Path) -> Complete:
    """Offer the folders that hold `marker`: those under `root` and here, or where what was typed points to."""

    def complete(incomplete: str) -> list[str]:
        places = [Path(incomplete.rpartition("/")[0] or "/")] if "/" in incomplete else [root, Path()]
        return _matching(incomplete, (str(folder) for place in places for folder in folders_with(marker, place)))

    return complete


datasets = _folders(DATASET, DATA_ROOT)
runs = _folders(RUN, RUNS_ROOT)
finished_runs = _folders(FINISHED_RUN, RUNS_ROOT)
evaluated_runs = _folders(EVALUATED_RUN, RUNS_ROOT)


def subjects(incomplete: str) -> list[str]:
    """Offer what `sdft report` shows: runs and datasets."""
    return list(dict.fromkeys([*runs(incomplete), *datasets(incomplete)]))


def _shipped(*folder: str) -> Iterator[str]:
    """Yield the names of the files that ship in a folder, without their endings."""
    from sdft_cli.resources import resource

    for name in sorted(entry.name for entry in resource(*folder).iterdir()):
        yield name.rpartition(".")[0]


def profiles(incomplete: str) -> list[str]:
    """Offer the shipped profiles."""
    return _matching(incomplete, _shipped("templates", "profiles"))


def teacher_templates(incomplete: str) -> list[str]:
    """Offer the shipped wordings."""
    return _matching(incomplete, _shipped("templates", "teacher"))


def chat_templates(incomplete: str) -> list[str]:
    """Offer the shipped chat templates."""
    return _matching(incomplete, _shipped("templates", "chat"))


def cards(incomplete: str) -> list[str]:
    """Offer the datasets that have a card."""
    return _matching(incomplete, (name.replace("--", "/", 1) for name in _shipped("data_cards")))


def sources(incomplete: str) -> list[str]:
    """Offer what `sdft prepare` reads: datasets that have a card, folders, and files of sessions."""
    endings = (".jsonl", ".json", ".parquet", ".gz", ".zst")
    return [*cards(incomplete), *_matching(incomplete, _paths(incomplete, endings))]


def joined(complete: Complete) -> Complete:
    """Offer names for the last one of a list that commas join."""

    def last(incomplete: str) -> list[str]:
        before, comma, typed = incomplete.rpartition(",")
        taken = before.split(",")
        return [f"{before}{comma}{name}" for name in complete(typed) if name not in taken]

    return last


def divergences(incomplete: str) -> list[str]:
    """Offer the divergences."""
    from sdft_cli.choices import DIVERGENCES

    return _matching(incomplete, DIVERGENCES)


def setting_keys(incomplete: str) -> list[str]:
    """Offer the settings of training, as `--set` takes them: `section.key=`."""
    return _matching(incomplete, (f"{key}=" for key in training_keys()))


def training_keys() -> list[str]:
    """Return the dotted keys of `config.TrainConfig`, from its source: pydantic takes longer than a shell waits."""
    tree = ast.parse((Path(__file__).parents[2] / "config.py").read_text(encoding="utf-8"))
    classes = {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}

    def keys(name: str) -> Iterator[str]:
        for node in classes[name].body:
            if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                inner = node.annotation.id if isinstance(node.annotation, ast.Name) else ""
                own = node.target.id
                yield from (f"{own}.{key}" for key in keys(inner)) if inner in classes else (own,)

    return list(keys("TrainConfig"))


def _paths(incomplete: str, endings: tuple[str, ...]) -> Iterator[str]:
    """Yield the folders, and the files with these endings, that a typed beginning may become."""
    before, slash, typed = incomplete.rpartition("/")
    try:
        entries = sorted(Path(before + slash or ".").iterdir())
    except OSError:
        return
    for entry in entries:
        if entry.name.startswith(typed) and (typed.startswith(".") or not entry.name.startswith(".")):
            if entry.is_dir():
                yield f"{before}{slash}{entry.name}/"
            elif entry.suffix in endings:
                yield f"{before}{slash}{entry.name}"
