"""Tab-separated rows: through the reader, and through the program beside the same rows as JSON lines."""

from __future__ import annotations

import gzip
import io
import json
from pathlib import Path

import pytest

from rerank_cli.cli import main
from rerank_cli.errors import InputError
from rerank_cli.formats.delimited import read_rows
from rerank_cli.records import Gap, JsonRow, RowError
from tests.conftest import TINY_CHECKPOINT, read_lines, run_files


def read(data: bytes) -> list[object]:
    return list(read_rows(io.BytesIO(data), file="in.tsv", kind="tsv"))


def test_rows_have_the_names_of_the_header_and_the_numbers_of_their_lines() -> None:
    rows = read('\ufeffquery\tpassage\r\nwhat\ta "quote" and \\t\r\n\r\n\tempty query\n'.encode())
    assert rows == [
        JsonRow("in.tsv", 2, {"query": "what", "passage": 'a "quote" and \\t'}, rows[0].raw),
        Gap.BLANK,
        JsonRow("in.tsv", 4, {"query": "", "passage": "empty query"}, rows[2].raw),
    ]
    assert json.loads(rows[0].raw) == rows[0].fields


def test_a_row_with_other_columns_costs_itself() -> None:
    rows = read(b"query\tpassage\na\tb\na\na\tb\tc\n\xff\tb\na\tb\n")
    bad = [row for row in rows if isinstance(row, RowError)]
    assert [(row.row, row.code, row.raw) for row in bad] == [
        (3, "wrong-columns", b"a"), (4, "wrong-columns", b"a\tb\tc"), (5, "bad-utf8", b"\xff\tb")
    ]  # fmt: skip
    assert bad[0].message == "1 cells, and the header names 2 columns"
    assert len(rows) == 5


@pytest.mark.parametrize(
    ("header", "told"),
    [
        (b"query\tquery\n", "in.tsv:1: the header names `query` twice"),
        (b"query\t\n", "in.tsv:1: the header has no name for column 2 of 2"),
        (b"\xff\n", "in.tsv:1: the header cannot be read"),
    ],
)
def test_a_header_that_names_no_columns_is_refused(header: bytes, told: str) -> None:
    with pytest.raises(InputError, match=told):
        read(header + b"a\tb\n")


def test_nothing_has_no_rows() -> None:
    assert read(b"") == read(b"query\tpassage\n") == []


@pytest.mark.parametrize("scattered", [False, True])
def test_the_program_ranks_them_as_the_same_rows_in_json(tmp_path: Path, scattered: bool) -> None:
    groups = [n % 3 if scattered else n // 3 for n in range(9)]
    rows = [(f"q{group}", f"two roads {group}", f"wood {n}") for n, group in enumerate(groups)]
    header = ("query_id", "query", "passage")
    text = "\n".join("\t".join(row) for row in [header, *rows]) + "\n"
    (tmp_path / "in.tsv.gz").write_bytes(gzip.compress(text.encode()))
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(dict(zip(header, row, strict=True))) + "\n" for row in rows))
    outs = []
    for name in ("in.tsv.gz", "in.jsonl"):
        outs.append(tmp_path / f"{name}.out.jsonl")
        options = ["-o", str(outs[-1]), "--model", str(TINY_CHECKPOINT), "-q"]
        assert main(["rerank-file", str(tmp_path / name), *options]) == 0
    assert read_lines(outs[0]) == read_lines(outs[1])
    assert len(read_lines(outs[0])) == 9


def test_a_table_comes_back_as_a_table_in_the_new_order(tmp_path: Path) -> None:
    (tmp_path / "in.tsv").write_text("query\tpassage\tmine\na\tx\t007\na\ty\t\n")
    options = ["-o", str(tmp_path / "out.tsv"), "--model", str(TINY_CHECKPOINT), "-q"]
    assert main(["rerank-file", str(tmp_path / "in.tsv"), *options]) == 0
    header, *rows = ((tmp_path / "out.tsv").read_text()).splitlines()
    assert header.split("\t")[:3] == ["query", "passage", "mine"]
    assert sorted(row.split("\t")[:3] for row in rows) == [["a", "x", "007"], ["a", "y", ""]]
    scores = [float(row.split("\t")[header.split("\t").index("logit")]) for row in rows]
    assert scores == sorted(scores, reverse=True)


def test_a_line_end_in_a_cell_comes_back_as_it_was(tmp_path: Path) -> None:
    data = b'query,passage\r\ntea,"one\r\ntwo\nthree"\r\n'
    (row,) = read_rows(io.BytesIO(data), file="in.csv")
    assert isinstance(row, JsonRow)
    assert row.fields["passage"] == "one\r\ntwo\nthree"
    (tmp_path / "in.csv").write_bytes(data)
    run = run_files([str(tmp_path / "in.csv")], tmp_path / "out.csv")
    assert run.rows[0]["passage"] == "one\r\ntwo\nthree"
