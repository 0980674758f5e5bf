"""The values of each query as a file: TSV with a header, or JSON lines, either also compressed.

    query_id  metric  given  reranked  difference          with `file` before them in `rerank-cli evaluate`

A missing value (see `measures.QueryValue`) is empty in TSV and null in JSON. Numbers are written in full, so that they
read back unchanged.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, fields
from itertools import islice
from pathlib import Path
from typing import Any

from rerank_cli.errors import UsageError
from rerank_cli.evaluation.evaluator import QueryValue
from rerank_cli.formats.compression import SUFFIXES, compress, text_suffix

_ROWS_AT_ONCE = 10_000
_ESCAPES = str.maketrans({"\t": "\\t", "\n": "\\n", "\r": "\\r"})


def refuse_per_query_name(path: str) -> None:
    """`UsageError` for a name whose suffix tells no format."""
    if text_suffix(path) not in (".tsv", ".jsonl", ".ndjson"):
        raise UsageError(f"--per-query {path}: the suffix tells no format", hint="end the name in .tsv or .jsonl")


def per_query_bytes(values: Iterable[Any], path: str, kind: type = QueryValue) -> Iterator[bytes]:
    """The content of the file `path`, in parts of some megabytes at most. kind: the dataclass of the values."""
    columns = [field.name for field in fields(kind)]
    is_tsv = text_suffix(path) == ".tsv"
    if is_tsv:
        yield compress(("\t".join(columns) + "\n").encode(), path)
    elif Path(path.lower()).suffix in SUFFIXES:
        yield compress(b"", path)  # an empty file is no gzip and no zstd file
    rows = iter(values)
    while part := list(islice(rows, _ROWS_AT_ONCE)):
        if is_tsv:
            lines = ["\t".join(_cell(getattr(value, name)) for name in columns) for value in part]
        else:
            lines = [json.dumps(asdict(value), ensure_ascii=False, allow_nan=False) for value in part]
        yield compress("".join(f"{line}\n" for line in lines).encode(), path)


def read_values(data: bytes) -> Iterator[QueryValue]:
    """The values in a file of JSON lines."""
    return (QueryValue(**json.loads(line)) for line in data.splitlines())


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return value.translate(_ESCAPES) if isinstance(value, str) else repr(value)
