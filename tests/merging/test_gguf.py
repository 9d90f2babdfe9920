"""Checkpoints as GGUF files. The converters are small programs written here: they stand for the user's llama.cpp."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("gguf")

from sdft_cli.errors import MachineError, UsageError, VerificationError
from sdft_cli.merging.gguf import CONVERTER, check_converter, convert_to_gguf, end_ids, language_tensors

GOOD = """
import json, sys
from pathlib import Path
import gguf, numpy
from safetensors import safe_open

folder, out, kind = Path(sys.argv[1]), sys.argv[3], sys.argv[5]
assert (sys.argv[2], sys.argv[4], kind) == ("--outfile", "--outtype", "bf16"), sys.argv
writer = gguf.GGUFWriter(out, "llama")
writer.add_chat_template((folder / "chat_template.jinja").read_text())
writer.add_eos_token_id(json.loads((folder / "generation_config.json").read_text())["eos_token_id"])
names = list(safe_open(folder / "model.safetensors", "pt").keys())
for name in names:
    writer.add_tensor(name, numpy.zeros((2, 32), dtype=numpy.float32))
writer.write_header_to_file()
writer.write_kv_data_to_file()
writer.write_tensors_to_file()
writer.close()
"""
BAD = {
    "its chat template is not": GOOD.replace(".read_text())\nwriter.add_eos", ".read_text() + 'x')\nwriter.add_eos"),
    "its end of turn is 7, not": GOOD.replace('["eos_token_id"])', '["eos_token_id"] * 0 + 7)'),
    "it has ": GOOD.replace("in names:", "in names[1:]:"),
    "ends behind the file's end|it cannot be read": GOOD + "\ndata = Path(out).read_bytes()\n"
    "Path(out).write_bytes(data[:-300])\n",
    "it cannot be read": GOOD + "\nPath(out).write_bytes(b'GGUF nonsense' * 9)\n",
}


def llama_cpp(folder: Path, script: str) -> Path:
    folder.mkdir()
    (folder / CONVERTER).write_text(script)
    return folder


def test_a_good_file_is_compared_and_stays(tiny_model: Path, tmp_path: Path) -> None:
    said: list[str] = []
    target = tmp_path / "model.gguf"
    rows = dict(convert_to_gguf(tiny_model, target, llama_cpp(tmp_path / "cpp", GOOD), "bfloat16", said.append))
    count = len(language_tensors(tiny_model))
    assert count > 14
    assert rows["tensors, at least the language model's"] == f"{count} of {count}"
    assert rows["architecture"] == "llama"
    assert rows["end of turn"] == f"2, of {end_ids(tiny_model)}" == "2, of [2]"
    assert rows["bytes"] == f"{target.stat().st_size:,}"
    assert said == []
    with pytest.raises(UsageError, match="already exists"):
        convert_to_gguf(tiny_model, target, tmp_path / "cpp", "bfloat16", said.append)


@pytest.mark.parametrize("problem", BAD)
def test_a_file_that_is_not_the_checkpoint_is_named_so(tiny_model: Path, tmp_path: Path, problem: str) -> None:
    assert BAD[problem] != GOOD
    target = tmp_path / "model.gguf"
    with pytest.raises(VerificationError, match=problem):
        convert_to_gguf(tiny_model, target, llama_cpp(tmp_path / "cpp", BAD[problem]), "bfloat16", print)
    assert not target.exists()
    assert (tmp_path / "model.gguf.FAILED").is_file()


@pytest.mark.parametrize("script", ["import sys\nprint('no such model')\nsys.exit(3)", "print('no such model')"])
def test_a_converter_that_fails_shows_its_last_lines(tiny_model: Path, tmp_path: Path, script: str) -> None:
    said: list[str] = []
    with pytest.raises(MachineError, match="failed with exit code"):
        convert_to_gguf(tiny_model, tmp_path / "m.gguf", llama_cpp(tmp_path / "cpp", script), "bfloat16", said.append)
    assert said == ["no such model"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["cpp"]


def test_a_folder_without_a_converter_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=CONVERTER):
        check_converter(tmp_path)
