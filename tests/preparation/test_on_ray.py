"""Sessions on a real Ray cluster of two node processes, one of which is killed on the way."""

from __future__ import annotations

import hashlib
import json
import random
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from sdft_cli.config import PrepareConfig, build
from sdft_cli.errors import MachineError, MissingPackage, UsageError
from sdft_cli.preparation import on_ray
from sdft_cli.preparation.job import Given, Job, in_order
from sdft_cli.preparation.pipeline import make_records, manifest_of, read, write
from sdft_cli.prompts.chat import ChatPrompts, load_tokenizer
from sdft_cli.prompts.teacher import load_teacher_template
from sdft_cli.records import Message, Session
from sdft_cli.redaction.redactor import Redactor
from sdft_cli.traces.examples import write_examples
from sdft_cli.traces.source import resolve_source
from tests.preparation.shared_secret import SECRET, write_shared_secret

LETTERS = [a + b + c for a in "bdfgklm" for b in "aeiou" for c in "nrst"]
Run = Callable[..., subprocess.CompletedProcess[str]]


def digest(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


@pytest.fixture
def two_nodes(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    pytest.importorskip("ray")
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    cluster.add_node(num_cpus=1)
    cluster.wait_for_nodes()
    yield cluster
    cluster.shutdown()


def works_on(raylet: int) -> bool:
    """Say whether a process of the node whose raylet this is runs one of our tasks: Ray names it after the function."""
    children = Path(f"/proc/{raylet}/task/{raylet}/children").read_text().split()
    return any("ray::_run" in Path(f"/proc/{pid}/cmdline").read_text() for pid in children)


def write_long_sessions(folder: Path, count: int) -> None:
    """Sessions that take a while each, with an address that is redacted."""
    folder.mkdir()
    for number in range(count):
        words = random.Random(number)
        texts = [" ".join(words.choices(LETTERS, k=1_500)) for _ in range(8)]
        texts[0] += " Write to maria.keller@posteo.de."
        turns = [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]
        (folder / f"{number:02}.jsonl").write_text(json.dumps({"messages": turns}))


@pytest.mark.slow
def test_a_node_that_is_killed_changes_no_byte(
    tmp_path: Path, smollm2: Path, two_nodes: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray

    write_long_sessions(tmp_path / "sessions", 30)
    source = resolve_source(str(tmp_path / "sessions"))
    prompts = ChatPrompts(load_tokenizer(smollm2), load_teacher_template())
    (node,) = two_nodes.worker_nodes
    raylet = node.all_processes["raylet"][0].process.pid
    monkeypatch.setattr(on_ray, "BATCH_CHARACTERS", 1)
    lost: list[int] = []

    def progress(what: str, done: int, total: int) -> None:
        if (
            what == "Counting tokens"
            and 0 < done < total - 8
            and config.engine == "ray"
            and not lost
            and works_on(raylet)
        ):
            two_nodes.remove_node(node, allow_graceful=False)  # SIGKILL, while a task runs on it
            lost.append(done)

    digests = []
    for engine in ({"engine": "ray", "ray_address": two_nodes.address}, {}):
        config = PrepareConfig.model_validate({"source": source.name, "model": "smollm2-135m", **engine})
        job = Job(config, prompts, Redactor(b"key"))
        found = make_records(source, read(config, source, lambda *_: None), job, progress)
        out = write(found, manifest_of(config, source, prompts, found), tmp_path / f"out-{len(digests)}", "card")
        digests.append(digest(out))
    assert len(lost) == 1, "no task ran on that node"
    assert digests[0] == digests[1]
    assert found.redacted == {"email": 30}
    assert not ray.is_initialized()


@pytest.mark.slow
def test_a_cluster_is_started_where_none_is_named(sdft: Run, tmp_path: Path, smollm2: Path) -> None:
    pytest.importorskip("ray")
    write_examples(tmp_path / "sessions", 6)
    write_shared_secret(tmp_path / "sessions" / "secret.jsonl")
    for name, options in (("one", []), ("ray", ["--engine", "ray", "--workers", 2])):
        done = sdft("prepare", "sessions", "--model", smollm2, "--out", name, "--json", *options)
        assert done.returncode == 0, done.stderr
    assert digest(tmp_path / "one") == digest(tmp_path / "ray")
    assert SECRET not in pl.read_parquet(tmp_path / "ray" / "sessions.parquet").write_json()


def test_what_cannot_work_is_said_before_anything_is_read(
    sdft: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def checked(address: str | None) -> None:
        on_ray.check_cluster(PrepareConfig(source="x", engine="ray", ray_address=address))

    with pytest.raises(UsageError, match="ray_address is for the engine ray only"):
        build(PrepareConfig, {"source": "x", "ray_address": "auto"})
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingPackage, match=r"pip install 'sdft-cli\[ray\]'"):
        checked(None)
    monkeypatch.undo()
    pytest.importorskip("ray")
    for address in ("nonsense", "host:port", ":6379"):
        with pytest.raises(UsageError, match="is no address of a Ray cluster"):
            checked(address)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
        with pytest.raises(MachineError, match=r"No Ray cluster answers at 127\.0\.0\.1:"):
            checked(address)
        done = sdft("prepare", "missing", "--engine", "ray", "--ray-address", address)
    assert done.returncode == 1
    assert [line for line in done.stderr.splitlines() if line.startswith("sdft: ")] == done.stderr.splitlines()


def test_a_node_with_another_version_is_refused() -> None:
    with pytest.raises(MachineError, match=r"has sdft-cli .*, not 0\.0\.0: install this one on every node"):
        on_ray._run([], "0.0.0", "run", [])


def test_batches_hold_all_sessions_in_their_order() -> None:
    sessions = [Session(f"s{i}", (Message("user", "x" * size),)) for i, size in enumerate((1, 9, 2, 30, 4, 4))]
    cut = list(on_ray.batches(map(Given, sessions), 10))
    assert [[given.session.session_id for given in some] for some in cut] == [
        ["s0", "s1"],
        ["s2", "s3"],
        ["s4", "s5"],
    ]
    assert list(on_ray.batches([], 10)) == []


def test_few_are_on_their_way_at_a_time() -> None:
    submitted: list[int] = []
    yielded = []
    for item in in_order(lambda i: submitted.append(i) or i, range(20), 3):  # type: ignore[func-returns-value]
        assert len(submitted) - len(yielded) <= 3
        yielded.append(item)
    assert yielded == submitted == list(range(20))
