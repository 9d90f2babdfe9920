"""A tool call as the model sent it: without what Claude Code put into it afterwards.

Recent versions record the call as it was sent (`wireToolInputs`): `input` has lost a leading `cd`, or gained fields.
Older ones record only `input`, in which two additions are known: `"replace_all": false` as the first key of an Edit,
and the plan in ExitPlanMode, copied from the plan file since there are plan files.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

from sdft_cli.traces.claude_code.attachments import Block
from sdft_cli.traces.claude_code.lines import CALLS, Line, version_of
from sdft_cli.traces.fields import object_of, text_of

PLAN_FILES_SINCE = (2, 0, 51)
"""The version from which on a plan is a file, and ExitPlanMode has no plan of its own."""
_PLANS = "/.claude/plans/"


def wire_inputs(lines: Iterable[Line], notes: Counter[str]) -> dict[str, dict[str, Any]]:
    """Return the arguments that a message's lines record as sent, by the id of the call; others are counted."""
    recorded = [line.data["wireToolInputs"] for line in lines if line.data.get("wireToolInputs") is not None]
    sent = [pair for found in recorded if isinstance(found, dict) for pair in found.items()]
    whole = {call: arguments for call, arguments in sent if isinstance(arguments, dict)}
    notes["unreadable_wire_inputs"] += sum(not isinstance(found, dict) for found in recorded)
    notes["unreadable_wire_inputs"] += sum(not isinstance(arguments, dict) for _, arguments in sent)
    return whole


def wrote_a_plan_file(lines: Iterable[Line]) -> bool:
    """Say whether a plan file was written in these lines."""
    return any(
        _PLANS in text_of(object_of(block, "input"), "file_path")
        for line in lines
        if line.kind == "assistant"
        for block in line.blocks
        if block.get("type") in CALLS
    )


def has_plan_files(line: Line, one_was_written: bool) -> bool:
    """Say whether ExitPlanMode had no plan of its own in this line: by its version, or because a file was written."""
    version = version_of(line)
    return version >= PLAN_FILES_SINCE if version else one_was_written


def sent_arguments(block: Block, wire: dict[str, dict[str, Any]], plan_files: bool) -> Any:
    """Return the arguments of a call as the model sent them; not an object where the call is not whole."""
    call, arguments = text_of(block, "id"), block.get("input")
    if call in wire:
        return wire[call]
    if not isinstance(arguments, dict):
        return arguments
    name = text_of(block, "name")
    if name == "ExitPlanMode" and (plan_files or "planFilePath" in arguments):
        return {key: value for key, value in arguments.items() if key not in ("plan", "planFilePath")}
    if name == "Edit" and next(iter(arguments), None) == "replace_all" and arguments["replace_all"] is False:
        return {key: value for key, value in arguments.items() if key != "replace_all"}
    return arguments
