"""What NVIDIA publishes for a point, to stand beside our own figure; it never enters it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from rerank_cli.planning.profiles import GIB, PublishedTable


@dataclass(frozen=True, slots=True)
class PublishedMemory:
    """A published value for a point, or one that was interpolated between published ones.

    kind: `published` (the row of this very point), `published-any` (a table of one value that names no point), or
    `interpolated`. headings: how certain it is that the table is about this GPU and precision.
    """

    gib: float
    kind: str
    table: PublishedTable

    @property
    def size_bytes(self) -> int:
        """The value in bytes."""
        return round(self.gib * GIB)


def published_memory(tables: Iterable[PublishedTable], batch_size: int, length: int) -> PublishedMemory | None:
    """The first table's answer for a point; a printed value comes before an interpolated one."""
    tables = tuple(tables)
    for table in tables:
        row = table.published(batch_size, length)
        if row is not None:
            return PublishedMemory(row.gib, "published", table)
        if len(table.rows) == 1 and table.rows[0].max_batch_size is None:
            return PublishedMemory(table.rows[0].gib, "published-any", table)
    for table in tables:
        gib = table.interpolated_gib(batch_size, length)
        if gib is not None:
            return PublishedMemory(round(gib, 2), "interpolated", table)
    return None
