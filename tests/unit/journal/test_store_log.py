"""The log beside an output that is an object: who has it, what it plays back, how it goes. The store is a folder."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partialmethod
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from rerank_cli.errors import LockedError, OutputError
from rerank_cli.journal import Job, Terms, same_output, store_log
from rerank_cli.journal import fingerprint as identity
from rerank_cli.journal.store_log import Entry, StoreLog, machine_id, probe
from rerank_cli.storage import UrlPath, upload, url_path
from rerank_cli.storage.store import ChangedError, Stat
from rerank_cli.storage.url_path import JOB, SHA256
from tests.local_store import LocalStore
from tests.processes import wait_until
from tests.unit.journal.test_commit import WINDOWS, add, fingerprint

OUT = UrlPath("s3://bucket/dir/out.jsonl")
FOLDER = "dir/out.jsonl.job"
Machine = Callable[[str], StoreLog]


class Kept(LocalStore):
    """A folder that remembers what was deleted, in order."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.folder = folder
        self.deleted: list[str] = []

    def delete(self, key: str) -> None:
        self.deleted.append(key.removeprefix(f"{FOLDER}/"))
        super().delete(key)

    def names(self) -> list[str]:
        """Of what lies beside the output."""
        return sorted(key.removeprefix(f"{FOLDER}/") for key, _ in self.list(f"{FOLDER}/"))

    def entry(self, number: int) -> Entry:
        key = f"{FOLDER}/{number:08}"
        found = Entry.parse(self.read(key, 0, self.stat(key).size))
        assert found is not None
        return found

    def age(self, name: str, seconds: float) -> None:
        """Let an object have been put so long ago."""
        then = time.time() - seconds
        os.utime(self.folder / FOLDER / name, (then, then))


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Kept:
    made = Kept(tmp_path / "store")
    made.folder.mkdir()
    for module in (store_log, url_path, upload):
        monkeypatch.setattr(module, "open_store", lambda url: {"bucket": made}[url.container])
    return made


@pytest.fixture
def machine(store: Kept, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Machine]:
    """A log as a machine of this name opens it."""
    opened: list[StoreLog] = []

    def on(name: str) -> StoreLog:
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "machines" / name))
        opened.append(StoreLog(OUT))
        return opened[-1]

    yield on
    for log in opened:
        log.close()


def commit(log: StoreLog, folder: Path, **contents: bytes) -> None:
    """Let the files of a work folder have these contents, and put what is new of them."""
    folder.mkdir(exist_ok=True)
    for name, data in contents.items():
        (folder / name).write_bytes(data)
    log.commit({name: folder / name for name in contents}, {name: len(data) for name, data in contents.items()})


def restored(log: StoreLog, folder: Path) -> dict[str, bytes]:
    folder.mkdir()
    log.restore(folder)
    return {path.name: path.read_bytes() for path in folder.iterdir()}


# The lock


def test_the_first_has_the_lock_and_another_is_told_who(store: Kept, machine: Machine) -> None:
    machine("a").take(0.0)
    assert store.names() == ["00000000"]
    found = store.entry(0)
    assert (found.kind, found.header["pid"], found.pieces) == ("take", os.getpid(), ())
    with pytest.raises(LockedError, match=rf"another process works on this output: process {os.getpid()} on ") as told:
        machine("b").take(0.0)
    assert str(told.value).startswith(f"{OUT}: another process works on this output")
    assert "after 60 s" in str(told.value.hint)
    assert store.names() == ["00000000"]


def test_what_was_released_is_taken_and_its_job_goes_on(store: Kept, machine: Machine) -> None:
    first, second = machine("a"), machine("b")
    first.take(0.0)
    store.put(f"{FOLDER}/alive-{store.entry(0).header['run']}", b"alive")
    first.release()
    assert store.names() == ["00000000", "00000001"]
    second.take(0.0)
    assert [store.entry(number).kind for number in range(3)] == ["take", "release", "take"]
    assert second.job == first.job
    second.start_over()
    assert second.job not in (first.job, None)


def test_a_run_of_the_same_machine_is_known_to_be_dead(store: Kept, machine: Machine) -> None:
    """The lock of the work folder, which a run has before, keeps those that live apart."""
    machine("a").take(0.0)
    machine("a").take(0.0)
    assert [store.entry(number).kind for number in range(2)] == ["take", "take"]


@pytest.mark.parametrize(("silent", "is_free"), [(59.0, False), (61.0, True)])
def test_a_lock_is_free_when_its_lease_is_over(store: Kept, machine: Machine, silent: float, is_free: bool) -> None:
    first, second = machine("a"), machine("b")
    first.take(0.0)
    store.age("00000000", silent)
    if is_free:
        second.take(0.0)
        assert store.names() == ["00000000", "00000001"]
    else:
        with pytest.raises(LockedError):
            second.take(0.0)
        assert store.names() == ["00000000"]


def test_a_sign_of_life_keeps_the_lock(store: Kept, machine: Machine) -> None:
    first = machine("a")
    first.take(0.0)
    store.age("00000000", 3600.0)
    store.put(f"{FOLDER}/alive-{store.entry(0).header['run']}", b"alive")
    with pytest.raises(LockedError):
        machine("b").take(0.0)
    store.put(f"{FOLDER}/alive-another", b"alive")
    store.age(f"alive-{store.entry(0).header['run']}", 3600.0)
    for left in ("clock-of-one-that-died", "probe-of-one-that-died"):
        store.put(f"{FOLDER}/{left}", b"now")
    machine("b").take(0.0)
    assert store.names() == ["00000000", "00000001"]  # and signs of life of those that have lost it are gone


def test_who_will_not_wait_is_told_at_once(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    machine("a").take(0.0)
    monkeypatch.setattr(StoreLog, "__init__", partialmethod(StoreLog.__init__, clock=lambda: 5.0))
    monkeypatch.setattr(store_log.time, "sleep", lambda seconds: pytest.fail("it waits"))
    with pytest.raises(LockedError):
        machine("b").take(0.0)


def test_a_log_that_goes_while_it_is_taken_is_no_hindrance(
    store: Kept, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another run has put the output and said so, and is deleting its log."""
    first, second = machine("a"), machine("b")
    first.take(0.0)
    with monkeypatch.context() as patch:
        patch.setattr(StoreLog, "_sweep", lambda *_: None)
        first.remove()
    put_new = store.put_new

    def put_behind(key: str, data: bytes, metadata: Mapping[str, str] | None = None) -> None:
        store.delete(f"{FOLDER}/00000000")
        store.delete(f"{FOLDER}/00000001")
        put_new(key, data, metadata)

    monkeypatch.setattr(store, "put_new", put_behind)
    second.take(0.0)
    assert store.names() == ["00000002"]


def test_a_log_that_is_finished_by_its_holder_while_it_is_taken_is_not_gone_on_with(
    store: Kept, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its numbers are free again, and what is put behind one of them belongs to no log."""
    first, second = machine("a"), machine("b")
    first.take(0.0)
    store.age("00000000", 3600.0)
    put_new = store.put_new

    def put_late(key: str, data: bytes, metadata: Mapping[str, str] | None = None) -> None:
        monkeypatch.setattr(store, "put_new", put_new)
        store.delete(f"{FOLDER}/00000000")
        put_new(key, data, metadata)

    monkeypatch.setattr(store, "put_new", put_late)
    second.take(0.0)
    assert store.names() == ["00000000"]
    second.check()
    second.ask()


def test_who_is_slower_than_another_run_has_no_lock(
    store: Kept, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    second, put_new = machine("b"), store.put_new

    def put_second(key: str, data: bytes, metadata: Mapping[str, str] | None = None) -> None:
        monkeypatch.setattr(store, "put_new", put_new)
        machine("a").take(0.0)
        put_new(key, data, metadata)

    monkeypatch.setattr(store, "put_new", put_second)
    with pytest.raises(LockedError):
        second.take(0.0)
    assert store.names() == ["00000000"]


class Waits(threading.Event):
    """The event that ends a log's thread: notes how long it is waited for, and lets `turns` of them pass at once."""

    turns = 0

    def __init__(self) -> None:
        super().__init__()
        self.waited: list[float | None] = []

    def wait(self, timeout: float | None = None) -> bool:
        self.waited.append(timeout)
        return False if len(self.waited) <= self.turns else super().wait(timeout)


@pytest.mark.parametrize("fails", [0, 1])
@pytest.mark.parametrize("silent", [0.0, 14.0, 15.0])
def test_a_sign_of_life_is_due_after_a_quarter_of_the_lease(
    store: Kept, machine: Machine, monkeypatch: pytest.MonkeyPatch, silent: float, fails: int
) -> None:
    now, made = [1000.0], []

    def event() -> Waits:
        made.append(Waits())
        made[-1].turns = 3
        return made[-1]

    own = SimpleNamespace(Event=event, Thread=threading.Thread, Lock=threading.Lock)
    monkeypatch.setattr(store_log, "threading", own)
    monkeypatch.setattr(StoreLog, "__init__", partialmethod(StoreLog.__init__, clock=lambda: now[0]))
    log, put = machine("a"), store.put
    failed: list[str] = []

    def put_at_last(key: str, data: bytes, metadata: Mapping[str, str] | None = None) -> None:
        if len(failed) < fails:
            failed.append(key)
            raise OSError(errno.EIO, "no answer")
        put(key, data, metadata)

    monkeypatch.setattr(store, "put", put_at_last)
    monkeypatch.setattr(store, "get_ready", lambda: now.__setitem__(0, 1000.0 + silent))
    log.take(0.0)
    assert [thread.daemon for thread in threading.enumerate() if thread.name == "lease"] == [True]
    wait_until(lambda: len(made[0].waited) > 3, "it does not look again")
    log.close()
    assert set(made[0].waited) == {3.75}
    assert any(name.startswith("alive-") for name in store.names()) == (silent == 15.0)


def test_one_that_waits_has_the_lock_when_it_is_released(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = machine("a"), machine("b")
    first.take(0.0)
    slept: list[float] = []

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        if len(slept) == 2:
            first.release()

    monkeypatch.setattr(store_log.time, "sleep", sleep)
    second.take(60.0)
    assert slept == [store_log._POLL_SECONDS] * 2


def test_signs_of_life_are_given_until_the_lock_is_lost(
    store: Kept, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_log, "LEASE_SECONDS", 0.08)
    first = machine("a")
    first.take(0.0)
    alive = f"alive-{store.entry(0).header['run']}"
    wait_until(lambda: alive in store.names(), "no sign of life")
    first.check()
    store.put_new(f"{FOLDER}/00000001", b"of another")

    def is_lost() -> bool:
        try:
            first.check()
        except LockedError:
            return True
        return False

    wait_until(is_lost, "it never finds out")
    assert first._beating is not None
    first._beating.join(60)
    assert not first._beating.is_alive()


# Windows


def test_what_is_committed_is_played_back_anywhere(store: Kept, machine: Machine, tmp_path: Path) -> None:
    first = machine("a")
    first.take(0.0)
    commit(first, tmp_path / "work", rows=b"one\n", errors=b"", journal=b"j1")
    commit(first, tmp_path / "work", rows=b"one\ntwo\n", errors=b"bad\n", journal=b"j1j2")
    assert [entry.pieces for entry in map(store.entry, (1, 2))] == [
        (("rows", 0, b"one\n"), ("errors", 0, b""), ("journal", 0, b"j1")),
        (("rows", 4, b"two\n"), ("errors", 0, b"bad\n"), ("journal", 2, b"j2")),
    ]
    first.release()
    second = machine("b")
    second.take(0.0)
    assert restored(second, tmp_path / "again") == {"rows": b"one\ntwo\n", "errors": b"bad\n", "journal": b"j1j2"}
    second.begin_at({"rows": 8, "errors": 4, "journal": 4})
    commit(second, tmp_path / "again", rows=b"one\ntwo\nthree\n", errors=b"bad\n", journal=b"j1j2")
    assert [piece for _, _, piece in store.entry(5).pieces if piece] == [b"three\n"]


def test_a_commit_that_is_too_large_is_several_objects(
    store: Kept, machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_log, "_ENTRY_BYTES", 10)
    log = machine("a")
    log.take(0.0)
    contents = {"rows": bytes(range(25)), "errors": b"", "journal": b"j"}
    commit(log, tmp_path / "work", **contents)
    kinds = [store.entry(number).kind for number in range(1, 4)]
    assert kinds == ["data", "data", "commit"]
    assert all(sum(len(data) for _, _, data in store.entry(number).pieces) <= 10 for number in range(1, 4))
    log.release()
    again = machine("b")
    again.take(0.0)
    assert restored(again, tmp_path / "again") == contents


@pytest.mark.parametrize("harm", ["gone", "damaged"])
def test_what_needs_an_entry_that_is_gone_or_damaged_is_left_out(
    store: Kept, machine: Machine, tmp_path: Path, harm: str
) -> None:
    log = machine("a")
    log.take(0.0)
    for rows in (b"one\n", b"one\ntwo\n", b"one\ntwo\nthree\n"):
        commit(log, tmp_path / "work", rows=rows)
    log.release()
    if harm == "gone":
        store.delete(f"{FOLDER}/00000002")
    else:
        data = store.read(f"{FOLDER}/00000002", 0, store.stat(f"{FOLDER}/00000002").size)
        store.put(f"{FOLDER}/00000002", data[:-1] + b"#")
    again = machine("b")
    again.take(0.0)
    assert restored(again, tmp_path / "again") == {"rows": b"one\n"}


@pytest.mark.parametrize("harm", ["gone", "damaged"])
def test_a_file_whose_first_byte_is_missing_is_left_out(
    store: Kept, machine: Machine, tmp_path: Path, harm: str
) -> None:
    log = machine("a")
    log.take(0.0)
    for rows in (b"1", b"12"):
        commit(log, tmp_path / "work", rows=rows)
    log.release()
    store.delete(f"{FOLDER}/00000001")
    if harm == "damaged":
        store.put(f"{FOLDER}/00000001", b"no entry")
    again = machine("b")
    again.take(0.0)
    assert restored(again, tmp_path / "again") == {}
    commit(again, tmp_path / "work", rows=b"whole")  # what follows one that is left out is played back
    again.release()
    last = machine("c")
    last.take(0.0)
    assert restored(last, tmp_path / "last") == {"rows": b"whole"}


def test_an_entry_that_changes_while_it_is_read_is_not_played_back(
    store: Kept, machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = machine("a")
    log.take(0.0)
    commit(log, tmp_path / "work", rows=b"1")
    log.release()
    again = machine("b")
    again.take(0.0)
    listed = list(store.list(f"{FOLDER}/"))
    store.put(f"{FOLDER}/00000001", store.read(f"{FOLDER}/00000001", 0, store.stat(f"{FOLDER}/00000001").size))
    monkeypatch.setattr(store, "list", lambda prefix: iter(listed))
    with pytest.raises(ChangedError):
        restored(again, tmp_path / "again")


def test_a_new_log_has_nothing_to_play_back(machine: Machine, tmp_path: Path) -> None:
    log = machine("a")
    log.take(0.0)
    assert restored(log, tmp_path / "again") == {}


def _changed(entry: bytes, **changes: Any) -> bytes:
    line, _, rest = entry.partition(b"\n")
    return json.dumps({**json.loads(line), **changes}).encode() + b"\n" + rest


def test_what_is_no_entry_is_none(store: Kept, machine: Machine, tmp_path: Path) -> None:
    log = machine("a")
    log.take(0.0)
    commit(log, tmp_path / "work", rows=b"one\n")
    whole = store.read(f"{FOLDER}/00000001", 0, store.stat(f"{FOLDER}/00000001").size)
    assert Entry.parse(whole) is not None
    pieces = json.loads(whole.partition(b"\n")[0])["pieces"]
    for bad in (
        b"", b"{", whole[:-1], whole + b"x", whole.partition(b"\n")[0], whole.replace(b"one", b"two"),
        _changed(whole, format=2), _changed(whole, kind=1), _changed(whole, run=None), _changed(whole, pieces=[["a"]]),
        _changed(whole, pieces=[["../rows", *pieces[0][1:]]]),
    ):  # fmt: skip
        assert Entry.parse(bad) is None, bad


# A lock that is lost


def test_one_that_was_asleep_writes_nothing_more(store: Kept, machine: Machine, tmp_path: Path) -> None:
    first, second = machine("a"), machine("b")
    first.take(0.0)
    store.age("00000000", 61.0)
    second.take(0.0)
    for _ in range(2):
        with pytest.raises(LockedError):
            commit(first, tmp_path / "work", rows=b"one\n")
    with pytest.raises(LockedError) as told:
        first.check()
    assert told.value.message == f"{OUT}: another process works on this output"
    first.remove()
    first.release()
    assert store.names() == ["00000000", "00000001"]


def test_who_finds_out_at_its_end_that_it_has_lost_the_lock_leaves_the_log_alone(store: Kept, machine: Machine) -> None:
    first, second = machine("a"), machine("b")
    first.take(0.0)
    store.age("00000000", 61.0)
    second.take(0.0)
    first.release()
    first.remove()
    assert [store.entry(number).kind for number in (0, 1)] == ["take", "take"]
    assert store.names() == ["00000000", "00000001"]


def test_a_clock_that_is_swept_by_who_has_just_taken_the_lock_says_nothing(
    store: Kept, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine("a").take(0.0)
    store.age("00000000", 3600.0)
    stat = store.stat

    def swept(key: str) -> Stat:
        if "clock-" in key:
            raise FileNotFoundError(errno.ENOENT, "no such object")
        return stat(key)

    monkeypatch.setattr(store, "stat", swept)
    with pytest.raises(LockedError):
        machine("b").take(0.0)


def test_a_number_that_is_free_again_is_not_taken_for_ones_own(store: Kept, machine: Machine, tmp_path: Path) -> None:
    """Another run has taken the lock, finished the job and deleted the log."""
    first, second = machine("a"), machine("b")
    first.take(0.0)
    store.age("00000000", 61.0)
    second.take(0.0)
    second.remove()
    assert store.names() == []
    with pytest.raises(LockedError):
        commit(first, tmp_path / "work", rows=b"one\n")
    assert store.names() == []


def test_who_asks_is_told(store: Kept, machine: Machine) -> None:
    log = machine("a")
    log.take(0.0)
    log.ask()
    store.put_new(f"{FOLDER}/00000001", b"of another")
    log.check()
    with pytest.raises(LockedError):
        log.ask()
    with pytest.raises(LockedError):
        log.check()
    gone = machine("a")
    store.delete(f"{FOLDER}/00000001")
    gone.take(0.0)
    store.delete(f"{FOLDER}/00000001")
    with pytest.raises(LockedError):
        gone.ask()


# The end


def test_the_log_goes_and_no_number_is_free_behind_one_of_an_earlier_run(
    store: Kept, machine: Machine, tmp_path: Path
) -> None:
    first, second = machine("a"), machine("b")
    first.take(0.0)
    commit(first, tmp_path / "work", rows=b"one\n")
    first.release()
    second.take(0.0)
    commit(second, tmp_path / "work", rows=b"one\ntwo\n")
    commit(second, tmp_path / "work", rows=b"one\ntwo\nthree\n")
    store.put(f"{FOLDER}/probe-left", b"probe")
    store.put(f"{FOLDER}/note.txt", b"of the user")
    store.deleted.clear()
    second.remove()
    assert store.names() == ["note.txt"]
    order = [name for name in store.deleted if name.isdecimal()]
    assert order[:3] == ["00000000", "00000001", "00000002"]
    assert sorted(order[3:-1]) == ["00000003", "00000004", "00000005"]
    assert order[-1] == "00000006"


def test_a_log_whose_output_is_there_is_swept_by_the_next_run(
    store: Kept, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = machine("a"), machine("b")
    first.take(0.0)
    with monkeypatch.context() as patch:
        patch.setattr(StoreLog, "_sweep", lambda *_: None)  # it dies behind `placed`
        first.remove()
    assert [store.entry(number).kind for number in range(2)] == ["take", "placed"]
    second.take(0.0)
    assert store.names() == ["00000002"]
    assert second.job != first.job


def test_what_a_job_has_put_is_its_own(store: Kept, machine: Machine) -> None:
    log = machine("a")
    assert not log.is_mine(OUT)
    store.put(OUT.url.key, b"rows", {JOB: "another"})
    assert not log.is_mine(OUT)
    store.put(OUT.url.key, b"rows", {JOB: log.job})
    assert log.is_mine(OUT)
    assert not log.is_mine(Path("out.jsonl"))
    assert not StoreLog.is_there(OUT)
    log.take(0.0)
    assert StoreLog.is_there(OUT)


def test_a_probe_leaves_nothing_and_tells_a_store_that_puts_over(store: Kept, monkeypatch: pytest.MonkeyPatch) -> None:
    probe(OUT)
    assert store.names() == []

    def put_over(key: str, data: bytes, metadata: Mapping[str, str] | None = None) -> None:
        store.put(key, data, metadata)

    with monkeypatch.context() as patch:
        patch.setattr(store, "put_new", put_over)
        with pytest.raises(OutputError, match="ignores the condition that an object must be new"):
            probe(OUT)
    assert store.names() == []

    def fails(*_: object) -> None:
        raise OSError(errno.EACCES, "not allowed")

    monkeypatch.setattr(store, "delete", fails)
    probe(OUT)  # who may not delete may write
    monkeypatch.setattr(store, "put_new", fails)
    with pytest.raises(OutputError) as told:
        probe(OUT)
    assert told.value.message == f"{OUT}: cannot be written: not allowed"


def test_a_machine_has_one_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = []
    for folder in ("a", "a", "b"):
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / folder))
        names.append(machine_id())
    assert names[0] == names[1] != names[2]
    files = [path.relative_to(tmp_path / "a") for path in (tmp_path / "a").rglob("*") if path.is_file()]
    assert files == [Path("rerank-cli") / "jobs" / "machine"]


# A job whose output is an object


ERRORS = UrlPath("s3://bucket/dir/out.errors")


@pytest.fixture
def there(store: Kept, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Job]:
    """The job of the output as a machine of this name opens it."""
    identity = fingerprint(tmp_path)

    def on(name: str, **terms: Any) -> Job:
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "machines" / name))
        return Job(OUT, Terms(**{"checkpoint_every": 0.0, "fingerprint": identity, **terms}))

    return on


def interrupted(opened: Job) -> OutputError:
    """The error of a job that ends behind its second window."""
    with pytest.raises(OutputError) as caught, opened:
        add(opened, range(2))
        raise OutputError("enough")
    return caught.value


def placed(opened: Job) -> None:
    add(opened, range(opened.next_window, len(WINDOWS)))
    opened.checkpoint()
    opened.complete({"errors": True})
    opened.place({"errors": ERRORS, "rows": OUT})


def objects(store: Kept) -> dict[str, bytes]:
    return {key: store.read(key, 0, found.size) for key, found in store.list("")}


def test_a_job_goes_on_on_another_machine_and_leaves_its_files_alone(store: Kept, there: Callable[..., Job]) -> None:
    assert not Job.is_begun(str(OUT))
    first = there("a")
    error = interrupted(first)
    assert error.__notes__ == [f"what is finished is kept in {OUT}.job; run the same command again to resume"]
    assert not first.folder.exists()
    again = there("b")
    assert Job.is_begun(str(OUT))
    with again:
        assert (again.next_window, again.state, again.notes) == (2, {"windows": 2}, [[1, "note 1"]])
        placed(again)
        assert again.is_mine(OUT)
    names = {OUT.url.key: b"first\nsecond\nfourth\n", ERRORS.url.key: b"bad\nworse\n"}
    assert objects(store) == names
    jobs = {store.stat(key).metadata[JOB] for key in names}
    assert len(jobs) == 1


def test_a_job_that_starts_over_plays_nothing_back(store: Kept, there: Callable[..., Job]) -> None:
    interrupted(there("a"))
    was = store.entry(0).header["job"]
    with there("b", restart=True) as again:
        assert (again.next_window, again.size("rows"), again.state) == (0, 0, None)
        placed(again)
    assert store.stat(OUT.url.key).metadata[JOB] != was


def test_a_log_that_cannot_be_played_back_is_free_again(
    store: Kept, there: Callable[..., Job], monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupted(there("a"))

    def fails(*_: object) -> None:
        raise OSError(errno.EIO, "no answer")

    with monkeypatch.context() as patch:
        patch.setattr(StoreLog, "restore", fails)
        with pytest.raises(OutputError, match="cannot be written: no answer"), there("b"):
            pass
    with there("c") as again:
        assert again.next_window == 2


def test_what_an_earlier_run_has_left_on_this_machine_is_not_what_the_log_says(
    store: Kept, there: Callable[..., Job]
) -> None:
    interrupted(there("a"))
    again = there("b")
    again.folder.mkdir(parents=True)
    for name, data in (("lock", b""), ("journal", b""), ("rows", b"of long ago"), ("report", b"old")):
        again.path(name).write_bytes(data)
    with again:
        assert (again.next_window, again.size("rows")) == (2, len(b"first\nsecond\n"))
        placed(again)
    assert objects(store)[OUT.url.key] == b"first\nsecond\nfourth\n"


def test_what_is_made_at_the_end_is_not_put_into_the_log(store: Kept, there: Callable[..., Job]) -> None:
    with there("a") as opened:
        add(opened, range(4))
        opened.checkpoint()
        before = store.names()
        opened.complete({"errors": True})
        assert store.names() == before
        opened.place({"errors": ERRORS, "rows": OUT})


def test_the_work_on_a_file_of_a_data_set_lies_in_the_cache_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    out = UrlPath("hf://datasets/me/set/out.jsonl")
    assert not Job.is_begun(str(out))
    opened = Job(out, Terms(checkpoint_every=0.0, fingerprint=fingerprint(tmp_path)))
    assert opened.folder.is_relative_to(tmp_path / "cache" / "rerank-cli" / "jobs")
    assert opened.folder == Job.folder_of(str(out)) != Job.folder_of(f"{out}.gz")
    with pytest.raises(OutputError) as caught, opened:
        add(opened, range(2))
        raise OutputError("enough")
    assert caught.value.__notes__ == [
        f"what is finished is kept in {opened.folder}; run the same command again to resume"
    ]
    assert Job.is_begun(str(out))


def test_the_work_on_an_output_that_is_there_already_is_deleted(store: Kept, there: Callable[..., Job]) -> None:
    interrupted(there("a"))
    with there("b") as again:
        again.was_done()
    assert objects(store) == {}


def test_a_run_that_has_lost_its_lock_puts_nothing(store: Kept, there: Callable[..., Job]) -> None:
    first = there("a")
    with pytest.raises(LockedError), first:
        add(first, range(2))
        store.age("00000002", 61.0)
        with there("b") as second:
            assert second.next_window == 2
            placed(second)
        add(first, [2])
    assert objects(store)[OUT.url.key] == b"first\nsecond\nfourth\n"
    assert len(objects(store)) == 2


def test_an_object_is_an_output_of_before_by_size_and_digest(store: Kept, monkeypatch: pytest.MonkeyPatch) -> None:
    digest = "0" * 64
    said = {"bytes": 4, "sha256": digest}
    assert not same_output(OUT, said)
    store.put(OUT.url.key, b"rows", {SHA256: digest})
    assert same_output(OUT, said)
    assert not same_output(OUT, {**said, "bytes": 5})
    assert not same_output(OUT, {**said, "sha256": "1" * 64})
    monkeypatch.setattr(identity, "is_on_hub", lambda path: path == OUT)  # which keeps no metadata
    monkeypatch.setattr(identity, "sha256_of", lambda path: hashlib.sha256(objects(store)[path.url.key]).hexdigest())
    assert not same_output(OUT, said)
    assert same_output(OUT, {**said, "sha256": hashlib.sha256(b"rows").hexdigest()})
