"""What `sdft eval` writes, eval.json: put together from items, and read back. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sdft_cli.errors import DataError, UsageError
from sdft_cli.metrics import by_group, summary
from sdft_cli.places import EVALUATED_RUN, RUNS_ROOT, meant_folder
from sdft_cli.records.json_files import read_json
from sdft_cli.run_folder import is_current, is_run

FORMAT = 3
Document = dict[str, Any]
Items = Sequence[dict[str, Any]]


def of_records(items: Items) -> dict[str, Any]:
    """Return a model's results on held-out records (`scoring.Item.to_json`), by tool and by position too."""
    tool_turns = [item for item in items if item["tools"]]
    return {
        "summary": {"records": len(items), "tool_turns": len(tool_turns), **summary(items, "records")},
        "by_tool": by_group(tool_turns, "tools"),
        "by_position": by_group(items, "position"),
        "items": list(items),
    }


def of_drift(items: Items) -> dict[str, Any]:
    """Return a model's drift on general prompts (`forgetting.Drift`); single tokens are not kept."""
    return {
        "summary": {"prompts": len(items), **summary(items, "drift")},
        "items": [{key: value for key, value in item.items() if key != "token_kl"} for item in items],
    }


def of_questions(items: Items) -> dict[str, Any]:
    """Return a model's results on questions (`forgetting.Reply`)."""
    return {"summary": {"questions": len(items), **summary(items, "questions")}, "items": list(items)}


def read_evaluation(path: Path) -> tuple[str, Document]:
    """Read what `sdft eval` wrote, from a run folder or from the JSON file itself; return a name for it too.

    Raises:
        UsageError: there is none.
        DataError: it is damaged, or of another version of sdft.
    """
    file = path / "eval.json" if path.is_dir() else path
    if not file.is_file():
        otherwise = "give run folders, or files of `sdft eval`."
        near = meant_folder(path, EVALUATED_RUN, RUNS_ROOT, otherwise)
        what = f"run `sdft eval {path}` first." if is_run(path) else near
        raise UsageError(f"{file} does not exist: {what}")
    document = read_json(file, advice="run `sdft eval` again")
    if document.get("format") != FORMAT or not {"contenders", "dataset", "config"} <= document.keys():
        raise DataError(f"{file} was not written by this version of `sdft eval`: run it again.")
    run = next((place for place in (file.parent, file.parent / "run") if is_run(place)), None)
    if run and not is_current(run, document.get("adapter")):
        raise DataError(f"{file} is of an earlier adapter of this run: run `sdft eval` again.")
    if path.is_dir():
        return path.resolve().name, document
    folder = file.resolve().parent.name
    names = {"eval": folder, "eval-best": f"{folder}-best"}  # as `sdft eval` calls them
    return names.get(path.stem, path.stem), document
