"""What NVIDIA publishes for a point, shown beside our own estimate, which does not use it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from rerank_cli.planning.profiles import GIB, PublishedTable, show_capability


@dataclass(frozen=True, slots=True)
class PublishedMemory:
    """A published value for a point, or one that was interpolated between published ones.

    kind: `published` (the row of this very point), `published-any` (a table of one value that names no point), or
    `interpolated`. headings: how certain it is that the table is about this GPU and precision.
    """

    gib: float
    kind: str
    table: PublishedTable

    def to_json(self) -> dict[str, Any]:
        """The value with what is known of its certainty."""
        table = self.table
        document = {"kind": self.kind, "gib": self.gib, "bytes": round(self.gib * GIB), **_heading(table)}
        if self.kind == "interpolated" and table.fit is not None:
            document["worst_gib"] = table.fit.worst_gib
        return document


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


def table_to_json(table: PublishedTable) -> dict[str, Any]:
    """A published table as it stands, with its source."""
    rows = [
        {"max_batch_size": row.max_batch_size, "max_sequence_length": row.max_sequence_length, "gib": row.gib}
        for row in table.rows
    ]
    source = {"title": table.source.title, "url": table.source.url, "release": table.source.release}
    return {**_heading(table), "rows": rows, "note": table.note, "source": source}


def _heading(table: PublishedTable) -> dict[str, Any]:
    return {
        "sku": table.sku,
        "compute_capability": show_capability(table.compute_capability),
        "precision": table.precision,
        "values": table.values,
        "headings": table.headings,
    }
