"""What a job asks of the operating system, call by call, and what its journal says, byte by byte.

The order is what a run's safety rests on, and no fault that a test can make shows all of it: only a power cut tells
whether an fsync was there.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import socket
from pathlib import Path
from typing import Any

import pytest

from rerank_cli.errors import JobChangedError, LockedError, OutputError
from rerank_cli.journal import Files, Fingerprint, Job, Terms, place_file, write_file, write_whole
from rerank_cli.journal import lines as journals
from rerank_cli.journal.lock import take_lock


class Recording(Files):
    """Real files that note each call: what, on which file, and what with."""

    def __init__(self, folder: Path) -> None:
        self.calls: list[str] = []
        self._folder = folder

    def _name(self, which: Path | int) -> str:
        path = Path(f"/proc/self/fd/{which}").readlink() if isinstance(which, int) else which
        return re.sub(r"\.[0-9a-f]{8}\.part$", ".part", str(path.relative_to(self._folder)))

    def take(self) -> list[str]:
        """The calls since the last time."""
        calls, self.calls = self.calls, []
        return calls

    def mkdir(self, path: Path) -> None:
        self.calls.append(f"mkdir {self._name(path)}")
        super().mkdir(path)

    def open(self, path: Path) -> int:
        self.calls.append(f"open {self._name(path)}")
        return super().open(path)

    def write(self, descriptor: int, data: bytes | memoryview) -> int:
        self.calls.append(f"write {self._name(descriptor)} {len(data)}")
        return super().write(descriptor, data)

    def fsync(self, descriptor: int) -> None:
        self.calls.append(f"fsync {self._name(descriptor)}")
        super().fsync(descriptor)

    def truncate(self, descriptor: int, size: int) -> None:
        self.calls.append(f"truncate {self._name(descriptor)} {size}")
        super().truncate(descriptor, size)

    def close(self, descriptor: int) -> None:
        self.calls.append(f"close {self._name(descriptor)}")
        super().close(descriptor)

    def create(self, path: Path) -> int:
        self.calls.append(f"create {self._name(path)}")
        return super().create(path)

    def rename(self, old: Path, new: Path) -> None:
        self.calls.append(f"rename {self._name(old)} {self._name(new)}")
        super().rename(old, new)

    def place(self, old: Path, new: Path) -> None:
        self.calls.append(f"place {self._name(old)} {self._name(new)}")
        super().place(old, new)

    def unlink(self, path: Path) -> None:
        self.calls.append(f"unlink {self._name(path)}")
        super().unlink(path)

    def rmdir(self, path: Path) -> None:
        self.calls.append(f"rmdir {self._name(path)}")
        super().rmdir(path)

    def sync_folder(self, path: Path) -> None:
        self.calls.append(f"sync_folder {self._name(path)}")
        super().sync_folder(path)


def fingerprint(folder: Path, *, hashed: bool = True) -> Fingerprint:
    """Of a run of one file."""
    source = folder / "in.jsonl"
    if not source.exists():
        source.write_text("input")
        os.utime(source, (1, 1))
    made = Fingerprint(asked={"top_n": 3}, plan={"device": "cpu"}, files={"input 1": source})
    if hashed:
        made.start()
        made.wait(60)
    return made


def job(folder: Path, files: Files | None = None, **terms: Any) -> Job:
    terms = {"fingerprint": fingerprint(folder), "checkpoint_every": 0.0, **terms}
    return Job(folder / "out", Terms(files=files or Files(), **terms))


def add(opened: Job, window: int) -> None:
    rows, errors = b"row %d\n" % window, b"bad\n" * (window % 2)
    opened.add(window, {"rows": rows, "errors": errors}, {"n": window}, f"note {window}" if window % 2 else None)


LOCKED = [
    "mkdir out.job", "open out.job/lock", "truncate out.job/lock 0",
    f"write out.job/lock {len(json.dumps({'pid': os.getpid(), 'host': socket.gethostname(), 'run': 16 * 'f'}))}",
]  # fmt: skip
MADE_ANEW = ["output", "report", "page", "embeddings", "per_query"]
OPENED = [
    *(f"unlink out.job/{name}" for name in MADE_ANEW),
    *(f"open out.job/{n}" for n in ("rows", "errors", "journal")),
]
REMOVED = [
    *(f"unlink out.job/{name}" for name in ("journal", "rows", "errors", *MADE_ANEW, "lock")), "rmdir out.job"
]  # fmt: skip


def without_sizes(calls: list[str]) -> list[str]:
    """The calls; how long a record is depends on the machine's paths and times."""
    return [re.sub(r"journal \d+$", "journal", call) for call in calls]


def test_every_call_of_a_job_in_its_order(tmp_path: Path) -> None:
    files = Recording(tmp_path)
    with job(tmp_path, files) as opened:
        assert files.take() == LOCKED + OPENED
        add(opened, 0)
        # The bytes are on disk before the record that speaks of them; the names of both once, before the first record.
        assert without_sizes(files.take()) == [
            "write out.job/rows 6", "fsync out.job/rows", "fsync out.job/errors", "sync_folder out.job",
            "sync_folder .", "write out.job/journal", "fsync out.job/journal",
        ]  # fmt: skip
        add(opened, 1)
        assert opened.next_window == 2
        assert without_sizes(files.take()) == [
            "write out.job/rows 6", "write out.job/errors 4", "fsync out.job/rows", "fsync out.job/errors",
            "write out.job/journal", "fsync out.job/journal",
        ]  # fmt: skip
        opened.checkpoint()
        assert files.take() == []  # there is nothing to commit
        opened.append({"rows": b"last\n"})
        opened.complete({"rows": 3})
        assert opened.completed == {"rows": 3}
        assert without_sizes(files.take()) == [
            "write out.job/rows 5", "fsync out.job/rows", "write out.job/journal", "fsync out.job/journal",
        ]  # fmt: skip
        (tmp_path / "outdated").touch()
        (tmp_path / "below").mkdir()
        names = {"errors": tmp_path / "below" / "errors", "report": tmp_path / "report", "rows": tmp_path / "out"}
        opened.place(names, outdated=[tmp_path / "outdated", tmp_path / "none"])
        calls = files.take()
        assert calls[:3] == ["unlink outdated", "place out.job/errors below/errors", "place out.job/rows out"]
        assert sorted(calls[3:]) == ["sync_folder .", "sync_folder below"]
    assert files.take()[: len(REMOVED)] == REMOVED
    assert (tmp_path / "out").read_bytes() == b"row 0\nrow 1\nlast\n"


def test_a_process_that_goes_on_cuts_what_belongs_to_no_commit(tmp_path: Path) -> None:
    with job(tmp_path) as opened:
        for window in range(3):
            add(opened, window)
    for name in ("rows", "journal", "errors"):
        with opened.path(name).open("ab") as stream:
            stream.write(b"torn")
    sizes = {name: opened.path(name).stat().st_size - 4 for name in ("rows", "journal", "errors")}
    files = Recording(tmp_path)
    with job(tmp_path, files) as again:
        assert files.take() == [
            *LOCKED, *OPENED, *(f"truncate out.job/{name} {sizes[name]}" for name in ("journal", "rows", "errors")),
        ]  # fmt: skip
        assert (again.next_window, again.state, again.notes) == (3, {"n": 2}, [[1, "note 1"]])
        add(again, 3)
        again.append({"rows": b"of no window", "errors": b"likewise"})
        files.take()
    # What was committed is committed; the rest is cut by the next process.
    assert files.take() == ["close out.job/journal", "close out.job/errors", "close out.job/rows"]
    with job(tmp_path) as last:
        assert (last.next_window, last.notes) == (4, [[1, "note 1"], [3, "note 3"]])
        assert last.path("rows").read_bytes() == b"".join(b"row %d\n" % window for window in range(4))
        assert last.path("errors").read_bytes() == b"bad\n" * 2


def test_what_was_not_due_is_committed_at_the_end_without_the_bytes_behind_it(tmp_path: Path) -> None:
    files = Recording(tmp_path)
    with job(tmp_path, files, checkpoint_every=60.0, clock=lambda: 7.0) as opened:
        add(opened, 0)  # the first commit is due at once
        add(opened, 1)
        add(opened, 2)
        opened.append({"rows": b"of no window"})
        files.take()
    assert without_sizes(files.take()) == [
        "truncate out.job/rows 18", "fsync out.job/rows", "fsync out.job/errors", "write out.job/journal",
        "fsync out.job/journal", "close out.job/journal", "close out.job/errors", "close out.job/rows",
    ]  # fmt: skip
    entries = journals.read_journal(opened.path("journal"))
    assert [entry.record.get("windows") for entry in entries] == [None, [0, 1], [1, 3]]


def test_the_journal_byte_by_byte(tmp_path: Path) -> None:
    mine = fingerprint(tmp_path, hashed=False)
    with job(tmp_path, fingerprint=mine) as opened:
        add(opened, 0)
        mine.start()
        mine.wait(60)
        add(opened, 1)
        add(opened, 2)
        opened.complete({"rows": 3})
        lines = opened.path("journal").read_bytes().splitlines()
        who = json.loads(opened.path("lock").read_bytes())
        assert len(bytes.fromhex(who.pop("run"))) == 8
        assert who == {"pid": os.getpid(), "host": socket.gethostname()}
    digest = {data: hashlib.sha256(data).hexdigest() for data in (b"", b"bad\n", b"row 0\n", b"row 1\n", b"row 2\n")}
    source = tmp_path / "in.jsonl"
    found = source.stat()
    seen = {
        "path": str(source), "sha256": None, "bytes": 5,
        "stat": [found.st_dev, found.st_ino, found.st_mtime_ns, found.st_ctime_ns], "settled": False,
    }  # fmt: skip
    records = [
        {"kind": "job", "format": 2, "fingerprint": {
            "asked": {"top_n": 3}, "plan": {"device": "cpu"}, "files": {"input 1": seen}}},
        {"kind": "commit", "windows": [0, 1], "members": {
            "rows": [0, 6, digest[b"row 0\n"]], "errors": [0, 0, digest[b""]]}, "state": {"n": 0}, "notes": []},
        {"kind": "commit", "windows": [1, 2], "members": {
            "rows": [6, 12, digest[b"row 1\n"]], "errors": [0, 4, digest[b"bad\n"]]},
            "state": {"n": 1}, "notes": [[1, "note 1"]],
            "hashes": {"input 1": hashlib.sha256(b"input").hexdigest()}},
        {"kind": "commit", "windows": [2, 3], "members": {
            "rows": [12, 18, digest[b"row 2\n"]], "errors": [4, 4, digest[b""]]}, "state": {"n": 2}, "notes": []},
        {"kind": "complete", "run": {"rows": 3}, "files": {
            "rows": [18, hashlib.sha256(b"row 0\nrow 1\nrow 2\n").hexdigest()], "errors": [4, digest[b"bad\n"]]}},
    ]  # fmt: skip
    check = ""
    assert len(lines) == len(records)
    for line, record in zip(lines, records, strict=True):
        text = json.dumps(record, separators=(",", ":"))
        check = hashlib.sha256((check + text).encode()).hexdigest()[:32]
        assert line.decode() == f'["{check}", {text}]'
        assert json.loads(line) == [check, record]


def test_a_record_holds_no_number_that_json_has_not() -> None:
    with pytest.raises(ValueError, match="JSON compliant"):
        journals.encode([{"seconds": float("nan")}], after="")


def test_a_commit_whose_bytes_are_of_another_window_ends_the_journal(tmp_path: Path) -> None:
    with job(tmp_path) as opened:
        for window in range(3):
            add(opened, window)
    opened.path("rows").write_bytes(b"row 0\nrow 9\nrow 2\n")
    with job(tmp_path) as again:
        assert (again.next_window, again.state, again.notes) == (1, {"n": 0}, [])
        assert again.path("rows").read_bytes() == b"row 0\n"
        assert again.path("errors").read_bytes() == b""
        assert len(journals.read_journal(again.path("journal"))) == 2
        add(again, 1)
    with job(tmp_path) as last:
        assert last.next_window == 2


# Names


class OtherDisk(Recording):
    """Files whose folders lie on file systems of their own. fails: a call that does."""

    fails = ""

    def rename(self, old: Path, new: Path) -> None:
        self._refuse(old, new)
        super().rename(old, new)

    def place(self, old: Path, new: Path) -> None:
        self._refuse(old, new)
        super().place(old, new)

    def _refuse(self, old: Path, new: Path) -> None:
        if old.parent != new.parent:
            self.calls.append("EXDEV")
            raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))
        if self.fails == "rename":
            raise OSError(errno.EACCES, os.strerror(errno.EACCES))


def test_a_copy_to_another_disk_is_on_disk_before_it_gets_the_name(tmp_path: Path) -> None:
    work, part = tmp_path / "job" / "rows", "out.part"
    work.parent.mkdir()
    work.write_bytes(b"x" * (2**20 + 3))
    files = OtherDisk(tmp_path)
    place_file(work, tmp_path / "out", files)
    assert files.take() == [
        "EXDEV", f"create {part}", f"write {part} {2**20}", f"write {part} 3", f"fsync {part}", f"close {part}",
        f"place {part} out", "unlink job/rows",
    ]  # fmt: skip
    assert (tmp_path / "out").read_bytes() == b"x" * (2**20 + 3)


def test_a_copy_that_gets_no_name_is_taken_away_and_the_work_stays(tmp_path: Path) -> None:
    work, part = tmp_path / "job" / "rows", "out.part"
    work.parent.mkdir()
    work.write_bytes(b"rows")
    files = OtherDisk(tmp_path)
    files.fails = "rename"
    with pytest.raises(PermissionError):
        place_file(work, tmp_path / "out", files)
    assert files.take()[-2:] == [f"close {part}", f"unlink {part}"]
    assert [path.name for path in tmp_path.rglob("*")] == ["job", "rows"]


def test_a_whole_file_is_cut_written_and_brought_to_disk(tmp_path: Path) -> None:
    (tmp_path / "report").write_bytes(b"longer than what comes")
    files = Recording(tmp_path)
    write_whole(tmp_path / "report", b"whole", files)
    assert files.take() == ["open report", "truncate report 0", "write report 5", "fsync report", "close report"]


def test_a_file_of_its_own_gets_its_name_when_it_is_on_disk(tmp_path: Path) -> None:
    part, files = "page.part", OtherDisk(tmp_path)
    (tmp_path / "page").write_bytes(b"old")
    write_file(tmp_path / "page", b"whole", files)
    assert files.take() == [
        f"open {part}", f"write {part} 5", f"fsync {part}", f"close {part}", f"rename {part} page", f"unlink {part}"
    ]  # fmt: skip
    files.fails = "rename"
    with pytest.raises(OutputError) as caught:
        write_file(tmp_path / "page", b"other", files)
    assert caught.value.message == f"{tmp_path / 'page'}: cannot be written: Permission denied"
    assert [path.name for path in tmp_path.iterdir()] == ["page"]
    assert (tmp_path / "page").read_bytes() == b"whole"


def test_files_are_appended_to_and_closed_in_other_programs(tmp_path: Path) -> None:
    files, before = Files(), len(list(Path("/proc/self/fd").iterdir()))
    mask = os.umask(0o027)
    try:
        descriptor = files.open(tmp_path / "rows")
    finally:
        os.umask(mask)
    assert (tmp_path / "rows").stat().st_mode & 0o777 == 0o640
    assert not os.get_inheritable(descriptor)
    files.write(descriptor, b"one")
    os.lseek(descriptor, 0, os.SEEK_SET)
    files.write(descriptor, b"two")
    assert os.pread(descriptor, 9, 0) == b"onetwo"
    files.close(descriptor)
    files.mkdir(tmp_path)  # it is there
    files.unlink(tmp_path / "none")
    files.sync_folder(tmp_path)
    assert len(list(Path("/proc/self/fd").iterdir())) == before


# What is said


def test_a_locked_output_is_said_in_full(tmp_path: Path) -> None:
    holder = take_lock(tmp_path / "lock", out=tmp_path / "out", wait=0, files=Files())
    with pytest.raises(LockedError) as caught:
        take_lock(tmp_path / "lock", out=tmp_path / "out", wait=0, files=Files())
    holder.release()
    who = f"process {os.getpid()} on {socket.gethostname()}"
    assert caught.value.message == f"{tmp_path / 'out'}: another process works on this output: {who}"
    assert caught.value.hint == "wait for it, or pass `--lock-wait SECONDS`"


def test_another_job_is_said_in_full(tmp_path: Path) -> None:
    with job(tmp_path) as opened:
        add(opened, 0)
    other = Fingerprint(
        asked={"top_n": 4, "query": "q" * 100, "shard": [1, 2]},
        plan={"device": "cuda:0"},
        files={"input 1": tmp_path / "in.jsonl"},
    )
    with pytest.raises(JobChangedError) as caught, job(tmp_path, fingerprint=other):
        pass
    assert caught.value.message == (
        f"{tmp_path / 'out.job'}: the unfinished job in it differs from this run: `top_n` was 3, is 4; "
        f"`query` was not given, is '{'q' * 59}...; `shard` was not given, is [1, 2] (and 1 more)"
    )
    assert caught.value.hint == "resume with the command and input of before, or start over with `--restart`"
    three = Fingerprint(asked={"top_n": 4, "query": "q", "limit": 5}, plan={"device": "cpu"}, files={})
    with pytest.raises(JobChangedError) as caught, job(tmp_path, fingerprint=three):
        pass
    assert caught.value.message.endswith(
        "`top_n` was 3, is 4; `query` was not given, is 'q'; `limit` was not given, is 5"
    )


def test_what_a_run_cannot_know_is_said_in_full(tmp_path: Path) -> None:
    with job(tmp_path) as opened:
        add(opened, 0)
    begin = f"{tmp_path / 'out.job'}: the unfinished job in it differs from this run: "
    with pytest.raises(JobChangedError) as caught, job(tmp_path, fingerprint=None):
        pass
    assert caught.value.message == begin + "this run reads a pipe, and the job did not"
    records = [entry.record for entry in journals.read_journal(opened.path("journal"))]
    records[0]["format"] = 3
    opened.path("journal").write_bytes(journals.encode(records, after="")[0])
    with pytest.raises(JobChangedError) as caught, job(tmp_path):
        pass
    assert caught.value.message == begin + "it was written by another version of this program"


def test_the_hash_in_the_journal_decides_where_times_differ(tmp_path: Path) -> None:
    source, mine = tmp_path / "in.jsonl", fingerprint(tmp_path, hashed=False)
    with job(tmp_path, fingerprint=mine) as opened:
        add(opened, 0)
        mine.start()
        mine.wait(60)
        add(opened, 1)  # this commit, not the header, knows the hash
    source.write_text("input")  # the same, at another time
    with job(tmp_path) as again:
        assert again.next_window == 2
    source.write_text("INPUT")
    with pytest.raises(JobChangedError) as caught, job(tmp_path):
        pass
    assert caught.value.message.endswith(f"differs from this run: input 1 ({source}): its content has changed")


def test_differences_name_where_they_stand(tmp_path: Path) -> None:
    mine = fingerprint(tmp_path)
    other = mine.document() | {"asked": {"top_n": {"of": 3}}, "plan": {"device": {"name": "cpu"}}}
    assert mine.differences(other) == ["`top_n` was {'of': 3}, is 3", "`device` was {'name': 'cpu'}, is 'cpu'"]
    inner = Fingerprint(asked={"versions": {"torch": "2"}}, plan={}, files={})
    assert inner.differences({"asked": {"versions": {"torch": "3"}}, "plan": {}, "files": {}}) == [
        "`versions.torch` was '3', is '2'"
    ]
    assert inner.differs_in_request({"asked": {"versions": {"torch": "3"}}, "plan": {}, "files": {}})
    assert not inner.differs_in_request({"asked": {"versions": {"torch": "2"}}, "plan": {"n": 1}, "files": {}})
    for length, shown in ((58, f"'{'q' * 58}'"), (59, f"'{'q' * 59}...")):
        (said,) = Fingerprint(asked={"query": "q" * length}, plan={}, files={}).differences(
            {"asked": {}, "plan": {}, "files": {}}
        )
        assert said == f"`query` was not given, is {shown}"


def test_a_fingerprint_with_another_request_keeps_plan_and_files(tmp_path: Path) -> None:
    mine = fingerprint(tmp_path)
    other = mine.of({"top_n": 4})
    assert other.document() == Fingerprint(
        asked={"top_n": 4}, plan=mine.plan, files={"input 1": tmp_path / "in.jsonl"}
    ).document()  # fmt: skip


def test_nobody_waits_long_for_a_hash(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "new")
    slow = Fingerprint(asked={}, plan={}, files={"input 1": tmp_path / "new"})
    slow.wait_for_new(3600)  # it has not begun
    slow.start()
    slow.wait_for_new(0.01)
    assert slow.hashes == {}
    (tmp_path / "new").write_bytes(b"rows")  # returns when the thread reads
    slow.wait_for_new(3600)
    slow.wait(60)
    assert slow.hashes == {}  # it was written to while it was read


def test_a_hash_is_in_the_journal_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    known = {"input 1": "a"}
    monkeypatch.setattr(Fingerprint, "hashes", property(lambda _: dict(known)))
    made = Fingerprint(asked={}, plan={}, files={})
    with Job(tmp_path / "out", Terms(checkpoint_every=0.0, fingerprint=made)) as opened:
        for window in range(4):
            opened.add(window, {"rows": b"row", "errors": b""}, {})
            if window == 1:
                known["input 2"] = "b"
    records = [entry.record for entry in journals.read_journal(tmp_path / "out.job" / "journal")]
    assert [record.get("hashes") for record in records] == [None, {"input 1": "a"}, None, {"input 2": "b"}, None]


def test_a_job_that_another_process_works_on_is_named(tmp_path: Path) -> None:
    with (
        Job(tmp_path / "out", Terms()),
        pytest.raises(LockedError, match=rf"^{tmp_path / 'out'}: another process works on this output"),
    ):
        Job(tmp_path / "out", Terms()).__enter__()


def test_a_file_that_was_just_made_is_hashed_before_those_that_rest(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "new")
    source = tmp_path / "in.jsonl"
    source.write_text("input")
    mine = Fingerprint(asked={}, plan={}, files={"input 1": source, "input 2": tmp_path / "new"})
    mine._seen["input 1"]["settled"] = True
    mine.start()
    mine.wait_for_new(0.01)
    assert mine.hashes == {}
    (tmp_path / "new").write_bytes(b"rows")
    mine.wait(60)
    assert list(mine.hashes) == ["input 1"]


# Faults


class Failing(Recording):
    """Files whose calls fail that are in `faults`, as they are noted."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.faults: set[str] = set()

    def _fail(self) -> None:
        if self.calls[-1] in self.faults:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    def write(self, descriptor: int, data: bytes | memoryview) -> int:
        taken = super().write(descriptor, data)
        self._fail()
        return taken

    def fsync(self, descriptor: int) -> None:
        super().fsync(descriptor)
        self._fail()

    def place(self, old: Path, new: Path) -> None:
        super().place(old, new)
        self._fail()

    def unlink(self, path: Path) -> None:
        super().unlink(path)
        self._fail()

    def sync_folder(self, path: Path) -> None:
        super().sync_folder(path)
        self._fail()


@pytest.mark.parametrize(
    ("fault", "named"),
    [
        ("fsync out.job/rows", "out"),
        ("fsync out.job/journal", "out"),
        ("unlink outdated", "outdated"),
        ("place out.job/errors errors", "errors"),
        ("place out.job/rows out", "out"),
        ("sync_folder .", "out"),
    ],
)
def test_a_fault_at_the_end_names_the_file_of_the_user(tmp_path: Path, fault: str, named: str) -> None:
    files = Failing(tmp_path)
    (tmp_path / "outdated").touch()
    with pytest.raises(OutputError) as caught, job(tmp_path, files) as opened:
        add(opened, 0)
        opened.append({"rows": b"last"})
        files.faults = {fault}
        opened.complete({})
        opened.place({"errors": tmp_path / "errors", "rows": tmp_path / "out"}, outdated=[tmp_path / "outdated"])
    assert caught.value.message == f"{tmp_path / named}: cannot be written: Input/output error"


def test_after_a_fault_no_commit_is_tried_again(tmp_path: Path) -> None:
    files = Failing(tmp_path)
    with pytest.raises(OutputError), job(tmp_path, files) as opened:
        add(opened, 0)
        files.faults = {"fsync out.job/rows"}
        with pytest.raises(OutputError):
            add(opened, 1)
        files.take()
        files.faults = set()
        opened.checkpoint()
        assert files.take() == []
        raise OutputError("enough")
    assert files.take() == ["close out.job/journal", "close out.job/errors", "close out.job/rows"]
    with job(tmp_path) as again:
        assert again.next_window == 1


def test_where_neither_copy_nor_clearing_succeeds_the_first_fault_is_told(tmp_path: Path) -> None:
    class Full(OtherDisk):
        def write(self, descriptor: int, data: bytes | memoryview) -> int:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        def unlink(self, path: Path) -> None:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    (tmp_path / "job").mkdir()
    (tmp_path / "job" / "rows").write_bytes(b"rows")
    with pytest.raises(OSError, match="No space left"):
        place_file(tmp_path / "job" / "rows", tmp_path / "out", Full(tmp_path))
