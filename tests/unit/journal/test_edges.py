"""What is seldom: file systems that lack a call, pipes, journals that are whole and wrong, objects in a store."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from rerank_cli.errors import InputError, JobChangedError, OutputError, TooManyBadRowsError
from rerank_cli.journal import Files, Fingerprint, Job, identity_of, lines, place_file, placing, write_file
from rerank_cli.journal import files as file_calls
from rerank_cli.journal.files import opened_as_own
from rerank_cli.journal.fingerprint import sha256_of
from rerank_cli.journal.lines import encode, read_journal
from rerank_cli.journal.lock import take_lock
from rerank_cli.journal.placing import feed, open_special
from rerank_cli.journal.seal import Seal
from rerank_cli.storage import UrlPath
from tests.unit.journal.test_commit import WHOLE, WINDOWS, Failing, OtherDisk, add, fingerprint, finish, job


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
    assert caught.value.hint == (
        "write to a file system with locks (a local disk, NFS with its lock service), and copy from there"
    )
    assert not (tmp_path / "job").exists()
    (tmp_path / "job").mkdir()
    (tmp_path / "job" / "lock").write_text('{"pid": 1, "host": "h"}')  # of a run when there were locks
    with pytest.raises(OutputError, match="cannot be locked"):
        take_lock(tmp_path / "job" / "lock", out=tmp_path, wait=0, files=Files())
    assert (tmp_path / "job" / "lock").stat().st_size
    (tmp_path / "another").mkdir()
    (tmp_path / "another" / "more").write_bytes(b"x")  # the folder cannot go then
    with pytest.raises(OutputError, match="cannot be locked"):
        take_lock(tmp_path / "another" / "lock", out=tmp_path, wait=0, files=Files())
    assert [path.name for path in (tmp_path / "another").iterdir()] == ["more"]
    monkeypatch.setattr(fcntl, "flock", fails(errno.EIO))
    with pytest.raises(OSError, match="Input/output"):
        take_lock(tmp_path / "job" / "lock", out=tmp_path, wait=0, files=Files())


@pytest.mark.parametrize("owner", [0, 12345])
@pytest.mark.parametrize("group", [23456, 999])
@pytest.mark.parametrize("may", ["all", "give the group", "nothing"])
def test_the_owner_stays_where_it_cannot_be_given_and_the_group_goes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, may: str, group: int, owner: int
) -> None:
    """The new file is of user 999 and group 999."""
    given: list[tuple[int, int]] = []

    def chown(path: Path, owner: int, group: int, *, follow_symlinks: bool = True) -> None:
        assert (path, follow_symlinks) == (tmp_path / "rows", False)
        given.append((owner, group))
        if may == "nothing" or (may != "all" and owner >= 0):
            raise PermissionError(errno.EPERM, "only root gives files away")

    def stat_of_others(path: Path, **_: bool) -> os.stat_result:
        found, whose = os.lstat(path), {"out": (owner, group), "rows": (999, 999)}.get(path.name)
        return found if whose is None else os.stat_result((*found[:4], *whose, *found[6:]))

    (tmp_path / "out").write_bytes(b"old")
    (tmp_path / "out").chmod(0o640)
    (tmp_path / "rows").write_bytes(b"rows")
    lists: list[tuple[object, ...]] = []
    monkeypatch.setattr(os, "chown", chown)
    monkeypatch.setattr(Path, "stat", stat_of_others)
    monkeypatch.setattr(os, "getxattr", lambda path, name: f"{name} of {path.name}".encode())
    monkeypatch.setattr(os, "setxattr", lambda path, *more: lists.append((path.name, *more)))
    place_file(tmp_path / "rows", tmp_path / "out", Files(), seal=Seal(4, ""))
    monkeypatch.undo()
    assert given == [(owner, group)] + [(-1, group)] * (may != "all" and group != 999)
    assert lists == [("rows", "system.posix_acl_access", b"system.posix_acl_access of out")]
    assert (tmp_path / "out").stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize("is_link", [True, False])
def test_a_file_is_as_readable_as_the_one_that_it_replaces(tmp_path: Path, is_link: bool) -> None:
    old = tmp_path / ("old" if is_link else "out")
    old.write_bytes(b"old")
    old.chmod(0o604)
    if is_link:
        (tmp_path / "out").symlink_to(old)
    write_file(tmp_path / "out", b"rows", Files())
    assert (tmp_path / "out").lstat().st_mode == 0o100604
    assert (tmp_path / "out").read_bytes() == b"rows"


# What is no regular file


@pytest.mark.parametrize("kind", ["pipe", "hard link"])
def test_what_a_run_has_not_made_is_not_opened(tmp_path: Path, kind: str) -> None:
    if kind == "pipe":
        os.mkfifo(tmp_path / "rows")
    else:
        (tmp_path / "victim").write_bytes(b"mine")
        (tmp_path / "rows").hardlink_to(tmp_path / "victim")
    before = len([*Path("/proc/self/fd").iterdir()])
    said = "is not a regular file" if kind == "pipe" else r"has a second name \(a hard link\)"
    with pytest.raises(OutputError, match=f"rows: {said}, and was not made by this program"):
        opened_as_own(Files(), tmp_path / "rows")
    assert len([*Path("/proc/self/fd").iterdir()]) == before


def test_a_pipe_that_nobody_reads_and_a_name_that_nothing_has_are_no_places(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(placing, "_READER_SECONDS", 0.01)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OutputError, match="pipe: nobody reads this pipe") as caught:
        open_special(tmp_path / "pipe")
    assert caught.value.hint == "start its reader first"
    readers: list[int] = []
    slept: list[float] = []

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        readers.append(os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK))

    monkeypatch.setattr(placing, "_READER_SECONDS", 60.0)
    with monkeypatch.context() as patch:
        patch.setattr(placing.time, "sleep", sleep)
        readers.append(open_special(tmp_path / "pipe"))
    assert slept == [0.05]
    for descriptor in readers:
        os.close(descriptor)
    monkeypatch.chdir(tmp_path)  # the path of a socket has 107 bytes at most
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind("socket")
        with pytest.raises(OutputError, match="socket: cannot be written: is a socket, or a device that is missing"):
            open_special(tmp_path / "socket")
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


def test_a_job_writes_where_a_pipe_was_opened_and_looks_at_what_it_feeds(tmp_path: Path) -> None:
    pipes = [tmp_path / "one", tmp_path / "other"]
    for pipe in pipes:
        os.mkfifo(pipe)
    readers = [os.open(pipe, os.O_RDONLY | os.O_NONBLOCK) for pipe in pipes]
    writer = open_special(pipes[1])
    taken = bytearray()

    def check() -> None:
        with suppress(BlockingIOError):
            taken.extend(os.read(readers[1], 2**18))
        with opened.path("errors").open("r+b") as stream:
            stream.seek(-1, os.SEEK_END)
            stream.write(b"#")

    with (
        pytest.raises(OutputError, match=r"errors: was changed .*: other bytes went into .*one"),
        job(tmp_path) as opened,
    ):
        opened.add(0, {"rows": b"", "errors": bytes(2**18)}, {})  # more than is read at a time
        opened.complete({"errors": True})
        opened.feed({"errors": pipes[0]}, {pipes[0]: writer}, check)
    assert taken
    assert os.read(readers[0], 1) == b""  # nobody ever wrote into it
    for descriptor in (*readers, writer):
        os.close(descriptor)


def test_a_job_names_the_pipe_that_it_cannot_feed_and_the_file_that_was_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(placing, "_READER_SECONDS", 0.01)
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(OutputError, match="pipe: nobody reads this pipe"), job(tmp_path) as opened:
        add(opened, range(4))
        opened.complete({"errors": True})
        opened.feed({"errors": pipe}, {}, lambda: None)
    with pytest.raises(OutputError, match="/dev/full: cannot be written: No space left"), job(tmp_path) as opened:
        opened.feed({"errors": Path("/dev/full")}, {}, lambda: None)
    with pytest.raises(OutputError) as caught, job(tmp_path) as opened:
        opened.path("errors").write_bytes(b"of another")
        opened.feed({"errors": Path("/dev/null")}, {}, lambda: None)
    said = f"{opened.path('errors')}: was changed by something other than this run: "
    assert caught.value.message == said + "its bytes are not those that were written"


def test_an_output_is_begun_while_its_folder_is_there(tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    assert not Job.is_begun(str(out))
    with pytest.raises(OutputError), job(tmp_path) as opened:
        add(opened, range(2))
        raise OutputError("enough")
    assert Job.is_begun(str(out))
    with job(tmp_path) as again:
        finish(again)
        assert not again.is_mine(out)
    assert not Job.is_begun(str(out))


def test_which_file_a_path_names(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    (tmp_path / "link").symlink_to(tmp_path / "file")
    (tmp_path / "lost").symlink_to(tmp_path / "none")
    found = (tmp_path / "file").stat()
    assert identity_of(tmp_path / "file") == identity_of(tmp_path / "link") == (found.st_dev, found.st_ino)
    assert identity_of(tmp_path / "lost") == identity_of(tmp_path / "none") == str((tmp_path / "none").resolve())
    assert identity_of(UrlPath("s3://bucket/out.jsonl")) == "s3://bucket/out.jsonl"


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
    with (
        pytest.raises(OutputError, match=r"out\.errors: was made or changed by something else"),
        job(tmp_path) as opened,
    ):
        add(opened, range(4))
        opened.give_up({"errors": tmp_path / "out.errors"}, may_replace=lambda path, found: False)


def test_a_job_that_cannot_be_given_up_names_its_output(tmp_path: Path) -> None:
    with (
        pytest.raises(OutputError, match=r"out\.jsonl: cannot be written: Input/output error"),
        job(tmp_path, fingerprint=None, files=Failing("fsync")) as opened,
    ):
        add(opened, range(2))
        opened.give_up({"errors": tmp_path / "out.errors"})


def test_a_file_whose_part_cannot_be_removed_is_written_all_the_same(tmp_path: Path) -> None:
    write_file(tmp_path / "report", b"rows", Failing("unlink"))
    assert (tmp_path / "report").read_bytes() == b"rows"


@pytest.mark.parametrize("hand", ["of its own", "of another"])
def test_a_copy_replaces_what_it_may_and_is_what_was_copied(tmp_path: Path, hand: str) -> None:
    class Touching(OtherDisk):
        def close(self, descriptor: int) -> None:
            os.write(descriptor, b"more")
            super().close(descriptor)

    work, final = tmp_path / "job" / "rows", tmp_path / "out"
    work.parent.mkdir()
    work.write_bytes(b"rows")
    final.write_bytes(b"mine")
    asked: list[Path] = []

    def may_replace(path: Path, found: os.stat_result) -> bool:
        asked.append(path)
        return hand == "of another"

    said = "was made or changed by something else" if hand == "of its own" else "it was touched while it got its name"
    with pytest.raises(OutputError, match=said):
        place_file(work, final, OtherDisk() if hand == "of its own" else Touching(), may_replace=may_replace)
    assert asked and set(asked) == {final}
    assert final.exists() == (hand == "of its own")
    assert work.read_bytes() == b"rows"


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


def test_a_job_that_could_not_write_notes_nothing_more(tmp_path: Path) -> None:
    with pytest.raises(InputError), job(tmp_path, files=Failing("fsync", at=5)) as opened:
        with pytest.raises(OutputError):
            add(opened, range(4))
        raise InputError("a fault in it")
    assert [entry.record["kind"] for entry in read_journal(opened.path("journal"))] == ["job", "commit"]


def test_what_stands_behind_the_windows_and_cannot_be_written_names_the_output(tmp_path: Path) -> None:
    files = Failing("write", errno.ENOENT, at=9999)
    with job(tmp_path, files=files) as opened:
        add(opened, range(2))
        files.fail_next()
        with pytest.raises(OutputError, match=r"out\.jsonl: cannot be written"):
            opened.append({"rows": b"the end\n"})


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOENT])
def test_a_checkpoint_that_cannot_be_written_names_the_output(tmp_path: Path, number: int) -> None:
    files = Failing("fsync", number, at=99)
    with job(tmp_path, files=files, checkpoint_every=60.0) as opened:
        add(opened, range(2))
        files.fail_next()
        with pytest.raises(OutputError, match=r"out\.jsonl: cannot be written"):
            opened.checkpoint()


def test_a_note_of_a_bad_input_that_cannot_be_written_hides_no_fault(tmp_path: Path) -> None:
    files = Failing("fsync", errno.ENOENT, at=99)
    with pytest.raises(InputError, match="a fault in it"), job(tmp_path, files=files) as opened:
        add(opened, range(2))
        files.fail_next()
        raise InputError("a fault in it")
    with job(tmp_path) as again:
        assert again.next_window == 2


def test_a_job_that_was_never_kept_notes_nothing(tmp_path: Path) -> None:
    with pytest.raises(OutputError) as caught, job(tmp_path) as opened:
        raise OutputError("a fault before the first window")
    assert not opened.folder.exists()
    assert not hasattr(caught.value, "__notes__"), "nothing is kept, so nothing is said of it"


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
    with pytest.raises(JobChangedError, match=r"differs from this run: its journal was not written by this program$"):
        job(tmp_path).__enter__()


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
    line = b'["' + lines._check(check, text).encode() + b'", ' + text + b"]\n"
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
    (tmp_path / "local").write_bytes(b"local")
    files = {"input 1": UrlPath("s3://bucket/object"), "input 2": tmp_path / "local"}
    made = Fingerprint(asked={}, plan={}, files=files)
    made.start()
    made.wait(60)
    monkeypatch.undo()
    assert made.hashes == {"input 2": sha256_of(tmp_path / "local")}


def test_an_object_takes_what_is_done_unless_another_one_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: list[bytes] = []
    told: list[dict[str, object]] = []

    def upload(work: Path, final: UrlPath, **terms: object) -> None:
        told.append(terms)
        if taken:
            raise FileExistsError(errno.EEXIST, "there")
        taken.append(work.read_bytes())

    monkeypatch.setattr(placing, "upload", upload)
    target = UrlPath("s3://bucket/out.jsonl")
    write_file(target, b"rows", Files())
    assert taken == [b"rows"]
    (tmp_path / "rows").write_bytes(b"other")

    def never(path: Path, found: os.stat_result) -> bool:
        return False

    with pytest.raises(OutputError, match="was made or changed by something else during the run") as caught:
        place_file(tmp_path / "rows", target, Files(), may_replace=never, job="this one")
    assert caught.value.message.startswith(f"{target}: ")
    with pytest.raises(OutputError):
        write_file(target, b"rows", Files(), may_replace=never)
    assert told == [
        {"may_replace": placing.any_file, "job": None},
        {"may_replace": never, "job": "this one"},
        {"may_replace": never, "job": None},
    ]
    assert (tmp_path / "rows").exists()


def test_files_of_a_data_set_go_there_together_unless_another_one_has_a_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[object] = []

    def put_together(works: Mapping[Path, UrlPath], may_replace: object) -> None:
        asked.append(({work.read_bytes(): str(final) for work, final in works.items()}, may_replace))
        if len(asked) == 2:
            raise FileExistsError(errno.EEXIST, "there")

    monkeypatch.setattr(placing, "put_together", put_together)
    names = {name: UrlPath(f"hf://datasets/me/set/{name}") for name in ("errors", "rows")}

    def never(path: Path, found: os.stat_result) -> bool:
        return False

    errors = b"".join(errors for _, errors in WINDOWS)
    whole = {errors: str(names["errors"]), WHOLE[len(errors) :]: str(names["rows"])}
    with job(tmp_path) as opened:
        add(opened, range(4))
        opened.complete({"errors": True})
        opened.place(names, may_replace=never)
    assert asked == [(whole, never)]
    assert not opened.folder.exists()
    with pytest.raises(OutputError, match="set/errors: was made or changed by something else"), job(tmp_path) as opened:
        add(opened, range(4))
        opened.complete({"errors": True})
        opened.place(names)
    assert asked[1:] == [(whole, placing.any_file)]
    assert all(opened.path(name).exists() for name in names)


def test_files_of_an_earlier_run_go_where_they_may(tmp_path: Path) -> None:
    old = [tmp_path / "old.errors", tmp_path / "old.values"]
    for path in old:
        path.write_bytes(path.name.encode())
    asked: list[tuple[str, int]] = []

    def may_replace(path: Path, found: os.stat_result) -> bool:
        asked.append((path.name, found.st_size))
        return path == old[1]

    with job(tmp_path) as opened:
        add(opened, range(4))
        opened.complete({"errors": True})
        names = {"errors": tmp_path / "out.errors", "rows": opened.out}
        opened.place(names, outdated=[*old, tmp_path, tmp_path / "none"], may_replace=may_replace)
    assert asked == [("old.errors", 10), ("old.values", 10)]
    assert [path.exists() for path in old] == [True, False]
