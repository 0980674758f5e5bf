"""CSV and TSV as outputs: the user's columns as they were, then ours; what comes out is read back as it is."""

from __future__ import annotations

import csv
import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from rerank_cli.cli import main

ROWS = [
    {"query_id": "q1", "query": 'say "kettle"', "id": "007", "passage": "a, b;\tc", "note": ""},
    {"query_id": "q1", "query": 'say "kettle"', "id": "1.10", "passage": "two\nlines\rand a return", "note": "0"},
    {"query_id": "q2", "query": "it's", "id": "\u6cb8", "passage": "  blanks  ", "note": "x"},
]


@pytest.fixture
def run(tmp_path: Path, tiny_model: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.chdir(tmp_path)

    def rerank(*given: str, code: int = 0, command: str = "rerank-file") -> None:
        assert main([command, *given, "--model", tiny_model, "-q"]) == code

    return rerank


def _table(path: str) -> list[dict[str, str]]:
    with gzip.open(path, "rt", newline="") if path.endswith(".gz") else Path(path).open(newline="") as stream:
        return list(csv.DictReader(stream, delimiter="\t" if ".tsv" in path else ",", strict=True))


def _lines(rows: list[dict[str, Any]]) -> None:
    Path("in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".csv.gz"])
def test_rows_come_back_with_their_own_columns_first(run: Any, suffix: str) -> None:
    name = f"in{suffix[:4]}"
    with Path(name).open("w", newline="") as stream:
        writer = csv.DictWriter(stream, list(ROWS[0]), delimiter="\t" if suffix == ".tsv" else ",")
        writer.writeheader()
        writer.writerows(ROWS)
    run(name, "-o", f"out{suffix}")
    run(name, "-o", "out.jsonl")
    lines = [json.loads(line) for line in Path("out.jsonl").read_text().splitlines()]
    found = _table(f"out{suffix}")
    own = list(ROWS[0])
    assert list(found[0])[: len(own)] == own
    assert sorted([row[name] for name in own] for row in found) == sorted(list(row.values()) for row in ROWS)
    assert [(row["id"], row["rank"], float(row["logit"])) for row in found] == [
        (row["id"], str(row["rank"]), row["logit"]) for row in lines
    ]
    run(f"out{suffix}", "-o", "again.jsonl")  # its own output is an input
    again = [json.loads(line) for line in Path("again.jsonl").read_text().splitlines()]
    assert [(row["passage"], row["logit"]) for row in again] == [(row["passage"], row["logit"]) for row in lines]


def test_a_list_becomes_a_passage_a_row_and_what_is_no_text_is_json(run: Any) -> None:
    passages = [{"id": 1, "text": "x", "tags": ["a"], "n": 1.10}, {"id": 2, "text": "y", "own": None}]
    _lines([{"query_id": "q", "query": "k", "passages": passages}])
    run("in.jsonl", "-o", "out.csv")
    found = {row["passage"]: row for row in _table("out.csv")}
    assert found["x"]["tags"] == '["a"]'
    assert (found["y"]["own"], found["y"]["tags"], found["y"]["query_id"], found["y"]["passage_id"]) == (
        "",
        "",
        "q",
        "2",
    )


def test_pairs_are_written_in_their_order(run: Any) -> None:
    _lines([{"query": "k", "passage": f"p{n}"} for n in range(5)])
    run("in.jsonl", "-o", "out.csv", command="score")
    assert [row["passage"] for row in _table("out.csv")] == [f"p{n}" for n in range(5)]
    run("in.jsonl", "-o", "best.tsv", "--top-n", "2", command="score")
    assert len(_table("best.tsv")) == 2


def test_no_row_is_an_empty_file(run: Any) -> None:
    _lines([{"query": "k", "passages": []}])
    run("in.jsonl", "-o", "out.csv")
    assert Path("out.csv").read_bytes() == b""


def test_lists_are_no_table(run: Any, capsys: pytest.CaptureFixture[str]) -> None:
    _lines([{"query": "k", "passages": ["x"]}])
    run("in.jsonl", "-o", "out.csv", "--out-format", "list", code=2)
    assert "--out-format list: CSV has one passage per row" in capsys.readouterr().err
