"""A job: the work folder of one output, from the first window until the output has its name.

`journal/__init__.py` lists its states.

Over 400 lines: the order of the steps makes a kill harmless, so all steps of a job stand in one file.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, BinaryIO, Self, TypeGuard

from rerank_cli.errors import InputError, JobChangedError, LockedError, RerankError, StoppedError, TooManyBadRowsError
from rerank_cli.journal.files import Files, WorkFile, changed, naming, refuse_lost_name
from rerank_cli.journal.fingerprint import Fingerprint
from rerank_cli.journal.lines import Entry, encode, read_journal
from rerank_cli.journal.lock import Lock, take_lock
from rerank_cli.journal.own_folder import refuse_foreign_folder
from rerank_cli.journal.placing import MayReplace, any_file, feed, is_special, place_file, place_together, remove_file
from rerank_cli.journal.seal import Seal
from rerank_cli.journal.store_log import StoreLog
from rerank_cli.journal.watch import Watch
from rerank_cli.storage import UrlPath, is_on_hub, is_url, path_of
from rerank_cli.storage.copies import work_folder_of

if TYPE_CHECKING:
    from hashlib import _Hash as Digest  # typeshed's name of it

_TELL_WHAT_IS_KEPT = (JobChangedError, StoppedError)  # their messages do; no note is added
_FORMAT = 2  # of the journal; a job of another format is refused
_READ_BYTES = 2**20
_HASH_SECONDS = 1.0  # how long the first commit waits for the SHA-256 of new files
_MADE_AT_THE_END = ("output", "report", "page", "embeddings", "per_query")
_BAD_INPUT = "bad input"  # the kind of a record
_RESTART = "resume with the command and input of before, or start over with `--restart`"


@dataclass(frozen=True, slots=True)
class Terms:
    """How a job is kept on disk."""

    fingerprint: Fingerprint | None = None
    """What a job on disk must match to be resumed. None for an input that cannot be read again: nothing is kept."""
    restart: bool = False
    """Throw away a job on disk."""
    checkpoint_every: float = 5.0
    """Seconds between commits."""
    lock_wait: float = 0.0
    """Seconds to wait for another process."""
    files: Files = field(default_factory=Files)
    clock: Callable[[], float] = time.monotonic
    watch: Watch = field(default_factory=Watch)
    """Checks at each commit that what the run reads is unchanged."""


class Job:
    """A context manager that holds the lock. What was committed stays in the folder until `place` has finished.

    Entering raises `LockedError`, `JobChangedError`, or `OutputError` if the folder cannot be written to.

    Attributes:
        next_window: the first window that is not committed.
        state: the state of the run at the last commit; None in a new job.
        notes: (window, note) of each committed window that has a note.
        completed: the argument of `complete`, if only names are left to give.
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
        self._is_lost = False  # the lock: the folder may be another run's
        self._made: dict[str, tuple[int, str]] = {}  # size and SHA-256 of files that are not members
        self._made_as: dict[str, os.stat_result] = {}
        self._seals: dict[str, Seal] | None = None  # of a completed job; None if its journal has none
        self._check = ""  # the checksum of the last record in the journal
        self._hashes: dict[str, str] = {}  # SHA-256 of the run's files, as far as the journal has them
        self._verified_bytes: dict[str, Digest] = {}  # digests of the members up to the last good commit
        self._commit = _Commit(0, dict.fromkeys(members, 0))
        self._committed_at = -float("inf")
        self._placed = False
        self._broken = False  # nothing more may be written

    @staticmethod
    def folder_of(out: str | Path) -> Path:
        """The work folder of an output. If the output is a URL, it lies in this machine's cache."""
        return work_folder_of(str(out)) if is_url(out) else Path(f"{out}.job")

    @staticmethod
    def is_begun(out: str) -> bool:
        """Whether an output has an unfinished job."""
        there = path_of(out)
        return Job.folder_of(out).exists() or (_has_log(there) and StoreLog.is_there(there))

    @staticmethod
    def changed(out: str | Path, what: str) -> JobChangedError:
        """The error of a run that would write other bytes than the unfinished job. what: the differences."""
        return JobChangedError(f"{out}.job: the unfinished job in it differs from this run: {what}", hint=_RESTART)

    def path(self, name: str) -> Path:
        """The path of a file of the job."""
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
            if len(entries) > 1 and (found := self._differences(entries)):  # a header alone is not worth keeping
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
        """The change by another program that may have caused `error`; `error` itself if there is none."""
        if not isinstance(error, Exception) or isinstance(error, _TELL_WHAT_IS_KEPT) or self._placed or self._is_lost:
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
                if isinstance(error, (TooManyBadRowsError, InputError)) and self.is_kept and not self._broken:
                    with naming(self.out):  # so that a run with a changed input starts over
                        self._write([{"kind": _BAD_INPUT}])
        if self._is_lost:
            return
        is_over = self._placed or not self.is_kept
        is_kept = not is_over and (self._log is not None or self.path("journal").is_file())
        with suppress(OSError):
            if self._log:
                self._log.remove() if is_over else self._log.release()
            if is_over or self._log:
                self._files.unlink(self.path("journal"))  # first: files without a journal belong to no job
                for name in (*self._names, *_MADE_AT_THE_END, "lock"):
                    self._files.unlink(self.path(name))
                self._files.rmdir(self.folder)
        if is_kept and isinstance(error, RerankError) and not isinstance(error, _TELL_WHAT_IS_KEPT):
            where = f"{self.out}.job" if self._log else self.folder
            error.add_note(f"what is finished is kept in {where}; run the same command again to resume")

    @property
    def is_kept(self) -> bool:
        """Whether the folder stays for a later run."""
        return self._terms.fingerprint is not None and (self.completed is not None or self.state is not None)

    # Windows

    def add(self, window: int, data: Mapping[str, bytes], state: Mapping[str, Any], note: Any = None) -> None:
        """Add a finished window; commits if `checkpoint_every` seconds have passed.

        Args:
            window: its number.
            data: its bytes, by member.
            state: the state of the run after it.
            note: kept with the window in `notes`.
        """
        self._refuse_lost_lock()
        with naming(self.out):
            for name, more in data.items():
                self._members[name].append(more)
            self._commit.add(window, data, state, note)
            self.next_window = window + 1
            if self._terms.clock() - self._committed_at >= self._terms.checkpoint_every:
                self._checkpoint()

    def append(self, data: Mapping[str, bytes]) -> None:
        """Append bytes that belong to no window. Unless `complete` follows, the next commit cuts them off."""
        with naming(self.out):
            for name, more in data.items():
                self._members[name].append(more)

    def checkpoint(self) -> None:
        """Commit the windows added since the last commit."""
        with naming(self.out):
            self._checkpoint()

    def _checkpoint(self) -> None:
        commit = self._commit
        if commit.state is None or self._terms.fingerprint is None or self._broken:
            return
        self.refuse_other_hands()
        self._write([commit.record()], ends=commit.ends)
        self.state = dict(commit.state)
        self._commit = _Commit(commit.next_window, commit.ends)
        self._committed_at = self._terms.clock()

    def refuse_other_hands(self) -> None:
        """Raise if something other than this run has changed its files or what it reads; it then writes nothing."""
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
        """Inside, a library reads the members by their paths: `OutputError` if it gets other bytes than appended."""
        self.refuse_other_hands()  # a pipe in place of a member would make the library wait
        before = {name: file.stat() for name, file in self._members.items()}

        def check() -> None:
            for name, file in self._members.items():
                file.refuse_other_bytes(before[name])

        try:
            yield
        except Exception as error:
            if not isinstance(error, StoppedError) and not getattr(error, "errno", None):
                check()  # changed bytes may be the cause; they are not if the operating system gave an error
            raise
        check()

    # The end

    @contextmanager
    def writing(self, name: str) -> Iterator[WorkFile]:
        """An empty file of the run that is not a member; it is on disk when the block ends."""
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
        """Size and SHA-256 of everything written to a file of the run."""
        return self._members[name].seal() if name in self._members else self._made[name]

    def complete(self, run: Mapping[str, Any]) -> None:
        """Record that all files are written, so that only names are left to give. run: kept as `completed`."""
        with naming(self.out):
            self.refuse_other_hands()
            files = {name: self.seal(name) for name in (*self._members, *self._made)}
            self._write([{"kind": "complete", "run": run, "files": files}])
        self._seals = {name: Seal(*seal) for name, seal in files.items()}
        self.completed = dict(run)

    def feed(self, names: Mapping[str, Path], pipes: Mapping[Path, int], check: Callable[[], None]) -> None:
        """Write work files into those final paths that are pipes or devices.

        Args:
            names: work name -> final path.
            pipes: descriptors of the pipes that are open already.
            check: called again and again while a reader is slow.
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
        """Give the work files their names, in the given order. Leaving the job then removes its folder.

        Args:
            names: work name -> final path.
            outdated: files of an earlier run that this run does not make; they are removed.
            may_replace: whether an existing file may be replaced, or removed.
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
                    self._refuse_unsealed(name, path)  # it got its name before a crash, or was removed just now
                else:
                    self._refuse_touched(name)
                    if self._log:
                        self._log.ask()
                    seal, job = self._seal_of(name), self._log.job if self._log else None
                    place_file(self.path(name), path, self._files, may_replace=may_replace, seal=seal, job=job)
        # A pipe or a device has no new name, and its folder (/dev/fd) may be none that can be synced.
        placed = [path for path in names.values() if not isinstance(path, UrlPath) and not is_special(path)]
        for folder in {path.parent for path in placed}:
            with naming(self.out):
                self._files.sync_folder(folder)
        self._placed = True

    def is_mine(self, path: Path) -> bool:
        """Whether this job has put the object at `path`; always False for a local file."""
        return self._log is not None and self._log.is_mine(path)

    def was_done(self) -> None:
        """Note that the output exists already, so the work on an object can be deleted."""
        self._placed = self._log is not None

    def give_up(self, names: Mapping[str, Path], *, may_replace: MayReplace = any_file) -> None:
        """Give some members their names and drop the rest of the job. names: member -> final path."""
        with naming(self.out):
            for name in names:
                self._members[name].sync()
        self.place(names, may_replace=may_replace)

    def size(self, member: str) -> int:
        """Bytes of a member so far."""
        return self._members[member].size

    # Inside

    def _is_still_complete(self, record: Mapping[str, Any]) -> bool:
        """Whether only names are left to give; False if a work file was damaged.

        Then the run resumes after its last good commit. It cannot if some of its files have their names already.
        """
        if (files := record.get("files")) is None:
            return True  # the job is of an older version
        self._seals = {name: Seal(*seal) for name, seal in files.items()}
        here = {name for name in self._seals if os.path.lexists(self.path(name))}
        damaged = next((name for name in here if not self._seals[name].is_of(self.path(name))), None)
        if damaged is None:
            return True
        if here != self._seals.keys():
            raise changed(self.path(damaged), "its bytes have changed since the run was complete", restart=True)
        self._seals = None
        return False

    def _seal_of(self, name: str) -> Seal | None:
        return self._seals.get(name) if self._seals else None

    def _refuse_unsealed(self, name: str, path: Path) -> None:
        """`OutputError` if a work file has other bytes than were written; so for a file that has its name already."""
        seal = self._seal_of(name)
        if not seal:
            return
        work = self.path(name)
        if os.path.lexists(work):
            if not seal.is_of(work):
                raise changed(work, "its bytes are not those that were written")
        elif not is_special(path) and not seal.is_of(path):
            raise changed(work, f"it is gone, and {path} has other bytes", restart=True)

    def _refuse_touched(self, name: str) -> None:
        """`OutputError` if a work file was touched since its bytes were compared."""
        seal = self._seal_of(name)
        if seal and not seal.is_untouched(self.path(name)):
            raise changed(self.path(name), "it was touched while it got its name")

    def _play_back(self, log: StoreLog) -> None:
        """Take the lock in the store, and restore the work folder to the last commit, made on any machine."""
        for path in self.folder.iterdir():
            if path.name != "lock":
                self._files.unlink(path)
        log.take(self._terms.lock_wait)
        try:
            log.start_over() if self._terms.restart else log.restore(self.folder)
        except BaseException:
            log.release()
            raise

    def _differences(self, entries: Sequence[Entry]) -> str:
        """How this run differs from the job on disk, in words; empty if it does not."""
        header, mine = entries[0].record, self._terms.fingerprint
        if header.get("format") != _FORMAT:
            found = ["it was written by another version of this program"]
        elif mine is None:
            found = ["this run reads a pipe, and the job did not"]
        else:
            for entry in entries:
                self._hashes |= entry.record.get("hashes", {})
            try:
                known = header["fingerprint"]
                files = {name: facts | {"sha256": self._hashes.get(name)} for name, facts in known["files"].items()}
                found = mine.differences(known | {"files": files})
            except (KeyError, TypeError, AttributeError):
                found = ["its journal was not written by this program"]
        more = f" (and {len(found) - 3} more)" if len(found) > 3 else ""
        return "; ".join(found[:3]) + more

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
        for name, file in self._members.items():
            file.cut(self._commit.ends[name])
            file.digest = self._verified_bytes[name]

    def _open_file(self, stack: ExitStack, name: str) -> WorkFile:
        file = WorkFile(self._files, self.path(name))
        stack.callback(_close_quietly, file)
        return file

    def _verify_entries(self, entries: Sequence[Entry]) -> Entry | None:
        """The last commit whose bytes, and those of all commits before it, are on disk as they were written."""
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
                    break  # the record is whole, but does not follow the commit before it
                more = {name: _next_digest(streams[name], digests[name], *s) for name, s in record["members"].items()}
                if None in more.values():
                    break
                digests = {name: digest for name, digest in more.items() if digest}
                windows, ends = record["windows"][1], {name: span[1] for name, span in record["members"].items()}
                self.notes += record["notes"]
                good = entry
        self._verified_bytes = digests
        return good

    def _write(self, records: list[dict[str, Any]], ends: Mapping[str, int] | None = None) -> None:
        """Bring the members to disk, then the records. The first ones follow a header.

        ends: where the members end, by name; an interrupted `append` may have left more, which is cut off.

        After a failure nothing more is written: the fsync after a failed one may succeed without writing anything,
        because the system has dropped the pages that it could not write.
        """
        for name, end in (ends or {}).items():
            self._members[name].cut(end)
        self._broken = True
        for file in self._members.values():
            file.sync()
        if (fingerprint := self._terms.fingerprint) is not None:
            if not self._check:
                self._files.sync_folder(self.folder)
                self._files.sync_folder(self.folder.parent)
                fingerprint.wait_for_new(_HASH_SECONDS)
                records = [{"kind": "job", "format": _FORMAT, "fingerprint": fingerprint.document()}, *records]
                self._hashes = {}
            if new := {name: value for name, value in fingerprint.hashes.items() if name not in self._hashes}:
                records[-1]["hashes"] = new
                self._hashes |= new
            data, self._check = encode(records, after=self._check)
            self._journal.append(data)
            self._journal.sync()
            if self._log and records[-1]["kind"] != "complete":
                # A run on another machine makes the files of the end again, so the store need not have them.
                files = (*self._members.values(), self._journal)
                try:
                    self._log.commit(
                        {file.path.name: file.path for file in files}, {file.path.name: file.size for file in files}
                    )
                except LockedError:
                    self._is_lost = True
                    raise
        self._broken = False


def _has_log(out: Path) -> TypeGuard[UrlPath]:
    """Whether the journal of an output is also kept in the store. Not on the Hub, which has no lock to hold."""
    return isinstance(out, UrlPath) and not is_on_hub(out)


def _close_quietly(file: WorkFile) -> None:
    with suppress(OSError):
        file.close()


class _Commit:
    """The windows since the last commit. ends: where their bytes end, by member; state: None if there is none."""

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
    """Extend a digest by the next bytes of a stream; None if these bytes do not have the given SHA-256.

    Args:
        stream: stands at `begin`.
        before: the digest of everything up to `begin`.
        begin: where the bytes begin.
        end: where they end.
        sha256: of the bytes in between.
    """
    whole, digest = before.copy(), hashlib.sha256()
    left = end - begin
    while data := stream.read(min(left, _READ_BYTES)):
        digest.update(data)
        whole.update(data)
        left -= len(data)
    return whole if digest.hexdigest() == sha256 else None
