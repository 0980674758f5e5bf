from __future__ import annotations

import gzip
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rerank_cli.errors import OutputError, RerankError, UsageError
from rerank_cli.formats.inputs import resolve_inputs
from rerank_cli.formats.shapes import FieldNames, PairShape, Selection
from rerank_cli.job.options import Names
from rerank_cli.job.output import Destination, FileDestination, StdoutDestination, open_destination
from rerank_cli.job.stop import Stop
from rerank_cli.records import CandidateList, RankedList, RowError
from tests.conftest import json_row, ranked_of, read_lines, write_lines, write_table

ROOT = Path(__file__).parents[3]
SHAPE = PairShape(FieldNames())
BAD = RowError("in.jsonl", 3, None, "bad-json", "not JSON", b"{")


def row(text: str = "a") -> RankedList:
    (found,) = SHAPE.group([json_row({"query": "q", "passage": text})])
    assert isinstance(found, CandidateList)
    return ranked_of(found, 1.0)


def opened(
    output: Path | str, *inputs: str, errors: Path | None = None, report: Path | None = None, **options: Any
) -> Destination:
    names = Names(
        str(output),
        errors=str(errors) if errors else None,
        report=str(report) if report else None,
        out_format=options.pop("out_format", "auto"),
    )
    resolved = resolve_inputs(inputs)
    return open_destination(names, SHAPE, Selection(), inputs=resolved, overwrite=options.pop("overwrite", False))


def run(destination: Destination, *, bad: bool = False) -> str | None:
    with destination:
        destination.sink.write([row()])
        if bad:
            destination.errors.write(BAD)
        destination.end_window(0, {}, None, {})
        destination.commit({"schema": "x"}, Stop())
    return destination.errors_file


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# Files


def test_all_files_appear_together_with_the_commit(tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    with opened(out) as destination:
        destination.sink.write([row()])
        destination.errors.write(BAD)
        destination.end_window(0, {}, None, {})
        assert names(tmp_path) == ["out.jsonl.job"]
        destination.commit({"schema": "x"}, Stop())
    assert destination.errors_file == f"{out}.errors.jsonl"
    assert names(tmp_path) == ["out.jsonl", "out.jsonl.errors.jsonl", "out.jsonl.report.json"]
    assert read_lines(out) == [{"query": "q", "passage": "a", "logit": 1.0}]
    assert [error["row"] for error in read_lines(f"{out}.errors.jsonl")] == [3]
    assert json.loads((tmp_path / "out.jsonl.report.json").read_text()) == {
        "schema": "x",
        "output": {
            "path": str(out),
            "sha256": hashlib.sha256(out.read_bytes()).hexdigest(),
            "bytes": out.stat().st_size,
            "modified_ns": out.stat().st_mtime_ns,
        },
    }


@pytest.mark.parametrize("name", ["out.jsonl", "out.jsonl.gz", "out.jsonl.zst", "out.parquet"])
@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_run_that_fails_leaves_an_older_output_as_it_was(
    tmp_path: Path, name: str, error: type[BaseException]
) -> None:
    out = tmp_path / name
    out.write_text("older")
    (tmp_path / f"{name}.errors.jsonl").write_text("older errors")
    with pytest.raises(error), opened(out, overwrite=True) as destination:
        destination.sink.write([row()])
        destination.errors.write(BAD)
        destination.end_window(0, {}, None, {})
        raise error
    assert names(tmp_path) == [name, f"{name}.errors.jsonl"]
    assert (out.read_text(), (tmp_path / f"{name}.errors.jsonl").read_text()) == ("older", "older errors")


def test_errors_of_an_earlier_run_go_when_there_are_none_now(tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    assert run(opened(out), bad=True) == f"{out}.errors.jsonl"
    assert run(opened(out, overwrite=True)) is None
    assert names(tmp_path) == ["out.jsonl", "out.jsonl.report.json"]


def test_errors_and_report_go_where_the_user_says(tmp_path: Path) -> None:
    (tmp_path / "logs").mkdir()
    errors, report = tmp_path / "logs" / "bad", tmp_path / "logs" / "report"
    assert run(opened(tmp_path / "out.jsonl", errors=errors, report=report), bad=True) == str(errors)
    assert (names(tmp_path), names(tmp_path / "logs")) == (["logs", "out.jsonl"], ["bad", "report"])


@pytest.mark.parametrize("bad", [True, False])
def test_a_device_can_take_the_errors_and_stays_a_device(tmp_path: Path, bad: bool) -> None:
    null = tmp_path / "null"
    null.symlink_to("/dev/null")  # not /dev/null itself: a fault must not cost the machine its own
    run(opened(tmp_path / "out.jsonl", errors=null, report=null), bad=bad)
    assert null.is_symlink()
    assert Path("/dev/null").is_char_device()
    assert names(tmp_path) == ["null", "out.jsonl"]


@pytest.mark.parametrize(
    ("name", "read"),
    [
        ("out.jsonl", lambda path: path.read_bytes()),
        ("out.ndjson.gz", lambda path: gzip.decompress(path.read_bytes())),
        ("out.jsonl.zst", lambda path: pa.input_stream(str(path), compression="zstd").read()),
    ],
)
def test_the_suffix_tells_the_compression(tmp_path: Path, name: str, read: Any) -> None:
    run(opened(tmp_path / name))
    assert read(tmp_path / name) == b'{"query": "q", "passage": "a", "logit": 1.0}\n'


def test_a_table_is_written_by_suffix_or_by_option(tmp_path: Path) -> None:
    run(opened(tmp_path / "out.parquet"))
    run(opened(tmp_path / "out", out_format="parquet"))
    run(opened(tmp_path / "other.parquet", out_format="jsonl"))
    assert pq.read_table(tmp_path / "out.parquet").num_rows == pq.read_table(tmp_path / "out").num_rows == 1
    assert len(read_lines(tmp_path / "other.parquet")) == 1


def test_a_run_without_rows_leaves_a_valid_table_with_the_columns_of_its_input(tmp_path: Path) -> None:
    source = write_table(tmp_path / "in.parquet", [{"query": "q", "passage": "a", "n": 1}])
    lines = write_lines(tmp_path / "in.jsonl", [])
    with opened(tmp_path / "out.parquet", lines, source) as destination:
        destination.commit({}, Stop())
    assert pq.read_table(tmp_path / "out.parquet").schema.names[:4] == ["query", "passage", "n", "logit"]


# What is refused


def refusal(tmp_path: Path, output: Path | str, *inputs: str, **options: Any) -> RerankError:
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(RerankError) as caught:
        opened(output, *inputs, **options)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    return caught.value


@pytest.mark.parametrize("link", ["same", "symlink", "hard link", "dots"])
@pytest.mark.parametrize("which", ["output", "errors", "report"])
def test_an_input_is_never_an_output(tmp_path: Path, link: str, which: str) -> None:
    source = Path(write_lines(tmp_path / "in.jsonl", [{"query": "q", "passage": "a"}]))
    other = tmp_path / "other.jsonl"
    if link == "symlink":
        other.symlink_to(source)
    elif link == "hard link":
        os.link(source, other)
    else:
        (tmp_path / "d").mkdir()
        other = source if link == "same" else tmp_path / "d" / ".." / "in.jsonl"
    outputs: dict[str, Any] = {"errors": None, "report": None, "output": tmp_path / "out.jsonl", which: other}
    error = refusal(tmp_path, outputs.pop("output"), str(source), overwrite=True, **outputs)
    assert isinstance(error, UsageError)
    assert error.message == f"{other}: would replace an input"


def test_the_errors_file_of_the_last_run_is_no_input_of_the_next(tmp_path: Path) -> None:
    source = write_lines(tmp_path / "out.jsonl.errors.jsonl", [{"query": "q", "passage": "a"}])
    assert isinstance(refusal(tmp_path, tmp_path / "out.jsonl", source), UsageError)


def test_to_stdout_too_an_input_is_not_replaced(tmp_path: Path) -> None:
    source = write_lines(tmp_path / "in.jsonl", [{"query": "q", "passage": "a"}])
    assert isinstance(refusal(tmp_path, "-", source, errors=Path(source)), UsageError)


@pytest.mark.parametrize(
    "options",
    [
        {"errors": "out.jsonl"},
        {"report": "here/out.jsonl"},
        {"report": "d/../out.jsonl.errors.jsonl"},
        {"errors": "x", "report": "x"},
        {"report": "out.jsonl.errors.jsonl"},
    ],
)
def test_two_outputs_are_never_one_file(tmp_path: Path, options: dict[str, str]) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "here").symlink_to(tmp_path)
    paths = {name: tmp_path / path for name, path in options.items()}
    assert "two outputs in one file" in refusal(tmp_path, tmp_path / "out.jsonl", **paths).message


def test_of_files_that_exist_the_output_is_named(tmp_path: Path) -> None:
    out, report, errors = (tmp_path / f"o.jsonl{more}" for more in ("", ".report.json", ".errors.jsonl"))
    for path in (out, report, errors):
        path.write_text("mine")
    with pytest.raises(OutputError, match=r"/o\.jsonl: exists"):
        opened(out)
    out.unlink()
    with pytest.raises(OutputError, match=r"/o\.jsonl\.report\.json: exists"):
        opened(out)


@pytest.mark.parametrize("which", ["output", "errors", "report"])
def test_a_missing_folder_is_refused_before_anything_is_computed(tmp_path: Path, which: str) -> None:
    missing = tmp_path / "no" / "file.jsonl"
    outputs: dict[str, Any] = {"errors": None, "report": None, "output": tmp_path / "out.jsonl", which: missing}
    error = refusal(tmp_path, outputs.pop("output"), **outputs)
    assert isinstance(error, OutputError)
    assert error.message == f"{missing}: cannot be written: its folder does not exist"
    assert error.exit_code == 4


@pytest.mark.parametrize("which", ["output", "errors", "report"])
def test_a_folder_is_no_output(tmp_path: Path, which: str) -> None:
    folder = tmp_path / "out.jsonl"
    folder.mkdir()
    outputs: dict[str, Any] = {"errors": None, "report": None, "output": tmp_path / "x.jsonl", which: folder}
    error = refusal(tmp_path, outputs.pop("output"), overwrite=True, **outputs)
    assert error.message == f"{folder}: is a folder"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write into any folder")
def test_a_folder_without_permission_is_an_output_error(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(OutputError, match=r"out\.jsonl: cannot be written: Permission denied"):
            run(opened(tmp_path / "out.jsonl"))
    finally:
        tmp_path.chmod(0o700)


@pytest.mark.parametrize(
    ("output", "out_format", "message"),
    [
        ("out.xlsx", "auto", "the suffix tells no format"),
        ("out", "auto", "the suffix tells no format"),
        ("out.gz", "auto", "the suffix tells no format"),
        ("out.jsonl", "xlsx", "--out-format xlsx: not known"),
        ("out.parquet.gz", "auto", "Parquet compresses itself"),
    ],
)
def test_a_format_that_is_not_known_is_refused(tmp_path: Path, output: str, out_format: str, message: str) -> None:
    error = refusal(tmp_path, tmp_path / output, out_format=out_format)
    assert isinstance(error, UsageError)
    assert message in error.message


@pytest.mark.parametrize(("out_format", "shown"), [("parquet", "Parquet"), ("csv", "CSV"), ("tsv", "TSV")])
def test_a_pipe_takes_no_table(out_format: str, shown: str) -> None:
    with pytest.raises(UsageError, match=f"--output -: {shown} cannot be written to a pipe"):
        opened("-", out_format=out_format)


def test_files_and_stdout_have_their_destinations(tmp_path: Path) -> None:
    assert isinstance(opened(tmp_path / "out.jsonl"), FileDestination)
    assert isinstance(opened("-"), StdoutDestination)
    assert Names("-").files == {}
    assert list(Names("out.jsonl").files) == ["errors", "report", "output"]


# Stdout


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder for temporary files."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))  # its documented setting
    return folder


def test_rows_go_to_stdout_and_nothing_else(temporary: Path, capsysbinary: pytest.CaptureFixture[bytes]) -> None:
    assert run(opened("-"), bad=True) is None
    assert json.loads(capsysbinary.readouterr().out) == {"query": "q", "passage": "a", "logit": 1.0}
    assert names(temporary) == []


@pytest.mark.usefixtures("capsysbinary")
def test_with_stdout_the_files_that_are_named_are_written(tmp_path: Path) -> None:
    errors, report = tmp_path / "errors", tmp_path / "report"
    assert run(opened("-", errors=errors, report=report), bad=True) == str(errors)
    assert [error["row"] for error in read_lines(errors)] == [3]
    assert json.loads(report.read_text()) == {"schema": "x"}
    with pytest.raises(OutputError, match="errors: exists"):
        opened("-", errors=errors)
    assert run(opened("-", errors=errors, overwrite=True)) is None
    assert names(tmp_path) == ["report"]


@pytest.mark.usefixtures("capsysbinary")
def test_with_stdout_a_file_that_cannot_be_written_is_an_output_error() -> None:
    with pytest.raises(OutputError, match=r"^/dev/full: cannot be written: No space left on device$"):
        run(opened("-", errors=Path("/dev/full")), bad=True)


def test_a_run_to_stdout_that_fails_leaves_no_temporary_file(
    tmp_path: Path, temporary: Path, capsysbinary: pytest.CaptureFixture[bytes]
) -> None:
    with pytest.raises(KeyboardInterrupt), opened("-", errors=tmp_path / "errors") as destination:
        destination.sink.write([row()])
        destination.errors.write(BAD)
        raise KeyboardInterrupt
    assert len(capsysbinary.readouterr().out.splitlines()) == 1
    assert (names(tmp_path), names(temporary)) == (["temporary"], [])


# A full disk

PROGRAM = """
import resource, signal, sys
from rerank_cli.job.options import Names
from rerank_cli.job.output import open_destination
from rerank_cli.formats.shapes import FieldNames, PairShape, Selection
from rerank_cli.records import JsonRow, RankedList, RankedPassage
from rerank_cli.job.stop import Stop
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000))
shape = PairShape(FieldNames())
with open_destination(Names(sys.argv[1]), shape, Selection(), inputs=[], overwrite=True) as destination:
    for place in range(2000):
        row = JsonRow("in.jsonl", place, {"query": str(place * 7919 % 10007), "passage": "a"}, b"")
        (source,) = shape.group([row])
        destination.sink.write([RankedList(source, (RankedPassage(1, 0, place / 3, 1, 1),))])
        if place % 50 == 0:
            destination.end_window(place, {}, None, {})
    destination.commit({}, Stop())
"""


@pytest.mark.parametrize("name", ["out.jsonl", "out.jsonl.gz", "out.jsonl.zst", "out.parquet"])
def test_a_disk_that_is_full_leaves_an_older_output_and_nothing_else(tmp_path: Path, name: str) -> None:
    out = tmp_path / name
    out.write_text("older")
    # -B: Python would cache a module that it imports now, cut off at the limit.
    command = [sys.executable, "-B", "-W", "error", "-c", PROGRAM, str(out)]
    done = subprocess.run(command, stderr=subprocess.PIPE, cwd=ROOT, check=False)
    assert done.returncode == 1
    last = done.stderr.decode().splitlines()[-1]
    assert last == f"rerank_cli.errors.OutputError: {out}: cannot be written: File too large"
    assert b"Exception ignored" not in done.stderr
    assert names(tmp_path) == [name]
    assert out.read_text() == "older"
