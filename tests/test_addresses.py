"""Addresses, with filesystems of fsspec's own: in memory, and local ones by their address."""

from __future__ import annotations

import hashlib
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from sdft_cli.addresses import check_target, fetch, is_address, put
from sdft_cli.config import PrepareConfig
from sdft_cli.errors import MachineError, UsageError
from sdft_cli.stages.prepare import run_preparation
from sdft_cli.traces.examples import write_examples


@pytest.fixture
def bucket() -> Iterator[str]:
    name = f"bucket-{uuid.uuid4().hex}"
    yield f"memory://{name}"
    memory = fsspec.filesystem("memory")
    if memory.exists(f"/{name}"):
        memory.rm(f"/{name}", recursive=True)


def quiet(what: str, done: int, total: int) -> None:
    pass


def files(address: str) -> dict[str, str]:
    filesystem, path = fsspec.core.url_to_fs(address)
    found = filesystem.find(path)
    return {name[len(path) :].strip("/"): hashlib.sha256(filesystem.cat_file(name)).hexdigest() for name in found}


def test_what_is_an_address() -> None:
    assert all(is_address(name) for name in ("s3://b/x", "hf://datasets/o/n", "memory://x", "file:///tmp/x"))
    assert not any(is_address(name) for name in ("owner/name", "/tmp/x", "C:\\x", "s3:/b", "x.jsonl", "://x", "s3://"))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["memory", "file"])
def test_addresses_give_the_same_bytes_as_folders(tmp_path: Path, smollm2: Path, bucket: str, kind: str) -> None:
    home = bucket if kind == "memory" else f"file://{tmp_path}/remote"
    write_examples(tmp_path / "sessions", 3)
    (tmp_path / "sessions" / "notes.txt").write_text("no session")
    filesystem, path = fsspec.core.url_to_fs(home)
    filesystem.put(str(tmp_path / "sessions"), f"{path}/sessions", recursive=True)

    def config(source: str) -> PrepareConfig:
        return PrepareConfig(source=source, model=str(smollm2), redact=False)

    run_preparation(config(str(tmp_path / "sessions")), tmp_path / "data")
    manifest, _ = run_preparation(config(f"{home}/sessions/"), f"{home}/made/data")
    assert manifest["funnel"]["notes"]["files_ignored"] == 1
    assert files(f"{home}/made/data") == files(f"file://{tmp_path}/data")
    assert len(files(f"{home}/made/data")) == 6
    with pytest.raises(UsageError, match="already exists: choose another --out"):
        run_preparation(config(f"{home}/sessions"), f"{home}/made/data")


def test_a_file_and_a_folder_are_fetched(tmp_path: Path, bucket: str) -> None:
    memory, path = fsspec.core.url_to_fs(bucket)
    for name in ("s/a.jsonl", "s/deep/b.jsonl", "s/big.bin", "s/.hidden/c.jsonl", "s/../up.jsonl"):
        memory.store[f"{path}/{name}"] = memory.open(f"{path}/made", "wb")
        memory.store[f"{path}/{name}"].write(name.encode())
    top = fetch(f"{bucket}/s", tmp_path, lambda file: file.suffix == ".jsonl", quiet)
    found = {str(file.relative_to(tmp_path)): file.read_text() for file in tmp_path.rglob("*") if file.is_file()}
    assert top == tmp_path / "s"
    assert found == {"s/a.jsonl": "s/a.jsonl", "s/deep/b.jsonl": "s/deep/b.jsonl", "s/big.bin": ""}
    assert fetch(f"{bucket}/s/a.jsonl", tmp_path / "s" / "deep", lambda _: True, quiet).read_text() == "s/a.jsonl"
    with pytest.raises(UsageError, match="There is nothing at memory://"):
        fetch(f"{bucket}/none", tmp_path, lambda _: True, quiet)


def test_the_manifest_comes_last_and_goes_first(tmp_path: Path, bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("manifest.json", "README.md", "train.parquet"):
        (tmp_path / name).write_text(name)
    put(tmp_path, f"{bucket}/d", "manifest.json")
    assert sorted(files(f"{bucket}/d")) == ["README.md", "manifest.json", "train.parquet"]
    (tmp_path / "train.parquet").rename(tmp_path / "validation.parquet")
    below = {f"{bucket}/d/other/{name}": name for name in ("manifest.json", "notes.txt")}
    for path, text in below.items():
        MemoryFileSystem().pipe_file(path, text.encode())
    done: list[str] = []
    put_file, rm_file = MemoryFileSystem.put_file, MemoryFileSystem.rm_file

    def spied_put(self: Any, local: str, remote: str, **more: Any) -> None:
        done.append(f"put {Path(remote).name}")
        put_file(self, local, remote, **more)

    def spied_rm(self: Any, path: str) -> None:
        done.append(f"rm {Path(path).name}")
        rm_file(self, path)

    monkeypatch.setattr(MemoryFileSystem, "put_file", spied_put)
    monkeypatch.setattr(MemoryFileSystem, "rm_file", spied_rm)
    put(tmp_path, f"{bucket}/d", "manifest.json")
    assert done == [
        "rm manifest.json",
        "rm train.parquet",
        "put README.md",
        "put validation.parquet",
        "put manifest.json",
    ]
    for path, text in below.items():  # of somebody else: another dataset, whole
        assert MemoryFileSystem().cat_file(path) == text.encode()
        MemoryFileSystem().rm_file(path)
    assert sorted(files(f"{bucket}/d")) == ["README.md", "manifest.json", "validation.parquet"]

    def refused(self: Any, local: str, remote: str, **more: Any) -> None:
        raise PermissionError("Access Denied")

    monkeypatch.setattr(MemoryFileSystem, "put_file", refused)
    with pytest.raises(MachineError, match=r"PermissionError: Access Denied\): check the address, the network"):
        put(tmp_path, f"{bucket}/d", "manifest.json")
    assert "manifest.json" not in files(f"{bucket}/d")  # no reader takes it for a dataset


def test_only_datasets_are_replaced(tmp_path: Path, bucket: str) -> None:
    check_target(f"{bucket}/d", "manifest.json", False)
    (tmp_path / "mine.txt").write_text("mine")
    put(tmp_path, f"{bucket}/d", "manifest.json")
    with pytest.raises(UsageError, match="already exists"):
        check_target(f"{bucket}/d", "manifest.json", False)
    with pytest.raises(UsageError, match=r"holds no manifest.json"):
        check_target(f"{bucket}/d", "manifest.json", True)
    (tmp_path / "manifest.json").write_text("{}")
    put(tmp_path, f"{bucket}/d", "manifest.json")
    check_target(f"{bucket}/d", "manifest.json", True)


def test_a_package_that_is_not_there_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("s3fs", "gcsfs", "adlfs"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MachineError, match=rf"s3://b/x needs .*: pip install s3fs=={fsspec.__version__}$"):
        fetch("s3://b/x", tmp_path, lambda _: True, quiet)
    with pytest.raises(MachineError, match=r"abfs://b/x needs .*: pip install adlfs$"):
        check_target("abfs://b/x", "manifest.json", False)
    with pytest.raises(UsageError, match="fsspec opens no nope:// addresses"):
        check_target("nope://b/x", "manifest.json", False)
