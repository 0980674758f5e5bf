"""Vectors to a Parquet file: `kind` (query or passage), `text`, and `vector`, a list of float32 of one size."""

from __future__ import annotations

from collections.abc import Sequence
from typing import BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

_ROW_GROUP_NUMBERS = 2**21  # 8 MiB of vectors


class EmbeddingsFile:
    """Writes vectors of `dimensions` numbers to a stream, a row a vector; disk errors propagate as OSError."""

    def __init__(self, stream: BinaryIO, dimensions: int) -> None:
        vector = pa.list_(pa.float32(), dimensions)
        self._schema = pa.schema([("kind", pa.string()), ("text", pa.string()), ("vector", vector)])
        self._sink = pa.PythonFile(stream, mode="w")
        # Vectors neither repeat nor compress.
        self._writer = pq.ParquetWriter(self._sink, self._schema, compression="zstd", use_dictionary=["kind"])
        self._rows: list[tuple[str, str, Sequence[float]]] = []
        self._row_group = max(1, _ROW_GROUP_NUMBERS // dimensions)

    def write(self, kind: str, text: str, vector: Sequence[float]) -> None:
        """Append a row. vector: float32 [dimensions]."""
        self._rows.append((kind, text, vector))
        if len(self._rows) >= self._row_group:
            self._flush()

    def close(self) -> None:
        """Finish the file."""
        self._flush()
        self._writer.close()

    def _flush(self) -> None:
        if not self._rows:
            return
        kinds, texts, vectors = zip(*self._rows, strict=True)
        numbers = pa.concat_arrays([pa.array(vector, pa.float32()) for vector in vectors])
        column = pa.FixedSizeListArray.from_arrays(numbers, type=self._schema.field("vector").type)
        self._writer.write_table(pa.table([pa.array(kinds), pa.array(texts), column], schema=self._schema))
        self._rows = []
