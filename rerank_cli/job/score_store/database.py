"""Entries by key in an SQLite database, within a limit on its size: those used longest ago are deleted first.

    scores   key (16 bytes), value, day of the last use     clustered by key, without a row id
    days     bytes of the entries last used on each day     for eviction; an index would take 30 bytes per entry
    rates    seconds and tokens, by what computed them      for the time that found scores have saved

The first bytes of a key are those of its query (`QUERY_BYTES`), so the entries of a list are neighbours: reading or
writing a window touches about twenty pages of the database; with scattered keys it would be five hundred. The keys of
one query are read as a range, which takes half the time of single keys; but one by one if the store has far more
entries of that query.

Several processes at once: with a write-ahead log (WAL) they can read while one writes, a transaction per window. A
killed process leaves whole transactions. After a power cut the last ones may be missing (`synchronous=NORMAL`); their
scores are computed again. A network file system has no WAL, which needs memory shared by the processes (`folder.py`).

The entry of a whole list (`known_scores.py`) lies among those of its query and has all their scores, so that an
unchanged list is one row.

The day of an entry is renewed by its first use on another day; the use of a list renews all entries of its query. A
store over its limit forgets what was unused for longest: whole days first, then of one day the entries of some ranges
of keys, which are as good as random.

Over 400 lines: every statement keeps the sums in `days` right, so all statements stand in one class.
"""

from __future__ import annotations

import sqlite3
import threading
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Final

from rerank_cli.journal.room import FULL, room_left

KEY_BYTES: Final = 16
QUERY_BYTES: Final = 4
"""The first bytes of a key, which are the same for all pairs of a query."""

APPLICATION_ID: Final = 0x52724B53  # "RrKS"
VERSION: Final = 1

_SCHEMA = """
CREATE TABLE scores (key BLOB NOT NULL PRIMARY KEY, value BLOB NOT NULL, day INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE days (day INTEGER NOT NULL PRIMARY KEY, bytes INTEGER NOT NULL);
CREATE TABLE rates (basis BLOB NOT NULL PRIMARY KEY, tokens INTEGER NOT NULL, seconds REAL NOT NULL) WITHOUT ROWID;
"""
_CHECK_BYTES = 4
_LAST = b"\xff" * (KEY_BYTES - QUERY_BYTES)  # the end of the last key of a query
_query_of = itemgetter(slice(QUERY_BYTES))
_WHOLE = 0x2144DF1C  # the CRC-32 of any data followed by its own CRC-32
_AT_A_TIME = 500  # keys in a statement; old versions of SQLite take 999 values
_OF_KEYS = "FROM scores WHERE key IN "
_DAY = "CAST(day AS INTEGER)"  # another program may have made it a text or a fraction, which no statement may end at
_RANGE_KEYS = 8  # from so many keys of a query on, a range is faster
_RANGE_ROWS = 64  # a range may have so many rows more than twice the keys
_CACHE_KIB = 16 * 1024
_BUSY_SECONDS = 10.0
_DAY_SECONDS = 86400
_MOST = 10**15  # tokens or seconds that a store can have seen; a text and infinity lie above it
_KEPT_SHARE = 0.9  # of the limit, after eviction
_BESIDE = 24  # bytes of an entry besides its value: key, day, header
_ROOM = 1.7  # bytes of the file per byte of entries: a split page is half full; measured: 1.4 to 1.75
_FAILED_WRITES = (sqlite3.SQLITE_IOERR_WRITE, sqlite3.SQLITE_IOERR_FSYNC, sqlite3.SQLITE_IOERR_SHMSIZE)
_PARTS = 256  # ranges of keys that are evicted one after the other, so that no process waits for long


@dataclass(frozen=True, slots=True)
class Rate:
    """What computing has cost: seconds for so many tokens."""

    tokens: int = 0
    seconds: float = 0.0

    def seconds_of(self, tokens: int) -> float | None:
        """What so many tokens cost; None where nothing has been computed."""
        return tokens * self.seconds / self.tokens if self.tokens else None


class ScoreStore:
    """Entries that this process or any other has added.

    If the database fails, the run continues without it: `find` then finds nothing, and `add` keeps nothing.

    Args:
        path: Of the database.
        limit_bytes: The largest size of its file.
        shared_memory: The file system lets processes share memory, as WAL needs.
        on_fault: Gets a sentence, once, if the store cannot be used or written any more.
        set_aside: Called if the database proves damaged, after its last use: renames it, and returns its new name, or
            None if other processes use it.
        release: Called when the store is closed.
    """

    def __init__(
        self,
        path: Path,
        *,
        limit_bytes: int | None = None,
        shared_memory: bool = True,
        on_fault: Callable[[str], None] | None = None,
        set_aside: Callable[[], str | None] | None = None,
        release: Callable[[], None] | None = None,
    ) -> None:
        self.path = path
        self.damaged = 0
        """Entries that were found, but have a wrong checksum."""
        self.added = 0
        self._limit, self._on_fault, self._set_aside, self._release = limit_bytes, on_fault, set_aside, release
        self._lock = threading.Lock()
        self._reads = self._writes = True
        self._database = sqlite3.connect(path, timeout=_BUSY_SECONDS, isolation_level=None, check_same_thread=False)
        self._database.text_factory = bytes  # another program may have made a value a text; its checksum is wrong then
        try:
            self._begin(shared_memory=shared_memory)
        except BaseException:
            self._database.close()
            raise

    def find(self, keys: Sequence[bytes], *, of_lists: bool = False) -> dict[bytes, bytes]:
        """The values of those of `keys` that the store has.

        of_lists: these are keys of whole lists, whose use renews all entries of their queries.
        """
        if not self._reads or not keys:
            return {}
        found: dict[bytes, bytes] = {}
        today, wanted = self._day_number(), set(keys)
        old: dict[int, list[bytes]] = {}
        with self._lock:
            try:
                for key, value, day in self._rows(sorted(wanted)):
                    if key not in wanted:
                        continue
                    if (whole := _unseal(key, value)) is None:
                        self.damaged += 1
                        continue
                    found[key] = whole
                    if day != today:
                        old.setdefault(day, []).append(key)
                if of_lists:
                    self._renew_queries({key[:QUERY_BYTES] for some in old.values() for key in some}, today)
                else:
                    self._renew(old, today)
            except sqlite3.Error as error:
                self._fault(error, reading=True)
        return found

    def add(
        self,
        entries: Mapping[bytes, bytes],
        basis: bytes = b"",
        rate: Rate | None = None,
        lists: Mapping[bytes, bytes] | None = None,
    ) -> None:
        """Keep `entries`, and what computing them has cost.

        Args:
            entries: Values by key.
            basis: What all the keys have in common.
            rate: What computing them has cost.
            lists: Entries of whole lists, which `added` does not count.
        """
        if not self._writes or not (entries or rate or lists):
            return
        with self._lock:
            try:
                self.added += self._write({**entries, **(lists or {})}, entries, basis, rate)
                if self._limit is not None:
                    self._keep_limit(self._limit)
            except sqlite3.Error as error:
                self._fault(error, reading=False)

    def rate(self, basis: bytes) -> Rate:
        """What computing pairs has cost so far; see `add`. Unknown if another program has made it no finite number."""
        with self._lock:
            try:
                if self._reads:
                    which = "FROM rates WHERE basis = ? AND tokens BETWEEN 0 AND ? AND seconds BETWEEN 0 AND ?"
                    row = self._database.execute(f"SELECT tokens, seconds {which}", (basis, _MOST, _MOST))
                    for tokens, seconds in row:
                        return Rate(int(tokens), float(seconds))
            except sqlite3.Error as error:
                self._fault(error, reading=False)
        return Rate()

    @property
    def size(self) -> int:
        """Bytes of the database that are in use; 0 if it cannot be read."""
        with self._lock, suppress(sqlite3.Error):
            return self._pages("page_count") - self._pages("freelist_count")
        return 0

    def close(self) -> None:
        """End its use."""
        with self._lock:
            self._reads = self._writes = False
            self._end()

    # Inside, with the lock held

    def _end(self) -> None:
        with suppress(sqlite3.Error):
            self._database.close()
        if self._release:
            self._release()
            self._release = None

    def _rows(self, keys: Sequence[bytes]) -> Iterator[tuple[bytes, bytes, int]]:
        """The rows of sorted `keys`, and perhaps others between them."""
        single: list[bytes] = []
        for _, of_query in groupby(keys, key=_query_of):
            some = list(of_query)
            if len(some) < _RANGE_KEYS:
                single += some
                continue
            most = 2 * len(some) + _RANGE_ROWS
            which = "SELECT * FROM scores WHERE key BETWEEN ? AND ? LIMIT ?"
            rows = self._fetch(which, (some[0], some[-1], most))
            if len(rows) < most:
                yield from rows
            else:
                single += some
        for chunk, asked in _in_chunks(single):
            yield from self._fetch(f"SELECT * {_OF_KEYS}({asked})", chunk)

    def _fetch(self, which: str, parameters: Sequence[bytes | int]) -> list[tuple[bytes, bytes, int]]:
        """The rows that a SELECT gives, as one text.

        Python's sqlite3 gives the interpreter's lock away for each row. Where other threads want it too, that takes
        three times as long as writing rows in hexadecimal digits and reading them.
        """
        fields = f"hex(key) || ' ' || hex(value) || ' ' || {_DAY}"
        (text,) = self._database.execute(f"SELECT group_concat({fields}, ' ') FROM ({which})", parameters).fetchone()
        words = text.decode("ascii").split(" ") if text else []
        return [
            (bytes.fromhex(key), bytes.fromhex(value), int(day))
            for key, value, day in zip(words[::3], words[1::3], words[2::3], strict=True)
        ]

    def _begin(self, *, shared_memory: bool) -> None:
        ask = self._database.execute
        ask(f"PRAGMA cache_size = -{_CACHE_KIB}")
        tables = ask("SELECT count(*) FROM sqlite_schema").fetchone()[0]
        mine, version = ask("PRAGMA application_id").fetchone()[0], ask("PRAGMA user_version").fetchone()[0]
        if tables and (mine, version) != (APPLICATION_ID, VERSION):
            raise ForeignError("it was made by another program, or by another version of this one")
        if not tables:
            ask("PRAGMA auto_vacuum = INCREMENTAL")
        ask(f"PRAGMA journal_mode = {'WAL' if shared_memory else 'DELETE'}")
        ask(f"PRAGMA synchronous = {'NORMAL' if shared_memory else 'FULL'}")
        ask("BEGIN IMMEDIATE")
        if not ask("SELECT count(*) FROM sqlite_schema").fetchone()[0]:  # nobody else was faster
            for statement in _SCHEMA.split(";\n"):
                ask(statement)
            ask(f"PRAGMA application_id = {APPLICATION_ID}")
            ask(f"PRAGMA user_version = {VERSION}")
        ask("COMMIT")

    def _write(
        self, entries: Mapping[bytes, bytes], counted: Mapping[bytes, bytes], basis: bytes, rate: Rate | None
    ) -> int:
        """Keep all of `entries`. Returns how many of `counted` are new."""
        today = self._day_number()
        sealed = {key: _seal(key, entries[key]) for key in sorted(entries)}
        with self._transaction():
            there: set[bytes] = set()
            for some, asked in _in_chunks(list(sealed)):
                there.update(key for (key,) in self._database.execute(f"SELECT key {_OF_KEYS}({asked})", some))
            new = {key: value for key, value in sealed.items() if key not in there}
            self._database.executemany(
                "INSERT INTO scores VALUES (?, ?, ?)", [(key, value, today) for key, value in new.items()]
            )
            # The key exists because another process was faster, or because its entry is damaged: then replace it.
            self._database.executemany(
                "UPDATE scores SET value = ? WHERE key = ? AND value <> ?",
                [(sealed[key], key, sealed[key]) for key in sorted(there)],
            )
            self._count(today, sum(len(value) + _BESIDE for value in new.values()))
            if rate is not None:
                self._database.execute(
                    "INSERT INTO rates VALUES (?, ?, ?) ON CONFLICT (basis) DO UPDATE SET "
                    "tokens = tokens + excluded.tokens, seconds = seconds + excluded.seconds",
                    (basis, rate.tokens, rate.seconds),
                )
        return sum(key in counted for key in new)

    def _renew(self, old: Mapping[int, Sequence[bytes]], today: int) -> None:
        """Give entries today's day. old: their keys, by the day that they have."""
        if not old or not self._writes:
            return
        try:
            with self._transaction():
                for day, keys in old.items():
                    for some, asked in _in_chunks(keys):
                        which = f"{_OF_KEYS}({asked}) AND {_DAY} = ?"  # another process may have renewed some already
                        size = self._database.execute(
                            f"SELECT total(length(value) + {_BESIDE}) {which}", (*some, day)
                        ).fetchone()[0]
                        self._database.execute(
                            f"UPDATE scores SET day = ? WHERE key IN ({asked}) AND {_DAY} = ?", (today, *some, day)
                        )
                        self._count(day, -int(size))
                        self._count(today, int(size))
        except sqlite3.Error as error:
            self._fault(error, reading=False)

    def _renew_queries(self, queries: Iterable[bytes], today: int) -> None:
        """Give all entries of some queries today's day."""
        queries = sorted(queries)
        if not queries or not self._writes:
            return
        which = "FROM scores WHERE key BETWEEN ? AND ? AND day <> ?"
        try:
            with self._transaction():
                for query in queries:
                    some = (query, query + _LAST, today)
                    sizes = f"SELECT {_DAY}, total(length(value) + {_BESIDE}) {which} GROUP BY 1"
                    for day, size in self._database.execute(sizes, some).fetchall():
                        self._count(day, -int(size))
                        self._count(today, int(size))
                    self._database.execute(
                        "UPDATE scores SET day = ? WHERE key BETWEEN ? AND ? AND day <> ?", (today, *some)
                    )
        except sqlite3.Error as error:
            self._fault(error, reading=False)

    def _count(self, day: int, size: int) -> None:
        if size:
            self._database.execute(
                "INSERT INTO days VALUES (?, ?) ON CONFLICT (day) DO UPDATE SET bytes = bytes + excluded.bytes",
                (day, size),
            )

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        """A transaction that can write from its begin."""
        self._database.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            with suppress(sqlite3.Error):  # the failure may have rolled it back already
                self._database.execute("ROLLBACK")
            raise
        self._database.execute("COMMIT")

    def _pages(self, which: str) -> int:
        """The bytes of the pages that a PRAGMA counts."""
        count, size = (self._database.execute(f"PRAGMA {name}").fetchone()[0] for name in (which, "page_size"))
        return int(count * size)

    def _keep_limit(self, limit: int) -> None:
        """Forget what was unused for longest, until the store is below its limit."""
        days = self._database.execute(
            "SELECT day, CAST(bytes AS INTEGER) FROM days WHERE bytes > 0 ORDER BY day"
        ).fetchall()
        surplus = sum(size for _, size in days) - limit / _ROOM
        if surplus <= 0:
            return
        surplus += (1 - _KEPT_SHARE) * limit / _ROOM
        whole = -1
        for day, size in days:
            if size > surplus:
                break
            surplus -= size
            whole = day
        if whole >= 0:
            for part in range(_PARTS):
                self._forget(part, whole)
        first = int(time.time()) % _PARTS  # begin with another range each time
        day = next((day for day, _ in days if day > whole), whole)
        for step in range(_PARTS):
            if surplus <= 0:
                break
            surplus -= self._forget((first + step) % _PARTS, day)
        # Free pages are used again, so the file need not shrink, unless it is over a new, lower limit.
        if self._pages("page_count") > limit:
            self._database.executescript("PRAGMA incremental_vacuum")  # `execute` would free one page only

    def _forget(self, part: int, day: int) -> int:
        """Forget the entries in a range of keys that were not used after `day`. Returns their bytes."""
        first = bytes([part]) + bytes(KEY_BYTES - 1)
        last = bytes([part]) + b"\xff" * (KEY_BYTES - 1)
        which = f"FROM scores WHERE key BETWEEN ? AND ? AND {_DAY} <= ?"
        with self._transaction():
            rows = self._database.execute(
                f"SELECT {_DAY}, sum(length(value) + {_BESIDE}) {which} GROUP BY 1", (first, last, day)
            ).fetchall()
            self._database.execute(f"DELETE {which}", (first, last, day))
            for of_day, size in rows:
                self._count(of_day, -size)
        return sum(size for _, size in rows)

    def _fault(self, error: sqlite3.Error, *, reading: bool) -> None:
        """Note a failure of the database: stop writing, or all use of it, and tell it once.

        A damaged one is set aside for the next run. If other processes use it, the last that finds it damaged does so.
        """
        told = not self._writes
        self._writes = False
        busy = isinstance(error, sqlite3.OperationalError) and code_of(error) in (
            sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_FULL, sqlite3.SQLITE_READONLY,
        )  # fmt: skip
        if reading or not busy:
            self._reads = False
        what = "scores of this run are not kept" if self._reads else "this run continues without it"
        text = f"warning: the store {self.path} failed ({why_it_failed(error, self.path)}); {what}"
        if self._set_aside and is_damaged(error):
            with suppress(sqlite3.Error):
                self._database.close()
            with suppress(OSError):  # a folder that cannot be written to
                if aside := self._set_aside():
                    told = False
                    text = f"warning: the store {self.path} is damaged ({error}): renamed to {aside}; {what}"
            self._set_aside = None
            self._end()
        if self._on_fault and not told:
            self._on_fault(text)

    @staticmethod
    def _day_number() -> int:
        return int(time.time()) // _DAY_SECONDS


def code_of(error: Exception) -> int:
    """What kind of failure SQLite reports; 0 for an error of another origin, also of Python's module."""
    return int(getattr(error, "sqlite_errorcode", 0)) & 0xFF


def is_damaged(error: sqlite3.Error) -> bool:
    """Whether the file is no whole database."""
    return code_of(error) in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)


def why_it_failed(error: Exception, path: Path) -> str:
    """What the database or the operating system says, with the space left if that may be the reason."""
    said = getattr(error, "strerror", None) or str(error)
    is_full = code_of(error) == sqlite3.SQLITE_FULL or getattr(error, "errno", None) in FULL
    room = room_left(path) if is_full or getattr(error, "sqlite_errorcode", 0) in _FAILED_WRITES else None
    return f"{said}: {room}" if room else said


class ForeignError(sqlite3.DatabaseError):
    """The database was not made by this program, or not by this version."""


def _in_chunks(keys: Sequence[bytes]) -> Iterator[tuple[Sequence[bytes], str]]:
    """The keys in chunks, each with as many question marks for a statement."""
    for begin in range(0, len(keys), _AT_A_TIME):
        some = keys[begin : begin + _AT_A_TIME]
        yield some, ",".join("?" * len(some))


def _seal(key: bytes, value: bytes) -> bytes:
    return value + zlib.crc32(key + value).to_bytes(_CHECK_BYTES, "little")


def _unseal(key: bytes, sealed: object) -> bytes | None:
    """The value of an entry; None if its checksum is wrong."""
    if not isinstance(sealed, bytes) or len(sealed) < _CHECK_BYTES or zlib.crc32(key + sealed) != _WHOLE:
        return None
    return sealed[:-_CHECK_BYTES]
