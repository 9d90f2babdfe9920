"""`python -m tests.cli.bare` runs commands as in an environment of `pip install .` alone, without any extra.

Standard input: a JSON list of commands, each a list of arguments. Standard output: a JSON list of (exit code, stderr).
A command that raises anything but `SystemExit` ends the process with that traceback.
"""

from __future__ import annotations

import json
import sys
import tomllib
from collections.abc import Iterable, Iterator
from importlib.machinery import ModuleSpec, PathFinder
from importlib.metadata import (
    Distribution,
    DistributionFinder,
    PackageNotFoundError,
    distribution,
    packages_distributions,
)
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name as name_of

ROOT = Path(__file__).resolve().parents[2]


def reachable(requirements: Iterable[str]) -> set[str]:
    """Return the distributions that these requirements bring, with what they require in turn."""
    found: set[str] = set()
    waiting = [(Requirement(text), "") for text in requirements]
    while waiting:
        requirement, extra = waiting.pop()
        wanted = requirement.marker is None or requirement.marker.evaluate({"extra": extra})
        name = name_of(requirement.name)
        if not wanted or (name in found and not requirement.extras):
            continue
        found.add(name)
        try:
            needs = distribution(name).requires or []
        except PackageNotFoundError:
            continue
        waiting += [(Requirement(need), extra) for need in needs for extra in ("", *requirement.extras)]
    return found


class Bare(PathFinder):
    """Finds what `PathFinder` finds, but for distributions that are not reachable, and their modules."""

    allowed: set[str]
    refused: set[str]

    @classmethod
    def find_spec(cls, fullname: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if fullname.partition(".")[0] in cls.refused:
            return None
        return PathFinder.find_spec(fullname, path, target)

    @classmethod
    def find_distributions(cls, context: Any = DistributionFinder.Context()) -> Iterator[Distribution]:
        found = PathFinder.find_distributions(context)
        return (d for d in found if name_of(d.metadata["Name"]) in cls.allowed)


def take_away() -> None:
    """Let this process find base dependencies only."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    Bare.allowed = reachable(project["dependencies"]) | {"sdft-cli"}
    modules = packages_distributions()
    Bare.refused = {module for module, names in modules.items() if not Bare.allowed & set(map(name_of, names))}
    if "torch" not in Bare.refused or "torch" in sys.modules:
        raise AssertionError("torch is there: nothing was taken away")
    sys.meta_path[:] = [Bare if finder is PathFinder else finder for finder in sys.meta_path]


def main() -> None:
    """Run the commands of standard input in this process, one after the other."""
    commands = json.load(sys.stdin)
    take_away()

    from typer.testing import CliRunner

    from sdft_cli.cli.main import app

    results = []
    for command in commands:
        done = CliRunner().invoke(app, command)
        if done.exception is not None and not isinstance(done.exception, SystemExit):
            raise done.exception
        results.append([done.exit_code, done.stderr])
    print(json.dumps(results))


if __name__ == "__main__":
    main()
