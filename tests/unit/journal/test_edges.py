"""What is seldom: file systems that lack a call, pipes, journals that are whole and wrong, objects in a store."""

from __future__ import annotations

import errno
import fcntl
import os
from pathlib import Path
from typing import Any

import pytest

from rerank_cli.errors import InputError, JobChangedError, OutputError, TooManyBadRowsError
from rerank_cli.journal import Files, Fingerprint, place_file, placing, records, write_file
from rerank_cli.journal import files as file_calls
from rerank_cli.journal.files import opened_as_own
from rerank_cli.journal.fingerprint import sha256_of
from rerank_cli.journal.lock import take_lock
from rerank_cli.journal.placing import feed, open_special
from rerank_cli.journal.records import encode, read_journal
from rerank_cli.storage import UrlPath
from tests.unit.journal.test_commit import WHOLE, WINDOWS, add, fingerprint, finish, job


def fails(number: int) -> Any:
    def call(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    return call


# File systems and libraries that lack something


def test_a_c_library_without_the_call_is_one_whose_file_system_lacks_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(file_calls.ctypes, "CDLL", lambda *_, **__: object())
    file_calls._renameat2.cache_clear()
    try:
        (tmp_path / "rows").write_bytes(b"rows")
        Files().place(tmp_path / "rows", tmp_path / "out")
    finally:
        file_calls._renameat2.cache_clear()
    assert (tmp_path / "out").read_bytes() == b"rows"


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_refused_with_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    monkeypatch.setattr(fcntl, "flock", fails(number))
    with pytest.raises(OutputError, match="lock: cannot be locked: the file system has no locks") as caught:
        take_lock(tmp_path / "job" / "lock", out=tmp_path, wait=0, files=Files())
    assert "a local disk" in str(caught.value.hint)
    assert not (tmp_path / "job").exists()
    (tmp_path / "job").mkdir()
    (tmp_path / "job" / "lock").write_text('{"pid": 1, "host": "h"}')  # of a run when there were locks
    with pytest.raises(OutputError, match="cannot be locked"):
        take_lock(tmp_path / "job" / "lock", out=tmp_path, wait=0, files=Files())
    assert (tmp_path / "job" / "lock").stat().st_size
    monkeypatch.setattr(fcntl, "flock", fails(errno.EIO))
    with pytest.raises(OSError, match="Input/output"):
        take_lock(tmp_path / "job" / "lock", out=tmp_path, wait=0, files=Files())


@pytest.mark.parametrize("may_give_group", [True, False])
def test_the_owner_stays_where_it_cannot_be_given_and_the_group_goes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, may_give_group: bool
) -> None:
    given: list[tuple[int, int]] = []

    def chown(path: Path, owner: int, group: int, **_: object) -> None:
        given.append((owner, group))
        if owner >= 0 or not may_give_group:
            raise PermissionError(errno.EPERM, "only root gives files away")

    def stat_of_others(path: Path, **_: bool) -> os.stat_result:
        found = os.lstat(path)
        return os.stat_result((*found[:4], 12345, 23456, *found[6:])) if path.name == "out" else found

    (tmp_path / "out").write_bytes(b"old")
    (tmp_path / "out").chmod(0o640)
    (tmp_path / "rows").write_bytes(b"rows")
    monkeypatch.setattr(os, "chown", chown)
    monkeypatch.setattr(Path, "stat", stat_of_others)
    placing._keep_owner_and_mode(tmp_path / "rows", tmp_path / "out")
    monkeypatch.undo()
    assert given == [(12345, 23456), (-1, 23456)]
    assert (tmp_path / "rows").stat().st_mode & 0o777 == 0o640


# What is no regular file


@pytest.mark.parametrize("kind", ["pipe", "hard link"])
def test_what_a_run_has_not_made_is_not_opened(tmp_path: Path, kind: str) -> None:
    if kind == "pipe":
        os.mkfifo(tmp_path / "rows")
    else:
        (tmp_path / "victim").write_bytes(b"mine")
        (tmp_path / "rows").hardlink_to(tmp_path / "victim")
    before = len([*Path("/proc/self/fd").iterdir()])
    with pytest.raises(OutputError, match="is not a regular file" if kind == "pipe" else r"has a second name"):
        opened_as_own(Files(), tmp_path / "rows")
    assert len([*Path("/proc/self/fd").iterdir()]) == before


def test_a_pipe_that_nobody_reads_and_a_name_that_nothing_has_are_no_places(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(placing, "_READER_SECONDS", 0.01)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OutputError, match="nobody reads this pipe"):
        open_special(tmp_path / "pipe")
    with pytest.raises(FileNotFoundError):
        open_special(tmp_path / "none")


def test_a_job_feeds_the_pipes_that_were_opened_and_names_the_rest(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    writer = open_special(pipe)
    names = {"errors": pipe, "rows": tmp_path / "out.jsonl"}
    with job(tmp_path) as opened:
        add(opened, range(4))
        opened.complete({"errors": True})
        opened.feed(names, {pipe: writer}, lambda: None)
        opened.feed(names, {pipe: writer}, lambda: None)  # once: its work file is gone
        assert not opened.path("errors").exists()
        opened.place({"rows": names["rows"]})
    taken = os.read(reader, 2**16)
    assert taken + (tmp_path / "out.jsonl").read_bytes() == WHOLE
    os.close(reader)
    os.close(writer)


def test_a_device_takes_what_it_is_given(tmp_path: Path) -> None:
    (tmp_path / "rows").write_bytes(b"rows")
    feed(tmp_path / "rows", Path("/dev/null"))
    with pytest.raises(OSError, match="No space left"):
        feed(tmp_path / "rows", Path("/dev/full"))


# Files of a run that are no members


def test_a_file_that_is_made_at_the_end_is_placed_with_the_others(tmp_path: Path) -> None:
    with job(tmp_path) as opened:
        add(opened, range(4))
        for data in (b"longer than the second", b"table"):
            with opened.writing("output") as file:
                file.append(data)
        assert opened.seal("output") == (5, sha256_of(opened.path("output")))
        opened.complete({"errors": True})
        opened.place({"errors": tmp_path / "out.errors", "output": opened.out})
    assert opened.out.read_bytes() == b"table"
    assert not opened.folder.exists()


def test_a_file_that_was_made_and_is_gone_is_told(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"output: was changed .*: it is gone"), job(tmp_path) as opened:
        add(opened, range(4))
        with opened.writing("output") as file:
            file.append(b"table")
        opened.path("output").unlink()
        raise FileNotFoundError("by who asks for its time")


def test_a_job_that_is_given_up_leaves_what_is_named_alone(tmp_path: Path) -> None:
    with job(tmp_path) as opened:
        add(opened, range(4))
        opened.give_up({"errors": tmp_path / "out.errors"})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.jsonl", "out.errors"]


def test_a_file_that_is_touched_after_all_were_looked_at_gets_no_name(tmp_path: Path) -> None:
    class Touching(Files):
        def place(self, old: Path, new: Path) -> None:
            super().place(old, new)
            os.utime(old.with_name("rows"), (5, 5))

    with (
        pytest.raises(OutputError, match=r"rows: was changed .* it was touched while it got its name"),
        job(tmp_path, files=Touching()) as opened,
    ):
        finish(opened)
    assert not opened.out.exists()


# Journals


@pytest.mark.parametrize("kind", [InputError, TooManyBadRowsError])
def test_a_job_that_its_input_has_ended_starts_over_with_another_one(tmp_path: Path, kind: type[Exception]) -> None:
    with pytest.raises(kind), job(tmp_path) as opened:
        add(opened, range(2))
        raise kind("a fault in it")
    with job(tmp_path) as again:
        assert again.next_window == 2
    with pytest.raises(kind), job(tmp_path) as opened:
        raise kind("a fault in it")
    with job(tmp_path, asked={"more": 1}) as other:
        assert other.next_window == 0
        assert finish(other) == WHOLE


def test_a_job_that_was_never_kept_notes_nothing(tmp_path: Path) -> None:
    with pytest.raises(InputError), job(tmp_path) as opened:
        raise InputError("a fault in the first row")
    assert not opened.folder.exists()


def begun(folder: Path) -> list[dict[str, Any]]:
    """The records of a job that was interrupted."""
    with job(folder) as opened:
        add(opened, range(3))
    return [entry.record for entry in read_journal(folder / "out.jsonl.job" / "journal")]


def rewrite(folder: Path, found: list[dict[str, Any]]) -> None:
    (folder / "out.jsonl.job" / "journal").write_bytes(encode(found, after="")[0])


def test_a_header_by_another_hand_is_refused(tmp_path: Path) -> None:
    found = begun(tmp_path)
    found[0]["fingerprint"] = {"files": []}
    rewrite(tmp_path, found)
    with pytest.raises(JobChangedError, match="its journal was not written by this program"), job(tmp_path):
        pass


def test_a_commit_that_does_not_follow_the_one_before_ends_the_journal(tmp_path: Path) -> None:
    found = begun(tmp_path)
    found[2]["windows"] = [2, 3]
    rewrite(tmp_path, found)
    with job(tmp_path) as again:
        assert again.next_window == 1
        assert again.size("rows") == len(WINDOWS[0][0])
        assert finish(again) == WHOLE


def test_a_line_with_a_right_checksum_that_is_no_json_ends_the_journal(tmp_path: Path) -> None:
    first, check = encode([{"kind": "job", "format": 2}], after="")
    text = b"{no json"
    line = b'["' + records._check(check, text).encode() + b'", ' + text + b"]\n"
    (tmp_path / "journal").write_bytes(first + line + first)
    assert [entry.record for entry in read_journal(tmp_path / "journal")] == [{"kind": "job", "format": 2}]


# What is read and written elsewhere


def test_the_digest_of_a_file_is_known_by_its_path(tmp_path: Path) -> None:
    made = fingerprint(tmp_path)
    assert made.sha256(tmp_path / "in.jsonl") == sha256_of(tmp_path / "in.jsonl")
    assert made.sha256(tmp_path / "other") is None


def test_an_object_is_not_fetched_to_be_hashed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "object").write_bytes(b"object")
    monkeypatch.setattr(UrlPath, "stat", lambda *_, **__: (tmp_path / "object").stat())
    made = Fingerprint(asked={}, plan={}, files={"input 1": UrlPath("s3://bucket/object")})
    made.start()
    made.wait(60)
    assert made.hashes == {}


def test_an_object_takes_what_is_done_unless_another_one_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: list[bytes] = []

    def upload(work: Path, final: UrlPath, **_: object) -> None:
        if taken:
            raise FileExistsError(errno.EEXIST, "there")
        taken.append(work.read_bytes())

    monkeypatch.setattr(placing, "upload", upload)
    target = UrlPath("s3://bucket/out.jsonl")
    write_file(target, b"rows", Files())
    assert taken == [b"rows"]
    (tmp_path / "rows").write_bytes(b"other")
    with pytest.raises(OutputError, match="was made or changed by something else during the run"):
        place_file(tmp_path / "rows", target, Files())
    assert (tmp_path / "rows").exists()
