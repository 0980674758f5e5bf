"""Fakes of our own seams, and builders of small inputs: `from tests.conftest import FakeEngine`."""

from __future__ import annotations

import tests.own_process  # noqa: F401  (what it does is done at its import)

# isort: split
import csv
import json
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, settings

from rerank_cli.encoding.encoder import Encoded, EncodingProblem
from rerank_cli.engine.protocols import InProcess, Trouble
from rerank_cli.formats.inputs import ReadOptions, open_lists, resolve_inputs
from rerank_cli.formats.parquet_writer import ParquetParts
from rerank_cli.formats.scattered_groups import ordered_by_group
from rerank_cli.formats.shapes import NO_TEXTS, FieldNames, Grouped, Selection, Texts
from rerank_cli.job.options import ErrorLimit, Names
from rerank_cli.job.output import open_destination
from rerank_cli.job.scoring_loop import score_windows
from rerank_cli.job.stop import Stop
from rerank_cli.job.totals import Totals
from rerank_cli.job.windows import Windows
from rerank_cli.job.write_window import WindowWriter
from rerank_cli.records import (
    NO_LIMITS,
    CandidateList,
    Counts,
    EncodedPair,
    JsonRow,
    Limits,
    RankedList,
    RankedPassage,
    RowError,
    Window,
)
from tests.served import served_program
from tests.stores import Bucket, azurite, new_bucket, only_these, s3_server

# Hundreds of processes are started, and each would compile the package anew: half a second.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

# How long an example takes says more about the machine's other work than about the code.
settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
LONG = os.environ.get("RERANK_TORTURE") == "long"
settings.register_profile("long", parent=settings.get_profile("untimed"), max_examples=10_000)
settings.load_profile("long" if LONG else "untimed")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--model-dir",
        action="append",
        default=[],
        metavar="DIR",
        help="weights of a published Nemotron reranker: its card's logits are compared (test_published_logits.py)",
    )


TRACED = (Path(__file__).parent / "unit", Path(__file__).parent / "cli")
"""Coverage is of these. Tracing takes a third of a test's time, and the others are there for what they compare."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Property tests are not traced: a hundred examples run the lines that one runs, and tracing doubles their time."""
    for item in items:
        if getattr(getattr(item, "obj", None), "is_hypothesis_test", False) or not any(
            item.path.is_relative_to(folder) for folder in TRACED
        ):
            item.add_marker(pytest.mark.no_cover)


TINY_CHECKPOINT = Path(__file__).parent / "parity" / "bert-ce-open" / "checkpoint"
"""A real BERT cross-encoder of 0.4 MB with random weights."""


class FakeEncoder:
    """Words for tokens. A passage with the word `unscorable` has a problem; one over `max_tokens` is cut at its end.

    chunk_tokens: passages are cut in pieces of so many words instead. encoded: every pair that was asked for.
    """

    def __init__(self, *, max_tokens: int = 1000, chunk_tokens: int | None = None) -> None:
        self._ids = {"nan": 0, "inf": 1, "-inf": 2}
        self._max_tokens = max_tokens
        self._chunk_tokens = chunk_tokens
        self.encoded: list[tuple[str, str]] = []

    def encode(self, pairs: Sequence[tuple[str, str]], limits: Limits = NO_LIMITS) -> list[Encoded]:
        self.encoded += pairs
        return [self._encode(*pair) for pair in pairs]

    def _encode(self, query: str, passage: str) -> Encoded:
        first, second = query.split(), passage.split()
        if "unscorable" in second:
            return EncodingProblem("too-long", "the passage cannot be scored")
        if self._chunk_tokens:
            starts = range(0, max(1, len(second)), self._chunk_tokens)
            return tuple(self._pair(first, second[start : start + self._chunk_tokens]) for start in starts)
        return (self._pair(first, second),)

    def _pair(self, first: list[str], second: list[str]) -> EncodedPair:
        ids = [self._ids.setdefault(word, len(self._ids)) for word in first + second]
        kept = np.array(ids[: max(len(first), self._max_tokens)], dtype=np.int32)
        return EncodedPair(input_ids=kept, second_start=len(first), tokens=len(ids))


class FakeEngine(InProcess):
    """The logit is the number of words that query and passage share.

    A passage with the word `nan`, `inf` or `-inf` has that logit. calls: how many pairs came with each call.
    """

    def __init__(self) -> None:
        self.trouble = Trouble()
        self.calls: list[int] = []
        self.closed = False

    def score(
        self, pairs: Sequence[EncodedPair], *, on_batch: Callable[[int, int], None] | None = None
    ) -> npt.NDArray[np.float32]:
        self.calls.append(len(pairs))
        if on_batch:
            on_batch(len(pairs), sum(len(pair.input_ids) for pair in pairs))
        return np.array([self._logit(pair) for pair in pairs], dtype=np.float32)

    @staticmethod
    def _logit(pair: EncodedPair) -> float:
        ids = pair.input_ids.tolist()
        query, passage = set(ids[: pair.second_start]), set(ids[pair.second_start :])
        special = {0: np.nan, 1: np.inf, 2: -np.inf}
        return next((special[number] for number in special if number in passage), float(len(query & passage)))

    def close(self) -> None:
        self.closed = True


def json_row(fields: Mapping[str, Any], number: int = 1, file: str = "in.jsonl") -> JsonRow:
    """A row as the JSONL reader gives it."""
    return JsonRow(file, number, fields, json.dumps(fields).encode())


def json_rows(*rows: Mapping[str, Any]) -> list[JsonRow]:
    """Rows numbered from 1."""
    return [json_row(fields, number) for number, fields in enumerate(rows, 1)]


def ranked_of(source: CandidateList, *logits: float) -> RankedList:
    """`source` ranked by these logits, one for each of its passages."""
    order = sorted(range(len(logits)), key=lambda index: (-logits[index], index))
    ranking = (
        RankedPassage(rank, source.place_of(index), logits[index], 10, 10) for rank, index in enumerate(order, 1)
    )
    return RankedList(source, tuple(ranking))


def write_lines(path: Path, rows: Iterable[Mapping[str, Any] | bytes]) -> str:
    """A JSONL file of objects and of lines as they stand; returns its path."""
    lines = (row if isinstance(row, bytes) else json.dumps(row, ensure_ascii=False).encode() for row in rows)
    path.write_bytes(b"".join(line + b"\n" for line in lines))
    return str(path)


def read_lines(path: Path | str) -> list[dict[str, Any]]:
    """The objects of a JSONL file."""
    return [json.loads(line) for line in Path(path).read_bytes().splitlines()]


def write_table(path: Path, rows: Sequence[Mapping[str, Any]] | pa.Table, **options: Any) -> str:
    """A Parquet file of these rows; returns its path."""
    table = rows if isinstance(rows, pa.Table) else pa.Table.from_pylist([dict(row) for row in rows])
    pq.write_table(table, path, **options)
    return str(path)


class TableFile:
    """Tables and rows to a Parquet file by way of the parts that a job keeps."""

    def __init__(self, out: Path, *, passages: str | None = None, **options: Any) -> None:
        self._out = out
        self._passages = passages
        self._held = bytearray()
        self.parts = ParquetParts("out.parquet", lambda: [pa.BufferReader(bytes(self._held))], **options)

    def write_table(self, table: pa.Table) -> None:
        self._held += self.parts.of_table(table)

    def write_rows(self, rows: Sequence[dict[str, Any]]) -> None:
        self._held += self.parts.of_rows(rows, passages=self._passages)

    def close(self) -> None:
        with self._out.open("wb") as file:
            self.parts.write_file(file)


def score_all(
    items: Iterable[Grouped],
    *,
    sink: Any,
    on_error: Callable[[RowError], object],
    window_pairs: int = 4,
    encoder: Any = None,
    engine: Any = None,
    selection: Selection | None = None,
    error_limit: ErrorLimit | None = None,
    on_ranked: Callable[[Sequence[RankedList]], object] | None = None,
    on_window: Callable[[Window, Counts], object] | None = None,
    **options: Any,
) -> Totals:
    """The loop of a run in memory, as `job/run.py` has it. on_ranked: told of complete rankings."""
    totals, limit = Totals(), error_limit or ErrorLimit()
    written: Any = SimpleNamespace(sink=sink, errors=SimpleNamespace(write=on_error))
    output = WindowWriter(written, selection or Selection(), totals.counts)
    scoring = score_windows(
        Windows(items, max_pairs=window_pairs), encoder or FakeEncoder(), engine or FakeEngine(),
        timing=totals.timing, **options,
    )  # fmt: skip
    with closing(scoring), options.get("stop", Stop()).held():
        for window in scoring:
            totals.add(window)
            if on_ranked:
                on_ranked(window.ranked)
            began = time.perf_counter()
            output.write(window)
            totals.timing.write += time.perf_counter() - began
            if on_window:
                on_window(window.encoded.window, totals.counts)
            limit.check(totals.counts, last=False)
    limit.check(totals.counts, last=True)
    return totals


@dataclass
class FileRun:
    """What a run from files to files left."""

    counts: Counts
    out: Path
    rows: list[dict[str, Any]] = field(default_factory=list)
    errors: list[dict[str, Any]] = field(default_factory=list)


def run_files(
    inputs: Sequence[str],
    out: Path,
    *,
    selection: Selection | None = None,
    names: FieldNames | None = None,
    shape: str = "auto",
    read: ReadOptions | None = None,
    window_pairs: int = 4,
    encoder: FakeEncoder | None = None,
    overwrite: bool = False,
    texts: Texts = NO_TEXTS,
) -> FileRun:
    """The way of `rerank-file` from real files to real files, with the fakes in place of a model."""
    selection, read = selection or Selection(), read or ReadOptions()
    resolved = resolve_inputs(inputs)
    found, items = open_lists(resolved, names or FieldNames(), read, shape, texts)
    items = ordered_by_group(resolved, found, items, read)
    with open_destination(Names(str(out)), found, selection, inputs=resolved, overwrite=overwrite) as destination:
        totals = score_all(
            found.group(items),
            window_pairs=window_pairs,
            encoder=encoder,
            sink=destination.sink,
            on_error=destination.errors.write,
            selection=selection,
            on_window=lambda window, counts: destination.end_window(window.number, {}, None, {}),
        )
        destination.commit({}, Stop())
        errors = destination.errors_file
    rows = _rows_of(out)
    return FileRun(totals.counts, out, rows, read_lines(errors) if errors else [])


def _rows_of(out: Path) -> list[dict[str, Any]]:
    if out.suffix == ".parquet":
        return pq.read_table(out).to_pylist()
    if out.suffix in (".csv", ".tsv"):
        with out.open(newline="", encoding="utf-8") as stream:
            return list(csv.DictReader(stream, delimiter="," if out.suffix == ".csv" else "\t", strict=True))
    if out.suffix == ".trec":
        return [{"line": line} for line in out.read_text(encoding="utf-8").splitlines()]
    return read_lines(out)


def told(error: RowError | dict[str, Any]) -> tuple[int, str]:
    """Row number and code of an error, from memory or from the errors file."""
    return (error.row, error.code) if isinstance(error, RowError) else (error["row"], error["error"]["code"])


@pytest.fixture(scope="session")
def served() -> Iterator[Path]:
    """A folder for PATH with a `rerank-cli` that has everything loaded (`tests/served.py`)."""
    with served_program() as folder:
        yield folder


@pytest.fixture(scope="session")
def s3_endpoint() -> Iterator[str]:
    pytest.importorskip("moto", reason="the extra `stores`")
    pytest.importorskip("obstore", reason="the extra `cloud`")
    with s3_server() as found:
        yield found


@pytest.fixture(scope="session")
def azure() -> Iterator[str]:
    """The endpoint of a server of Azure's store, where one is installed."""
    program = shutil.which("azurite-blob")
    if program is None:
        pytest.skip("Azurite is not installed")
    with azurite(program) as found:
        yield found


@pytest.fixture
def bucket(s3_endpoint: str, monkeypatch: pytest.MonkeyPatch) -> Bucket:
    """An empty bucket of a real server, which this process may use."""
    made = new_bucket(s3_endpoint)
    only_these(monkeypatch, made.variables)
    return made
