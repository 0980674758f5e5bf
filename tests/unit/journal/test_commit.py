"""The work folder of a run: what a later process finds in it, whatever became of the one before."""

from __future__ import annotations

import errno
import json
import os
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

from rerank_cli.errors import JobChangedError, LockedError, OutputError
from rerank_cli.journal import (
    Files,
    Fingerprint,
    Job,
    Terms,
    WorkFile,
    naming,
    place_file,
    remove_file,
    same_output,
    write_whole,
)
from rerank_cli.journal import lines as journals
from rerank_cli.journal.lock import take_lock
from tests.conftest import LONG

WINDOWS = [(b"first\n", b""), (b"second\n", b"bad\n"), (b"", b"worse\n"), (b"fourth\n", b"")]


def fingerprint(folder: Path, **asked: Any) -> Fingerprint:
    """Of a run of one file; hashed to the end."""
    source = folder / "in.jsonl"
    if not source.exists():
        source.write_text("input")
        os.utime(source, (1, 1))
    made = Fingerprint(asked={"top_n": 3, **asked}, plan={"device": "cpu"}, files={"input 1": source})
    made.start()
    made.wait(60)
    return made


def job(folder: Path, *, files: Files | None = None, asked: dict[str, Any] | None = None, **terms: Any) -> Job:
    terms = {"checkpoint_every": 0.0, "fingerprint": fingerprint(folder, **(asked or {})), **terms}
    return Job(folder / "out.jsonl", Terms(files=files or Files(), **terms))


def add(opened: Job, windows: Iterable[int]) -> None:
    for window in windows:
        rows, errors = WINDOWS[window]
        opened.add(
            window, {"rows": rows, "errors": errors}, {"windows": window + 1}, f"note {window}" * (window % 2) or None
        )


def finish(opened: Job) -> bytes:
    """Do what is left and give the files their names; returns the rows and errors."""
    add(opened, range(opened.next_window, len(WINDOWS)))
    opened.checkpoint()
    opened.complete({"errors": True})
    out = opened.out
    opened.place({"errors": out.with_suffix(".errors"), "rows": out})
    return out.with_suffix(".errors").read_bytes() + out.read_bytes()


WHOLE = b"".join(errors for _, errors in WINDOWS) + b"".join(rows for rows, _ in WINDOWS)


def test_a_job_from_begin_to_end_leaves_its_files_and_no_folder(tmp_path: Path) -> None:
    with job(tmp_path) as opened:
        assert (opened.next_window, opened.state, opened.notes, opened.completed) == (0, None, [], None)
        assert finish(opened) == WHOLE
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.jsonl", "out.errors", "out.jsonl"]


@pytest.mark.parametrize("done", range(1, 5))
def test_the_next_process_goes_on_behind_the_last_commit(tmp_path: Path, done: int) -> None:
    with job(tmp_path) as opened:
        add(opened, range(done))
        opened.append({"rows": b"of no window"})
    with job(tmp_path) as opened:
        assert opened.next_window == done
        assert opened.state == {"windows": done}
        assert opened.notes == [[window, f"note {window}"] for window in range(done) if window % 2]
        assert opened.size("rows") == sum(len(rows) for rows, _ in WINDOWS[:done])
        assert finish(opened) == WHOLE


def test_windows_are_committed_when_it_is_time_and_at_the_end(tmp_path: Path) -> None:
    now = [0.0]
    with job(tmp_path, checkpoint_every=5.0, clock=lambda: now[0]) as opened:
        journal = opened.path("journal")
        add(opened, [0])
        first = journal.stat().st_size
        add(opened, [1, 2])
        assert journal.stat().st_size == first
        now[0] = 5.0
        add(opened, [3])
        assert len(journals.read_journal(journal)) == 3  # a header, window 0, windows 1 to 3
    with job(tmp_path) as opened:
        assert opened.next_window == 4


def test_a_job_without_a_commit_leaves_nothing(tmp_path: Path) -> None:
    with job(tmp_path) as opened:
        opened.append({"rows": b"of no window"})
    assert not opened.folder.exists()


def test_a_job_that_cannot_be_continued_goes_with_its_process(tmp_path: Path) -> None:
    with job(tmp_path, fingerprint=None) as opened:
        add(opened, [0, 1])
        assert opened.path("rows").read_bytes() == b"first\nsecond\n"
        assert opened.path("journal").read_bytes() == b""
    assert not opened.folder.exists()
    with job(tmp_path, fingerprint=None) as opened:
        assert finish(opened) == WHOLE


def test_a_job_on_disk_is_refused_to_a_run_that_cannot_continue_one(tmp_path: Path) -> None:
    with job(tmp_path) as opened:
        add(opened, [0])
    with (
        pytest.raises(JobChangedError, match="this run reads a pipe, and the job did not"),
        job(tmp_path, fingerprint=None),
    ):
        pass


def test_another_request_is_refused_with_the_first_differences(tmp_path: Path) -> None:
    with job(tmp_path) as opened:
        add(opened, [0])
    with pytest.raises(JobChangedError) as caught, job(tmp_path, asked={"top_n": 4}):
        pass
    assert "`top_n` was 3, is 4" in caught.value.message
    with pytest.raises(JobChangedError) as caught, job(tmp_path, asked=dict.fromkeys("abcde", "x" * 100)):
        pass
    assert "`a` was not given, is 'xxx" in caught.value.message
    assert "...; `b`" in caught.value.message
    assert caught.value.message.endswith("... (and 2 more)")
    assert "--restart" in (caught.value.hint or "")


def test_a_journal_of_another_version_is_refused(tmp_path: Path) -> None:
    with job(tmp_path) as opened:
        add(opened, [0])
    journal = opened.path("journal")
    records = [entry.record for entry in journals.read_journal(journal)]
    records[0]["format"] = 0
    journal.write_bytes(journals.encode(records, after="")[0])
    with pytest.raises(JobChangedError, match="another version of this program"), job(tmp_path):
        pass


def test_restart_begins_again(tmp_path: Path) -> None:
    with job(tmp_path) as opened:
        add(opened, [0, 1])
    with job(tmp_path, asked={"top_n": 4}, restart=True) as opened:
        assert (opened.next_window, opened.size("rows"), opened.state) == (0, 0, None)
        assert finish(opened) == WHOLE


def test_a_file_where_the_folder_must_be_is_named(tmp_path: Path) -> None:
    (tmp_path / "out.jsonl.job").write_text("mine")
    with pytest.raises(OutputError, match=r"out\.jsonl\.job: is not a folder"), job(tmp_path):
        pass
    assert (tmp_path / "out.jsonl.job").read_text() == "mine"


def test_the_user_is_told_where_the_work_lies(tmp_path: Path) -> None:
    with pytest.raises(OutputError) as caught, job(tmp_path) as opened:
        add(opened, [0])
        raise OutputError("enough")
    assert caught.value.__notes__ == [
        f"what is finished is kept in {opened.folder}; run the same command again to resume"
    ]


@pytest.mark.parametrize("damage", ["cut", "flipped"])
@pytest.mark.parametrize("name", ["journal", "rows", "errors"])
def test_a_job_with_a_damaged_file_goes_on_from_what_is_whole(tmp_path: Path, name: str, damage: str) -> None:
    """Every byte of every file; also those that are not the last."""
    unsynced, mine = Unsynced(), fingerprint(tmp_path)
    with job(tmp_path) as opened:
        add(opened, range(4))
    files = {path.name: path.read_bytes() for path in opened.folder.iterdir()}
    for offset in range(0, len(files[name]), 1 if LONG or name != "journal" else 37):
        for other, data in files.items():
            (opened.folder / other).write_bytes(data)
        flipped = bytes([files[name][offset] ^ 1]) + files[name][offset + 1 :] if damage == "flipped" else b""
        (opened.folder / name).write_bytes(files[name][:offset] + flipped)
        with job(tmp_path, files=unsynced, fingerprint=mine) as again:
            assert again.next_window <= 4
            assert again.state == ({"windows": again.next_window} if again.next_window else None)
            assert finish(again) == WHOLE
        again.folder.mkdir()


# Faults


class Unsynced(Files):
    """Files that reach the disk when the system likes, for tests that cut no power."""

    def fsync(self, descriptor: int) -> None:
        pass

    def sync_folder(self, path: Path) -> None:
        pass


class Failing(Files):
    """Files whose `name` fails at its n-th call from now on."""

    def __init__(self, name: str, number: int = errno.EIO, *, at: int = 1) -> None:
        self._name = name
        self._number = number
        self._left = at

    def fail_next(self) -> None:
        """Let the next call be the one that fails."""
        self._left = 1

    def fail(self, name: str) -> None:
        self._left -= name == self._name
        if name == self._name and self._left == 0:
            raise OSError(self._number, os.strerror(self._number))

    def fsync(self, descriptor: int) -> None:
        self.fail("fsync")
        super().fsync(descriptor)

    def write(self, descriptor: int, data: bytes | memoryview) -> int:
        self.fail("write")
        return super().write(descriptor, data[:3])  # as little as a system call may take

    def rename(self, old: Path, new: Path) -> None:
        self.fail("rename")
        super().rename(old, new)

    def place(self, old: Path, new: Path) -> None:
        self.fail("place")
        super().place(old, new)

    def unlink(self, path: Path) -> None:
        self.fail("unlink")
        super().unlink(path)

    def close(self, descriptor: int) -> None:
        super().close(descriptor)
        self.fail("close")


def test_writes_that_take_little_write_all(tmp_path: Path) -> None:
    with job(tmp_path, files=Failing("nothing")) as opened:
        assert finish(opened) == WHOLE


def test_after_an_fsync_that_failed_nothing_more_is_committed(tmp_path: Path) -> None:
    """The system may have forgotten what it could not write, and the next fsync would succeed."""
    with (
        pytest.raises(OutputError, match=r"out\.jsonl: cannot be written"),
        job(tmp_path, files=Failing("fsync", at=5)) as opened,
    ):
        add(opened, range(4))
    with job(tmp_path) as again:
        assert 0 < again.next_window < 4
        assert finish(again) == WHOLE


def test_names_can_be_given_by_the_next_process(tmp_path: Path) -> None:
    with pytest.raises(OutputError), job(tmp_path, files=Failing("place", at=2)) as opened:
        finish(opened)
    assert not (tmp_path / "out.jsonl").exists()
    with job(tmp_path) as again:
        assert again.completed == {"errors": True}
        names = {"errors": tmp_path / "out.errors", "rows": tmp_path / "out.jsonl"}
        again.place(names, outdated=[tmp_path / "of an earlier run", tmp_path])
    assert (tmp_path / "out.errors").read_bytes() + (tmp_path / "out.jsonl").read_bytes() == WHOLE
    assert not again.folder.exists()


def test_a_folder_that_cannot_be_cleared_is_no_failure_of_the_run(tmp_path: Path) -> None:
    with job(tmp_path, files=Failing("unlink", at=7)) as opened:
        assert finish(opened) == WHOLE
    assert opened.folder.exists()
    with job(tmp_path) as again:  # the journal went first: what is left belongs to no job
        assert (again.next_window, again.size("rows")) == (0, 0)


def test_a_journal_that_cannot_be_removed_says_that_all_is_done(tmp_path: Path) -> None:
    with job(tmp_path, files=Failing("unlink", at=6)) as opened:
        assert finish(opened) == WHOLE
    with job(tmp_path) as again:
        assert again.completed == {"errors": True}
        again.place({"errors": tmp_path / "out.errors", "rows": tmp_path / "out.jsonl"})
    assert (tmp_path / "out.errors").read_bytes() + (tmp_path / "out.jsonl").read_bytes() == WHOLE
    assert not again.folder.exists()


def test_a_file_that_cannot_be_closed_is_no_failure_of_the_run(tmp_path: Path) -> None:
    with job(tmp_path, files=Failing("close")) as opened:
        assert finish(opened) == WHOLE


def test_a_missing_folder_is_said_with_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(OutputError) as caught, naming(tmp_path / "none" / "out"):
        (tmp_path / "none" / "out").open("w")
    assert caught.value.hint == f"make the folder `{tmp_path / 'none'}` first"
    with pytest.raises(OutputError) as caught, naming(tmp_path):
        raise OSError("no number")
    assert (caught.value.message, caught.value.hint) == (f"{tmp_path}: cannot be written: no number", None)


# The lock


def test_a_lock_of_a_folder_that_went_away_is_taken_again(tmp_path: Path) -> None:
    """Another process ends between our mkdir and open, and again between our open and flock."""

    class Racing(Files):
        def __init__(self) -> None:
            self.opened = 0

        def open(self, path: Path) -> int:
            self.opened += 1
            if self.opened == 1:
                path.parent.rmdir()
            descriptor = super().open(path)
            if self.opened == 2:
                path.unlink()
            return descriptor

    files = Racing()
    lock = take_lock(tmp_path / "out.job" / "lock", out=tmp_path / "out", wait=0, files=files)
    assert files.opened == 3
    assert json.loads((tmp_path / "out.job" / "lock").read_bytes())["pid"] == os.getpid()
    lock.release()


def test_a_lock_that_cannot_be_written_is_given_back(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with pytest.raises(OSError, match="No space"):
        take_lock(path, out=tmp_path, wait=0, files=Failing("write", errno.ENOSPC))
    take_lock(path, out=tmp_path, wait=0, files=Files()).release()


def test_a_holder_that_has_not_said_who_it_is_is_still_one(tmp_path: Path) -> None:
    holder = take_lock(tmp_path / "lock", out=tmp_path, wait=0, files=Files())
    (tmp_path / "lock").write_bytes(b"")
    with pytest.raises(LockedError, match=r"another process works on this output$"):
        take_lock(tmp_path / "lock", out=tmp_path, wait=0, files=Files())
    holder.release()


def test_a_process_that_waits_gets_the_lock_when_it_is_free(tmp_path: Path) -> None:
    holder = take_lock(tmp_path / "lock", out=tmp_path, wait=0, files=Files())
    who = json.loads((tmp_path / "lock").read_bytes())
    with pytest.raises(LockedError) as caught:
        take_lock(tmp_path / "lock", out=tmp_path, wait=0, files=Files())
    assert caught.value.message.endswith(f"output: process {os.getpid()} on {who['host']}")
    looks = iter(range(10))

    def clock() -> float:
        now = next(looks)
        if now == 2:
            holder.release()
        return now

    take_lock(tmp_path / "lock", out=tmp_path, wait=5, files=Files(), clock=clock).release()
    assert next(looks) == 3


# The journal


def test_a_journal_ends_where_a_record_is_not_whole(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    assert journals.read_journal(path) == []
    data, check = journals.encode([{"kind": "job", "format": 1}, {"kind": "job", "format": 2}], after="")
    more, _ = journals.encode([{"kind": "job", "format": 3}], after=check)
    path.write_bytes(data + more)
    assert [entry.record["format"] for entry in journals.read_journal(path)] == [1, 2, 3]
    lines = (data + more).splitlines(keepends=True)
    path.write_bytes(lines[0] + lines[2])
    assert [entry.record["format"] for entry in journals.read_journal(path)] == [1], "none may be missing in between"


# The fingerprint


def changed(folder: Path, change: Callable[[Path], None]) -> list[str]:
    """What a second run finds different when a file was changed in between."""
    before = json.loads(json.dumps(fingerprint(folder).document() | {"plan": {"device": "cpu"}}))
    change(folder / "in.jsonl")
    after = fingerprint(folder)
    return after.differences(before)


def touch(path: Path) -> None:
    os.utime(path, (5, 5))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda path: None, []),
        (touch, []),
        (lambda path: path.write_text("inputs"), ["its size was 5 bytes, is 6"]),
        (lambda path: path.write_text("INPUT"), ["its content has changed"]),
    ],
    ids=["nothing", "time", "size", "content"],
)
def test_the_content_of_a_file_decides(tmp_path: Path, change: Callable[[Path], None], said: list[str]) -> None:
    assert changed(tmp_path, change) == [f"input 1 ({tmp_path / 'in.jsonl'}): {reason}" for reason in said]


def test_a_file_that_was_not_read_in_whole_is_not_known_to_be_the_same(tmp_path: Path) -> None:
    before = fingerprint(tmp_path).document()
    before["files"]["input 1"]["sha256"] = None
    before["files"]["input 1"]["settled"] = False
    (reason,) = fingerprint(tmp_path).differences(before)
    assert reason.endswith("its content may have changed: the run before had no time to hash it")


def test_a_file_that_rests_since_long_is_not_read_again(tmp_path: Path) -> None:
    before = fingerprint(tmp_path).document()
    before["files"]["input 1"] |= {"settled": True, "sha256": "which would be another"}
    assert fingerprint(tmp_path).differences(before) == []


def test_files_that_came_or_went_are_named(tmp_path: Path) -> None:
    one = fingerprint(tmp_path)
    two = Fingerprint(asked=one.asked, plan=one.plan, files={"input 2": tmp_path / "in.jsonl"})
    assert two.differences(one.document()) == ["input 1 is gone", "input 2 is new"]
    assert two.differs_in_request(one.document())
    assert not one.differs_in_request(one.document())


def test_a_file_that_changes_while_it_is_hashed_has_no_hash(tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_text("input")
    made = Fingerprint(asked={}, plan={}, files={"input 1": tmp_path / "in.jsonl", "gone": tmp_path / "in.jsonl"})
    (tmp_path / "in.jsonl").write_text("other")
    made.start()
    made.wait(60)
    assert made.hashes == {}


def test_a_file_that_goes_away_has_no_hash(tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_text("input")
    made = Fingerprint(asked={}, plan={}, files={"input 1": tmp_path / "in.jsonl"})
    (tmp_path / "in.jsonl").unlink()
    made.start()
    made.wait(60)
    assert made.hashes == {}


def test_hashing_can_be_given_up(tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_text("input")
    made = Fingerprint(asked={}, plan={}, files={"input 1": tmp_path / "in.jsonl"})
    made.stop()
    made.start()
    made.wait(60)
    assert made.hashes == {}
    assert all(thread.name != "hash" for thread in threading.enumerate())


def test_an_output_is_known_by_its_time_or_its_content(tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert not same_output(out, {})
    out.write_text("rows")
    said = {"bytes": 4, "modified_ns": out.stat().st_mtime_ns, "sha256": "?"}
    assert same_output(out, said)
    assert not same_output(out, {**said, "bytes": 5})
    assert not same_output(out, {**said, "modified_ns": 1})
    digest = "".join(fingerprint(tmp_path).hashes.values())
    assert same_output(tmp_path / "in.jsonl", {"bytes": 5, "modified_ns": 1, "sha256": digest})


# Names


class OtherDisk(Files):
    """Files whose names lie on two file systems."""

    def rename(self, old: Path, new: Path) -> None:
        if old.parent != new.parent:
            raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))
        super().rename(old, new)

    def place(self, old: Path, new: Path) -> None:
        if old.parent != new.parent:
            raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))
        super().place(old, new)


def test_a_file_on_another_disk_is_copied_beside_its_name_first(tmp_path: Path) -> None:
    work, final = tmp_path / "job" / "rows", tmp_path / "out"
    work.parent.mkdir()
    work.write_bytes(b"rows")
    place_file(work, final, OtherDisk())
    assert final.read_bytes() == b"rows"
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["job", "out"]


def test_a_copy_that_fails_leaves_the_name_as_it_was(tmp_path: Path) -> None:
    class Full(OtherDisk):
        def write(self, descriptor: int, data: bytes | memoryview) -> int:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    work, final = tmp_path / "job" / "rows", tmp_path / "out"
    work.parent.mkdir()
    work.write_bytes(b"rows")
    final.write_bytes(b"old")
    with pytest.raises(OSError, match="No space"):
        place_file(work, final, Full())
    assert (work.read_bytes(), final.read_bytes()) == (b"rows", b"old")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["job", "out"]


def test_a_rename_that_fails_for_another_reason_fails(tmp_path: Path) -> None:
    (tmp_path / "rows").write_bytes(b"rows")
    with pytest.raises(OSError, match="Input/output"):
        place_file(tmp_path / "rows", tmp_path / "out", Failing("place"))


def test_what_is_no_regular_file_takes_the_content_and_stays(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    (tmp_path / "rows").write_bytes(b"rows")
    taken: list[bytes] = []
    reader = threading.Thread(target=lambda: taken.append(pipe.read_bytes()))
    reader.start()
    place_file(tmp_path / "rows", pipe, Files())
    reader.join()
    assert taken == [b"rows"]
    assert pipe.is_fifo()
    assert not (tmp_path / "rows").exists()
    remove_file(pipe, Files())
    assert pipe.is_fifo()


def test_a_file_is_replaced_as_a_whole_and_removed(tmp_path: Path) -> None:
    path = tmp_path / "report"
    path.write_bytes(b"longer than what comes")
    write_whole(path, b"whole", Files())
    assert path.read_bytes() == b"whole"
    remove_file(path, Files())
    assert not path.exists()


def test_what_is_on_disk_is_not_brought_there_again(tmp_path: Path) -> None:
    calls: list[int] = []

    class Counting(Files):
        def fsync(self, descriptor: int) -> None:
            calls.append(descriptor)
            super().fsync(descriptor)

    file = WorkFile(Counting(), tmp_path / "rows")
    file.append(b"a")
    file.sync()
    file.sync()
    assert len(calls) == 1
    file.append(b"b")
    file.sync()
    file.close()
    assert len(calls) == 2
