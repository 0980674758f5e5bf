"""A job: the work folder of one output, from the first window to the name. See the package's text for its states."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

from rerank_cli.errors import JobChangedError, OutputError, RerankError, StoppedError
from rerank_cli.journal.files import Files, WorkFile, naming
from rerank_cli.journal.fingerprint import Fingerprint
from rerank_cli.journal.lock import take_lock
from rerank_cli.journal.placing import place_file, remove_file
from rerank_cli.journal.records import Entry, encode, read_journal

_FORMAT = 2  # of the journal; another number is another program's job
_READ_BYTES = 2**20
_HASH_SECONDS = 1.0  # that the first commit waits for
_MADE_AT_THE_END = ("output", "report", "page", "embeddings", "per_query")
_RESTART = "`--restart` starts over; the former command, on the former input, goes on"


@dataclass(frozen=True, slots=True)
class Terms:
    """How a job is kept.

    fingerprint: what a job on disk must agree with to be continued; None for an input that cannot be read again, whose
    job goes away with a run that stops. restart: a job on disk is thrown away. checkpoint_every, lock_wait: seconds.
    """

    fingerprint: Fingerprint | None = None
    restart: bool = False
    checkpoint_every: float = 5.0
    lock_wait: float = 0.0
    files: Files = field(default_factory=Files)
    clock: Callable[[], float] = time.monotonic


class Job:
    """A context manager that holds the lock. What was committed stays in the folder until `place` is through.

    Entering raises `LockedError`, `JobChangedError`, or `OutputError` where the folder cannot be written to.

    members: the files that windows add bytes to. next_window: the first window that is not committed. state: what the
    last commit said of the run as a whole; None in a new job. notes: (window, note) of each committed window that had
    something to say. completed: what `complete` was told, if only names are left to give.
    """

    def __init__(self, out: Path, terms: Terms, *, members: Sequence[str] = ("rows", "errors")) -> None:
        self.out = out
        self.folder = self.folder_of(out)
        self.next_window = 0
        self.state: dict[str, Any] | None = None
        self.notes: list[Any] = []
        self.completed: dict[str, Any] | None = None
        self._terms = terms
        self._files = terms.files
        self._stack = ExitStack()
        self._names = tuple(members)
        self._members: dict[str, WorkFile] = {}
        self._journal: WorkFile
        self._check = ""  # of the last record in the journal
        self._hashes: dict[str, str] = {}  # of the files, as far as the journal knows them
        self._commit = _Commit(0, dict.fromkeys(members, 0))
        self._committed_at = -float("inf")
        self._placed = False
        self._broken = False

    @staticmethod
    def folder_of(out: str | Path) -> Path:
        """The work folder of an output."""
        return Path(f"{out}.job")

    @staticmethod
    def changed(out: str | Path, what: str) -> JobChangedError:
        """The refusal to continue the job of an output, which would write other bytes; what: the difference."""
        return JobChangedError(f"{Job.folder_of(out)}: the unfinished job in it is another one: {what}", hint=_RESTART)

    def path(self, name: str) -> Path:
        """Where a file of the job lies."""
        return self.folder / name

    def __enter__(self) -> Self:
        with ExitStack() as stack, naming(self.out):
            if self.folder.exists() and not self.folder.is_dir():
                raise OutputError(f"{self.folder}: is no folder, and the work on this output needs that name")
            lock = take_lock(
                self.path("lock"), out=self.out, wait=self._terms.lock_wait, files=self._files, clock=self._terms.clock
            )
            stack.callback(os.close, lock)
            entries = [] if self._terms.restart else read_journal(self.path("journal"))
            if len(entries) > 1:  # a header alone has nothing to lose
                self._refuse_other(entries)
            if entries and entries[-1].record["kind"] == "complete":
                self.completed = entries[-1].record["run"]
            else:
                self._open_files(stack, entries)
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if not self._placed and self.completed is None:
                with suppress(OutputError):
                    self.checkpoint()
            if self._placed or not self.is_kept:
                with suppress(OSError):
                    self._remove()
            elif isinstance(error, RerankError) and not isinstance(error, (JobChangedError, StoppedError)):
                error.add_note(f"what is finished is kept in {self.folder}; run the same command again to go on")
        finally:
            self._stack.close()

    @property
    def is_kept(self) -> bool:
        """Whether the folder stays for a later run."""
        return self._terms.fingerprint is not None and (self.completed is not None or self.state is not None)

    # Windows

    def add(self, window: int, data: Mapping[str, bytes], state: Mapping[str, Any], note: Any = None) -> None:
        """A window is finished: its bytes by member, and what it says of the run so far. Commits when it is time."""
        self.append(data)
        self._commit.add(window, data, state, note)
        self.next_window = window + 1
        if self._terms.clock() - self._committed_at >= self._terms.checkpoint_every:
            self.checkpoint()

    def append(self, data: Mapping[str, bytes]) -> None:
        """Bytes that belong to no window; without `complete` the next commit cuts them off."""
        with naming(self.out):
            for name, more in data.items():
                self._members[name].append(more)

    def checkpoint(self) -> None:
        """Commit all windows that were added."""
        commit = self._commit
        if commit.state is None or self._terms.fingerprint is None or self._broken:
            return
        with naming(self.out):
            self._cut(commit.ends)  # what an interrupted `append` has left
            self._write([commit.record()])
        self.state = dict(commit.state)
        self._commit = _Commit(commit.next_window, commit.ends)
        self._committed_at = self._terms.clock()

    # The end

    def complete(self, run: Mapping[str, Any]) -> None:
        """All windows are done and all files written: from here on only names are given. run: kept as `completed`."""
        with naming(self.out):
            self._write([{"kind": "complete", "run": run}])
        self.completed = dict(run)

    def place(self, names: Mapping[str, Path], *, outdated: Sequence[Path] = ()) -> None:
        """Give the work files (work name -> final path) their names, in the order given; then the folder goes.

        outdated: files of an earlier run that this one has not.
        """
        for path in outdated:
            with naming(path):
                remove_file(path, self._files)
        for name, path in names.items():
            with naming(path):
                if self.path(name).exists():  # else it has its name from before a crash
                    place_file(self.path(name), path, self._files)
        for folder in {path.parent for path in names.values()}:
            with naming(self.out):
                self._files.sync_folder(folder)
        self._placed = True

    def size(self, member: str) -> int:
        """Bytes of a member so far."""
        return self._members[member].size

    # Inside

    def _refuse_other(self, entries: Sequence[Entry]) -> None:
        header, mine = entries[0].record, self._terms.fingerprint
        if header.get("format") != _FORMAT:
            found = ["it was written by another version of this program"]
        elif mine is None:
            found = ["it can be continued, and a pipe cannot be read again"]
        else:
            for entry in entries:
                self._hashes |= entry.record.get("hashes", {})
            known = header["fingerprint"]
            files = {name: facts | {"sha256": self._hashes.get(name)} for name, facts in known["files"].items()}
            found = mine.differences(known | {"files": files})
        if found:
            more = f" (and {len(found) - 3} more)" if len(found) > 3 else ""
            what = "; ".join(found[:3]) + more
            raise self.changed(self.out, what)

    def _open_files(self, stack: ExitStack, entries: Sequence[Entry]) -> None:
        for name in _MADE_AT_THE_END:
            self._files.unlink(self.path(name))
        self._members = {name: self._opened(stack, name) for name in self._names}
        self._journal = self._opened(stack, "journal")
        good = self._verified(entries)
        if good is not None:
            record = good.record
            self.next_window, self.state, self._check = record["windows"][1], record["state"], good.check
            ends = {name: span[1] for name, span in record["members"].items()}
            self._commit = _Commit(self.next_window, ends)
        self._journal.cut(good.end if good else 0)
        self._cut(self._commit.ends)

    def _cut(self, ends: Mapping[str, int]) -> None:
        for name, end in ends.items():
            self._members[name].cut(end)

    def _opened(self, stack: ExitStack, name: str) -> WorkFile:
        file = WorkFile(self._files, self.path(name))
        stack.callback(_close_quietly, file)
        return file

    def _verified(self, entries: Sequence[Entry]) -> Entry | None:
        """The last commit whose bytes, and those of all before it, are on disk as they were written."""
        good = None
        with ExitStack() as stack:
            streams = {name: stack.enter_context(file.path.open("rb")) for name, file in self._members.items()}
            for entry in entries:
                if entry.record["kind"] == "job":
                    continue
                if not all(_holds(streams[name], *span) for name, span in entry.record["members"].items()):
                    break
                self.notes += entry.record["notes"]
                good = entry
        return good

    def _write(self, records: list[dict[str, Any]]) -> None:
        """Bring the members to disk, then the records, behind a header if the journal is empty.

        After a failure nothing more is written: an fsync that failed once may succeed the next time and bring nothing
        to disk, since the system has forgotten what it could not write.
        """
        self._broken = True
        for file in self._members.values():
            file.sync()
        if (fingerprint := self._terms.fingerprint) is not None:
            if not self._check:
                fingerprint.wait_for_new(_HASH_SECONDS)
                records = [{"kind": "job", "format": _FORMAT, "fingerprint": fingerprint.document()}, *records]
                self._hashes = {}
                self._files.sync_folder(self.folder)
                self._files.sync_folder(self.folder.parent)
            if new := {name: value for name, value in fingerprint.hashes.items() if name not in self._hashes}:
                records[-1]["hashes"] = new
                self._hashes |= new
            data, self._check = encode(records, after=self._check)
            self._journal.append(data)
            self._journal.sync()
        self._broken = False

    def _remove(self) -> None:
        """Take the folder away, the journal first: what is left without it belongs to no job."""
        self._files.unlink(self.path("journal"))
        for name in (*self._names, *_MADE_AT_THE_END, "lock"):
            self._files.unlink(self.path(name))
        self._files.rmdir(self.folder)


def _close_quietly(file: WorkFile) -> None:
    with suppress(OSError):
        file.close()


class _Commit:
    """The windows since the last commit. ends: of their bytes, by member; state: None if there is none."""

    def __init__(self, window: int, begin: Mapping[str, int]) -> None:
        self.next_window = self._first_window = window
        self._begin = begin
        self.ends = dict(begin)
        self.state: Mapping[str, Any] | None = None
        self._digests = {name: hashlib.sha256() for name in begin}
        self._notes: list[Any] = []

    def add(self, window: int, data: Mapping[str, bytes], state: Mapping[str, Any], note: Any) -> None:
        self.next_window, self.state = window + 1, state
        for name, more in data.items():
            self.ends[name] += len(more)
            self._digests[name].update(more)
        if note is not None:
            self._notes.append([window, note])

    def record(self) -> dict[str, Any]:
        return {
            "kind": "commit",
            "windows": [self._first_window, self.next_window],
            "members": {
                name: [begin, self.ends[name], self._digests[name].hexdigest()] for name, begin in self._begin.items()
            },
            "state": self.state,
            "notes": self._notes,
        }


def _holds(stream: BinaryIO, begin: int, end: int, sha256: str) -> bool:
    """Whether the next bytes of a stream that is at `begin` are, up to `end`, those of the digest."""
    digest = hashlib.sha256()
    left = end - begin
    while data := stream.read(min(left, _READ_BYTES)):
        digest.update(data)
        left -= len(data)
    return digest.hexdigest() == sha256
