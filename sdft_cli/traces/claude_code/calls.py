"""A tool call as the model sent it: without what Claude Code put into it afterwards.

Recent versions record the call as it was sent (`wireToolInputs`): `input` has lost a leading `cd`, or gained fields.
Older ones record only `input`, in which two additions are known: `"replace_all": false` as the first key of an Edit,
and the plan in ExitPlanMode, copied from the plan file since there are plan files.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from sdft_cli.traces.claude_code.attachments import Block, object_field, text_field
from sdft_cli.traces.claude_code.lines import CALLS, Line

PLAN_FILES_SINCE = (2, 0, 51)
"""The version from which on a plan is a file, and ExitPlanMode has no plan of its own."""
_PLANS = "/.claude/plans/"


def wire_inputs(lines: Iterable[Line]) -> dict[str, dict[str, Any]]:
    """Return the arguments that a message's lines record as sent, by the id of the call."""
    return {
        call: sent
        for line in lines
        for call, sent in object_field(line.data, "wireToolInputs").items()
        if isinstance(sent, dict)
    }


def version_of(line: Line) -> tuple[int, ...]:
    """Return the version that wrote a line, as numbers; () if it does not say."""
    parts = text_field(line.data, "version").split("-")[0].split(".")
    return tuple(map(int, parts)) if all(p.isascii() and p.isdigit() and len(p) < 9 for p in parts) else ()


def has_plan_files(lines: Iterable[Line]) -> bool:
    """Say whether the sessions of these lines had plan files: by the version, or because one was written."""
    for line in lines:
        if version_of(line) >= PLAN_FILES_SINCE:
            return True
        if line.kind == "assistant" and any(
            _PLANS in text_field(object_field(block, "input"), "file_path")
            for block in line.blocks
            if block.get("type") in CALLS
        ):
            return True
    return False


def sent_arguments(block: Block, wire: dict[str, dict[str, Any]], plan_files: bool) -> Any:
    """Return the arguments of a call as the model sent them; not an object where the call is not whole."""
    call, arguments = text_field(block, "id"), block.get("input")
    if call in wire:
        return wire[call]
    if not isinstance(arguments, dict):
        return arguments
    name = text_field(block, "name")
    if name == "ExitPlanMode" and (plan_files or "planFilePath" in arguments):
        return {key: value for key, value in arguments.items() if key not in ("plan", "planFilePath")}
    if name == "Edit" and next(iter(arguments), None) == "replace_all" and arguments["replace_all"] is False:
        return {key: value for key, value in arguments.items() if key != "replace_all"}
    return arguments
