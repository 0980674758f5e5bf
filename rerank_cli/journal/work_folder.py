"""A job: the work folder of one output, from the first window to the name. See the package's text for its states.

Over 400 lines: the steps of one object between its states, whose order is what makes a kill harmless, are read in one
place.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, BinaryIO, Self, TypeGuard

from rerank_cli.errors import InputError, JobChangedError, LockedError, RerankError, StoppedError, TooManyBadRowsError
from rerank_cli.journal.files import Files, WorkFile, changed, naming, refuse_lost_name
from rerank_cli.journal.fingerprint import Fingerprint
from rerank_cli.journal.lock import Lock, take_lock
from rerank_cli.journal.own_folder import refuse_foreign_folder
from rerank_cli.journal.placing import MayReplace, any_file, feed, is_special, place_file, place_together, remove_file
from rerank_cli.journal.records import Entry, encode, read_journal
from rerank_cli.journal.seal import Seal
from rerank_cli.journal.store_log import StoreLog
from rerank_cli.journal.watch import Watch
from rerank_cli.storage import UrlPath, is_on_hub, is_url, path_of
from rerank_cli.storage.copies import work_folder_of

if TYPE_CHECKING:
    from hashlib import _Hash as Digest  # typeshed's name of it

_SAY_IT_THEMSELVES = (JobChangedError, StoppedError)  # what is kept
_FORMAT = 2  # of the journal; another number is another program's job
_READ_BYTES = 2**20
_HASH_SECONDS = 1.0  # that the first commit waits for
_MADE_AT_THE_END = ("output", "report", "page", "embeddings", "per_query")
_BAD_INPUT = "bad input"  # the kind of a record
_RESTART = "`--restart` starts over; the former command, on the former input, goes on"


@dataclass(frozen=True, slots=True)
class Terms:
    """How a job is kept.

    fingerprint: what a job on disk must agree with to be continued; None for an input that cannot be read again, whose
    job goes away with a run that stops. restart: a job on disk is thrown away. checkpoint_every, lock_wait: seconds.
    watch: looks at each commit whether what the run reads is as it was.
    """

    fingerprint: Fingerprint | None = None
    restart: bool = False
    checkpoint_every: float = 5.0
    lock_wait: float = 0.0
    files: Files = field(default_factory=Files)
    clock: Callable[[], float] = time.monotonic
    watch: Watch = field(default_factory=Watch)


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
        self._lock: Lock
        self._log = StoreLog(out, clock=terms.clock) if _has_log(out) else None
        self._is_lost = False  # the folder may be another run's
        self._made: dict[str, tuple[int, str]] = {}  # size and SHA-256 of files that are no members
        self._made_as: dict[str, os.stat_result] = {}
        self._seals: dict[str, Seal] | None = None  # of a completed job; None where its journal has none
        self._check = ""  # of the last record in the journal
        self._hashes: dict[str, str] = {}  # of the files, as far as the journal knows them
        self._verified_bytes: dict[str, Digest] = {}  # of the members, up to the last good commit
        self._commit = _Commit(0, dict.fromkeys(members, 0))
        self._committed_at = -float("inf")
        self._placed = False
        self._broken = False

    @staticmethod
    def folder_of(out: str | Path) -> Path:
        """The work folder of an output; of one at a URL it lies in this machine's cache."""
        return work_folder_of(str(out)) if is_url(out) else Path(f"{out}.job")

    @staticmethod
    def is_begun(out: str) -> bool:
        """Whether there is work on an output."""
        there = path_of(out)
        return Job.folder_of(out).exists() or (_has_log(there) and StoreLog.is_there(there))

    @staticmethod
    def changed(out: str | Path, what: str) -> JobChangedError:
        """The refusal to continue the job of an output, which would write other bytes; what: the difference."""
        return JobChangedError(f"{out}.job: the unfinished job in it is another one: {what}", hint=_RESTART)

    def path(self, name: str) -> Path:
        """Where a file of the job lies."""
        return self.folder / name

    def __enter__(self) -> Self:
        with ExitStack() as stack, naming(self.out):
            if isinstance(self.out, UrlPath):
                self.folder.parent.mkdir(parents=True, exist_ok=True)
            refuse_foreign_folder(self.folder)
            self._lock = take_lock(
                self.path("lock"), out=self.out, wait=self._terms.lock_wait, files=self._files, clock=self._terms.clock
            )
            stack.callback(self._lock.release)
            stack.enter_context(self._lock.explaining())
            if self._log:
                self._play_back(self._log)
            entries = [] if self._terms.restart else read_journal(self.path("journal"))
            if len(entries) > 1 and (found := self._differences(entries)):  # a header alone has nothing to lose
                if entries[-1].record["kind"] != _BAD_INPUT:
                    raise self.changed(self.out, found)
                entries, self._hashes = [], {}
            if entries and entries[-1].record["kind"] == "complete" and self._is_still_complete(entries[-1].record):
                self.completed = entries[-1].record["run"]
            else:
                self._open_files(stack, entries)
                if self._log:
                    self._log.begin_at({file.path.name: file.size for file in (*self._members.values(), self._journal)})
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        reason = self._find_other_hand(error)
        try:
            self._leave(reason)
        finally:
            if self._log:
                self._log.close()
            self._stack.close()
        if reason is not error and reason is not None:
            raise reason from error

    def _find_other_hand(self, error: BaseException | None) -> BaseException | None:
        """What another hand has done to the job, where that may be why something failed; else what failed."""
        if not isinstance(error, Exception) or isinstance(error, _SAY_IT_THEMSELVES) or self._placed or self._is_lost:
            return error
        try:
            if self.completed is None:
                self.refuse_other_hands()
            else:
                self._refuse_lost_lock()
        except RerankError as found:
            return error if isinstance(error, RerankError) and error.message == found.message else found
        return error

    def _leave(self, error: BaseException | None) -> None:
        if not self._placed and self.completed is None and not self._is_lost:
            with suppress(RerankError):
                self.checkpoint()
                if isinstance(error, (TooManyBadRowsError, InputError)):
                    self._note_bad_input()
        if self._is_lost:
            return
        is_over = self._placed or not self.is_kept
        is_kept = not is_over and self._is_there
        with suppress(OSError):
            if self._log:
                self._log.remove() if is_over else self._log.release()
            if is_over or self._log:
                self._remove()
        if is_kept and isinstance(error, RerankError) and not isinstance(error, _SAY_IT_THEMSELVES):
            where = f"{self.out}.job" if self._log else self.folder
            error.add_note(f"what is finished is kept in {where}; run the same command again to go on")

    @property
    def is_kept(self) -> bool:
        """Whether the folder stays for a later run."""
        return self._terms.fingerprint is not None and (self.completed is not None or self.state is not None)

    @property
    def _is_there(self) -> bool:
        return self._log is not None or self.path("journal").is_file()

    # Windows

    def add(self, window: int, data: Mapping[str, bytes], state: Mapping[str, Any], note: Any = None) -> None:
        """A window is finished: its bytes by member, and what it says of the run so far. Commits when it is time."""
        self._refuse_lost_lock()
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
            self.refuse_other_hands()
            self._cut(commit.ends)  # what an interrupted `append` has left
            self._write([commit.record()])
        self.state = dict(commit.state)
        self._commit = _Commit(commit.next_window, commit.ends)
        self._committed_at = self._terms.clock()

    def refuse_other_hands(self) -> None:
        """Raise if something else than this run has changed its files or what it reads; nothing is written then."""
        self._refuse_lost_lock()
        broken, self._broken = self._broken, True
        for file in (*self._members.values(), self._journal):
            file.check()
        for name, found in self._made_as.items():
            refuse_lost_name(self.path(name), found)
        self._terms.watch.check()
        self._broken = broken

    def _refuse_lost_lock(self) -> None:
        lost, self._is_lost = self._is_lost, True
        self._lock.check()
        if self._log:
            self._log.check()
        self._is_lost = lost

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Inside, members are read again by their paths: `OutputError` if that were other bytes than was appended."""
        self.refuse_other_hands()  # a library would wait for what is a pipe by now
        before = {name: file.stat() for name, file in self._members.items()}

        def check() -> None:
            for name, file in self._members.items():
                file.refuse_other_bytes(before[name])

        try:
            yield
        except Exception as error:
            if not isinstance(error, StoppedError) and not getattr(error, "errno", None):
                check()  # other bytes may be why; what a disk says of itself is no reason to read all again
            raise
        check()

    # The end

    def writing(self, name: str) -> AbstractContextManager[WorkFile]:
        """A file of the run that is no member, empty; it is on disk when the block ends."""
        return self._writing(name)

    @contextmanager
    def _writing(self, name: str) -> Iterator[WorkFile]:
        file = WorkFile(self._files, self.path(name))
        try:
            file.cut(0)
            yield file
            file.sync()
            self._made[name] = file.seal()
            self._made_as[name] = file.stat()
        finally:
            file.close()

    def seal(self, name: str) -> tuple[int, str]:
        """Size and SHA-256 of all that was written to a file of the run."""
        return self._members[name].seal() if name in self._members else self._made[name]

    def complete(self, run: Mapping[str, Any]) -> None:
        """All windows are done and all files written: from here on only names are given. run: kept as `completed`."""
        with naming(self.out):
            self.refuse_other_hands()
            files = {name: self.seal(name) for name in (*self._members, *self._made)}
            self._write([{"kind": "complete", "run": run, "files": files}])
        self._seals = {name: Seal(*seal) for name, seal in files.items()}
        self.completed = dict(run)

    def feed(self, names: Mapping[str, Path], pipes: Mapping[Path, int], check: Callable[[], None]) -> None:
        """Write those work files whose final paths are pipes or devices into them.

        pipes: descriptors of those that are open. check: called while a reader waits.
        """
        self._refuse_lost_lock()
        for name, path in names.items():
            if is_special(path) and self.path(name).exists():
                with naming(path):
                    self._refuse_unsealed(name, path)
                    feed(self.path(name), path, pipes.get(path), check, seal=self._seal_of(name))
                    self._files.unlink(self.path(name))

    def place(
        self, names: Mapping[str, Path], *, outdated: Sequence[Path] = (), may_replace: MayReplace = any_file
    ) -> None:
        """Give the work files (work name -> final path) their names, in the order given; then the folder goes.

        outdated: files of an earlier run that this one has not. may_replace: whether what has a final path goes.
        """
        self._refuse_lost_lock()
        for name, path in names.items():
            with naming(path):
                self._refuse_unsealed(name, path)
        for path in outdated:
            with naming(path):
                if path.is_file() and may_replace(path, path.lstat()):
                    remove_file(path, self._files)
        together = {
            self.path(name): path for name, path in names.items()
            if is_on_hub(path) and os.path.lexists(self.path(name))
        }  # fmt: skip
        for name, path in names.items():
            with naming(path):
                if self.path(name) in together:
                    self._refuse_touched(name)
                    if path == list(together.values())[-1]:
                        place_together(together, self._files, may_replace)
                elif not os.path.lexists(self.path(name)):
                    self._refuse_unsealed(name, path)  # it has its name from before a crash, or was taken away just now
                else:
                    self._refuse_touched(name)
                    if self._log:
                        self._log.ask()
                    seal, job = self._seal_of(name), self._log.job if self._log else None
                    place_file(self.path(name), path, self._files, may_replace=may_replace, seal=seal, job=job)
        for folder in {path.parent for path in names.values() if not isinstance(path, UrlPath)}:
            with naming(self.out):
                self._files.sync_folder(folder)
        self._placed = True

    def is_mine(self, path: Path) -> bool:
        """Whether this job has given a file its name before; known of objects alone."""
        return self._log is not None and self._log.is_mine(path)

    def was_done(self) -> None:
        """The output is there: nothing of the work beside an object is needed any more."""
        self._placed = self._log is not None

    def give_up(self, names: Mapping[str, Path], *, may_replace: MayReplace = any_file) -> None:
        """Give some members (name -> final path) their names; all else of the job goes, as it is worth nothing."""
        with naming(self.out):
            for name in names:
                self._members[name].sync()
        self.place(names, may_replace=may_replace)

    def size(self, member: str) -> int:
        """Bytes of a member so far."""
        return self._members[member].size

    # Inside

    def _is_still_complete(self, record: Mapping[str, Any]) -> bool:
        """Whether only names are left to give; False where a file that has none yet was damaged.

        Then the run goes on behind its last good commit. It cannot where others of its files have their names by now.
        """
        if (files := record.get("files")) is None:
            return True  # of the version before
        self._seals = {name: Seal(*seal) for name, seal in files.items()}
        here = {name for name in self._seals if os.path.lexists(self.path(name))}
        damaged = next((name for name in here if not self._seals[name].is_of(self.path(name))), None)
        if damaged is None:
            return True
        if here != self._seals.keys():
            raise changed(self.path(damaged), "its bytes are others than when the run was complete", restart=True)
        self._seals = None
        return False

    def _seal_of(self, name: str) -> Seal | None:
        return self._seals.get(name) if self._seals else None

    def _refuse_unsealed(self, name: str, path: Path) -> None:
        """`OutputError` if a work file, or the file with its final path where it has that by now, has other bytes."""
        seal = self._seal_of(name)
        if not seal:
            return
        work = self.path(name)
        if os.path.lexists(work):
            if not seal.is_of(work):
                raise changed(work, "its bytes are not those that were written")
        elif not is_special(path) and not seal.is_of(path):
            raise changed(work, f"it is gone, and {path} is not what it was", restart=True)

    def _refuse_touched(self, name: str) -> None:
        """`OutputError` if a work file was changed since its bytes were looked at."""
        seal = self._seal_of(name)
        if seal and not seal.is_untouched(self.path(name)):
            raise changed(self.path(name), "it was touched while it got its name")

    def _play_back(self, log: StoreLog) -> None:
        """Take the lock beside the output, and make the work folder what was committed, on whichever machine."""
        for path in self.folder.iterdir():
            if path.name != "lock":
                self._files.unlink(path)
        log.take(self._terms.lock_wait)
        try:
            log.start_over() if self._terms.restart else log.restore(self.folder)
        except BaseException:
            log.release()
            raise

    def _note_bad_input(self) -> None:
        """Record that the input ended this run: with another one there is nothing to go on with."""
        if self.is_kept and not self._broken:
            with naming(self.out):
                self._write([{"kind": _BAD_INPUT}])

    def _differences(self, entries: Sequence[Entry]) -> str:
        """What this run has in other ways than the one that was begun, in words."""
        header, mine = entries[0].record, self._terms.fingerprint
        if header.get("format") != _FORMAT:
            found = ["it was written by another version of this program"]
        elif mine is None:
            found = ["it can be continued, and a pipe cannot be read again"]
        else:
            for entry in entries:
                self._hashes |= entry.record.get("hashes", {})
            found = self._differences_of(mine, header)
        more = f" (and {len(found) - 3} more)" if len(found) > 3 else ""
        return "; ".join(found[:3]) + more

    def _differences_of(self, mine: Fingerprint, header: Mapping[str, Any]) -> list[str]:
        try:
            known = header["fingerprint"]
            files = {name: facts | {"sha256": self._hashes.get(name)} for name, facts in known["files"].items()}
            return mine.differences(known | {"files": files})
        except (KeyError, TypeError, AttributeError):
            return ["its journal was not written by this program"]

    def _open_files(self, stack: ExitStack, entries: Sequence[Entry]) -> None:
        for name in _MADE_AT_THE_END:
            self._files.unlink(self.path(name))
        self._members = {name: self._open_file(stack, name) for name in self._names}
        self._journal = self._open_file(stack, "journal")
        good = self._verify_entries(entries)
        if good is not None:
            record = good.record
            self.next_window, self.state, self._check = record["windows"][1], record["state"], good.check
            ends = {name: span[1] for name, span in record["members"].items()}
            self._commit = _Commit(self.next_window, ends)
        self._journal.cut(good.end if good else 0)
        self._cut(self._commit.ends)
        for name, file in self._members.items():
            file.digest = self._verified_bytes[name]

    def _cut(self, ends: Mapping[str, int]) -> None:
        for name, end in ends.items():
            self._members[name].cut(end)

    def _open_file(self, stack: ExitStack, name: str) -> WorkFile:
        file = WorkFile(self._files, self.path(name))
        stack.callback(_close_quietly, file)
        return file

    def _verify_entries(self, entries: Sequence[Entry]) -> Entry | None:
        """The last commit whose bytes, and those of all before it, are on disk as they were written."""
        good = None
        windows, ends = 0, dict.fromkeys(self._names, 0)
        digests = {name: hashlib.sha256() for name in self._names}
        with ExitStack() as stack:
            streams = {name: stack.enter_context(file.reading()) for name, file in self._members.items()}
            for entry in entries:
                record = entry.record
                if record["kind"] != "commit":
                    continue
                begins = {name: span[0] for name, span in record["members"].items()}
                if record["windows"][0] != windows or begins != ends:
                    break  # whole, and not a commit that follows the one before it
                more = {name: _next_digest(streams[name], digests[name], *s) for name, s in record["members"].items()}
                if None in more.values():
                    break
                digests = {name: digest for name, digest in more.items() if digest}
                windows, ends = record["windows"][1], {name: span[1] for name, span in record["members"].items()}
                self.notes += record["notes"]
                good = entry
        self._verified_bytes = digests
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
            if self._log and records[-1]["kind"] != "complete":
                # What is made at the end is made again by whoever comes after a machine that dies then.
                files = {file.path.name: file for file in (*self._members.values(), self._journal)}
                with self._losing_the_lock():
                    self._log.commit(
                        {name: file.path for name, file in files.items()},
                        {name: file.size for name, file in files.items()},
                    )
        self._broken = False

    @contextmanager
    def _losing_the_lock(self) -> Iterator[None]:
        try:
            yield
        except LockedError:
            self._is_lost = True
            raise

    def _remove(self) -> None:
        """Take the folder away, the journal first: what is left without it belongs to no job."""
        self._files.unlink(self.path("journal"))
        for name in (*self._names, *_MADE_AT_THE_END, "lock"):
            self._files.unlink(self.path(name))
        self._files.rmdir(self.folder)


def _has_log(out: Path) -> TypeGuard[UrlPath]:
    """Whether the journal of an output lies beside it in a store; a data set of the Hub has no lock to hold."""
    return isinstance(out, UrlPath) and not is_on_hub(out)


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


def _next_digest(stream: BinaryIO, before: Digest, begin: int, end: int, sha256: str) -> Digest | None:
    """The digest of a stream up to `end`, where `before` is that up to `begin`; None if the bytes between are others.

    sha256: of these bytes.
    """
    whole, digest = before.copy(), hashlib.sha256()
    left = end - begin
    while data := stream.read(min(left, _READ_BYTES)):
        digest.update(data)
        whole.update(data)
        left -= len(data)
    return whole if digest.hexdigest() == sha256 else None
