"""`sdft export`: records -> self-contained rows for other trainers."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from sdft_cli.cli.support.common import command, print_json
from sdft_cli.cli.support.options import AsJson, DatasetPath
from sdft_cli.notices import say
from sdft_cli.stages.folders import newest_dataset

TRAINERS = {"trl": "TRL's SDFTTrainer", "openai": "trainers that read OpenAI's messages", "sharegpt": "LLaMA-Factory"}


@command
def export(
    file_format: Annotated[Literal["trl", "openai", "sharegpt"], typer.Option("--format", help="Whose rows to write.")],
    out: Annotated[Path, typer.Option(help="The file to create: JSON Lines, or Parquet if it ends in .parquet.")],
    dataset: DatasetPath = None,
    split: Annotated[Literal["train", "validation", "all"], typer.Option(help="Which records.")] = "train",
    tool_turns: Annotated[
        bool, typer.Option("--tool-turns", help="trl: write prompts that end in a tool result, too; TRL refuses them.")
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing file.")] = False,
    as_json: AsJson = False,
) -> None:
    """Write the records as self-contained rows for other trainers.

    openai: messages and tools. trl: prompt and privileged_context, for TRL's SDFTTrainer. sharegpt: for LLaMA-Factory.
    A record that a format cannot hold is left out and counted.

    Example: sdft export data/my-sessions --format openai --out rows.jsonl
    """
    from sdft_cli.errors import UsageError
    from sdft_cli.records import read_dataset
    from sdft_cli.records.export import export as run

    if tool_turns and file_format != "trl":
        raise UsageError("--tool-turns belongs to --format trl: leave it out.")
    done = run(read_dataset(dataset or newest_dataset()), file_format, out, split, overwrite, tool_turns=tool_turns)
    if as_json:
        print_json({"file": str(out), "rows": done.rows, "left_out": done.left_out})
    for reason, count in done.left_out.items():
        say(f"{count:,} record(s) left out, because {file_format} cannot hold them: {reason}")
    again = f"; read back: sdft prepare {out}" if file_format == "openai" else ""
    say(f"{done.rows:,} row(s) for {TRAINERS[file_format]} written to {out}{again}")
