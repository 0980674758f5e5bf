"""One rule for titles: the same passages get the same scores, in whatever shape they come and wherever it lies."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rerank_cli.cli import main

DOCUMENTS = [
    {"_id": "d1", "title": "Kettles", "text": "Pour vinegar in."},
    {"_id": "d2", "title": "Toasters", "text": "Shake the crumbs out."},
]
RUNS = {
    "trec": ("in.trec", "".join(f"q1 Q0 {one['_id']} {n} {-n} t\n" for n, one in enumerate(DOCUMENTS))),
    "mteb": ("in.jsonl", json.dumps({"query-id": "q1", "corpus-ids": ["d1", "d2"]}) + "\n"),
    "beir": ("in.jsonl", "".join(json.dumps({"query-id": "q1", "corpus-id": n}) + "\n" for n in ("d1", "d2"))),
    "list": ("in.jsonl", json.dumps({"query": "kettle", "passages": DOCUMENTS}) + "\n"),
    "flat": ("in.jsonl", "".join(json.dumps({"query": "kettle", **one}) + "\n" for one in DOCUMENTS)),
    "dpr": ("in.jsonl", json.dumps({"question": "kettle", "ctxs": DOCUMENTS}) + "\n"),
}


@pytest.mark.parametrize("shape", RUNS)
@pytest.mark.parametrize("asked", [None, "text", "title,text"])
def test_a_title_is_read_where_it_is_asked_for_and_otherwise_told(
    shape: str,
    asked: str | None,
    tmp_path: Path,
    tiny_model: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    name, content = RUNS[shape]
    Path(name).write_text(content)
    Path("c.jsonl").write_text("".join(json.dumps(one) + "\n" for one in DOCUMENTS))
    Path("q.tsv").write_text("q1\tkettle\n")
    from_corpus = shape in ("trec", "mteb", "beir")
    given = ["rerank-file", name, "-o", "out.jsonl", "--model", tiny_model]
    given += ["--queries", "q.tsv", "--corpus", "c.jsonl"] if from_corpus else []
    given += ["--text-field", asked] if asked else []
    assert main(given) == 0
    said = capsys.readouterr().err
    whole = asked == "title,text" or (asked is None and from_corpus)
    told = "`--text-field text` reads it alone" if whole else "`--text-field title,text` reads it"
    assert (told in said) == (asked != "title,text")
    assert sorted(_logits()) == sorted(_expected(whole=whole, model=tiny_model))


def _logits() -> list[float]:
    rows = [json.loads(line) for line in Path("out.jsonl").read_text().splitlines()]
    if "corpus-ids" in rows[0]:
        return list(rows[0]["logit"])
    passages = [one for row in rows for one in row.get("passages", row.get("ctxs", [row]))]
    return [one["logit"] for one in passages]


def _expected(*, whole: bool, model: str) -> list[float]:
    texts = [f"{one['title']} {one['text']}" if whole else one["text"] for one in DOCUMENTS]
    Path("pairs.jsonl").write_text("".join(json.dumps({"query": "kettle", "passage": text}) + "\n" for text in texts))
    assert main(["score", "pairs.jsonl", "-o", "scored.jsonl", "--model", model, "-q"]) == 0
    return [json.loads(line)["logit"] for line in Path("scored.jsonl").read_text().splitlines()]


def test_the_columns_of_a_tsv_corpus_have_no_names(
    tmp_path: Path, tiny_model: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("in.trec").write_text(RUNS["trec"][1])
    Path("c.tsv").write_text("d1\tPour vinegar in.\n")
    Path("q.tsv").write_text("q1\tkettle\n")
    given = ["rerank-file", "in.trec", "-o", "o.trec", "--queries", "q.tsv", "--corpus", "c.tsv", "--model", tiny_model]
    assert main([*given, "--text-field", "title,text"]) == 2
    assert "c.tsv is TSV, whose columns have no names" in capsys.readouterr().err


@pytest.mark.parametrize("shape", ["list", "flat"])
@pytest.mark.parametrize("suffix", ["jsonl", "parquet", "csv"])
def test_a_title_is_told_of_once_though_the_first_hundred_rows_have_none(
    shape: str, suffix: str, tmp_path: Path, tiny_model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    rows: list[dict[str, Any]] = []
    for n in range(103):
        passage = {"id": f"d{n}", "title": "Kettles" if n > 100 else None, "text": "Pour vinegar in."}
        at = {"query_id": f"q{n}", "query": "kettle"}
        if shape == "list":
            rows.append({**at, "passages": [passage] if suffix != "csv" else json.dumps([passage])})
        else:
            rows.append({**at, "doc_id": passage["id"], "title": passage["title"], "passage": passage["text"]})
    file = tmp_path / f"in.{suffix}"
    if suffix == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), file)
    elif suffix == "csv":
        with file.open("w", newline="") as stream:
            table = csv.DictWriter(stream, rows[0])
            table.writeheader()
            table.writerows(rows)
    else:
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert main(["rerank-file", str(file), "-o", str(tmp_path / "out.jsonl"), "--model", tiny_model]) == 0
    text = "text" if shape == "list" else "passage"
    told = f"passages have a `title`, which is not read: `--text-field title,{text}` reads it"
    assert capsys.readouterr().err.count(told) == 1


def test_a_field_that_is_joined_and_stands_nowhere_is_refused_with_the_one_that_does(
    tmp_path: Path, tiny_model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """What is scored would be the title alone."""
    file = tmp_path / "in.jsonl"
    file.write_text('{"query": "kettle", "title": "Kettles", "passage": "Pour vinegar in."}\n')
    given = ["rerank-file", str(file), "-o", str(tmp_path / "out.jsonl"), "--model", tiny_model]
    assert main([*given, "--text-field", "title,text"]) == 4
    said = capsys.readouterr().err
    assert "none of the first 1 rows" in said
    assert "--text-field title,passage" in said
    assert main([*given, "--text-field", "title,passage"]) == 0


@pytest.mark.parametrize(
    ("row", "options"),
    [
        ({"question": "kettle", "context": "Pour vinegar in."}, "--query-field question --text-field context"),
        ({"question_text": "a b", "document_text": "c"}, "--query-field question_text --text-field document_text"),
        ({"sentence1": "a b", "sentence2": "a longer text"}, "--query-field sentence1 --text-field sentence2"),
    ],
)
def test_score_prints_the_whole_command_for_pairs_under_other_names(
    row: dict[str, str], options: str, tmp_path: Path, tiny_model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "in.jsonl"
    file.write_text(json.dumps(row) + "\n")
    given = ["score", str(file), "-o", str(tmp_path / "out.jsonl"), "--model", tiny_model]
    assert main(given) == 4
    assert options in capsys.readouterr().err
    assert main([*given, *options.split()]) == 0


def test_no_command_takes_an_id_or_a_name_of_a_model_for_the_query(
    tmp_path: Path, tiny_model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "in.jsonl"
    found = [{"index": 0, "relevance_score": 0.5, "document": {"text": "Pour vinegar in."}}]
    file.write_text(json.dumps({"id": "rerank-1", "model": "a-reranker", "results": found}) + "\n")
    assert main(["rerank-file", str(file), "-o", str(tmp_path / "out.jsonl"), "--model", tiny_model]) == 4
    said = capsys.readouterr().err
    assert "no text in it could be the query" in said
    assert "--query-field" not in said.split("hint:")[1]
