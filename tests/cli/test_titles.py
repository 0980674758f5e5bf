"""One rule for titles: the same passages get the same scores, in whatever shape they come and wherever it lies."""

from __future__ import annotations

import json
from pathlib import Path

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
