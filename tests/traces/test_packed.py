from __future__ import annotations

import gzip
import json
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest

from sdft_cli.errors import DataError
from sdft_cli.traces.packed import opened
from sdft_cli.traces.rows import read_lines, suffix_of
from sdft_cli.traces.source import read_source, resolve_source
from tests.traces.lines import line

PACK: dict[str, Callable[[bytes], bytes]] = {
    ".gz": gzip.compress,
    ".zst": lambda data: pa.compress(data, codec="zstd", asbytes=True),
}
SESSION = [line("1", None, "user", "hi"), line("2", "1", "assistant", "hello")]
LOG = "".join(f"{json.dumps(x)}\n" for x in SESSION).encode()
UNPACKED = {".jsonl": LOG, ".json": json.dumps(SESSION).encode()}


@pytest.mark.parametrize("packed", sorted(PACK))
@pytest.mark.parametrize("inner", sorted(UNPACKED))
def test_a_packed_session_is_read_like_the_file_in_it(packed: str, inner: str, tmp_path: Path) -> None:
    path = tmp_path / f"s{inner}{packed}"
    path.write_bytes(PACK[packed](UNPACKED[inner]))
    for source in (path, tmp_path):
        found = read_source(resolve_source(str(source)))
        assert [m.content for m in found.sessions[0].messages] == ["hi", "hello"]
        assert found.report.lines == {"conversation": 2}


@pytest.mark.parametrize("packed", sorted(PACK))
def test_streams_one_after_the_other_are_one_file(packed: str, tmp_path: Path) -> None:
    path = tmp_path / f"s.jsonl{packed}"
    path.write_bytes(PACK[packed](LOG) + PACK[packed](LOG))
    assert [number for number, _ in read_lines(path)] == [1, 2, 3, 4]


@pytest.mark.parametrize("packed", sorted(PACK))
@pytest.mark.parametrize("damage", ["cut", "garbage"])
def test_a_damaged_file_is_one_sentence_and_the_others_are_read(packed: str, damage: str, tmp_path: Path) -> None:
    many = b"".join(b'{"n": %d}\n' % (i * i) for i in range(100_000))
    whole = PACK[packed](LOG + many)
    (tmp_path / f"a.jsonl{packed}").write_bytes(whole[: len(whole) // 2] if damage == "cut" else b"no such stream")
    with pytest.raises(
        DataError, match=rf"^a\.jsonl\{packed} cannot be unpacked \(\w+\): it is damaged, copy it anew\.$"
    ):
        read_source(resolve_source(str(tmp_path)))
    (tmp_path / "b.jsonl").write_bytes(LOG)
    found = read_source(resolve_source(str(tmp_path)))
    assert len(found.sessions) == found.report.notes["unreadable_files"] == 1
    assert found.report.lines == {"conversation": 2}
    (broken,) = found.report.broken
    assert broken.startswith(f"a.jsonl{packed} (a.jsonl{packed} cannot be unpacked")


@pytest.mark.parametrize("packed", sorted(PACK))
@pytest.mark.parametrize("inner", sorted(UNPACKED))
def test_a_file_that_expands_too_much_is_refused_in_little_memory(packed: str, inner: str, tmp_path: Path) -> None:
    path = tmp_path / f"bomb{inner}{packed}"
    path.write_bytes(PACK[packed](b"[" + b" " * 2**28))
    tracemalloc.start()
    with pytest.raises(DataError) as caught:
        read_source(resolve_source(str(path)))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (
        str(caught.value)
        == f"{path.name} expands more than 200-fold: no session does; unpack it yourself if it is one."
    )
    assert peak < 2**27


@pytest.mark.parametrize("packed", sorted(PACK))
def test_a_small_file_may_expand_as_it_likes(packed: str, tmp_path: Path) -> None:
    data = LOG + b"\n" * 2**23
    path = tmp_path / f"s.jsonl{packed}"
    path.write_bytes(PACK[packed](data))
    assert len(data) > 200 * path.stat().st_size
    with opened(path) as file:
        assert file.read() == data


def test_only_logs_may_be_packed(tmp_path: Path) -> None:
    names = ["a.jsonl", "a.jsonl.gz", "a.json.zst", "a.parquet", "a.parquet.gz", "a.tar.gz", "a.gz", "a.md"]
    assert [suffix_of(Path(name)) for name in names] == [
        *(".jsonl", ".jsonl", ".json", ".parquet", ".gz", ".gz", ".gz", ".md"),
    ]
    (tmp_path / "a.parquet.gz").write_bytes(b"x")
    with pytest.raises(DataError, match="holds no trace file"):
        resolve_source(str(tmp_path))
