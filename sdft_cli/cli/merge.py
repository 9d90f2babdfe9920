"""`sdft merge`: adapter -> standalone checkpoint, certified before it says done."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sdft_cli.cli.common import command, newest_run, say

if TYPE_CHECKING:
    from sdft_cli.engine.runs import Run


@command
def merge(
    run: Annotated[Path | None, typer.Argument(help="A run folder. [default: the newest under runs/]")] = None,
    bf16: Annotated[bool, typer.Option("--bf16", help="Write bfloat16 weights.")] = False,
    dtype: Annotated[
        str | None, typer.Option(help="Write these weights instead: float32 keeps every bit of the update.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="The checkpoint folder to create. [default: <run>/merged]")] = None,
    prompts: Annotated[int, typer.Option(min=1, help="Number of prompts to compare on.")] = 8,
    best: Annotated[
        bool, typer.Option("--best", help="Take the adapter that was best on held-out records, not the last one.")
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing checkpoint folder.")] = False,
) -> None:
    """Merge the adapter into its base: standalone safetensors, config, tokenizer, chat template, and a certificate.

    What is on disk is compared with base + adapter, tensor by tensor, file by file, and loaded, on real prompts. A
    disagreement is exit code 4, and the folder is marked as failed.

    Example: sdft merge runs/my-run --bf16
    """
    from sdft_cli.errors import UsageError

    if bf16 == (dtype is not None):
        raise UsageError("Say which weights to write: add --bf16, or --dtype float32.")
    if dtype not in (None, "bfloat16", "float32"):
        raise UsageError(f"--dtype {dtype} is not known: use bfloat16 or float32.")
    folder = run or newest_run()

    from sdft_cli.engine.runs import read_run
    from sdft_cli.report import terminal

    target = out or folder / "merged"
    check = run_merge(read_run(folder, best), target, prompts, overwrite, dtype or "bfloat16")
    terminal.stdout().print(terminal.merge_table(check))
    say(f"Checkpoint written to {target}; next: sdft eval {folder}")


def run_merge(
    run: Run, target: Path, prompts: int = 8, overwrite: bool = False, dtype: str = "bfloat16"
) -> dict[str, Any]:
    """Merge a run's adapter into its base at `target` and compare the two; return the certificate."""
    import torch

    from sdft_cli.engine.models import resolve_model
    from sdft_cli.merge.merge import merge_run
    from sdft_cli.records.folders import check_output_folder
    from sdft_cli.report import terminal

    check_output_folder(target, overwrite)
    with terminal.stderr().status("Merging and comparing with the adapter ..."):
        model = resolve_model(run.config.model, say)
        return merge_run(run, model, target, prompts, overwrite, getattr(torch, dtype))
