"""The values of each query as a file: TSV with a header, or JSON lines, either also compressed.

    query_id  metric  given  reranked  difference

A value that does not exist (see `evaluation.QueryValue`) is empty in TSV and null in JSON. Numbers are written so that
they come back as they were.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, fields
from itertools import islice
from pathlib import Path

from rerank_cli.errors import UsageError
from rerank_cli.evaluation.measures import QueryValue
from rerank_cli.formats.compression import SUFFIXES, compressed, text_suffix

_ROWS_AT_ONCE = 10_000
_ESCAPES = str.maketrans({"\t": "\\t", "\n": "\\n", "\r": "\\r"})
_COLUMNS = tuple(field.name for field in fields(QueryValue))


def refuse_per_query_name(path: str) -> None:
    """`UsageError` for a name that tells no format."""
    if text_suffix(path) not in (".tsv", ".jsonl", ".ndjson"):
        raise UsageError(f"--per-query {path}: the suffix tells no format", hint="end the name in .tsv or .jsonl")


def per_query_bytes(values: Iterable[QueryValue], path: str) -> Iterator[bytes]:
    """The content of the file `path`, in parts of some megabytes at most."""
    is_tsv = text_suffix(path) == ".tsv"
    if is_tsv:
        yield compressed(("\t".join(_COLUMNS) + "\n").encode(), path)
    elif Path(path.lower()).suffix in SUFFIXES:
        yield compressed(b"", path)  # an empty file is no gzip and no zstd file
    rows = iter(values)
    line = _tsv_line if is_tsv else _json_line
    while part := list(islice(rows, _ROWS_AT_ONCE)):
        yield compressed("".join(map(line, part)).encode(), path)


def _tsv_line(value: QueryValue) -> str:
    numbers = ("" if one is None else repr(one) for one in (value.given, value.reranked, value.difference))
    return "\t".join((value.query_id.translate(_ESCAPES), value.metric, *numbers)) + "\n"


def _json_line(value: QueryValue) -> str:
    return json.dumps(asdict(value), ensure_ascii=False, allow_nan=False) + "\n"
