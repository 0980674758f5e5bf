"""The journal, and the lock with its lease, of a job whose output is in an object store: a log of immutable objects.

The run works on a local disk as always (`work_folder.py`), in this machine's cache. If the machine dies, that folder is
not needed, because these objects beside the output have everything:

    OUT.job/00000000     an entry: a line of JSON, then bytes. It is put on the condition that its number is free
    OUT.job/00000001     ...
    OUT.job/alive-RUN    a sign of life of the run that holds the lock, while it has no entry to put

The kinds of entries:

    take      a run takes the lock; the entries after this one are its own. Names the run and the machine
    commit    windows are finished: what each file of the work folder, the journal included, grew by since the last
              commit, with the SHA-256 of each piece. So the windows and their record arrive in one put
    data      a part of a commit that is too large for one object
    release   the run has stopped; any run may take the lock
    placed    the output exists, and the log can be deleted

The lock is the end of the log. To put entry N is to hold the lock, because only one run can put it. A run that finds N
taken by another run has lost the lock, writes nothing more, and ends with exit code 11. If the other run has finished
and deleted its log, N is free again; so entry N counts only if entry N - 1 still exists and is of the right run. No
clock and no message decides who may write.

A lease decides only who may try: a lock may be taken if its holder has given no sign of life for `LEASE_SECONDS`. Both
times are the store's: that of the last sign, and that of an object put now. Each commit is a sign of life. A machine
that slept for longer may have lost its lock, and sees this at its next entry.

A run that starts plays the log back into an empty work folder and resumes there as after a kill: the work folder's own
journal says which bytes are whole. An entry that is damaged or missing is skipped, and so is what builds on it.

At the end the files are put under their names one by one, the output last, with their SHA-256 and the job's name as
metadata. A run that takes over in between makes the files again from the finished windows, and puts those that are
missing. Then `placed` is put and the log is deleted: first the entries of earlier runs, one by one from the start, so
that a run that has lost the lock never finds a free number after an entry of its own; then those of this run; and
`placed` last. Unfinished uploads are aborted before a file is put.

Promised: OUT is whole or does not exist, after any number of runs on any number of machines. Not promised: if a machine
dies between the last calls, an `alive-RUN` or a `clock-RUN` of a few bytes may stay until the next run on this output.

Over 400 lines, a sixth of them this model.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from rerank_cli.errors import LockedError, OutputError
from rerank_cli.storage import UrlPath
from rerank_cli.storage.at_once import at_once
from rerank_cli.storage.copies import copies_folder
from rerank_cli.storage.opened import open_store
from rerank_cli.storage.store import Stat, Store
from rerank_cli.storage.url_path import JOB

LEASE_SECONDS = 60.0
"""After so long without a sign of life of its holder, another run may take the lock."""

_BEATS = 4  # signs of life in a lease
_ENTRY_BYTES = 32 * 2**20  # of one entry at most, because it is held in memory
_POLL_SECONDS = 1.0
_FORMAT = 1
_DIGITS = 8
RUN = "rerank_run"
"""The metadata of an entry: its run."""


@dataclass(frozen=True, slots=True)
class Entry:
    """An entry of the log."""

    header: Mapping[str, Any]
    pieces: tuple[tuple[str, int, bytes], ...]
    """Of each file of the work folder that grew: its name, where the new bytes begin, and the bytes."""

    @property
    def kind(self) -> str:
        """One of the kinds in the head of this file."""
        return str(self.header["kind"])

    @classmethod
    def parse(cls, data: bytes) -> Entry | None:
        """The entry in an object; None if it is damaged or of another program."""
        line, newline, rest = data.partition(b"\n")
        try:
            header = json.loads(line)
            known = header["format"] == _FORMAT and isinstance(header["kind"], str) and isinstance(header["run"], str)
            pieces, at = [], 0
            for name, begin, end, sha256 in header["pieces"]:
                piece = rest[at : at + end - begin]
                at += end - begin
                if hashlib.sha256(piece).hexdigest() != sha256 or Path(name).name != name:
                    return None
                pieces.append((name, begin, piece))
        except (ValueError, TypeError, KeyError):
            return None
        return cls(header, tuple(pieces)) if known and newline and at == len(rest) else None


class StoreLog:
    """The log of one output's job, and this run's lock on it.

    job: the name of the job, the same in all its runs; objects with this name in their metadata are ours.
    """

    def __init__(self, out: UrlPath, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._out = out
        self._store: Store = open_store(out.url)
        self._prefix = f"{out.url.key}.job/"
        self._clock = clock
        self._run = secrets.token_hex(8)
        self._alive = f"{self._prefix}alive-{self._run}"
        self._machine = machine_id()
        self.job = secrets.token_hex(8)
        self._next = 0
        self._took = 0  # the entry by which this run took the lock
        self._before: str | None = None  # the run of the last entry; None if that entry need not exist
        self._lost = False
        self._is_new = False  # the log was empty when this run took the lock
        self._shipped: dict[str, int] = {}  # bytes of each file that the log has
        self._said_at = clock()  # the time of the last sign of life
        self._turn = threading.Lock()
        self._ended = threading.Event()
        self._beating: threading.Thread | None = None

    def start_over(self) -> None:
        """Take a new name, so that what earlier runs of this job have put is not ours."""
        self.job = secrets.token_hex(8)

    @staticmethod
    def is_there(out: UrlPath) -> bool:
        """Whether an output has a log."""
        return next(open_store(out.url).list(f"{out.url.key}.job/"), None) is not None

    # The lock

    def take(self, wait: float) -> None:
        """Take the lock; `LockedError` if another run still holds it after `wait` seconds.

        A holder counts as dead if its lease has ended, or if it ran on this machine: we have the local lock.
        """
        deadline = self._clock() + wait
        while True:
            found = self._objects()
            last = max((number for number in found if isinstance(number, int)), default=None)
            entry = None if last is None else self._read(last, found[last])
            holder = None if entry is None or entry.kind in ("release", "placed") else entry.header
            if holder is None or self._is_dead(holder, found, last):
                self._next = self._took = 0 if last is None else last + 1
                self._is_new = last is None
                self._before = None if entry is None or entry.kind == "placed" else entry.header["run"]
                if entry is not None and entry.kind != "placed" and isinstance(entry.header.get("job"), str):
                    self.job = entry.header["job"]
                with suppress(FileExistsError):
                    self._put("take")
                    self._sweep(found, last if entry is not None and entry.kind == "placed" else None)
                    self._beating = threading.Thread(target=self._beat, name="lease", daemon=True)
                    self._beating.start()
                    return
                continue  # another run was faster
            if self._clock() >= deadline:
                raise self._locked(holder)
            time.sleep(_POLL_SECONDS)

    def check(self) -> None:
        """`LockedError` if this run is known to have lost the lock."""
        if self._lost:
            raise self._locked({})

    def ask(self) -> None:
        """Like `check`, but asks the store."""
        if self._is_taken():
            self._lost = True
        self.check()

    def is_mine(self, path: Path) -> bool:
        """Whether this job has put the object at `path`."""
        try:
            return isinstance(path, UrlPath) and path.look().metadata.get(JOB) == self.job
        except FileNotFoundError:
            return False

    # Windows

    def restore(self, folder: Path) -> None:
        """Play the log back into an empty folder."""
        if self._is_new:
            return
        found = self._objects()
        for number in sorted(number for number in found if isinstance(number, int)):
            entry = self._read(number, found[number])
            if entry is None:
                continue
            paths = {name: folder / name for name, _, _ in entry.pieces}
            sizes = {name: path.stat().st_size if path.exists() else 0 for name, path in paths.items()}
            if any(begin > sizes[name] for name, begin, _ in entry.pieces):
                continue  # the entry that it builds on is missing
            for name, begin, data in entry.pieces:
                with (folder / name).open("r+b" if (folder / name).exists() else "w+b") as stream:
                    stream.truncate(begin)
                    stream.seek(begin)
                    stream.write(data)

    def begin_at(self, sizes: Mapping[str, int]) -> None:
        """Tell how much of each file in the work folder the log has already. sizes: by name."""
        self._shipped = dict(sizes)

    def commit(self, paths: Mapping[str, Path], sizes: Mapping[str, int]) -> None:
        """Put what the files have grown by, up to `sizes`. After that it survives the loss of this machine."""
        self.check()
        wanted = [(name, self._shipped.get(name, 0), sizes[name]) for name in paths]
        pieces: list[tuple[str, int, int]] = []
        room = _ENTRY_BYTES
        for name, begin, end in wanted:
            while begin < end or begin == 0 == end:
                stop = min(end, begin + room)
                pieces.append((name, begin, stop))
                room -= stop - begin
                begin = stop
                if room == 0:
                    self._append("data", paths, pieces)
                    pieces, room = [], _ENTRY_BYTES
                if end == 0:
                    break
        self._append("commit", paths, pieces)
        self._shipped = {name: end for name, _, end in wanted}

    # The end

    def close(self) -> None:
        """Stop the signs of life."""
        self._ended.set()
        if self._beating is not None:
            self._beating.join()

    def release(self) -> None:
        """Release the lock; the log stays."""
        self.close()
        if not self._lost:
            with suppress(FileExistsError):
                self._put("release")
            self._store.delete(self._alive)

    def remove(self) -> None:
        """Delete the log: the output exists, or nothing is worth keeping."""
        self.close()
        if self._lost:
            return
        found: dict[int | str, Stat] = {}
        calls: list[Callable[[], None]] = [lambda: self._put("placed"), lambda: found.update(self._objects())]
        try:
            at_once(calls)
        except FileExistsError:
            return
        self._sweep(found, self._next - 1)

    # Inside

    def _append(self, kind: str, paths: Mapping[str, Path], pieces: list[tuple[str, int, int]]) -> None:
        data = []
        for name, begin, end in pieces:
            with paths[name].open("rb") as stream:
                stream.seek(begin)
                data.append((name, begin, stream.read(end - begin)))
        try:
            self._put(kind, data)
        except FileExistsError as error:
            self._lost = True
            raise self._locked({}) from error

    def _put(self, kind: str, pieces: list[tuple[str, int, bytes]] | None = None) -> None:
        header = {
            "format": _FORMAT, "kind": kind, "run": self._run, "job": self.job, "machine": self._machine,
            "host": socket.gethostname(), "pid": os.getpid(),
            "pieces": [
                [name, begin, begin + len(data), hashlib.sha256(data).hexdigest()] for name, begin, data in pieces or ()
            ],
        }  # fmt: skip
        text = json.dumps(header, separators=(",", ":")).encode() + b"\n"
        with self._turn:
            key = self._key(self._next)
            self._store.put_new(key, b"".join([text, *(data for _, _, data in pieces or ())]), {RUN: self._run})
            if self._before is not None and not self._is_of(self._next - 1, self._before):
                # Another run took the lock, finished the job and deleted the log, so this number was free again.
                self._store.delete(key)
                raise FileExistsError(f"{key}: the log before it is gone")
            self._next += 1
            self._before = self._run
            self._said_at = self._clock()

    def _read(self, number: int, found: Stat) -> Entry | None:
        try:
            return Entry.parse(self._store.read(self._key(number), 0, found.size, found.etag))
        except FileNotFoundError:
            return None

    def _objects(self) -> dict[int | str, Stat]:
        """The objects of the log: entries by number, all others by name."""
        found: dict[int | str, Stat] = {}
        for key, stat in self._store.list(self._prefix):
            name = key[len(self._prefix) :]
            found[int(name) if len(name) == _DIGITS and name.isdecimal() else name] = stat
        return found

    def _is_dead(self, holder: Mapping[str, Any], found: Mapping[int | str, Stat], last: int | None) -> bool:
        if holder.get("machine") == self._machine:
            return True  # a living run on this machine would hold the work folder's lock, which we hold
        signs = [
            found[name].modified for name in (last, f"alive-{holder['run']}") if name is not None and name in found
        ]
        clock = f"{self._prefix}clock-{self._run}"
        self._store.put(clock, b"now")
        try:
            now = self._store.stat(clock).modified
        except FileNotFoundError:
            return False  # deleted by a run that has just taken the lock
        self._store.delete(clock)
        return (now - max(signs)).total_seconds() > LEASE_SECONDS

    def _locked(self, holder: Mapping[str, Any]) -> LockedError:
        who = f": process {holder['pid']} on {holder['host']}" if {"pid", "host"} <= holder.keys() else ""
        return LockedError(
            f"{self._out}: another process works on this output{who}",
            hint=f"wait for it with `--lock-wait SECONDS`; a dead machine's lock is free after {LEASE_SECONDS:g} s",
        )

    def _sweep(self, found: Mapping[int | str, Stat], upto: int | None) -> None:
        """Delete signs of life, and entries up to `upto`.

        Entries of earlier runs go in order, because a run that has lost the lock checks that its last entry exists.
        """
        for name in sorted(name for name in found if isinstance(name, str)):
            if name.startswith(("alive-", "clock-", "probe-")):
                self._store.delete(self._prefix + name)
        if upto is not None:
            before = sorted(number for number in found if isinstance(number, int) and number < upto)
            for number in before:
                if number < self._took:
                    self._store.delete(self._key(number))
            own = [self._key(number) for number in before if number >= self._took]
            at_once([partial(self._store.delete, key) for key in own])
            self._store.delete(self._key(upto))

    # Signs of life

    def _beat(self) -> None:
        self._store.get_ready()
        while not self._ended.wait(LEASE_SECONDS / _BEATS / 4):
            if self._clock() - self._said_at < LEASE_SECONDS / _BEATS:
                continue
            with suppress(OSError), self._turn:  # the next beat tries again; a commit reports a lasting failure
                if self._is_taken():
                    self._lost = True
                    return
                self._store.put(self._alive, b"alive")
                self._said_at = self._clock()

    def _is_taken(self) -> bool:
        """Whether another run has the lock: it has put our next entry, or deleted our last one."""
        last = self._next - 1
        is_next, is_last = at_once([partial(self._is_there, last + 1), partial(self._is_of, last, self._run)])
        return is_next or not is_last

    def _is_there(self, number: int) -> bool:
        try:
            self._store.stat(self._key(number))
        except FileNotFoundError:
            return False
        return True

    def _is_of(self, number: int, run: str) -> bool:
        try:
            return self._store.stat(self._key(number)).metadata.get(RUN) == run
        except FileNotFoundError:
            return False

    def _key(self, number: int) -> str:
        return f"{self._prefix}{number:0{_DIGITS}d}"


def machine_id() -> str:
    """A name for this machine's cache. Runs that share the cache exclude each other by the work folder's lock."""
    path = copies_folder() / "jobs" / "machine"
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".machine-{secrets.token_hex(4)}")
    part.write_text(secrets.token_hex(8), encoding="ascii")
    with suppress(FileExistsError):
        os.link(part, path)
    part.unlink()
    return path.read_text(encoding="ascii")


def probe(out: UrlPath) -> None:
    """Try the calls that a run on `out` needs, and undo them; `OutputError` if the store cannot do them."""
    store, key = open_store(out.url), f"{out.url.key}.job/probe-{secrets.token_hex(8)}"
    try:
        store.put_new(key, b"probe")
        try:
            store.put_new(key, b"another")
        except FileExistsError:
            return
        raise OutputError(f"{out}: cannot be written: the store ignores the condition that an object must be new")
    except OSError as error:
        raise OutputError(f"{out}: cannot be written: {error.strerror or error}") from error
    finally:
        with suppress(OSError):
            store.delete(key)
