"""The format and shape of a run's output; `run_paths.py` says which names are refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from rerank_cli.errors import UsageError
from rerank_cli.formats.choices import TEACHER_FORMATS
from rerank_cli.formats.compression import SUFFIXES, text_suffix
from rerank_cli.formats.inputs import FORMATS
from rerank_cli.formats.separated_sink import SEPARATORS
from rerank_cli.formats.shapes import SHAPES, Kind
from rerank_cli.job.options import STDOUT, Names

FILE_FORMATS = ("jsonl", "parquet", *SEPARATORS)
"""The values of `--out-format` that name a file format."""


def output_format(names: Names) -> str:
    """The file format: `parquet`, `csv`, `tsv`, or `jsonl` for lines of any shape."""
    if names.out_format not in ("auto", *FILE_FORMATS, *SHAPES, *TEACHER_FORMATS):
        known = ", ".join((*FILE_FORMATS, *SHAPES, *TEACHER_FORMATS))
        raise UsageError(f"--out-format {names.out_format}: not known", hint=f"known are auto, {known}")
    if names.out_format in FILE_FORMATS:
        return names.out_format
    found = "jsonl" if names.output == STDOUT else FORMATS.get(text_suffix(names.output))
    if found == "trec" or (found is None and names.out_format in (*SHAPES, *TEACHER_FORMATS)):
        return "jsonl"
    if found == "parquet" and Path(names.output.lower()).suffix in SUFFIXES:
        raise UsageError(f"--output {names.output}: Parquet compresses itself", hint="end the name in .parquet")
    if found is None:
        raise UsageError(
            f"--output {names.output}: the suffix tells no format",
            hint="end the name in .jsonl, .csv, .tsv or .parquet (.trec for a run), or pass `--out-format`",
        )
    return found


def output_shape(names: Names) -> str | None:
    """The shape of rows that `names` ask for; None if it is that of the input."""
    if names.out_format in (*SHAPES, *TEACHER_FORMATS):
        return names.out_format
    by_suffix = names.out_format == "auto" and FORMATS.get(text_suffix(names.output)) == "trec"
    return "trec" if by_suffix else None


def output_kind(names: Names, own: Kind, teacher: Callable[[str], Kind] | None = None) -> Kind:
    """The shape in which the rows are written: that of the input, `own`, unless `names` ask for another one.

    A TREC run is written as lists into JSON lines or Parquet. teacher: makes the shape of rows to train on.
    """
    wanted = output_shape(names)
    if wanted in TEACHER_FORMATS and teacher:
        if output_format(names) != "jsonl":
            raise UsageError(
                f"--out-format {wanted}: rows to train on are JSON lines, not {output_format(names)}",
                hint="end the name in .jsonl",
            )
        return teacher(wanted)
    kind = SHAPES[wanted] if wanted else own
    if wanted is None and own.name == "trec" and (names.output != STDOUT or names.out_format != "auto"):
        kind = SHAPES["list"]
    if (table := output_format(names)) in SEPARATORS:
        kind = SHAPES[wanted or "flat"]
        if kind.name != "flat":
            raise UsageError(
                f"--out-format {wanted}: {table.upper()} has one passage per row",
                hint="leave out the option, or end the name in .jsonl",
            )
    if output_format(names) == "parquet" and not kind.tables:
        raise UsageError(
            f"--output {names.output}: rows of the shape {kind.name} are lines, not a table",
            hint="`--out-format list` writes another shape, or end the name in .jsonl",
        )
    return kind


def refuse_table_pipe(names: Names) -> None:
    """`UsageError` for a table on stdout: Parquet needs to seek, and a header needs all columns in advance."""
    table = output_format(names)
    if names.output == STDOUT and table != "jsonl":
        shown = "Parquet" if table == "parquet" else table.upper()
        raise UsageError(f"--output -: {shown} cannot be written to a pipe", hint="give the name of a file")
