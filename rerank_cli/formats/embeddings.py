"""Vectors to a Parquet file: `kind` (query or passage), `text`, `image`, and `vector`, a list of float32 of one size.

`image` is the path that the row gave, or `sha256:` and the digest of an image in the row itself; null for texts.
"""

from __future__ import annotations

from typing import BinaryIO

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

_ROW_GROUP_NUMBERS = 2**21  # 8 MiB of vectors


class EmbeddingsFile:
    """Writes vectors of `dimensions` numbers to a stream, a row a vector; disk errors propagate as OSError."""

    def __init__(self, stream: BinaryIO, dimensions: int) -> None:
        vector = pa.list_(pa.float32(), dimensions)
        self._schema = pa.schema(
            [("kind", pa.string()), ("text", pa.string()), ("image", pa.string()), ("vector", vector)]
        )
        self._sink = pa.PythonFile(stream, mode="w")
        # Vectors neither repeat nor compress.
        self._writer = pq.ParquetWriter(self._sink, self._schema, compression="zstd", use_dictionary=["kind"])
        self._rows: list[tuple[str, str, str | None, npt.NDArray[np.float32]]] = []
        self._row_group = max(1, _ROW_GROUP_NUMBERS // dimensions)

    def write(self, kind: str, text: str, vector: npt.NDArray[np.float32], *, image: str | None = None) -> None:
        """Append a row. vector: [dimensions]."""
        self._rows.append((kind, text, image, vector))
        if len(self._rows) >= self._row_group:
            self._flush()

    def close(self) -> None:
        """Finish the file."""
        self._flush()
        self._writer.close()

    def _flush(self) -> None:
        if not self._rows:
            return
        kinds, texts, images, vectors = zip(*self._rows, strict=True)
        numbers = pa.concat_arrays([pa.array(vector, pa.float32()) for vector in vectors])
        column = pa.FixedSizeListArray.from_arrays(numbers, type=self._schema.field("vector").type)
        columns = [pa.array(kinds), pa.array(texts), pa.array(images, pa.string()), column]
        self._writer.write_table(pa.table(columns, schema=self._schema))
        self._rows = []
