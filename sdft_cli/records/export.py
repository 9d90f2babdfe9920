"""Self-contained rows for other trainers: each row carries its whole conversation and its tools.

`openai`    {"messages", "tools"}: the conversation with the expert's turn last; tool arguments are JSON text.
`trl`       {"prompt", "privileged_context", "tools"}: what `trl.experimental.sdft.SDFTTrainer` reads. Tool arguments
            are objects, as chat templates expect. Of a `privileged_context` in messages the trainer reads the text
            only, so the expert's turn is rendered to text here, calls included.
`sharegpt`  {"conversations", "tools"}: LLaMA-Factory's format, in which human or observation and gpt or function_call
            alternate. It skips a conversation that does not, so that is left out here, and counted.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from sdft_cli.errors import DataError
from sdft_cli.records.dataset import Dataset, row_groups
from sdft_cli.records.folders import new_file
from sdft_cli.records.types import Message, Record

Format = Literal["trl", "openai", "sharegpt"]
Split = Literal["train", "validation", "all"]
Row = dict[str, Any]
Renderer = Callable[[Message], str]
"""How the expert's turn becomes the text of `privileged_context`."""

PARQUET_GROUP_CHARACTERS = 16_000_000
"""A row group of a Parquet file is closed when its text is this long."""

_RESULTS_JOINT = "\n</tool_response>\n<tool_response>\n"
"""LLaMA-Factory has one observation per turn; this is how it joins the results of parallel calls itself."""
_CALL_MARKS = ("<tool_call>", "</tool_call>")
"""LLaMA-Factory's marks around the calls of a turn that has text, too."""


class NotExpressibleError(ValueError):
    """A record that the format cannot hold, or that its trainer refuses; the message is the reason that is counted."""


@dataclass(frozen=True)
class Exported:
    """What an export wrote: `rows + sum(left_out) == records of the split`."""

    rows: int
    left_out: dict[str, int]
    """Reason -> number of records that the format cannot hold."""


def _text_of(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def openai_row(record: Record) -> Row:
    """Return `{"messages", "tools"}` with the expert's turn last; no `tools` where there are none, as OpenAI wants."""
    messages = [m.as_openai(lambda call: call.arguments) for m in (*record.context, record.reference)]
    tools = [tool.as_openai() for tool in record.tools]
    return {"messages": messages, "tools": tools} if tools else {"messages": messages}


def plain_turn(message: Message) -> str:
    """Render an assistant turn without a model's template: its text, then one `<tool_call>` block of JSON per call."""
    calls = (f'{{"name": {_text_of(c.name)}, "arguments": {c.arguments}}}' for c in message.tool_calls)
    blocks = (f"<tool_call>\n{call}\n</tool_call>" for call in calls)
    return "\n".join([message.content, *blocks] if message.content else blocks)


def trl_row(record: Record, render: Renderer = plain_turn, tool_turns: bool = False) -> Row:
    """Return `{"prompt", "privileged_context", "tools"}`.

    Raises `NotExpressibleError` unless the prompt ends in a user message (TRL 1.15 refuses others) or `tool_turns`.
    """
    if not tool_turns and [m.role for m in record.context[-1:]] != ["user"]:
        raise NotExpressibleError("prompt does not end in a user message")
    prompt, tools = [m.as_openai() for m in record.context], [tool.as_openai() for tool in record.tools]
    return {"prompt": prompt, "privileged_context": render(record.reference), "tools": tools}


def _function_call(message: Message) -> str:
    calls = [{"name": c.name, "arguments": c.parsed_arguments()} for c in message.tool_calls]
    # "<" is escaped, so that no argument can look like one of the marks that LLaMA-Factory searches for.
    text = _text_of(calls[0] if len(calls) == 1 else calls).replace("<", "\\u003c")
    if not message.content:
        return text
    if any(mark in message.content for mark in _CALL_MARKS):
        raise NotExpressibleError("text with tool-call marks beside a call")
    return f"{message.content}{_CALL_MARKS[0]}{text}{_CALL_MARKS[1]}"


def _one_turn_each(context: Sequence[Message]) -> list[Message]:
    """Join an assistant turn without calls to the assistant turn after it."""
    joined: list[Message] = []
    for message in context:
        last = joined[-1] if joined else None
        if last and message.role == last.role == "assistant" and not last.tool_calls:
            text = "\n\n".join(part for part in (last.content, message.content) if part)
            joined[-1] = Message("assistant", text, message.tool_calls)
        else:
            joined.append(message)
    return joined


def _entries(messages: Sequence[Message]) -> Iterator[tuple[str, str]]:
    """Name the messages as LLaMA-Factory does, not yet joined."""
    for index, message in enumerate(messages):
        if message.role == "system":
            if index:
                raise NotExpressibleError("system message inside the conversation")
            yield "system", message.content
        elif message.role == "assistant":
            yield ("function_call", _function_call(message)) if message.tool_calls else ("gpt", message.content)
        else:
            yield ("human" if message.role == "user" else "observation"), message.content


def _joined(entries: Iterable[tuple[str, str]]) -> list[dict[str, str]]:
    """Join neighbours of one kind where that keeps their meaning: user messages, and results of parallel calls."""
    joined: list[dict[str, str]] = []
    joints = {"human": "\n\n", "observation": _RESULTS_JOINT}
    for kind, value in entries:
        if joined and joined[-1]["from"] == kind and kind in joints:
            joined[-1]["value"] += joints[kind] + value
        else:
            joined.append({"from": kind, "value": value})
    return joined


def sharegpt_row(record: Record) -> Row:
    """Return `{"conversations", "tools"}` (`tools`: JSON text of a list of functions, or empty).

    Raises `NotExpressibleError` where the conversation does not alternate between user or tool and assistant.
    """
    conversation = _joined(_entries([*_one_turn_each(record.context), record.reference]))
    turns = conversation[1:] if conversation[0]["from"] == "system" else conversation
    for index, entry in enumerate(turns):
        asked = entry["from"] in ("human", "observation")
        if asked and index % 2:
            raise NotExpressibleError("user message next to a tool result")
        if not asked and not index % 2:
            raise NotExpressibleError("two assistant turns in a row" if index else "conversation starts with an answer")
    functions = [tool.as_openai()["function"] for tool in record.tools]
    for function in functions:
        function["parameters"].setdefault("properties", {})  # LLaMA-Factory reads it unasked
    return {"conversations": conversation, "tools": _text_of(functions) if functions else ""}


def rows_of(records: Iterable[Record], to_row: Callable[[Record], Row], left_out: Counter[str]) -> Iterator[Row]:
    """Yield the row of each record that the format can hold; count the others by reason in `left_out`."""
    for record in records:
        try:
            row = to_row(record)
        except NotExpressibleError as reason:
            left_out[str(reason)] += 1
        else:
            yield row


def write_jsonl(path: Path, rows: Iterable[Row]) -> int:
    """Write one JSON object per line; return their number."""
    count = 0
    with path.open("w", encoding="utf-8", newline="\n") as file:
        for row in rows:
            file.write(_text_of(row) + "\n")
            count += 1
    return count


def write_parquet(path: Path, rows: Iterable[Row], file_format: Format) -> int:
    """Write rows as Parquet, in bounded row groups; return their number.

    Messages and tools are `datasets.Json` items (JSON text on disk), so that no key of one row's tool arguments appears
    as a null in another row.
    """
    import pyarrow.parquet as pq
    from datasets import Dataset as Table
    from datasets import Features, Json, List, Value

    text, items = Value("string"), List(Json())
    features = {
        "openai": Features({"messages": items, "tools": items}),
        "trl": Features({"prompt": items, "privileged_context": text, "tools": items}),
        "sharegpt": Features({"conversations": List({"from": text, "value": text}), "tools": text}),
    }[file_format]
    whole = ({column: row.get(column, []) for column in features} for row in rows)
    count = 0
    with pq.ParquetWriter(path, features.arrow_schema) as writer:
        for group in row_groups(whole, lambda row: len(_text_of(row)), PARQUET_GROUP_CHARACTERS):
            writer.write_table(Table.from_list(group, features=features).data.table)
            count += len(group)
    return count


def records_of(dataset: Dataset, split: Split) -> list[Record]:
    """Return the records of a split; `all` is train, then validation."""
    return [*dataset.train, *dataset.validation] if split == "all" else list(dataset.split(split))


def export(
    dataset: Dataset,
    file_format: Format,
    out: Path,
    split: Split = "train",
    overwrite: bool = False,
    render: Renderer = plain_turn,
    tool_turns: bool = False,
) -> Exported:
    """Write the records of a split as self-contained rows, all of them or no file.

    Args:
        dataset, file_format, split: which records, and as what; see the module's docstring.
        out: JSON Lines, or Parquet where the name ends in `.parquet`.
        render: `trl` only: how the expert's turn becomes text.
        tool_turns: `trl` only: write prompts that end in a tool result, too.

    Raises:
        DataError: the split is empty, or the format can hold none of its records.
        UsageError, MachineError: as `new_file`.
    """
    records = records_of(dataset, split)
    if not records:
        raise DataError(f"The dataset has no record in {split}: choose another --split.")
    to_row: dict[Format, Callable[[Record], Row]] = {
        "openai": openai_row,
        "trl": lambda record: trl_row(record, render, tool_turns),
        "sharegpt": sharegpt_row,
    }
    left_out: Counter[str] = Counter()
    rows = rows_of(records, to_row[file_format], left_out)
    with new_file(out, overwrite) as scratch:
        count = write_parquet(scratch, rows, file_format) if out.suffix == ".parquet" else write_jsonl(scratch, rows)
        if not count:
            reasons = ", ".join(f"{reason}: {number:,}" for reason, number in left_out.most_common())
            raise DataError(f"No record of {split} fits the format {file_format} ({reasons}): use --format openai.")
    return Exported(count, dict(left_out.most_common()))
