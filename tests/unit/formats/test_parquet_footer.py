"""Files that are not one whole Parquet file are refused by what they are; what writers put before a footer is none."""

from __future__ import annotations

import gzip
import io
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rerank_cli.errors import InputError
from rerank_cli.formats.parquet_reader import row_count


def _file(rows: int, **how: Any) -> bytes:
    sink = io.BytesIO()
    table = pa.table({"query": [f"q{n}" for n in range(rows)], "passage": ["a " * n for n in range(rows)]})
    pq.write_table(table, sink, **how)
    return sink.getvalue()


SMALL, LARGE = _file(3), _file(3000, row_group_size=100, compression="none")
INDEXED = _file(3000, row_group_size=100, write_page_index=True)


@pytest.mark.parametrize("whole", [SMALL, LARGE, INDEXED, _file(0)])
def test_one_file_is_one_file(whole: bytes, tmp_path: Path) -> None:
    path = tmp_path / "in.parquet"
    path.write_bytes(whole)
    assert row_count(str(path)) in (0, 3, 3000)


@pytest.mark.parametrize(
    "files", [(SMALL, SMALL), (SMALL, LARGE), (LARGE, SMALL), (SMALL, INDEXED), (INDEXED, LARGE, SMALL)]
)
def test_files_that_were_put_together_are_refused_and_not_read_in_part(
    files: tuple[bytes, ...], tmp_path: Path
) -> None:
    path = tmp_path / "in.parquet"
    path.write_bytes(b"".join(files))
    with pytest.raises(InputError, match=f"several Parquet files put together: .* byte {len(files[0]) + 1}$"):
        row_count(str(path))


@pytest.mark.parametrize(("name", "plain"), [("in.parquet.gz", "in.parquet"), ("in.parquet", "in.unpacked.parquet")])
def test_a_compressed_table_names_the_command_that_unpacks_it(name: str, plain: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(gzip.compress(SMALL))
    with pytest.raises(InputError, match="is compressed with gzip") as caught:
        row_count(str(path))
    assert caught.value.hint == f"`gzip -dc < {path} > {tmp_path / plain}`"
