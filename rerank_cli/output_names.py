"""What the outputs of a run are called, their format, and which names are refused before anything is computed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rerank_cli.errors import OutputError, UsageError
from rerank_cli.formats.compression import SUFFIXES, text_suffix
from rerank_cli.formats.inputs import FORMATS, STDIN, Input

STDOUT = "-"


@dataclass(frozen=True, slots=True)
class Names:
    """What the user calls the outputs of a run; None is the default: beside `output`, or nowhere for stdout."""

    output: str
    errors: str | None = None
    report: str | None = None
    out_format: str = "auto"
    embeddings: str | None = None

    @property
    def files(self) -> dict[str, Path]:
        """The files by what they hold, the output last; stdout is none."""
        beside = "" if self.output == STDOUT else self.output
        paths = {
            "errors": self.errors or (beside and f"{beside}.errors.jsonl"),
            "report": self.report or (beside and f"{beside}.report.json"),
            "embeddings": self.embeddings,
            "output": beside,
        }
        return {kind: Path(path) for kind, path in paths.items() if path}


def output_format(names: Names) -> str:
    """`jsonl` or `parquet`."""
    if names.out_format not in ("auto", "jsonl", "parquet"):
        raise UsageError(f"--out-format {names.out_format}: not known", hint="known are auto, jsonl, parquet")
    if names.out_format != "auto":
        return names.out_format
    found = "jsonl" if names.output == STDOUT else FORMATS.get(text_suffix(names.output))
    if found == "parquet" and Path(names.output.lower()).suffix in SUFFIXES:
        raise UsageError(f"--output {names.output}: Parquet compresses itself", hint="end the name in .parquet")
    if found is None:
        raise UsageError(
            f"--output {names.output}: the suffix tells no format",
            hint="end the name in .jsonl or .parquet, or pass `--out-format`",
        )
    return found


def refuse_parquet_pipe(names: Names) -> None:
    """Parquet is written back and forth, which a pipe cannot."""
    if names.output == STDOUT:
        raise UsageError("--output -: Parquet cannot be written to a pipe", hint="give the name of a file")


def refuse_clashes(names: Names, inputs: Sequence[Input]) -> None:
    """Two outputs in one file, an output that is an input, or one in no folder."""
    taken = [Path(item.path) for item in inputs if item.path != STDIN]
    for kind, path in reversed(names.files.items()):
        if not path.parent.is_dir():
            raise OutputError(f"{path}: cannot be written: its folder does not exist")
        if kind != "output" and path.is_dir():
            raise OutputError(f"{path}: is a folder")
        if path.is_file() and any(other.is_file() and path.samefile(other) for other in taken):
            raise UsageError(f"{path}: would replace an input", hint="write to another file")
    written = [path.resolve() for path in names.files.values() if path.is_file() or not path.exists()]
    twice = next((path for path in written if written.count(path) > 1), None)
    if twice is not None:
        raise UsageError(
            f"{twice}: two outputs in one file", hint="--output, --errors, --report and --embeddings differ"
        )
