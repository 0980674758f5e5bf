"""What the outputs of a run are called, and their format; `run_paths.py` says which names are refused."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from rerank_cli.errors import UsageError
from rerank_cli.formats.compression import SUFFIXES, text_suffix
from rerank_cli.formats.inputs import FORMATS
from rerank_cli.formats.shapes import SHAPES, Kind

STDOUT = "-"
PAGE_SUFFIXES = (".html", ".htm")


@dataclass(frozen=True, slots=True)
class Names:
    """What the user calls the outputs of a run; None is the default: beside `output`, or nowhere for stdout.

    report: of the JSON document, or of a page (`.html`), beside which the document has its default name.
    """

    output: str
    errors: str | None = None
    report: str | None = None
    out_format: str = "auto"
    embeddings: str | None = None
    per_query: str | None = None

    @property
    def results(self) -> tuple[str, ...]:
        """The kinds of files that are what a run is for; they are not replaced unasked."""
        return tuple(name for name in ("output", "embeddings", "per_query") if name in self.files)

    @property
    def files(self) -> dict[str, Path]:
        """The files by what they hold, the output last; stdout is none."""
        beside = "" if self.output == STDOUT else self.output
        page = self.report if self.report and Path(self.report).suffix.lower() in PAGE_SUFFIXES else None
        paths = {
            "errors": self.errors or (beside and f"{beside}.errors.jsonl"),
            "report": (self.report if page is None else None) or (beside and f"{beside}.report.json"),
            "page": page,
            "embeddings": self.embeddings,
            "per_query": self.per_query,
            "output": beside,
        }
        return {kind: Path(path) for kind, path in paths.items() if path}


def output_format(names: Names) -> str:
    """`parquet`, or `jsonl` for lines of any shape."""
    if names.out_format not in ("auto", "jsonl", "parquet", *SHAPES):
        known = ", ".join(("jsonl", "parquet", *SHAPES))
        raise UsageError(f"--out-format {names.out_format}: not known", hint=f"known are auto, {known}")
    if names.out_format in ("jsonl", "parquet"):
        return names.out_format
    found = "jsonl" if names.output == STDOUT else FORMATS.get(text_suffix(names.output))
    if found == "tsv":
        raise UsageError(
            f"--output {names.output}: rows are not written as TSV", hint="end the name in .jsonl or .parquet"
        )
    if found == "trec" or (found is None and names.out_format in SHAPES):
        return "jsonl"
    if found == "parquet" and Path(names.output.lower()).suffix in SUFFIXES:
        raise UsageError(f"--output {names.output}: Parquet compresses itself", hint="end the name in .parquet")
    if found is None:
        raise UsageError(
            f"--output {names.output}: the suffix tells no format",
            hint="end the name in .jsonl or .parquet (.trec for a run), or pass `--out-format`",
        )
    return found


def output_shape(names: Names) -> str | None:
    """The shape that `names` ask for; None where they leave it to the input."""
    if names.out_format in SHAPES:
        return names.out_format
    by_suffix = names.out_format == "auto" and FORMATS.get(text_suffix(names.output)) == "trec"
    return "trec" if by_suffix else None


def output_kind(names: Names, own: Kind) -> Kind:
    """The shape that the rows of an input of shape `own` are written in: its own, where `names` ask for no other.

    A run is written as lists in a file of JSON lines or Parquet.
    """
    wanted = output_shape(names)
    kind = SHAPES[wanted] if wanted else own
    if wanted is None and own.name == "trec" and (names.output != STDOUT or names.out_format != "auto"):
        kind = SHAPES["list"]
    if output_format(names) == "parquet" and not kind.tables:
        raise UsageError(
            f"--output {names.output}: rows of the shape {kind.name} are lines and no table",
            hint="`--out-format list` writes another shape, or end the name in .jsonl",
        )
    return kind


def refuse_parquet_pipe(names: Names) -> None:
    """Parquet is written back and forth, which a pipe cannot."""
    if names.output == STDOUT:
        raise UsageError("--output -: Parquet cannot be written to a pipe", hint="give the name of a file")
