"""Reads judgements: TREC's qrels, and BEIR's with a header or as JSON.

    11 0 a1 1                        query, iteration, passage, grade; blanks or tabs between them
    query-id<TAB>corpus-id<TAB>score a header, then query, passage, grade
    {"query-id": ..., "corpus-id": ..., "score": ...}   one object a line

Byte order marks, carriage returns and compression do not matter. Ids are compared as texts. A whole number is written
without a fraction (`id_text`): 1.0 in a table is 1 in the qrels, but `007` is not 7.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from rerank_cli.errors import InputError
from rerank_cli.formats.compression import open_input
from rerank_cli.formats.shapes.fields import id_text, number_in
from rerank_cli.storage import shell_name

_QUERY_NAMES = ("query-id", "query_id", "qid", "query", "topic", "topic_id", "topicid")
_PASSAGE_NAMES = (
    "corpus-id", "corpus_id", "doc_id", "docid", "docno", "doc-id", "passage_id", "pid", "document_id", "doc",
)  # fmt: skip
_GRADE_NAMES = ("score", "relevance", "rel", "grade", "label", "relevancy")
_MOST_BYTES_OF_LINE = 2**20  # more than ids and a grade need; a file without line ends is not read whole
_LARGEST_GRADE = 1_000_000  # the library of the measures takes memory for each grade up to the largest
_FORM = "a line has `query 0 passage grade`, or below a header `query-id corpus-id score`"


@dataclass(frozen=True, slots=True)
class Judgement:
    """How well a passage answers a query, as judged by somebody. relevance: the grade."""

    query_id: str
    doc_id: str
    relevance: int


def read_qrels(path: str) -> dict[str, dict[str, int]]:
    """Grades by query and passage; an `InputError` names the line and what a line must look like."""
    grades: dict[str, dict[str, int]] = {}
    for number, one in _judgements(path):
        if one.relevance > _LARGEST_GRADE:
            raise InputError(f"{path}:{number}: the grade is {one.relevance}, more than {_LARGEST_GRADE:,}", hint=_FORM)
        of_query = grades.setdefault(sys.intern(one.query_id), {})
        if of_query.setdefault(one.doc_id, one.relevance) != one.relevance:
            raise InputError(
                f"{path}:{number}: passage `{one.doc_id}` of query `{one.query_id}` is judged twice, with different "
                "grades"
            )
    if not grades:
        raise InputError(f"{path}: no judgements", hint=_FORM)
    return grades


def _judgements(path: str) -> Iterator[tuple[int, Judgement]]:
    places: tuple[int, int, int] | None = None
    with open_input(path) as stream:
        try:
            # Of a line that is too long, only its beginning is read.
            for number, raw in enumerate(iter(lambda: stream.readline(_MOST_BYTES_OF_LINE + 1), b""), 1):
                where = f"{path}:{number}"
                if len(raw) > _MOST_BYTES_OF_LINE:
                    raise InputError(f"{where}: a line of more than {_MOST_BYTES_OF_LINE:,} bytes", hint=_FORM)
                line = _decoded(raw, where).strip()
                if not line:
                    continue
                if line.startswith("{"):
                    yield number, _parse_object(line, where)
                    continue
                cells = [cell.strip().strip('"') for cell in line.split("\t")] if "\t" in line else line.split()
                cells = line.split() if len(cells) < 3 else cells
                if places is None:
                    places, is_header = _find_columns(cells)
                    if is_header:
                        continue
                yield number, _parse_cells(cells, places, where)
        except OSError as error:
            raise InputError(f"{path}: cannot be read: {error.strerror or error}") from error


def _decoded(raw: bytes, where: str) -> str:
    try:
        return raw.decode("utf-8-sig").removesuffix("\x1a")
    except UnicodeDecodeError as error:
        path = shell_name(where.rpartition(":")[0])
        encoding = "UTF-16" if raw.startswith((b"\xff\xfe", b"\xfe\xff")) else "WINDOWS-1252"
        command = f"iconv -f {encoding} -t UTF-8 {path} > {path}.utf8"
        guess = "" if encoding == "UTF-16" else " if it is Western European"
        raise InputError(f"{where}: not UTF-8", hint=f"`{command}` makes it so{guess}") from error


def _find_columns(cells: list[str]) -> tuple[tuple[int, int, int], bool]:
    """The columns of query, passage and grade, and whether this line is a header that names them."""
    names = [cell.lower() for cell in cells]
    found = tuple(
        next((names.index(name) for name in known if name in names), -1)
        for known in (_QUERY_NAMES, _PASSAGE_NAMES, _GRADE_NAMES)
    )
    if -1 not in found and _grade(cells[found[2]]) is None:
        return (found[0], found[1], found[2]), True
    return ((0, 1, 2) if len(cells) == 3 else (0, 2, 3)), False


def _parse_cells(cells: list[str], places: tuple[int, int, int], where: str) -> Judgement:
    if len(cells) <= max(places) or len(cells) > 4:
        raise InputError(f"{where}: {len(cells)} columns, which are no judgement", hint=_FORM)
    query, passage, grade = (cells[place] for place in places)
    value = _grade(grade)
    if value is None:
        raise InputError(f"{where}: the grade is `{grade}`, not a whole number", hint=_FORM)
    return Judgement(query, passage, value)


def _parse_object(line: str, where: str) -> Judgement:
    try:
        fields: dict[str, Any] = json.loads(line)
    except ValueError as error:
        raise InputError(f"{where}: not JSON: {error}", hint=_FORM) from error
    values = [
        next((fields[name] for name in known if fields.get(name) is not None), None)
        for known in (_QUERY_NAMES, _PASSAGE_NAMES, _GRADE_NAMES)
    ]
    grade = _grade(str(values[2]))
    if values[0] is None or values[1] is None or grade is None:
        raise InputError(f"{where}: no judgement: {', '.join(f'`{name}`' for name in fields)}", hint=_FORM)
    return Judgement(id_text(values[0]), id_text(values[1]), grade)


def _grade(text: str) -> int | None:
    value = number_in(text)
    return int(value) if math.isfinite(value) and value == int(value) else None
