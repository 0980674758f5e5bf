"""The vectors of a run, each computed once, in bounded memory.

A private SQLite database without a name: up to `cache_bytes` of its pages stay in memory, the rest goes to a temporary
file that nobody else sees and that is gone when the run ends (SQLITE_TMPDIR names its folder). Keys are digests of what
was embedded; the texts are not kept.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from rerank_cli.errors import OutputError

_CACHE_BYTES = 256 * 2**20  # 32,000 vectors of 2,048 numbers


class VectorCache:
    """Vectors by key; to be used by one thread. cache_bytes: what may stay in memory."""

    def __init__(self, dimensions: int, *, cache_bytes: int = _CACHE_BYTES) -> None:
        self._dimensions = dimensions
        self._database = sqlite3.connect("", isolation_level=None)
        for setting in (
            "page_size = 16384",  # a vector of 2,048 numbers lies within one page
            f"cache_size = -{max(1, cache_bytes // 1024)}",
            "journal_mode = OFF",
            "synchronous = OFF",
        ):
            self._database.execute(f"PRAGMA {setting}")
        self._database.execute("CREATE TABLE vectors (key BLOB PRIMARY KEY, vector BLOB)")
        self._database.execute("CREATE TABLE marks (key BLOB PRIMARY KEY) WITHOUT ROWID")

    def missing(self, keys: Sequence[bytes]) -> list[bytes]:
        """The keys that have no vector yet."""
        find = "SELECT 1 FROM vectors WHERE key = ?"
        return [key for key in keys if self._database.execute(find, (key,)).fetchone() is None]

    def put(self, vectors: Mapping[bytes, npt.NDArray[np.float32]]) -> None:
        """Keep these; `OutputError` where the temporary file cannot grow."""
        rows = ((key, vector.tobytes()) for key, vector in vectors.items())
        try:
            self._database.execute("BEGIN")
            self._database.executemany("INSERT OR REPLACE INTO vectors VALUES (?, ?)", rows)
            self._database.execute("COMMIT")
        except sqlite3.Error as error:
            raise OutputError(
                f"vectors that do not fit in memory cannot be kept in a temporary file: {error}",
                hint="SQLITE_TMPDIR names another folder for it",
            ) from error

    def get(self, keys: Sequence[bytes]) -> npt.NDArray[np.float32]:
        """The vectors of `keys`, float32 [len(keys), dimensions]; each must have been put."""
        find = "SELECT vector FROM vectors WHERE key = ?"
        found = [self._database.execute(find, (key,)).fetchone()[0] for key in keys]
        return np.frombuffer(b"".join(found), dtype=np.float32).reshape(len(keys), self._dimensions)

    def mark(self, key: bytes) -> bool:
        """Whether `key` is marked for the first time."""
        return self._database.execute("INSERT OR IGNORE INTO marks VALUES (?)", (key,)).rowcount == 1

    def close(self) -> None:
        """Drop everything."""
        self._database.close()
