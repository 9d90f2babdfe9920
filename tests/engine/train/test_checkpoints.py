from __future__ import annotations

import json
import math
import os
import random
import resource
import shutil
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

from sdft_cli.engine.train import checkpoints as module  # noqa: E402
from sdft_cli.engine.train.checkpoints import Checkpoint, Checkpoints  # noqa: E402
from sdft_cli.errors import DataError, MachineError, UsageError  # noqa: E402

FILES = ["adapter.safetensors", "ema.safetensors", "manifest.json", "optimizer.safetensors", "state.json"]


def tensors_of(step: int, size: int = 50) -> dict[str, dict[str, Any]]:
    """Values that depend on the step, made without torch's thread pool, which does not survive a fork."""
    values = torch.tensor([float(step * 1000 + i) for i in range(size)])
    return {
        "adapter": {"a": values, "b": values[:3] + 1},
        "optimizer": {"step/a": values[0] * 2},
        "ema": {"a": -values},
    }


def save(checkpoints: Checkpoints, step: int, note: str = "") -> Path:
    return checkpoints.save(step, tensors_of(step), {"step": step, "note": note})


def names(folder: Path) -> list[str]:
    """What is in checkpoints/, without the lock."""
    return sorted(set(os.listdir(folder / "checkpoints")) - {".lock"})


def check(found: Checkpoint | None, step: int) -> None:
    assert found is not None
    assert (found.step, found.path.name, found.state["step"]) == (step, f"step-{step:06d}", step)
    assert found.parts == {"adapter", "optimizer", "ema"}
    for part, group in tensors_of(step, len(found.tensors("adapter")["a"])).items():
        read = found.tensors(part)
        assert read.keys() == group.keys()
        assert all(torch.equal(read[name], tensor) for name, tensor in group.items())


def newest(folder: Path) -> tuple[Checkpoint | None, list[str]]:
    notes: list[str] = []
    return Checkpoints(folder, 2).newest(notes.append), notes


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, 2)
    assert checkpoints.newest(pytest.fail) is None
    assert checkpoints.best() is None
    path = save(checkpoints, 50)
    assert path == tmp_path / "checkpoints" / "step-000050"
    assert sorted(os.listdir(path)) == FILES
    check(checkpoints.newest(pytest.fail), 50)
    manifest = json.loads((path / "manifest.json").read_text())
    assert (manifest["format"], manifest["version"], manifest["step"]) == ("sdft-checkpoint", 1, 50)
    told = {n: (f["size"], f["sha256"]) for n, f in manifest["files"].items()}
    sums = subprocess.run(["sha256sum", *told], cwd=path, capture_output=True, text=True, check=True).stdout.split()
    assert told == {n: ((path / n).stat().st_size, s) for s, n in zip(sums[::2], sums[1::2], strict=True)}


def test_an_empty_part_and_many_digits_are_kept(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, 2)
    checkpoints.save(999_999, {"optimizer": {}}, {})
    checkpoints.save(1_000_000, {"optimizer": {}}, {})
    found = checkpoints.newest(pytest.fail)
    assert found
    assert (found.step, found.parts, found.tensors("optimizer")) == (1_000_000, {"optimizer"}, {})


KEYS = st.text().filter(lambda key: key != "$float")  # refused, see below
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(KEYS, inner),
    max_leaves=10,
)


def same(a: Any, b: Any) -> bool:
    if isinstance(a, float):
        return isinstance(b, float) and (
            (math.isnan(a) and math.isnan(b)) or struct.pack("d", a) == struct.pack("d", b)
        )
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list):
        return isinstance(b, list) and len(a) == len(b) and all(map(same, a, b))
    return type(a) is type(b) and a == b


@settings(max_examples=100, deadline=None)
@given(st.dictionaries(KEYS, JSON))
def test_any_state_round_trips_through_strict_json(state: dict[str, Any]) -> None:
    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    text = module._json(module._strict(state))
    json.loads(text, parse_constant=refuse)
    assert same(json.loads(text, object_hook=module._not_finite), state)


def test_a_state_keeps_nan_and_infinities(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, 1)
    checkpoints.save(1, {}, {"kl": [math.nan, math.inf, -math.inf, -0.0, 1e-320]})
    found = checkpoints.newest(pytest.fail)
    assert found
    assert same(found.state["kl"], [math.nan, math.inf, -math.inf, -0.0, 1e-320])
    text = (found.path / "state.json").read_text()
    assert "NaN" not in text
    assert "Infinity" not in text


@pytest.mark.parametrize("state", [{1: 2}, {"a": {None: 1}}, {"$float": 1}, {"a": {1}}, {"a": torch.zeros(1)}])
def test_a_state_that_json_would_change_is_refused(tmp_path: Path, state: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="checkpoint's state"):
        Checkpoints(tmp_path, 1).save(1, {}, state)
    assert names(tmp_path) == []


def flip(path: Path, where: str) -> None:
    data = bytearray(path.read_bytes())
    data[{"first": 0, "middle": len(data) // 2, "last": -1}[where]] ^= 1
    path.write_bytes(data)


def cut(path: Path, where: str) -> None:
    path.write_bytes(path.read_bytes()[:-1] if where == "by one" else b"")


def link(path: Path, where: str) -> None:
    path.rename(path.parent.parent / "elsewhere")
    path.symlink_to(path.parent.parent / "elsewhere")


DAMAGES: list[tuple[Callable[[Path, str], object], str]] = [
    *[(flip, where) for where in ("first", "middle", "last")],
    *[(cut, where) for where in ("by one", "to nothing")],
    (lambda path, _: path.unlink(), "deleted"),
    (link, "a link"),
    (lambda path, _: (path.unlink(), path.mkdir()), "a folder"),
]


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize(("damage", "where"), DAMAGES, ids=[where for _, where in DAMAGES])
def test_a_damaged_file_is_refused_by_name_and_the_one_before_is_used(
    tmp_path: Path, name: str, damage: Callable[[Path, str], object], where: str
) -> None:
    checkpoints = Checkpoints(tmp_path, 3)
    for step in (30, 40, 50):
        save(checkpoints, step)
    damage(tmp_path / "checkpoints" / "step-000050" / name, where)
    found, notes = newest(tmp_path)
    check(found, 40)
    (note,) = notes
    assert note.startswith(f"checkpoints/step-000050 is damaged ({name} ")
    assert note.endswith("): using step-000040 instead")
    if where == "middle" and name != "manifest.json":
        assert f"({name} does not match its sha256)" in note


def test_every_byte_of_a_manifest_counts(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, 1)
    path = checkpoints.save(50, {}, {}) / "manifest.json"
    whole = path.read_bytes()
    for place in range(len(whole)):
        for bit in (0, 5):
            path.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << bit]) + whole[place + 1 :])
            with pytest.raises(DataError, match=r"step-000050 is damaged"):
                checkpoints.newest(pytest.fail)
    for same_meaning in (whole + b"\n", whole.replace(b"\n", b" "), whole.replace(b"{", b'{"step": 50,', 1)):
        path.write_bytes(same_meaning)
        with pytest.raises(DataError, match=r"step-000050 is damaged"):
            checkpoints.newest(pytest.fail)
    path.write_bytes(whole)
    assert checkpoints.newest(pytest.fail)


GARBAGE = [
    b"\x00\xff" * 99,
    b"{}",
    b"[]",
    b"null",
    b"NaN",
    b"[" * 100_000,
    b'{"files": {"state.json": NaN}}',
    b'{"files": [["state.json", 1]]}',
    b'{"files": {"../../secret.json": {}}}',
    b'{"files": 3}',
]


@pytest.mark.parametrize("data", GARBAGE)
def test_garbage_in_a_manifest_is_refused(tmp_path: Path, data: bytes) -> None:
    checkpoints = Checkpoints(tmp_path, 2)
    save(checkpoints, 40)
    (save(checkpoints, 50) / "manifest.json").write_bytes(data)
    found, notes = newest(tmp_path)
    check(found, 40)
    assert len(notes) == 1
    assert notes[0].startswith("checkpoints/step-000050 is damaged (manifest.json is not a manifest")


@pytest.mark.parametrize(
    "entries",
    [
        {"state.json": 1},
        {"state.json": {"sha256": "0"}},
        {"../state.json": {"sha256": "0", "size": 1}},
        {},
    ],
)
def test_a_well_formed_manifest_of_something_else_is_refused(tmp_path: Path, entries: dict[str, Any]) -> None:
    checkpoints = Checkpoints(tmp_path, 2)
    save(checkpoints, 40)
    (save(checkpoints, 50) / "manifest.json").write_bytes(module._manifest(50, entries))
    found, notes = newest(tmp_path)
    check(found, 40)
    assert len(notes) == 1


def test_another_step_under_the_name_is_refused(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, 2)
    shutil.copytree(save(checkpoints, 40), tmp_path / "checkpoints" / "step-000060")
    found, notes = newest(tmp_path)
    check(found, 40)
    assert "manifest.json is not a manifest of format sdft-checkpoint 1 and step 60" in notes[0]


def test_if_all_are_damaged_no_run_starts_from_zero(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, 2)
    for path in [save(checkpoints, step) for step in (40, 50)]:
        flip(path / "state.json", "middle")
    with pytest.raises(DataError) as error:
        checkpoints.newest(pytest.fail)
    assert str(error.value) == (
        "No checkpoint can be used (checkpoints/step-000050 is damaged (state.json does not match its sha256); "
        "checkpoints/step-000040 is damaged (state.json does not match its sha256)): "
        "put a copy back, or start a new run."
    )


def test_tensors_that_change_after_the_verification_are_refused(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, 2)
    save(checkpoints, 50)
    found = checkpoints.newest(pytest.fail)
    assert found
    flip(found.path / "adapter.safetensors", "last")
    with pytest.raises(DataError, match=r"adapter\.safetensors does not match its sha256"):
        found.tensors("adapter")


def kept(folder: Path) -> list[int]:
    return [int(name.removeprefix("step-")) for name in names(folder) if name != "best.json"]


def test_the_newest_and_the_best_are_kept(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, 2)
    seen = []
    for step, is_best in ((10, True), (20, False), (30, True), (40, False), (50, False), (60, False), (70, True)):
        save(checkpoints, step)
        if is_best:
            checkpoints.mark_best(step)
        seen.append(kept(tmp_path))
    assert seen == [[10], [10, 20], [10, 20, 30], [30, 40], [30, 40, 50], [30, 50, 60], [30, 60, 70]]
    again = Checkpoints(tmp_path, 1)  # remembered on disk
    check(again.best(), 70)
    save(again, 80)
    assert kept(tmp_path) == [70, 80]
    save(again, 90)
    assert kept(tmp_path) == [70, 90]
    check(again.best(), 70)


def test_a_damaged_one_never_counts_among_the_kept(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, 2)
    for step in (10, 20, 30):
        save(checkpoints, step)
    assert kept(tmp_path) == [20, 30]
    flip(tmp_path / "checkpoints" / "step-000030" / "ema.safetensors", "first")
    save(checkpoints, 40)
    assert kept(tmp_path) == [20, 40]
    save(checkpoints, 50)
    assert kept(tmp_path) == [40, 50]


def test_a_best_one_has_to_be_saved_and_a_damaged_one_is_named(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, 2)
    with pytest.raises(ValueError, match="step 10 was not saved"):
        checkpoints.mark_best(10)
    path = save(checkpoints, 10)
    checkpoints.mark_best(10)
    flip(path / "state.json", "last")
    with pytest.raises(DataError, match=r"checkpoints/step-000010 is damaged \(state\.json"):
        checkpoints.best()
    for data in (b"", b"{}", b"[1]", b'{"step": 10}', b'{"step": "x"}'):
        (tmp_path / "checkpoints" / "best.json").write_bytes(data)
        with pytest.raises(DataError, match=r"checkpoints/best\.json is damaged"):
            Checkpoints(tmp_path, 2)


def test_an_equal_checkpoint_of_the_same_step_stays_and_another_one_replaces_it(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, 1)
    inode = save(checkpoints, 50).stat().st_ino
    path = save(checkpoints, 50)
    assert path.stat().st_ino == inode
    flip(path / "adapter.safetensors", "middle")
    assert save(checkpoints, 50).stat().st_ino != inode
    check(checkpoints.newest(pytest.fail), 50)
    save(checkpoints, 50, note="another")
    found = checkpoints.newest(pytest.fail)
    assert found
    assert found.state["note"] == "another"
    assert names(tmp_path) == ["step-000050"]


def test_leftovers_of_a_killed_process_are_cleared_and_what_it_moved_aside_comes_back(tmp_path: Path) -> None:
    path = save(Checkpoints(tmp_path, 3), 10)
    folder = path.parent
    shutil.copytree(path, folder / ".step-000020.partial-0123abcd")
    shutil.copytree(path, folder / ".step-000010.old-0123abcd")
    shutil.copytree(path, folder / ".step-000005.deleted-0123abcd")
    (folder / ".best.json.partial-0123abcd").touch()
    (folder / "notes").mkdir()
    (folder / "step-7").mkdir()
    assert names(tmp_path) != ["notes", "step-000010", "step-7"]
    check(newest(tmp_path)[0], 10)
    assert names(tmp_path) == ["notes", "step-000010", "step-7"]
    path.rename(folder / ".step-000010.old-0123abcd")  # killed between the two renames of a replacement
    check(newest(tmp_path)[0], 10)
    assert names(tmp_path) == ["notes", "step-000010", "step-7"]


def test_paths_that_are_no_folder_of_their_own_are_refused(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").write_text("")
    with pytest.raises(UsageError, match=r"checkpoints is a file, and checkpoints need a folder of their own: move it"):
        Checkpoints(tmp_path, 1)
    (tmp_path / "checkpoints").unlink()
    (tmp_path / "else").mkdir()
    for target in (tmp_path / "else", tmp_path / "nowhere"):
        (tmp_path / "checkpoints").symlink_to(target)
        with pytest.raises(UsageError, match="checkpoints is a symbolic link"):
            Checkpoints(tmp_path, 1)
        (tmp_path / "checkpoints").unlink()
    (tmp_path / "else" / "file").touch()
    with pytest.raises(MachineError, match=r"Cannot write in .*file/checkpoints \(Not a directory\)"):
        Checkpoints(tmp_path / "else" / "file", 1)


def test_a_checkpoint_that_is_a_link_is_not_used_and_its_target_never_deleted(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, 1)
    path = save(checkpoints, 10)
    path.rename(tmp_path / "far")
    path.symlink_to(tmp_path / "far")
    save(checkpoints, 20)
    path.with_name("step-000030").symlink_to(tmp_path / "far")
    found, notes = newest(tmp_path)
    check(found, 20)
    assert notes == ["checkpoints/step-000030 is damaged (step-000030 is a symbolic link): using step-000020 instead"]
    save(checkpoints, 30)
    check(newest(tmp_path)[0], 30)
    assert sorted(os.listdir(tmp_path / "far")) == FILES


def test_all_is_on_disk_before_it_is_renamed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A power cut after the rename finds whole files: what was synced is recorded, by inode, at each rename."""
    events: list[tuple[str, Any]] = []
    fsync, rename = os.fsync, os.rename

    def recorded_fsync(handle: int) -> None:
        fsync(handle)
        events.append(("fsync", os.fstat(handle).st_ino))

    def recorded_rename(source: Any, target: Any) -> None:
        inside = {entry.inode() for entry in os.scandir(source)} if os.path.isdir(source) else set()
        events.append((f"rename {Path(target).name}", {os.stat(source).st_ino, *inside}))
        rename(source, target)

    checkpoints = Checkpoints(tmp_path, 1)
    monkeypatch.setattr(os, "fsync", recorded_fsync)
    monkeypatch.setattr(os, "rename", recorded_rename)
    path = save(checkpoints, 50)
    (place,) = [i for i, (kind, _) in enumerate(events) if kind == "rename step-000050"]
    assert len(events[place][1]) == len(FILES) + 1
    assert events[place][1] <= {inode for kind, inode in events[:place] if kind == "fsync"}
    assert ("fsync", path.parent.stat().st_ino) in events[place:]


def in_child(work: Callable[[], None]) -> int:
    """Fork, run `work`, and return the process id; the child never returns into pytest."""
    child = os.fork()
    if child:
        return child
    try:
        work()
    finally:
        os._exit(0)


def answer_of(work: Callable[[], str]) -> str:
    """Run `work` in a forked process and return its text."""
    reader, writer = os.pipe()
    child = in_child(lambda: os.write(writer, work().encode()) and None)
    os.close(writer)
    os.waitpid(child, 0)
    with os.fdopen(reader) as file:
        return file.read()


def failure_of_a_save(folder: Path, step: int) -> str:
    checkpoints = Checkpoints(folder, 1)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2_000, 2_000))
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        checkpoints.save(step, tensors_of(step, 10_000), {"step": step})
    except MachineError as error:
        return str(error)
    return "no error"


def test_a_failed_write_is_one_sentence_and_leaves_nothing(tmp_path: Path) -> None:
    text = answer_of(lambda: failure_of_a_save(tmp_path, 10))
    assert text == (
        "Saving checkpoints/step-000010 failed (File too large) and there is no good one yet: "
        "free space or make the folder writable, then resume the run."
    )
    assert names(tmp_path) == []
    save(Checkpoints(tmp_path, 1), 40)
    text = answer_of(lambda: failure_of_a_save(tmp_path, 50))
    assert text == (
        "Saving checkpoints/step-000050 failed (File too large) and the last good one is checkpoints/step-000040: "
        "free space or make the folder writable, then resume the run."
    )
    assert names(tmp_path) == ["step-000040"]
    check(newest(tmp_path)[0], 40)


def test_a_folder_that_cannot_be_written_is_one_sentence(tmp_path: Path) -> None:
    def work() -> str:
        checkpoints = Checkpoints(tmp_path, 1)
        save(checkpoints, 40)
        (tmp_path / "checkpoints").chmod(0o555)
        for parent in (tmp_path, *tmp_path.parents[:3]):
            parent.chmod(0o755)
        if os.getuid() == 0:  # root may write anywhere
            os.setuid(65_534)
        texts = []
        for attempt in (
            lambda: save(checkpoints, 50),
            lambda: checkpoints.mark_best(40),
            lambda: Checkpoints(tmp_path, 1),
        ):
            try:
                attempt()
            except MachineError as error:
                texts.append(str(error))
        return "\n".join(texts)

    saving, marking, opening = answer_of(work).splitlines()
    assert saving.startswith(
        "Saving checkpoints/step-000050 failed (Permission denied) and the last good one is checkpoints/step-000040:"
    )
    assert marking.startswith(
        "Writing checkpoints/best.json failed (Permission denied) and the last good one is checkpoints/step-000040:"
    )
    assert opening.startswith("Cannot write in ")
    assert opening.endswith("(Permission denied): make it writable, or choose another --out.")
    assert names(tmp_path) == ["step-000040"]


def test_two_processes_do_not_write_to_one_run(tmp_path: Path) -> None:
    def work() -> str:
        try:
            Checkpoints(tmp_path, 1)
        except MachineError as error:
            return str(error)
        return "opened"

    first = Checkpoints(tmp_path, 1)
    assert answer_of(work).endswith("checkpoints is in use by another training process: wait until it ends.")
    first._lock.close()
    assert answer_of(work) == "opened"


def save_for_ever(folder: Path, writer: int, size: int) -> None:
    checkpoints = Checkpoints(folder, 2)
    found = checkpoints.newest(lambda text: os._exit(9))
    for step in range(found.step if found else 1, 1_000_000):  # the first one replaces the newest
        checkpoints.save(step, tensors_of(step, size), {"step": step, "process": os.getpid()})
        if step % 3 == 0:
            checkpoints.mark_best(step)
        os.write(writer, struct.pack("q", step))


def kill_one(folder: Path, wait: Callable[[], None]) -> int:
    """Let a process save twice, kill it after `wait`, and return the last step that it reported."""
    reader, writer = os.pipe()
    child = in_child(lambda: save_for_ever(folder, writer, 2_000))
    os.close(writer)
    with os.fdopen(reader, "rb") as file:
        reports = file.read(16)
        try:
            wait()
        finally:
            os.kill(child, signal.SIGKILL)
            _, status = os.waitpid(child, 0)
        assert os.WIFSIGNALED(status)
        reports += file.read()
    return max(step for (step,) in struct.iter_unpack("q", reports))


def until_seen(folder: Path, kind: str) -> None:
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        if (folder / "checkpoints").is_dir() and any(kind in name for name in os.listdir(folder / "checkpoints")):
            return
    pytest.fail(f"no {kind} was seen")


def test_a_process_killed_at_any_moment_loses_nothing_that_it_saved(tmp_path: Path) -> None:
    draw = random.Random(0)
    waits: list[Callable[[], None]] = [lambda: time.sleep(draw.uniform(0, 0.03)) for _ in range(30)]
    for kind in (".partial-", ".deleted-"):
        waits += 4 * [lambda kind=kind: until_seen(tmp_path, kind)]  # type: ignore[misc]
    last = caught = 0
    for wait in waits:
        reported = kill_one(tmp_path, wait)
        assert reported > last
        caught += any(".step" in name for name in names(tmp_path))
        found, notes = newest(tmp_path)
        assert notes == []
        assert found
        check(found, found.step)
        assert reported <= found.step <= reported + 1
        last = found.step
        assert not [name for name in names(tmp_path) if name.startswith(".")]
    assert caught > 5  # kills hit the middle of a save


def dies_at(event: int, work: Callable[[], None]) -> bool:
    """Run `work` in a process that kills itself before its n-th file operation; say whether it did."""
    operations = {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.scandir", "os.listdir"}
    count = 0

    def hook(name: str, arguments: object) -> None:
        nonlocal count
        if name in operations:
            count += 1
            if count == event:
                os.kill(os.getpid(), signal.SIGKILL)

    def hooked() -> None:
        sys.addaudithook(hook)
        work()

    _, status = os.waitpid(in_child(hooked), 0)
    return os.WIFSIGNALED(status)


@pytest.mark.parametrize("case", ["next", "replaced", "best"])
def test_a_kill_before_each_file_operation_of_a_save(tmp_path: Path, case: str) -> None:
    """keep_last is 1: there is no older checkpoint to fall back to."""

    def work(folder: Path) -> Callable[[], None]:
        def run() -> None:
            checkpoints = Checkpoints(folder, 1)
            if case == "best":
                checkpoints.mark_best(50)
            else:
                save(checkpoints, 60 if case == "next" else 50, note="new")

        return run

    checkpoints = Checkpoints(tmp_path / "start", 1)
    save(checkpoints, 40)
    checkpoints.mark_best(40)
    save(checkpoints, 50, note="old")
    moments = 0
    outcomes = set()
    while True:
        folder = shutil.copytree(tmp_path / "start", tmp_path / str(moments))
        moments += 1
        killed = dies_at(moments, work(folder))
        reopened = Checkpoints(folder, 1)
        found = reopened.newest(pytest.fail)
        assert found
        check(found, found.step)
        check(reopened.best(), reopened.best_step or 0)
        assert not [name for name in names(folder) if name.startswith(".")]
        outcomes.add((found.step, found.state["note"], reopened.best_step))
        if not killed:
            break
    old = (50, "old", 40)
    new = {"next": (60, "new", 40), "replaced": (50, "new", 40), "best": (50, "old", 50)}[case]
    assert outcomes == {old, new}
    assert (found.step, found.state["note"], reopened.best_step) == new
    assert moments > (8 if case == "best" else 30)
