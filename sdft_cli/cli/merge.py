"""`sdft merge`: adapter -> standalone checkpoint, certified before it says done."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sdft_cli.cli.support import completion
from sdft_cli.cli.support.common import command, print_json
from sdft_cli.cli.support.options import AsJson, ProjectFile, option
from sdft_cli.errors import WARNING, UsageError
from sdft_cli.notices import say
from sdft_cli.stages.folders import newest_run
from sdft_cli.stages.merge import existing, run_merge, run_merge_adapter
from sdft_cli.stages.project import read_project

if TYPE_CHECKING:
    from sdft_cli.run_folder import Run


_NO_DTYPE = "Say which weights to write: add --bf16, or --dtype float32."


@command
def merge(
    run: Annotated[
        Path | None,
        typer.Argument(
            help="A run folder, or an adapter folder.",
            show_default="the newest under runs/",
            autocompletion=completion.finished_runs,
        ),
    ] = None,
    out: Annotated[
        Path | None, option(help="The checkpoint folder to create.", left_out="<run>/merged, or <adapter>-merged")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing checkpoint folder.")] = False,
    prompts: Annotated[
        int | None,
        option(min=1, max=8, metavar="N", help="Number of the run's check prompts to compare on.", left_out="8"),
    ] = None,
    as_json: AsJson = False,
    project: ProjectFile = None,
    bf16: Annotated[bool, option("--bf16", help="Write bfloat16 weights.", panel="What is merged")] = False,
    dtype: Annotated[
        str | None,
        option(
            help="Write these weights instead: float32 keeps every bit of the update.",
            left_out="none; say this or --bf16",
        ),
    ] = None,
    best: Annotated[
        bool, option("--best", help="Take the adapter that was best on held-out records, not the last one.")
    ] = False,
    base: Annotated[
        str | None,
        option(
            help="Merge into this model: the 16-bit form of a 4-bit one, or the base of an adapter folder.",
            left_out="the run's own base",
        ),
    ] = None,
    push: Annotated[
        str | None,
        option(
            metavar="REPO",
            help="Upload the certified checkpoint to this Hub repository, private.",
            left_out="not uploaded",
            panel="Upload and GGUF",
        ),
    ] = None,
    public: Annotated[bool, option("--public", help="With --push: make the repository public.")] = False,
    gguf: Annotated[
        Path | None,
        option(metavar="FILE", help="Also convert it to this GGUF file, and check the file.", left_out="not converted"),
    ] = None,
    llama_cpp: Annotated[
        Path | None,
        option(
            metavar="PATH", help="Your llama.cpp checkout, whose converter is run.", left_out="none; --gguf needs it"
        ),
    ] = None,
) -> None:
    """Merge the adapter into its base: standalone safetensors, config, tokenizer, chat template, card, certificate.

    What is on disk is compared with base + adapter, tensor by tensor, file by file, and loaded, on real prompts. A
    disagreement is exit code 4, and the folder is marked as failed; it never replaces a good checkpoint.

    An adapter folder of another trainer (adapter_config.json, by peft) is merged in the same way into --base.

    With --push or --gguf, a checkpoint that is there already and passed is taken as it is, unless --overwrite is given.
    Before a push every file is compared with the certificate and searched for secrets; any find stops it.

    Example: sdft merge runs/my-run --bf16
    """
    if bf16 and dtype is not None:
        raise UsageError("Say which weights to write: --bf16 or --dtype, not both.")
    settings = read_project(project).merge_config()
    dtype, best = ("bfloat16" if bf16 else dtype or settings.dtype), best or settings.best
    _check_options(dtype, push, public, gguf, llama_cpp, overwrite)
    folder = run or newest_run()

    from sdft_cli.run_folder import is_run, read_run

    alone = (folder / "adapter_config.json").is_file() and not is_run(folder)
    if alone:
        _check_alone(folder, best, push, base)
    source: Run | Path = folder if alone else read_run(folder, best)
    base = base or settings.base
    target = out or (folder.resolve().with_name(f"{folder.resolve().name}-merged") if alone else folder / "merged")
    if gguf and target.resolve() in (gguf.resolve(), *gguf.resolve().parents):
        raise UsageError(f"{gguf} would be a file of the checkpoint {target}: name one outside of it.")
    taken = bool(push or gguf) and not overwrite and target.is_dir() and any(target.iterdir())
    check = _certified(source, target, taken, prompts or settings.prompts, overwrite, dtype, base)
    if not as_json:
        _show("merge_table", check)
    if cost := _rounding_cost(check):
        say(cost)
    document: dict[str, Any] = {"checkpoint": str(target), **check}
    if gguf and llama_cpp:
        rows = _convert(target, gguf, llama_cpp, check["dtype"], overwrite)
        document["gguf"] = {"file": str(gguf), **dict(rows)}
        if not as_json:
            _show("table", f"{gguf}, compared with the checkpoint", ["", "value"], rows)
    if push and not isinstance(source, Path):
        from sdft_cli.stages.push import push as push_checkpoint

        push_checkpoint(source, target, push, public)
    if as_json:
        print_json(document)
    say(f"Checkpoint: {target}; next: sdft eval {target if alone else folder}")


def _show(table: str, *arguments: Any) -> None:
    """Print a table of `report/terminal.py`, by its name."""
    from sdft_cli.report import terminal

    terminal.stdout().print(getattr(terminal, table)(*arguments))


def _rounding_cost(check: dict[str, Any]) -> str | None:
    """Warn where a right merge is far from what was trained, by its rounding alone."""
    from sdft_cli.merging.behaviour_check import MAX_MEAN_KL

    lost = check["behaviour"]["mean_kl"]
    if lost <= MAX_MEAN_KL:
        return None
    return (
        f"{WARNING}rounding to {check['dtype']} moves this model by {lost:.2g} nats per token: "
        "merge with --dtype float32 to keep what was trained"
    )


def _check_alone(adapter: Path, best: bool, push: str | None, base: str | None) -> None:
    """Refuse what only a run has; say which base an adapter folder names."""
    from sdft_cli.engine.models.names import known_as
    from sdft_cli.merging.adapter import read_config

    if best or push:
        raise UsageError(f"{adapter} is an adapter and no run: leave {'--best' if best else '--push'} out.")
    recorded = read_config(adapter).get("base_model_name_or_path")
    if base is None:
        named = f", e.g. --base {recorded}" if recorded else ""
        raise UsageError(f"{adapter} is an adapter and no run: name the model that it was trained on{named}.")
    if recorded and known_as(recorded)["base"] != known_as(base)["base"]:
        say(f"The adapter says that it was trained on {recorded}; it is merged into {base}, as asked.")


def _certified(
    run: Run | Path, target: Path, taken: bool, prompts: int, overwrite: bool, dtype: str | None, base: str | None
) -> dict[str, Any]:
    """Take the checkpoint that is there, or merge; return the certificate."""
    if taken:
        return existing(run, target, dtype, base)
    if dtype is None:
        raise UsageError(_NO_DTYPE)
    if isinstance(run, Path):
        return run_merge_adapter(run, target, prompts, overwrite, dtype, base or "")
    return run_merge(run, target, prompts, overwrite, dtype, base)


def _check_options(
    dtype: str | None,
    push: str | None,
    public: bool,
    gguf: Path | None,
    llama_cpp: Path | None,
    overwrite: bool,
) -> None:
    """Refuse before anything is computed what would fail after it."""
    if dtype not in (None, "bfloat16", "float32"):
        raise UsageError(f"--dtype {dtype} is not known: use bfloat16 or float32.")
    if not (dtype or push or gguf):
        raise UsageError(_NO_DTYPE)
    if public and not push:
        raise UsageError("--public says how to push: add --push REPO.")
    if (gguf is None) != (llama_cpp is None):
        raise UsageError("--gguf FILE and --llama-cpp PATH belong together: give both.")
    if gguf is not None and llama_cpp is not None:
        from sdft_cli.merging.gguf import check_converter

        check_converter(llama_cpp)
        if gguf.exists() and not overwrite:
            raise UsageError(f"{gguf} already exists: choose another name, or delete it.")
    if push:
        from sdft_cli.merging.push import check_repo_name, check_token

        check_repo_name(push)
        check_token()


def _convert(merged: Path, file: Path, llama_cpp: Path, dtype: str, overwrite: bool) -> list[tuple[str, str]]:
    from sdft_cli.merging.gguf import convert_to_gguf
    from sdft_cli.report.progress import working

    with working(f"Converting to {file} with {llama_cpp}"):
        return convert_to_gguf(merged, file, llama_cpp, dtype, say, overwrite)
