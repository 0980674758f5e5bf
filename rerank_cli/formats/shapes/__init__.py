"""Row shapes: an input row to a candidate list, and a ranked list back to output rows.

    list           one query and its passages a row            lists.py
    flat           one pair a row, grouped by query            flat.py
    nim            a request of NVIDIA's Reranking NIM a row   nim.py
    cohere         a `/rerank` body a row                      cohere.py
    tei            a `/rerank` body of Text Embeddings Inference a row   tei.py
    openai-batch   a request of an OpenAI batch file a row     openai_batch.py
    trec           a line of a TREC run                        trec.py
    pair           one pair a row, in input order (`score`)    pair.py
    rank_llm, ...  what other programs write                   other_programs.py (a table), known_shape.py (reads it)

A shape reads only the fields that it needs and never changes the row's own mapping. An output row is a copy with our
fields added, or the response that the API would give, with the fields that the API does not know. `recognition.SHAPES`
lists the shapes; `conversion` reads in one and writes in another. A row that does not have the shape is a `RowError`,
not an exception: the rows around it are scored.
"""

from __future__ import annotations

from rerank_cli.formats.choices import NO_TEXTS, FieldNames, Selection, Texts
from rerank_cli.formats.shapes.conversion import Conversion, not_carried, written_as
from rerank_cli.formats.shapes.fields import lookup, row_error
from rerank_cli.formats.shapes.flat import FlatShape
from rerank_cli.formats.shapes.known_shape import KnownListShape
from rerank_cli.formats.shapes.lists import PASSAGES, ListShape
from rerank_cli.formats.shapes.pair import PairShape
from rerank_cli.formats.shapes.recognition import FIRST_ROWS, READABLE, SHAPES, detect_shape, kind_of, recognise
from rerank_cli.formats.shapes.shape import Exchange, Grouped, Item, Kind, ReadsColumns, Shape
from rerank_cli.formats.shapes.siblings_and_notes import (
    good_rows,
    reading_of,
    settle_shape,
    tell_of_late_titles,
    with_titles_of_table,
)
from rerank_cli.formats.shapes.suggestions import commands_for, commands_for_pair, no_shape_error
from rerank_cli.formats.shapes.trec import RUN_LINE, TrecShape

__all__ = [
    "FIRST_ROWS",
    "NO_TEXTS",
    "PASSAGES",
    "READABLE",
    "RUN_LINE",
    "SHAPES",
    "Conversion",
    "Exchange",
    "FieldNames",
    "FlatShape",
    "GroupShape",
    "Grouped",
    "Item",
    "Kind",
    "KnownListShape",
    "ListShape",
    "PairShape",
    "ReadsColumns",
    "Selection",
    "Shape",
    "Texts",
    "TrecShape",
    "commands_for",
    "commands_for_pair",
    "detect_shape",
    "good_rows",
    "kind_of",
    "lookup",
    "no_shape_error",
    "not_carried",
    "reading_of",
    "recognise",
    "row_error",
    "settle_shape",
    "tell_of_late_titles",
    "with_titles_of_table",
    "written_as",
]

GroupShape = FlatShape | TrecShape
"""Shapes whose lists span several rows, held together by the `group_key` of each."""
