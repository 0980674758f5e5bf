"""The journal of a job whose output is an object: a log of immutable objects, and at its end the lock.

A run works on a local disk as ever (`work_folder.py`), in a folder of this machine's cache that is worth nothing by
itself. What makes the run survive the machine is beside the output:

    OUT.job/00000000     an entry, put with a condition that no other one has its number: a line of JSON, then bytes
    OUT.job/00000001     ...
    OUT.job/alive-RUN    a sign of life of the run that holds the lock, where it has no entry to put

The kinds of entries, and what moves the log from one to the next:

    take      a run holds the lock: from here on entries are its own. It says which run, on which machine
    commit    windows are finished: what the files of the work folder grew by since the last one, its journal among
              them, with the SHA-256 of each piece. One put is both the windows and the record that they are there
    data      as a commit that has no end yet, where the pieces of one are too large for an object
    release   the run has stopped; any run may take the lock
    placed    the output is there, and all of this can go

The lock is the end of the log. To put entry N is to hold it, since one run alone can; a run that finds entry N taken by
another has lost it, writes nothing more, and ends with exit code 11. The same run may find N free once more, when the
other one has finished and deleted the log; so N counts only while N - 1 is there behind it, put by the run that is
known to have put it. No clock and no message decides who may write.
A lease decides only who may try: a lock whose holder has given no sign of life for `LEASE_SECONDS` may be taken, by the
time that the store gives the last sign and an object that is put now. Each commit is a sign of life. A machine that was
asleep for longer has lost its lock, and sees it at its next entry.

A run that starts plays the log back into an empty work folder and goes on there as after a kill: the work folder's own
journal says which bytes are whole. An entry that is damaged or gone is left out, with all that needs it.

At the end the files get their names one by one, the output last, each as one put or one upload in parts with its
SHA-256 and the job's name as metadata. A run that comes in between makes the files once more from the finished windows
and puts those that are not there yet. Then `placed` is put and the log is deleted: entries of earlier runs one by one
from the start, so that no number is free behind one that a run which has lost the lock has put, then those
of this run at once, and `placed` last. Parts of uploads that nobody completed are dropped before a file is put.

What is promised: OUT is there whole or not at all, after any number of runs on any number of machines. Not promised: an
`alive-RUN` or a `clock-RUN` of some bytes may stay behind where a machine dies between two calls at the very end; the
next run on this output takes them away.

Over 400 lines, a sixth of them the model of the store above.
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
"""After which a run that gives no sign of life has lost its lock."""

_BEATS = 4  # in a lease
_ENTRY_BYTES = 32 * 2**20  # of one entry, which is in memory when it is put
_POLL_SECONDS = 1.0
_FORMAT = 1
_DIGITS = 8
RUN = "rerank_run"
"""What is put with an entry: its run."""


@dataclass(frozen=True, slots=True)
class Entry:
    """An entry. pieces: where its bytes begin and end in each file of the work folder; data: these bytes."""

    header: Mapping[str, Any]
    pieces: tuple[tuple[str, int, bytes], ...]

    @property
    def kind(self) -> str:
        """What it says."""
        return str(self.header["kind"])

    @classmethod
    def parse(cls, data: bytes) -> Entry | None:
        """An entry as it was put; None where it is damaged or another program's."""
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
    """The log of the job of one output, and this run's hold on it.

    out: the output. job: names the work on it, from its first run on; what was put in its name is ours.
    """

    def __init__(self, out: UrlPath, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._out = out
        self._store: Store = open_store(out.url)
        self._prefix = f"{out.url.key}.job/"
        self._clock = clock
        self._run = secrets.token_hex(8)
        self._machine = machine_id()
        self.job = secrets.token_hex(8)
        self._next = 0
        self._took = 0  # the entry by which this run took the lock
        self._before: str | None = None  # the run whose the entry before the next one is; None where it may go
        self._lost = False
        self._is_new = False  # there was no entry when this run took the lock
        self._shipped: dict[str, int] = {}
        self._said_at = clock()
        self._turn = threading.Lock()
        self._ended = threading.Event()
        self._beating: threading.Thread | None = None

    def start_over(self) -> None:
        """What an earlier run has put in the name of this job is not ours."""
        self.job = secrets.token_hex(8)

    @staticmethod
    def is_there(out: UrlPath) -> bool:
        """Whether there is work on an output."""
        return next(open_store(out.url).list(f"{out.url.key}.job/"), None) is not None

    # The lock

    def take(self, wait: float) -> None:
        """Hold the lock; `LockedError` where another run holds it for `wait` seconds more.

        Wait ends early where the holder dies: its lease is over, or it was on this machine, whose own lock we have.
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
                    self._begin_to_beat()
                    return
                continue  # another one was faster
            if self._clock() >= deadline:
                raise self._locked(holder)
            time.sleep(_POLL_SECONDS)

    def check(self) -> None:
        """`LockedError` where another run is known to have the lock."""
        if self._lost:
            raise self._locked({})

    def ask(self) -> None:
        """As `check`, and the store is asked."""
        if self._is_taken():
            self._lost = True
        self.check()

    def is_mine(self, path: Path) -> bool:
        """Whether what has a name now was put by this job."""
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
            sizes = {name: _size(folder / name) for name, _, _ in entry.pieces}
            if any(begin > sizes[name] for name, begin, _ in entry.pieces):
                continue  # what it goes on from is gone
            for name, begin, data in entry.pieces:
                with (folder / name).open("r+b" if (folder / name).exists() else "w+b") as stream:
                    stream.truncate(begin)
                    stream.seek(begin)
                    stream.write(data)

    def begin_at(self, sizes: Mapping[str, int]) -> None:
        """What the files of the work folder hold is there already; sizes: by name."""
        self._shipped = dict(sizes)

    def commit(self, paths: Mapping[str, Path], sizes: Mapping[str, int]) -> None:
        """Put what the files have grown by up to `sizes`; when this returns it survives this machine."""
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
        """Give no sign of life any more."""
        self._stop_beating()

    def release(self) -> None:
        """Give the lock back; what is committed stays."""
        self._stop_beating()
        if not self._lost:
            with suppress(FileExistsError):
                self._put("release")
            self._store.delete(self._alive(self._run))

    def remove(self) -> None:
        """The output is there, or nothing is worth keeping: all of the log goes."""
        self._stop_beating()
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
                # Another run took the lock, finished the job and deleted the log, so that this number was free again.
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
        """What lies in the folder: entries by number, all else by name."""
        found: dict[int | str, Stat] = {}
        for key, stat in self._store.list(self._prefix):
            name = key[len(self._prefix) :]
            found[int(name) if len(name) == _DIGITS and name.isdecimal() else name] = stat
        return found

    def _is_dead(self, holder: Mapping[str, Any], found: Mapping[int | str, Stat], last: int | None) -> bool:
        if holder.get("machine") == self._machine:
            return True  # it would have the lock of the work folder, which we have
        signs = [
            found[name].modified for name in (last, f"alive-{holder['run']}") if name is not None and name in found
        ]
        clock = f"{self._prefix}clock-{self._run}"
        self._store.put(clock, b"now")
        try:
            now = self._store.stat(clock).modified
        except FileNotFoundError:
            return False  # swept away by a run that has taken the lock
        self._store.delete(clock)
        return (now - max(signs)).total_seconds() > LEASE_SECONDS

    def _locked(self, holder: Mapping[str, Any]) -> LockedError:
        who = f": process {holder['pid']} on {holder['host']}" if {"pid", "host"} <= holder.keys() else ""
        return LockedError(
            f"{self._out}: another process works on this output{who}",
            hint=f"wait for it with `--lock-wait SECONDS`; of a machine that is gone the lock is free after "
            f"{LEASE_SECONDS:g} s",
        )

    def _sweep(self, found: Mapping[int | str, Stat], upto: int | None) -> None:
        """Delete what nobody needs: signs of life of runs that have lost the lock, and entries up to `upto`.

        A run that has lost the lock looks for its last entry behind the one that it puts: that goes before the next.
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

    def _begin_to_beat(self) -> None:
        self._beating = threading.Thread(target=self._beat, name="lease", daemon=True)
        self._beating.start()

    def _stop_beating(self) -> None:
        self._ended.set()
        if self._beating is not None:
            self._beating.join()

    def _beat(self) -> None:
        self._store.get_ready()
        while not self._ended.wait(LEASE_SECONDS / _BEATS / 4):
            if self._clock() - self._said_at < LEASE_SECONDS / _BEATS:
                continue
            with suppress(OSError), self._turn:  # the next beat is soon; a commit tells of a store that is gone
                if self._is_taken():
                    self._lost = True
                    return
                self._store.put(self._alive(self._run), b"alive")
                self._said_at = self._clock()

    def _is_taken(self) -> bool:
        """Whether the entry that would be ours is there, or our last one is not."""
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

    def _alive(self, run: str) -> str:
        return f"{self._prefix}alive-{run}"


def machine_id() -> str:
    """A name of this machine's cache: runs that share it are kept apart by the lock of the work folder."""
    path = copies_folder() / "jobs" / "machine"
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".machine-{secrets.token_hex(4)}")
    part.write_text(secrets.token_hex(8), encoding="ascii")
    with suppress(FileExistsError):
        os.link(part, path)
    part.unlink()
    return path.read_text(encoding="ascii")


def probe(out: UrlPath) -> None:
    """Do what a run on `out` needs, and take it back; `OutputError` where the store cannot do it."""
    store, key = open_store(out.url), f"{out.url.key}.job/probe-{secrets.token_hex(8)}"
    try:
        store.put_new(key, b"probe")
        try:
            store.put_new(key, b"another")
        except FileExistsError:
            return
        raise OutputError(f"{out}: cannot be written: the store puts an object over another one that it should keep")
    except OSError as error:
        raise OutputError(f"{out}: cannot be written: {error.strerror or error}") from error
    finally:
        with suppress(OSError):
            store.delete(key)


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0
