"""An embedding model in the commands: `cosine` in place of `logit`, and the file of vectors."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from rerank_cli.cli import main
from tests.conftest import read_lines, write_lines, write_table
from tests.unit.images import picture, saved

MODEL = str(Path(__file__).parents[1] / "parity" / "nemotron-vl-embed-open" / "checkpoint")
CROSS_ENCODER = str(Path(__file__).parents[1] / "parity" / "bert-ce-open" / "checkpoint")
ROWS = [
    {"query": "which way?", "passage": "two roads diverged", "id": 1},
    {"query": "which way?", "passage": "a yellow wood", "id": 2},
    {"query": "how many", "passage": "two roads diverged", "id": 3},
]


@pytest.fixture
def rows(tmp_path: Path) -> str:
    return write_lines(tmp_path / "rows.jsonl", ROWS)


def score(*arguments: str) -> int:
    return main(["score", *arguments, "--model", MODEL, "-q"])


def test_score_writes_the_cosine_and_no_logit(rows, tmp_path):
    out = tmp_path / "out.jsonl"
    assert score(rows, "-o", str(out)) == 0
    found = read_lines(out)
    assert [list(row) for row in found] == [["query", "passage", "id", "cosine"]] * 3
    assert all(-1 <= row["cosine"] <= 1 for row in found)
    assert len({row["cosine"] for row in found}) == 3


def test_rerank_file_ranks_by_the_cosine(tmp_path):
    source = write_lines(tmp_path / "lists.jsonl", [{"query": "way", "passages": ["a", "two roads", "wood"]}])
    out = tmp_path / "out.jsonl"
    assert main(["rerank-file", source, "-o", str(out), "--model", MODEL, "-q"]) == 0
    (row,) = read_lines(out)
    cosines = [passage["cosine"] for passage in row["passages"]]
    assert cosines == sorted(cosines, reverse=True)
    assert [sorted(passage) for passage in row["passages"]] == [["cosine", "index", "rank", "text"]] * 3


@pytest.mark.parametrize("from_table", [False, True], ids=["jsonl", "parquet"])
def test_parquet_has_the_column_too(rows, tmp_path, from_table):
    source = write_table(tmp_path / "rows.parquet", ROWS) if from_table else rows
    out = tmp_path / "out.parquet"
    assert score(source, "-o", str(out)) == 0
    table = pq.read_table(out)
    assert "logit" not in table.column_names
    assert str(table.schema.field("cosine").type) == "float"
    assert table.column("cosine").null_count == 0


def test_a_logit_of_another_run_stays_beside_the_cosine(tmp_path):
    earlier = {**ROWS[0], "logit": 3.5, "prob": 0.97, "truncated": True, "tokens": 9, "kept_tokens": 8}
    out = tmp_path / "out.jsonl"
    assert score(write_lines(tmp_path / "rows.jsonl", [earlier]), "-o", str(out)) == 0
    (row,) = read_lines(out)
    assert (row["logit"], row["prob"]) == (3.5, 0.97)
    assert "cosine" in row
    # The names of a cut are ours in every row, so the user's stay under others.
    assert (row["input_truncated"], row["input_tokens"], row["input_kept_tokens"]) == (True, 9, 8)


def test_the_report_tells_how_many_texts_were_embedded(rows, tmp_path):
    out = tmp_path / "out.jsonl"
    assert score(rows, "-o", str(out)) == 0
    report = json.loads((tmp_path / "out.jsonl.report.json").read_text())
    assert (report["embedded"]["texts"], report["embedded"]["dimensions"]) == (4, 64)
    assert report["model"]["template"].startswith("query: {query} | passage: {passage} | ")


def test_prob_is_refused(rows, capsys):
    assert score(rows, "--prob") == 2
    assert "gives a cosine, not the logit of a probability" in capsys.readouterr().err


def test_the_threshold_is_one_of_the_cosine(rows, tmp_path):
    every, some = tmp_path / "every.jsonl", tmp_path / "some.jsonl"
    assert score(rows, "-o", str(every)) == 0
    cosines = sorted(row["cosine"] for row in read_lines(every))
    assert score(rows, "-o", str(some), "--threshold", str(cosines[1])) == 0
    assert sorted(row["cosine"] for row in read_lines(some)) == cosines[1:]


# --- several engines


def test_two_engines_give_the_bytes_of_one_and_no_warning(tmp_path, capsys):
    texts = [{"query": f"which way {n % 7}?", "passage": f"two roads {n} diverged " * (1 + n % 5)} for n in range(60)]
    source, found = write_lines(tmp_path / "rows.jsonl", texts), []
    for engines in ("1", "2"):
        out, vectors = tmp_path / f"{engines}.jsonl", tmp_path / f"{engines}.parquet"
        assert score(source, "-o", str(out), "--embeddings", str(vectors), "--engines", engines) == 0
        assert "warning" not in capsys.readouterr().err
        found.append((out.read_bytes(), vectors.read_bytes()))
        report = json.loads(Path(f"{out}.report.json").read_text())
        assert ("2 processes" in report["plan"]["kernels"]) == (engines == "2")
    assert found[0] == found[1]


def test_two_engines_share_the_pages_out(tmp_path):
    pages = [
        {"query": "which?", "passage": "", "image": saved(tmp_path, f"{n}.png", picture(60 + n, 40))} for n in range(5)
    ]
    source, found = write_lines(tmp_path / "rows.jsonl", pages), []
    for engines in ("1", "2"):
        out = tmp_path / f"{engines}.jsonl"
        options = ("--engines", engines, "--max-input-tiles", "1", "--image-root", str(tmp_path))
        assert score(source, "-o", str(out), *options) == 0
        found.append([row["cosine"] for row in read_lines(out)])
    assert found[1] == pytest.approx(found[0], abs=1e-5)
    assert len(set(found[0])) == 5


# --- --embeddings


@pytest.mark.parametrize("to_file", [True, False], ids=["file", "stdout"])
def test_every_distinct_text_has_a_vector_in_the_file(rows, tmp_path, capfd, to_file):
    vectors = tmp_path / "vectors.parquet"
    assert score(rows, "-o", str(tmp_path / "out.jsonl") if to_file else "-", "--embeddings", str(vectors)) == 0
    capfd.readouterr()
    table = pq.read_table(vectors).to_pylist()
    assert [(row["kind"], row["text"]) for row in table] == [
        ("query", "which way?"),
        ("passage", "two roads diverged"),
        ("passage", "a yellow wood"),
        ("query", "how many"),
    ]
    assert {len(row["vector"]) for row in table} == {64}
    assert sorted(path.name for path in tmp_path.iterdir() if "out.jsonl" not in path.name) == [
        "rows.jsonl",
        "vectors.parquet",
    ]


def test_a_text_that_is_query_and_passage_has_two_vectors(tmp_path):
    vectors = tmp_path / "vectors.parquet"
    source = write_lines(tmp_path / "rows.jsonl", [{"query": "same", "passage": "same"}])
    assert score(source, "-o", str(tmp_path / "out.jsonl"), "--embeddings", str(vectors)) == 0
    first, second = pq.read_table(vectors).to_pylist()
    assert (first["kind"], second["kind"]) == ("query", "passage")
    assert first["vector"] != second["vector"]


def test_vectors_that_exist_are_replaced_only_when_that_is_asked_for(rows, tmp_path, capsys):
    vectors, out = tmp_path / "vectors.parquet", str(tmp_path / "out.jsonl")
    vectors.write_text("precious")
    assert score(rows, "-o", out, "--embeddings", str(vectors)) == 4
    assert vectors.read_text() == "precious"
    assert "vectors.parquet: exists" in capsys.readouterr().err
    assert score(rows, "-o", out, "--embeddings", str(vectors), "--overwrite") == 0
    assert pq.read_table(vectors).num_rows == 4


def test_a_run_that_fails_leaves_no_vectors(tmp_path):
    source = write_lines(tmp_path / "rows.jsonl", [ROWS[0], b"not json"])
    vectors = tmp_path / "vectors.parquet"
    arguments = [source, "-o", str(tmp_path / "out.jsonl"), "--embeddings", str(vectors), "--max-errors", "0"]
    assert score(*arguments) == 7
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.jsonl.job", "rows.jsonl"]


def test_a_pair_that_cannot_be_scored_has_no_vectors(tmp_path):
    source = write_lines(tmp_path / "rows.jsonl", [ROWS[0], {"query": "way " * 50, "passage": "lost"}])
    vectors = tmp_path / "vectors.parquet"
    arguments = [source, "-o", str(tmp_path / "out.jsonl"), "--embeddings", str(vectors), "--max-tokens", "32"]
    assert score(*arguments) == 3
    assert [row["text"] for row in pq.read_table(vectors).to_pylist()] == ["which way?", "two roads diverged"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--truncate", "chunk", "--model", MODEL], "a passage in chunks has several vectors"),
        (["--model", CROSS_ENCODER], "gives logits, not vectors"),
        ([], "gives logits, not vectors"),
    ],
    ids=["chunks", "cross-encoder", "built-in"],
)
def test_embeddings_that_cannot_be_had_are_refused(rows, tmp_path, capsys, options, message):
    assert main(["score", rows, "--embeddings", str(tmp_path / "vectors.parquet"), *options]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "vectors.parquet").exists()


def test_the_file_of_vectors_is_not_the_output(rows, tmp_path, capsys):
    out = str(tmp_path / "out.parquet")
    assert score(rows, "-o", out, "--embeddings", out) == 2
    assert "two outputs in one file" in capsys.readouterr().err


def test_a_dry_run_of_an_embedder_counts_both_texts(rows, capsys):
    assert main(["score", rows, "--model", MODEL, "--dry-run", "--format", "json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["counts"]["pairs"] == 3
    assert document["total_tokens"] > 0
