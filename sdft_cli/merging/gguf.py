"""A checkpoint as a GGUF file: the user's own llama.cpp converts it, the `gguf` package reads what came out."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from sdft_cli.engine.models.adapters import NOT_LANGUAGE
from sdft_cli.errors import MachineError, MissingPackage, UsageError, VerificationError
from sdft_cli.merging.tensor_check import Tensors
from sdft_cli.records.folders import new_file

CONVERTER = "convert_hf_to_gguf.py"
OUTTYPE = {"bfloat16": "bf16", "float32": "f32"}
LAST_LINES = 15
_OUTSIDE = re.compile(rf"(?:^|\.)(?:{'|'.join(NOT_LANGUAGE)})\.")


def check_converter(llama_cpp: Path) -> Path:
    """Return the converter's path.

    Raises:
        UsageError: the folder holds none.
        MachineError: the package `gguf`, which reads the result, is not installed.
    """
    script = llama_cpp.expanduser() / CONVERTER
    if not script.is_file():
        raise UsageError(f"{llama_cpp} holds no {CONVERTER}: give the folder of a llama.cpp checkout as --llama-cpp.")
    if importlib.util.find_spec("gguf") is None:
        raise MissingPackage("Checking a GGUF file", "gguf")
    return script


def convert_to_gguf(
    folder: Path, target: Path, llama_cpp: Path, dtype: str, notify: Callable[[str], None], overwrite: bool = False
) -> list[tuple[str, str]]:
    """Convert a checkpoint with the user's llama.cpp, and compare the file with the checkpoint.

    Args:
        folder: the checkpoint.
        target: the file to write.
        llama_cpp: a folder with `convert_hf_to_gguf.py`.
        dtype: of the checkpoint, bfloat16 or float32; the file's matrices get the same.
        notify: told the converter's last lines if it fails.

    Returns what was compared, as label and value.

    Raises:
        UsageError: no converter there, or the target exists and `overwrite` is false.
        MachineError: the package `gguf` is missing, or the converter failed.
        VerificationError: the file is not the checkpoint; it stays as `<target>.FAILED`.
    """
    script = check_converter(llama_cpp)
    with new_file(target, overwrite) as scratch:
        command = [sys.executable, str(script), str(folder), "--outfile", str(scratch), "--outtype", OUTTYPE[dtype]]
        done = subprocess.run(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace", check=False
        )
        if done.returncode or not scratch.stat().st_size:
            for line in done.stdout.splitlines()[-LAST_LINES:]:
                notify(line)
            raise MachineError(
                f"{script} failed with exit code {done.returncode}, its last lines are above: see what it needs."
            )
        found, problems = compare_gguf(folder, scratch)
        if problems:
            failed = target.with_name(f"{target.name}.FAILED")
            scratch.replace(failed)
            others = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
            raise VerificationError(f"The GGUF file is not the checkpoint: {problems[0]}{others}; it is {failed} now.")
    return found


def compare_gguf(folder: Path, file: Path) -> tuple[list[tuple[str, str]], list[str]]:
    """Compare a GGUF file with a checkpoint; return what was compared, and what is wrong.

    The architecture is named; the chat template is the checkpoint's, letter by letter; the end of turn is (one of)
    the generation config's; there are at least as many tensors as the checkpoint's language model has; the data of
    every tensor lies inside the file. The values of tensors are not compared.
    """
    from gguf import GGUFReader

    try:
        reader = GGUFReader(file)
        fields = {
            key: field.contents()
            for key in ("general.architecture", "tokenizer.chat_template", "tokenizer.ggml.eos_token_id")
            if (field := reader.get_field(key)) is not None
        }
        ends = [(tensor.name, int(tensor.data_offset + tensor.n_bytes)) for tensor in reader.tensors]
    except Exception as error:  # the reader raises whatever a damaged offset leads to
        return [], [f"it cannot be read ({type(error).__name__}: {error})"]
    size, expected = file.stat().st_size, len(language_tensors(folder))
    architecture, template = fields.get("general.architecture"), chat_template(folder)
    end, ends_of_turn = fields.get("tokenizer.ggml.eos_token_id"), end_ids(folder)
    problems = [
        *([] if architecture else ["it names no architecture"]),
        *([] if fields.get("tokenizer.chat_template") == template else ["its chat template is not the checkpoint's"]),
        *([] if not ends_of_turn or end in ends_of_turn else [f"its end of turn is {end}, not {ends_of_turn}"]),
        *([] if len(ends) >= expected else [f"it has {len(ends)} tensors, the language model {expected}"]),
        *(f"{name} ends behind the file's end" for name, last in ends if last > size),
    ]
    found = [
        ("architecture", str(architecture)),
        ("chat template", "none" if template is None else f"the checkpoint's, {len(template):,} characters"),
        ("end of turn", f"{end}, of {ends_of_turn}" if ends_of_turn else f"{end} (the checkpoint names none)"),
        ("tensors, at least the language model's", f"{len(ends)} of {expected}"),
        ("bytes", f"{size:,}"),
    ]
    return found, problems


def language_tensors(folder: Path) -> set[str]:
    """Return the checkpoint's tensors without vision tower and MTP heads; a layer's experts count as one.

    llama.cpp writes those parts elsewhere or not at all, and stacks experts.
    """
    names = (name for name in Tensors(folder).where if not _OUTSIDE.search(name))
    return {re.sub(r"\.experts\.\d+\.", ".experts.", name) for name in names}


def chat_template(folder: Path) -> str | None:
    """Return the checkpoint's chat template."""
    if (folder / "chat_template.jinja").is_file():
        return (folder / "chat_template.jinja").read_text(encoding="utf-8")
    for name in ("chat_template.json", "tokenizer_config.json"):
        if (folder / name).is_file():
            template = json.loads((folder / name).read_bytes()).get("chat_template")
            if isinstance(template, str):
                return template
    return None


def end_ids(folder: Path) -> list[int]:
    """Return the ids that end a turn, from the generation config, else from the config."""
    for document in _configs(folder):
        found = document.get("eos_token_id")
        if found is not None:
            return [found] if isinstance(found, int) else list(found)
    return []


def _configs(folder: Path) -> Iterator[dict[str, Any]]:
    for name in ("generation_config.json", "config.json"):
        if (folder / name).is_file():
            document = json.loads((folder / name).read_bytes())
            yield document
            if isinstance(document.get("text_config"), dict):
                yield document["text_config"]
