"""What a job, a lock and a watch say when another hand has been at their files."""

from __future__ import annotations

import errno
import os
import select
import shutil
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from rerank_cli.errors import InputError, OutputError, StoppedError
from rerank_cli.journal import Files, Watch, WorkFile, place_file, placing, write_file
from rerank_cli.journal import files as file_calls
from rerank_cli.journal.files import opened_as_own
from rerank_cli.journal.fingerprint import sha256_of
from rerank_cli.journal.lines import encode, read_journal
from rerank_cli.journal.lock import take_lock
from rerank_cli.journal.own_folder import refuse_foreign_folder
from rerank_cli.journal.placing import feed
from rerank_cli.journal.seal import Seal
from tests.unit.journal.test_commit import WHOLE, add, finish, job


def replace(path: Path) -> None:
    other = path.with_name("other")
    other.write_bytes(path.read_bytes())
    other.replace(path)


def append(path: Path) -> None:
    with path.open("ab") as stream:
        stream.write(b"more")


def overwrite(path: Path) -> None:
    with path.open("r+b") as stream:
        stream.write(b"#")


CHANGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "cut": (lambda path: os.truncate(path, 3), r"it has \d+ bytes, but \d+ were written"),
    "appended to": (append, r"it has \d+ bytes, but \d+ were written"),
    "replaced": (replace, "another file has its name"),
    "gone": (Path.unlink, "it is gone"),
}


@pytest.mark.parametrize("name", ["rows", "errors", "journal", "lock"])
@pytest.mark.parametrize("how", CHANGES)
def test_a_file_of_the_job_that_was_changed_ends_it_and_the_next_run_goes_on(
    tmp_path: Path, name: str, how: str
) -> None:
    change, said = CHANGES[how]
    with pytest.raises(OutputError) as caught, job(tmp_path) as opened:
        add(opened, range(3))
        change(opened.path(name))
        add(opened, [3])
    where = "another run has taken it" if name == "lock" and how in ("cut", "appended to") else said
    assert f"{opened.path(name)}: was changed by something other than this run" in caught.value.message
    caught.match(where)
    assert caught.value.hint == (
        "keep other programs away from it, and run the same command again: it resumes from what is whole"
    )
    with job(tmp_path) as again:
        assert finish(again) == WHOLE


@pytest.mark.parametrize("name", ["rows", "errors"])
def test_bytes_that_were_overwritten_get_no_name(tmp_path: Path, name: str) -> None:
    with pytest.raises(OutputError) as caught, job(tmp_path) as opened:
        add(opened, range(4))
        overwrite(opened.path(name))
        finish(opened)
    said = f"{opened.path(name)}: was changed by something other than this run: "
    assert caught.value.message == said + "its bytes are not those that were written"
    assert not opened.out.exists()
    with job(tmp_path) as again:
        assert again.completed is None
        assert finish(again) == WHOLE


@pytest.mark.parametrize(
    "fails", [None, ValueError("no JSON"), OSError("Invalid flatbuffers message"), OutputError("too long a string")]
)
@pytest.mark.parametrize("inside", [False, True])
def test_bytes_that_were_overwritten_before_they_are_read_again_are_told(
    tmp_path: Path, fails: Exception | None, inside: bool
) -> None:
    """A table is made of the rows: it may be a wrong one, or its library says what nobody understands."""
    with pytest.raises(OutputError) as caught, job(tmp_path) as opened:
        add(opened, range(4))
        if not inside:
            overwrite(opened.path("rows"))
        with opened.reading():
            if inside:
                overwrite(opened.path("rows"))
            if fails:
                raise fails
    said = f"{opened.path('rows')}: was changed by something other than this run: "
    assert caught.value.message == said + "its bytes are not those that were written"
    with job(tmp_path) as again:
        assert finish(again) == WHOLE


def test_bytes_that_were_restored_while_they_were_read_again_are_told(tmp_path: Path) -> None:
    with (
        pytest.raises(OutputError, match=r"rows: was changed .*: it was touched while it was read\n"),
        job(tmp_path) as opened,
    ):
        add(opened, range(4))
        data = opened.path("rows").read_bytes()
        with opened.reading():
            opened.path("rows").write_bytes(data[::-1])
            opened.path("rows").write_bytes(data)


@pytest.mark.parametrize(
    "fails", [StoppedError("stopped", exit_code=143), OSError(errno.ENOSPC, "no room"), ValueError("a bug")]
)
def test_what_fails_while_whole_bytes_are_read_again_is_told_as_it_is(tmp_path: Path, fails: Exception) -> None:
    with pytest.raises(type(fails)) as caught, job(tmp_path) as opened:
        add(opened, range(4))
        with opened.reading():
            raise fails
    assert caught.value is fails


def test_a_complete_job_whose_file_is_gone_says_so(tmp_path: Path) -> None:
    with job(tmp_path) as opened:
        add(opened, range(4))
        opened.complete({"errors": True})
        opened.path("rows").unlink()
        names = {"errors": tmp_path / "out.errors", "rows": opened.out}
        with pytest.raises(OutputError, match=r"rows: was changed .* it is gone, and .*out.jsonl has other bytes"):
            opened.place(names)
    opened.path("errors").write_bytes(b"other")
    with pytest.raises(OutputError) as caught, job(tmp_path):
        pass
    said = f"{opened.path('errors')}: was changed by something other than this run: "
    assert caught.value.message == said + "its bytes have changed since the run was complete"
    assert caught.value.hint == "start over with `--restart`"


def test_a_complete_job_of_the_version_before_is_placed(tmp_path: Path) -> None:
    with job(tmp_path) as opened:
        add(opened, range(4))
        opened.complete({"errors": True})
    records = [entry.record for entry in read_journal(opened.path("journal"))]
    del records[-1]["files"]
    opened.path("journal").write_bytes(encode(records, after="")[0])
    with job(tmp_path) as again:
        assert again.completed == {"errors": True}
        again.place({"errors": tmp_path / "out.errors", "rows": opened.out})
    assert (tmp_path / "out.errors").read_bytes() + opened.out.read_bytes() == WHOLE


def test_what_came_during_the_run_is_not_replaced(tmp_path: Path) -> None:
    work, final = tmp_path / "rows", tmp_path / "out"
    work.write_bytes(b"rows")
    final.write_bytes(b"mine")
    with pytest.raises(OutputError) as caught:
        place_file(work, final, Files(), may_replace=lambda path, found: False)
    assert caught.value.message == (
        f"{final}: was made or changed by something else during the run, and is not replaced"
    )
    assert caught.value.hint == (
        "move it away, or add `--overwrite`, and run the same command again: nothing is computed twice"
    )
    assert (work.read_bytes(), final.read_bytes()) == (b"rows", b"mine")

    class Racing(Files):
        def place(self, old: Path, new: Path) -> None:
            new.write_bytes(b"just now")
            super().place(old, new)

    final.unlink()
    with pytest.raises(OutputError, match="was made or changed by something else"):
        place_file(work, final, Racing())
    assert final.read_bytes() == b"just now"


@pytest.mark.parametrize("number", [errno.EINVAL, errno.EIO])
def test_a_file_system_without_such_a_rename_links(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def refuses(*_: object) -> int:
        file_calls.ctypes.set_errno(number)
        return -1

    work, final = tmp_path / "rows", tmp_path / "out"
    work.write_bytes(b"rows")
    monkeypatch.setattr(file_calls, "_renameat2", lambda: refuses)
    if number == errno.EIO:
        with pytest.raises(OSError, match="Input/output"):
            Files().place(work, final)
        return
    Files().place(work, final)
    assert (work.exists(), final.read_bytes()) == (False, b"rows")
    work.write_bytes(b"other")
    with pytest.raises(FileExistsError):
        Files().place(work, final)
    monkeypatch.setattr(file_calls, "_renameat2", lambda: None)
    monkeypatch.setattr(Path, "hardlink_to", lambda *_: (_ for _ in ()).throw(OSError(errno.EPERM, "no links")))
    with pytest.raises(FileExistsError, match=f"File exists: '{final}'"):
        Files().place(work, final)
    final.unlink()
    Files().place(work, final)
    assert final.read_bytes() == b"other"
    monkeypatch.setattr(Path, "hardlink_to", lambda *_: (_ for _ in ()).throw(OSError(errno.EIO, "broken")))
    final.rename(work)
    with pytest.raises(OSError, match="broken"):
        Files().place(work, final)


def test_a_file_with_both_names_since_a_crash_loses_one(tmp_path: Path) -> None:
    (tmp_path / "rows").write_bytes(b"rows")
    (tmp_path / "out").hardlink_to(tmp_path / "rows")
    place_file(tmp_path / "rows", tmp_path / "out", Files(), may_replace=lambda path, found: False)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_link_to_nothing_is_replaced_where_it_may_be(tmp_path: Path) -> None:
    (tmp_path / "out").symlink_to(tmp_path / "nothing")
    write_file(tmp_path / "out", b"rows", Files())
    assert (tmp_path / "out").read_bytes() == b"rows"
    assert not (tmp_path / "nothing").exists()


def test_a_pipe_whose_reader_pauses_is_fed_in_time(tmp_path: Path) -> None:
    work, pipe = tmp_path / "rows", tmp_path / "pipe"
    work.write_bytes(b"x" * 2**18)
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    taken = bytearray()
    looks = iter(range(1000))

    def check() -> None:
        if next(looks) > 6:  # by then the pipe is full, and the writer has waited
            taken.extend(os.read(reader, 2**18))

    feed(work, pipe, check=check, seal=Seal(2**18, sha256_of(work)))
    os.set_blocking(reader, True)
    while len(taken) < 2**18:
        taken.extend(os.read(reader, 2**18))
    os.close(reader)
    assert len(taken) == 2**18


def test_a_pipe_that_is_full_is_waited_for_and_looked_at_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[int, ...]] = []

    class Poll:
        def register(self, *what: int) -> None:
            asked.append(what)

        def poll(self, *wait: int) -> None:
            asked.append(wait)
            os.read(reader, 2**18)

    work, pipe = tmp_path / "rows", tmp_path / "pipe"
    work.write_bytes(bytes(2**16))
    os.mkfifo(pipe)
    reader, writer = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK), os.open(pipe, os.O_WRONLY | os.O_NONBLOCK)
    os.write(writer, bytes(2**16))  # as much as it holds
    monkeypatch.setattr(placing.select, "poll", Poll)
    feed(work, pipe, writer)
    assert asked == [(writer, select.POLLOUT), (200,)]
    for descriptor in (reader, writer):
        os.close(descriptor)


@pytest.mark.parametrize("is_new", [True, False])
def test_who_may_read_a_file_is_for_the_users_mask_to_say(tmp_path: Path, is_new: bool) -> None:
    mask = os.umask(0)
    try:
        WorkFile(Files(), tmp_path / "rows", is_new=is_new).close()
    finally:
        os.umask(mask)
    assert (tmp_path / "rows").stat().st_mode & 0o7777 == 0o666


def test_a_file_that_was_there_is_read_to_its_end_to_be_sealed(tmp_path: Path) -> None:
    (tmp_path / "rows").write_bytes(bytes(2**20) + b"1" * 2**20 + b"rows")  # more than is read at a time
    file = WorkFile(Files(), tmp_path / "rows")
    assert file.seal() == (2**21 + 4, sha256_of(tmp_path / "rows"))
    file.close()


def test_a_new_file_is_new(tmp_path: Path) -> None:
    (tmp_path / "part").write_bytes(b"mine")
    with pytest.raises(FileExistsError):
        WorkFile(Files(), tmp_path / "part", is_new=True)
    (tmp_path / "rows").write_bytes(b"rows")
    file = WorkFile(Files(), tmp_path / "rows")
    assert file.seal() == (4, sha256_of(tmp_path / "rows"))
    file.close()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_a_file_of_another_owner_is_not_written(tmp_path: Path) -> None:
    (tmp_path / "rows").write_bytes(b"rows")
    os.chown(tmp_path / "rows", 12345, 12345)
    with pytest.raises(OutputError, match=r"rows: does not belong to the owner of its folder, and was not made"):
        opened_as_own(Files(), tmp_path / "rows")


def test_a_lock_in_a_missing_or_linked_folder_is_no_lock(tmp_path: Path) -> None:
    (tmp_path / "lock").symlink_to(tmp_path / "victim")
    with pytest.raises(OutputError, match="lock: is a link, and was not made by this program") as caught:
        take_lock(tmp_path / "lock", out=tmp_path, wait=0, files=Files())
    assert caught.value.hint == "move it away, or name another output"
    assert not (tmp_path / "victim").exists()


TORN = b'{"pid": '
FOLDERS: dict[str, tuple[dict[str, bytes], bool]] = {
    "empty": ({}, True),
    "an empty lock alone": ({"lock": b""}, True),
    "an empty lock and empty files": ({"lock": b"", "rows": b""}, True),
    "an empty lock beside a journal": ({"lock": b"", "journal": b"", "rows": b"x"}, True),
    "the longest torn lock": ({"lock": TORN + b"1" * (400 - len(TORN))}, True),
    "what is too long for one": ({"lock": TORN + b"1" * (401 - len(TORN))}, False),
    "a lock": ({"lock": b'{"pid": 1, "host": "h"}', "more": b"x"}, True),
    "a journal": ({"journal": b'["00", {"kind":"job"}]'}, True),
    "rows": ({"rows": b"x"}, False),
    "a lock of a door": ({"lock": b"x"}, False),
    "a list for a lock": ({"lock": b"[]"}, False),
    "an empty lock and a diary": ({"lock": b"", "diary": b"x"}, False),
    "many": ({f"file {number}": b"" for number in range(9)}, False),
}


@pytest.mark.parametrize("name", FOLDERS)
def test_a_work_folder_is_known_by_what_is_in_it(tmp_path: Path, name: str) -> None:
    content, is_ours = FOLDERS[name]
    folder = tmp_path / "out.job"
    refuse_foreign_folder(folder)  # it is not there
    folder.mkdir()
    for file, data in content.items():
        (folder / file).write_bytes(data)
    if is_ours:
        refuse_foreign_folder(folder)
    else:
        with pytest.raises(OutputError, match="is not a work folder of this program"):
            refuse_foreign_folder(folder)


def test_a_lock_that_is_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    (tmp_path / "out.job").mkdir()
    os.mkfifo(tmp_path / "out.job" / "lock")
    refuse_foreign_folder(tmp_path / "out.job")  # empty but for the lock, which says itself what it is
    with pytest.raises(OutputError, match="lock: is not a regular file"):
        take_lock(tmp_path / "out.job" / "lock", out=tmp_path, wait=0, files=Files())


def test_a_link_or_a_file_is_no_work_folder(tmp_path: Path) -> None:
    (tmp_path / "out.job").symlink_to(tmp_path)
    with pytest.raises(OutputError) as caught:
        refuse_foreign_folder(tmp_path / "out.job")
    assert caught.value.message == f"{tmp_path / 'out.job'}: is a link, but this output's work folder needs the name"
    assert caught.value.hint == "move it away, or name another output"


def test_a_mount_that_tells_another_owner_of_all_files_is_borne(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "out.job").mkdir()
    monkeypatch.setattr(os, "geteuid", lambda: 4242)
    made, temporary = [], tempfile.TemporaryFile

    def file_in(**where: Any) -> Any:
        made.append(where)
        return temporary(**where)

    monkeypatch.setattr("tempfile.TemporaryFile", file_in)
    refuse_foreign_folder(tmp_path / "out.job")  # new files belong to whom the folder does
    assert made == [{"dir": tmp_path}]
    monkeypatch.setattr("tempfile.TemporaryFile", lambda **_: (_ for _ in ()).throw(OSError("read-only")))
    with pytest.raises(OutputError, match="belongs to another user"):
        refuse_foreign_folder(tmp_path / "out.job")


@pytest.mark.parametrize(
    "record",
    [
        {}, [], {"kind": "other"}, {"kind": "job"}, {"kind": "commit", "windows": [0, 1]},
        {"kind": "commit", "windows": [0, 1], "members": {"rows": [0, "x", ""]}, "state": {}, "notes": []},
        {"kind": "commit", "windows": [0, 1], "members": {"rows": [4, 2, ""]}, "state": {}, "notes": []},
        {"kind": "commit", "windows": [0, 1], "members": {}, "state": {}, "notes": [1]},
        {"kind": "commit", "windows": [0, 1], "members": {}, "state": {}, "notes": [], "hashes": {"a": 1}},
        {"kind": "complete", "run": {}, "files": []}, {"kind": "complete", "run": {}, "files": {"rows": [1]}},
    ],
)  # fmt: skip
def test_a_record_without_the_fields_of_its_kind_ends_the_journal(tmp_path: Path, record: object) -> None:
    (tmp_path / "journal").write_bytes(encode([{"kind": "job", "format": 2}, record], after="")[0])
    assert [entry.record for entry in read_journal(tmp_path / "journal")] == [{"kind": "job", "format": 2}]


# What is read


def watched(path: Path, known: str | None = None) -> Watch:
    watch = Watch(lambda _: known)
    watch.look({"none": path.with_name("none"), "folder": path.parent, "input 1": path})
    watch.check()
    return watch


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (Path.unlink, "it is gone"),
        (replace, "another file has its name"),
        (append, "it had 5 bytes and now has 9"),
        (lambda path: os.utime(path, (5, 5)), "it was written to"),
        (lambda path: path.chmod(0o600), "its content or its mode was changed"),
    ],
)
def test_a_change_of_what_is_read_is_told(tmp_path: Path, change: Callable[[Path], None], said: str) -> None:
    path = tmp_path / "in.jsonl"
    path.write_text("input")
    watch = watched(path)
    change(path)
    with pytest.raises(InputError) as caught:
        watch.check()
    assert caught.value.message == f"{path}: was changed while it was read (input 1): {said}"
    assert caught.value.hint == (
        "restore the file and run the same command again to resume, or start over with `--restart`"
    )


def test_another_mode_or_name_of_the_same_bytes_is_no_change(tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    path.write_text("input")
    watch = watched(path, sha256_of(path))
    path.chmod(0o600)
    watch.check()
    (tmp_path / "backup").hardlink_to(path)
    watch.look({"input 2": path})
    watch.check()
    other = tmp_path / "other"
    other.write_text("other")
    watch.look({"input 3": other})
    watch.only({"the input": path})
    other.unlink()
    watch.check()
    path.unlink()
    with pytest.raises(InputError, match=r"\(the input\): it is gone"):
        watch.check()
    watch.only({})
    watch.check()


def test_what_was_read_behind_a_change_is_not_kept(tmp_path: Path) -> None:
    watch = watched(Path(tmp_path / "in.jsonl"))
    read = tmp_path / "read"
    read.write_text("first")
    watch.look({"input 1": read})
    with pytest.raises(InputError), job(tmp_path, watch=watch) as opened:
        add(opened, range(2))
        read.write_text("second")
        add(opened, [2])
    with job(tmp_path) as again:
        assert again.next_window == 2


# Seals


def test_a_seal_knows_its_bytes_however_often_its_file_is_touched(tmp_path: Path) -> None:
    work = tmp_path / "rows"
    work.write_bytes(b"rows")
    seal = Seal(4, sha256_of(work))
    assert not seal.is_untouched(work)  # nobody has looked
    assert seal.is_of(work)
    for touch in (lambda path: path.chmod(0o600), lambda path: os.utime(path, (5, 5)), replace):
        touch(work)
        assert not seal.is_untouched(work)
        assert seal.is_of(work)
        assert seal.is_untouched(work)
    for other in (b"rowS", b"row", b"rows and more"):
        work.write_bytes(other)
        assert not seal.is_of(work)
        assert not seal.is_untouched(work)
    work.unlink()
    assert not seal.is_of(work)


def test_what_was_touched_since_it_was_looked_at_gets_no_name(tmp_path: Path) -> None:
    work, final = tmp_path / "rows", tmp_path / "out"
    work.write_bytes(b"rows")
    seal = Seal(4, sha256_of(work))
    assert seal.is_of(work)
    os.utime(work, (5, 5))
    with pytest.raises(OutputError, match="it was touched while it got its name"):
        place_file(work, final, Files(), seal=seal)
    assert (work.read_bytes(), final.exists()) == (b"rows", False)


def test_what_is_no_regular_file_is_not_what_was_written(tmp_path: Path) -> None:
    (tmp_path / "empty").write_bytes(b"")
    seal = Seal(0, sha256_of(tmp_path / "empty"))
    os.mkfifo(tmp_path / "pipe")  # reading it would wait for its writer
    assert not seal.is_of(tmp_path / "pipe")
    assert not seal.is_of(tmp_path)


# The last moment


class Meddling(Files):
    """Files with another hand just before `out.jsonl` gets its name. hand: what it does to the work file."""

    def __init__(self, hand: Callable[[Path], object]) -> None:
        self._hand = hand

    def place(self, old: Path, new: Path) -> None:
        self._meddle(old, new)
        super().place(old, new)

    def rename(self, old: Path, new: Path) -> None:
        self._meddle(old, new)
        super().rename(old, new)

    def _meddle(self, old: Path, new: Path) -> None:
        if new.name == "out.jsonl":
            self._hand(old)


@pytest.mark.parametrize("hand", [overwrite, append, replace])
@pytest.mark.parametrize("is_there", [False, True])
def test_what_is_touched_while_it_gets_its_name_loses_it_again(
    tmp_path: Path, hand: Callable[[Path], object], is_there: bool
) -> None:
    if is_there:
        (tmp_path / "out.jsonl").write_bytes(b"old")
    with (
        pytest.raises(OutputError, match=r"rows: was changed .* it was touched while it got its name"),
        job(tmp_path, files=Meddling(hand)) as opened,
    ):
        finish(opened)
    assert not (tmp_path / "out.jsonl").exists()
    assert opened.path("rows").exists()


def test_what_is_gone_when_it_gets_its_name_is_told(tmp_path: Path) -> None:
    with (
        pytest.raises(OutputError, match=r"rows: was changed .*: it is gone"),
        job(tmp_path, files=Meddling(Path.unlink)) as opened,
    ):
        finish(opened)
    assert not (tmp_path / "out.jsonl").exists()


def test_what_is_gone_before_it_gets_its_name_is_not_taken_for_placed(tmp_path: Path) -> None:
    class Removing(Files):
        def place(self, old: Path, new: Path) -> None:
            super().place(old, new)
            old.with_name("rows").unlink()

    with (
        pytest.raises(
            OutputError, match=r"rows: was changed .*: it is gone, and .*out.jsonl has other bytes"
        ) as caught,
        job(tmp_path, files=Removing()) as opened,
    ):
        finish(opened)
    assert caught.value.hint == "start over with `--restart`"
    assert not (tmp_path / "out.jsonl").exists()


def test_a_copy_of_other_bytes_gets_no_name(tmp_path: Path) -> None:
    class OtherDisk(Meddling):
        def _meddle(self, old: Path, new: Path) -> None:
            if old.parent != new.parent:
                super()._meddle(old, new)
                raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))

    with (
        pytest.raises(OutputError, match=r"rows: was changed .* it was touched while it got its name"),
        job(tmp_path, files=OtherDisk(overwrite)) as opened,
    ):
        finish(opened)
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_file()) == ["in.jsonl", "out.errors"]


def test_other_bytes_that_went_into_a_pipe_are_told(tmp_path: Path) -> None:
    work, pipe = tmp_path / "rows", tmp_path / "pipe"
    work.write_bytes(bytes(2**17))  # more than is read at a time
    seal = Seal(2**17, sha256_of(work))
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)

    def check() -> None:
        with suppress(BlockingIOError):
            os.read(reader, 2**17)
        with work.open("r+b") as stream:
            stream.seek(-1, os.SEEK_END)
            stream.write(b"#")

    with pytest.raises(OutputError, match=r"rows: was changed .* other bytes went into .*pipe"):
        feed(work, pipe, check=check, seal=seal)
    os.close(reader)


# What is behind a failure


def test_a_failure_behind_a_change_of_the_jobs_files_tells_of_the_change(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"rows: was changed .*: it is gone") as caught, job(tmp_path) as opened:
        add(opened, range(2))
        opened.path("rows").unlink()
        raise FileNotFoundError("by a library")
    assert isinstance(caught.value.__cause__, FileNotFoundError)
    assert "what is finished is kept" in caught.value.__notes__[0]
    with pytest.raises(FileNotFoundError, match="of its own"), job(tmp_path):
        raise FileNotFoundError("of its own")


def test_a_failure_of_a_completed_job_whose_lock_is_gone_tells_of_the_lock(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"lock: was changed .*: it is gone"), job(tmp_path) as opened:
        add(opened, range(4))
        opened.complete({"errors": True})
        opened.path("lock").unlink()
        raise FileNotFoundError("while it is placed")
    with pytest.raises(FileNotFoundError), job(tmp_path):
        raise FileNotFoundError("and with its lock")


def test_a_folder_that_goes_while_a_job_begins_is_told(tmp_path: Path) -> None:
    class Removing(Files):
        def open(self, path: Path) -> int:
            if path.name == "rows":
                shutil.rmtree(path.parent)
            return super().open(path)

    with pytest.raises(OutputError, match=r"lock: was changed .*: it is gone"), job(tmp_path, files=Removing()):
        pass


def test_what_a_library_says_of_a_file_that_was_changed_is_not_the_reason(tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    path.write_text("input")
    watch = watched(path)
    with pytest.raises(ValueError, match="of its own"), watch.explaining():
        raise ValueError("of its own")
    path.unlink()
    with pytest.raises(StoppedError), watch.explaining():
        raise StoppedError("stopped", exit_code=143)
    with pytest.raises(InputError, match="it is gone") as caught, watch.explaining():
        raise ValueError("bad")
    assert isinstance(caught.value.__cause__, ValueError)
    with pytest.raises(InputError, match="it is gone") as caught, watch.explaining():
        watch.check()
    assert caught.value.__cause__ is not caught.value
