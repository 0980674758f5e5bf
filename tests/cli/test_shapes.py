"""The shapes of other programs through `rerank-file`: real files in and out, tiny real models."""

from __future__ import annotations

import base64
import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import ir_measures
import pytest

from rerank_cli.cli import main

PARITY = Path(__file__).parents[1] / "parity"
SAMPLES = Path(__file__).parents[2] / "samples"
PNG = "data:image/png;base64," + base64.b64encode((SAMPLES / "pages" / "notice.png").read_bytes()).decode()
LONG = "word " * 2000
TREC = ["--queries", str(SAMPLES / "queries.tsv"), "--corpus", str(SAMPLES / "corpus.jsonl")]


class Rerank:
    """`rerank-file` of rows in a folder."""

    def __init__(self, folder: Path, model: str) -> None:
        self._folder, self._model = folder, model
        self.out = folder / "out.jsonl"

    def __call__(
        self, rows: list[dict[str, Any] | bytes] | Path, *options: str, code: int = 0, out: str = ""
    ) -> list[Any]:
        source = rows if isinstance(rows, Path) else self._folder / "in.jsonl"
        if not isinstance(rows, Path):
            lines = (row if isinstance(row, bytes) else json.dumps(row).encode() for row in rows)
            source.write_bytes(b"".join(line + b"\n" for line in lines))
        self.out = self._folder / (out or "out.jsonl")
        model = [] if "--model" in options else ["--model", self._model]
        assert main(["rerank-file", str(source), "-o", str(self.out), *model, *options]) == code
        return objects(self.out) if self.out.suffix == ".jsonl" and self.out.exists() else []

    @property
    def errors(self) -> list[dict[str, Any]]:
        return objects(self.out.with_name(f"{self.out.name}.errors.jsonl"))

    @property
    def report(self) -> dict[str, Any]:
        document: dict[str, Any] = json.loads(self.out.with_name(f"{self.out.name}.report.json").read_text())
        return document


def objects(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture
def rerank(tmp_path: Path, tiny_model: str) -> Rerank:
    return Rerank(tmp_path, tiny_model)


def nim(*texts: str, **fields: Any) -> dict[str, Any]:
    return {"query": {"text": "a query"}, "passages": [{"text": text} for text in texts], **fields}


def logits_of_lists(rerank: Rerank, rows: list[dict[str, Any]]) -> list[dict[int, float]]:
    """Logit by index of each list."""
    found = rerank(list(rows), "-q", "--overwrite", out="lists.jsonl")
    return [{passage["index"]: passage["logit"] for passage in row["passages"]} for row in found]


# nim


def test_a_nim_request_is_answered_by_logit_with_its_tokens(rerank: Rerank) -> None:
    texts = ["one", "two words here", "another passage of words"]
    (expected,) = logits_of_lists(rerank, [{"query": "a query", "passages": texts}])
    (answer,) = rerank([nim(*texts, id="r1")], "-q")
    assert answer["id"] == "r1"
    assert {entry["index"]: entry["logit"] for entry in answer["rankings"]} == expected
    assert all(first["logit"] >= second["logit"] for first, second in pairwise(answer["rankings"]))
    assert answer["usage"] == dict.fromkeys(("prompt_tokens", "total_tokens"), rerank.report["counts"]["tokens"])


def test_a_pair_that_is_too_long_fails_its_request_alone_and_only_where_it_must_stay_whole(rerank: Rerank) -> None:
    rows = [nim("a", "b"), nim("a", LONG, id="r2"), nim("a", LONG, truncate="END"), nim("c", truncate="NONE")]
    found = rerank(list(rows), "-q", "--max-tokens", "64", code=3)
    assert [len(row["rankings"]) for row in found] == [2, 2, 1]
    (error,) = rerank.errors
    assert (error["row"], error["id"], error["error"]["code"]) == (2, "r2", "too-long")
    assert error["error"]["message"].startswith("passages[1]: the pair has ")
    assert error["error"]["message"].endswith(" tokens, the limit is 64")


def test_a_request_with_a_thousand_passages_is_one_answer(rerank: Rerank) -> None:
    (answer,) = rerank([nim(*(f"passage {number}" for number in range(1000)))], "-q")
    assert sorted(entry["index"] for entry in answer["rankings"]) == list(range(1000))


def test_images_are_read_by_a_model_that_reads_images(rerank: Rerank) -> None:
    model = ("--model", str(PARITY / "nemotron-vl-rerank-open" / "checkpoint"), "--max-input-tiles", "1", "-q")
    passages = [{"image": PNG}, {"text": "Today one lift works", "image": PNG}, {"text": "a text"}]
    (answer,) = rerank([{"query": {"text": "which lift works?"}, "passages": passages}], *model)
    assert {entry["index"] for entry in answer["rankings"]} == {0, 1, 2}
    assert answer["usage"]["prompt_tokens"] == rerank.report["counts"]["tokens"] > 2 * 256
    rows = [{"query": "which lift works?", "passages": passages}]
    (expected,) = rerank(list(rows), *model, out="lists.jsonl")
    assert [entry["logit"] for entry in answer["rankings"]] == [entry["logit"] for entry in expected["passages"]]


@pytest.mark.parametrize("names", [("query", "passages"), ("question", "ctxs")], ids=["list", "dpr"])
def test_a_passage_that_is_an_image_alone_has_no_text_in_another_shape(rerank: Rerank, names: tuple[str, str]) -> None:
    model = ("--model", str(PARITY / "nemotron-vl-rerank-open" / "checkpoint"), "--max-input-tiles", "1", "-q")
    passages = [{"image": PNG}, {"text": "", "image": PNG}, {"text": "a text", "image": PNG}, {"text": "a text"}]
    row = dict(zip(names, ("which lift works?", passages), strict=True))
    (found,) = rerank([row], *model, "--out-format", "list")
    texts = {passage["index"]: passage.get("text") for passage in found["passages"]}
    assert texts == {0: None, 1: "", 2: "a text", 3: "a text"}
    pairs = rerank([row], *model, "--out-format", "flat", "--overwrite")
    assert {pair["index"]: pair.get("passage") for pair in pairs} == texts


def test_bad_images_and_images_for_a_model_of_texts_are_error_rows(rerank: Rerank) -> None:
    query = {"text": "q"}
    rows = [
        {"query": query, "passages": [{"image": PNG}]},
        nim("good"),
        {"query": query, "passages": [{"text": "beside", "image": PNG}]},
    ]
    assert len(rerank(list(rows), "-q", code=3)) == 1
    assert [(error["row"], error["error"]["code"]) for error in rerank.errors] == [
        (1, "image-not-read"),
        (3, "image-not-read"),
    ]
    assert len(rerank([rows[1], rows[2]], "-q", "--image-field", "none", "--overwrite")) == 2
    model = ("--model", str(PARITY / "nemotron-vl-rerank-open" / "checkpoint"), "-q", "--overwrite")
    uris = ["https://host/a.png", "data:image/png;base64,@@@", "data:image/png;base64,AAAA", "pages/a.png"]
    bad = [{"query": query, "passages": [{"text": "t"}, {"image": uri}]} for uri in uris]
    assert len(rerank([nim("good"), *bad], *model, code=3)) == 1
    assert [error["error"]["code"] for error in rerank.errors] == [
        "bad-data-uri", "bad-data-uri", "not-an-image", "bad-data-uri"
    ]  # fmt: skip


# cohere


def test_a_body_of_cohere_is_answered_with_sigmoids(rerank: Rerank) -> None:
    documents = ["one", "two words here", "another passage of words"]
    (expected,) = logits_of_lists(rerank, [{"query": "a query", "passages": documents}])
    (answer,) = rerank([{"query": "a query", "documents": documents, "top_n": 2, "return_documents": True}], "-q")
    best = sorted(expected, key=lambda index: -expected[index])[:2]
    assert [result["index"] for result in answer["results"]] == best
    assert [result["document"]["text"] for result in answer["results"]] == [documents[index] for index in best]
    for result in answer["results"]:
        assert 0 < result["relevance_score"] < 1
    assert answer["usage"]["total_tokens"] == rerank.report["counts"]["tokens"]


def test_the_users_own_top_n_counts_too(rerank: Rerank) -> None:
    body = {"query": "q", "documents": ["a", "b", "c"], "top_n": 2}
    (answer,) = rerank([body], "-q", "--top-n", "1")
    assert len(answer["results"]) == 1


def test_documents_are_cut_where_the_request_says_so(rerank: Rerank) -> None:
    def body(text: str, **fields: Any) -> dict[str, Any]:
        return {"query": "q", "documents": [text], "top_n": 0, **fields}

    rows = [body(""), body("some words"), body("some words and many more that are not read")]
    nothing, short, _ = (row["usage"]["total_tokens"] for row in rerank(list(rows), "-q"))
    cut = {**rows[2], "max_tokens_per_doc": short - nothing}
    first, second = rerank([rows[1], cut], "-q", "--overwrite")
    assert second["usage"] == first["usage"]
    assert second["results"] == [{"index": 0, "relevance_score": pytest.approx(first["results"][0]["relevance_score"])}]


# openai-batch


def test_a_batch_has_an_output_file_and_an_error_file_in_order(rerank: Rerank) -> None:
    def line(name: str, url: str = "/v1/rerank", **body: Any) -> dict[str, Any]:
        return {
            "custom_id": name,
            "method": "POST",
            "url": url,
            "body": body or {"query": "q", "documents": ["a", "b"]},
        }

    rows: list[dict[str, Any] | bytes] = [
        line("good-1"),
        line("bad-url", "/v1/embeddings"),
        line("good-2", "/v1/score", text_1="q", text_2=["b", "a"]),
        line("bad-body", query="q"),
        b'{"custom_id": "torn", "body": ',
        {**line("bad-method"), "method": "GET"},
        line("good-1"),
        line("too-long", query="q", documents=[LONG], truncation=False),
        line("good-3"),
    ]
    found = rerank(rows, "-q", "--max-tokens", "64", code=3)
    assert [row["custom_id"] for row in found] == ["good-1", "good-2", "good-3"]
    assert all(row["response"]["status_code"] == 200 and row["error"] is None for row in found)
    scores = found[1]["response"]["body"]["data"]
    reranked = {entry["index"]: entry["relevance_score"] for entry in found[0]["response"]["body"]["results"]}
    assert [entry["score"] for entry in scores] == [reranked[1], reranked[0]]
    assert [(row["custom_id"], row["response"]["status_code"], row["row"]) for row in rerank.errors] == [
        ("bad-url", 404, 2), ("bad-body", 400, 4), (None, 400, 5), ("bad-method", 405, 6), ("good-1", 400, 7),
        ("too-long", 400, 8),
    ]  # fmt: skip
    assert rerank.errors[1]["response"]["body"]["error"] == {
        "message": "field `documents` is missing", "type": "invalid_request_error", "param": None,
        "code": "missing-field",
    }  # fmt: skip
    assert rerank.report["counts"]["rows_in"] == 9


def test_the_same_batch_gives_the_same_bytes(rerank: Rerank) -> None:
    outs = []
    for name in ("a.jsonl", "b.jsonl"):
        rerank(SAMPLES / "openai-batch.jsonl", "-q", out=name)
        outs.append(rerank.out.read_bytes())
    assert outs[0] == outs[1]


# trec


def test_a_run_measures_outside_as_the_report_says(rerank: Rerank) -> None:
    metrics = ["nDCG@10", "RR@10", "AP", "P@5"]
    options = [part for metric in metrics for part in ("--metric", metric)]
    options += ["--qrels", str(SAMPLES / "qrels.txt"), "--max-tokens", "64", "-q"]
    rerank(SAMPLES / "bm25.trec", *TREC, *options, out="out.trec")
    run = list(ir_measures.read_trec_run(str(rerank.out)))
    assert len(run) == 100
    qrels = [q for q in ir_measures.read_trec_qrels(str(SAMPLES / "qrels.txt")) if q.query_id <= "q05"]
    given = list(ir_measures.read_trec_run(str(SAMPLES / "bm25.trec")))
    told = {row["metric"]: row for row in rerank.report["evaluation"]["metrics"]}
    for name in metrics:
        measure = ir_measures.parse_measure(name)
        assert ir_measures.calc_aggregate([measure], qrels, run)[measure] == pytest.approx(
            told[name]["reranked"], abs=1e-9
        )
        assert ir_measures.calc_aggregate([measure], qrels, given)[measure] == pytest.approx(
            told[name]["given"], abs=1e-9
        )
    by_query: dict[str, list[float]] = {}
    for document in run:
        by_query.setdefault(document.query_id, []).append(document.score)
    assert all(first > second for scores in by_query.values() for first, second in pairwise(scores))


def test_a_run_and_its_lists_have_the_same_logits(rerank: Rerank) -> None:
    """The titles and texts of the corpus, joined, are the passages of the lists that it was made from."""
    lists = rerank(SAMPLES / "python-docs.jsonl", "-q", "--limit", "2", "--max-tokens", "128", out="lists.jsonl")
    options = ["-q", "--out-format", "list", "--limit", "40", "--max-tokens", "128"]
    runs = rerank(SAMPLES / "bm25.trec", *TREC, *options, out="runs.jsonl")
    for one, other in zip(lists, runs, strict=True):
        assert one["query"] == other["query"]
        assert [(p["id"], p["logit"], p["index"]) for p in one["passages"]] == [
            (p["id"], p["logit"], p["index"]) for p in other["passages"]
        ]


def test_lines_that_cannot_be_scored_are_in_the_errors_file(rerank: Rerank, tmp_path: Path) -> None:
    run = tmp_path / "bad.trec"
    good = (SAMPLES / "bm25.trec").read_text().splitlines()[:3]
    run.write_text(
        "\n".join([good[0], "q01 Q0 nowhere 2 4 t", good[1], "q01 Q0 x", "q77 Q0 os.renames 1 1 t", good[2]]) + "\n"
    )
    rerank(run, *TREC, "-q", code=3, out="out.trec")
    assert len(rerank.out.read_text().splitlines()) == 3
    assert sorted((error["row"], error["error"]["code"]) for error in rerank.errors) == [
        (2, "unknown-id"), (4, "bad-run-line"), (5, "unknown-id")
    ]  # fmt: skip


def test_a_finished_run_of_another_corpus_is_another_run(rerank: Rerank, tmp_path: Path) -> None:
    corpus = tmp_path / "corpus.jsonl"
    corpus.write_bytes((SAMPLES / "corpus.jsonl").read_bytes())
    options = ["--queries", str(SAMPLES / "queries.tsv"), "--corpus", str(corpus), "-q", "--limit", "20"]
    rerank(SAMPLES / "bm25.trec", *options, out="out.trec")
    first = rerank.out.read_bytes()
    rerank(SAMPLES / "bm25.trec", *options, out="out.trec")  # nothing is left to do
    corpus.write_text(corpus.read_text().replace("directory", "folder"))
    rerank(SAMPLES / "bm25.trec", *options, out="out.trec", code=4)
    rerank(SAMPLES / "bm25.trec", *options, "--overwrite", out="out.trec")
    assert rerank.out.read_bytes() != first


# From one to another, and what is refused


def test_what_has_no_place_is_said_once(rerank: Rerank, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"id": n, "query": "q", "passages": [{"id": "a", "text": "t", "score": 1}]} for n in range(300)]
    assert len(rerank(list(rows), "--out-format", "cohere")) == 300
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning: ")]
    assert said == [
        "warning: the shape cohere has no place for: fields of passages, logits, marks of truncation, passage ids, "
        "texts"
    ]
    assert said[0].removeprefix("warning: ") in rerank.report["plan"]["warnings"]


@pytest.mark.parametrize(
    ("source", "to"),
    [
        *(("bm25.trec", to) for to in ("list", "flat", "nim", "cohere", "openai-batch", "trec")),
        ("python-docs.jsonl", "flat"),
        ("python-docs-flat.parquet", "list"),
        ("python-docs-flat.parquet", "trec"),
    ],
)
def test_every_shape_can_come_out_in_every_other(rerank: Rerank, source: str, to: str) -> None:
    texts = TREC if source.endswith(".trec") else []
    limit = "1" if source == "python-docs.jsonl" else "20"
    options = ["--limit", limit, "--top-n", "3", "--max-tokens", "32"]
    rerank(SAMPLES / source, *texts, "-q", "--out-format", to, *options, out="out.any")
    lines = rerank.out.read_text().splitlines()
    assert len(lines) == (3 if to in ("flat", "trec") else 1)
    assert rerank.report["counts"]["rows_error"] == 0


def test_a_table_in_another_shape_says_that_its_types_are_those_of_json(
    rerank: Rerank, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--out-format", "flat", "--limit", "1", "--max-tokens", "32"]
    rerank(SAMPLES / "python-docs.parquet", *options, out="out.parquet")
    assert "warning: columns are converted as for JSON: a time" in capsys.readouterr().err
    assert "rows of the shape list, written as flat" in rerank.report["plan"]["reasons"]


def test_answers_are_no_table_and_lists_of_them_are(rerank: Rerank) -> None:
    rerank(SAMPLES / "nim.jsonl", "-q", out="out.parquet", code=2)
    rerank(SAMPLES / "nim.jsonl", "-q", "--out-format", "flat", "--limit", "1", out="out.parquet")
    assert rerank.report["counts"]["output_rows"] == 5


def test_a_list_that_a_run_cannot_hold_is_an_error_row_before_it_is_scored(rerank: Rerank) -> None:
    good = {"id": "q1", "query": "q", "passages": [{"id": "a", "text": "t"}]}
    bad = [{**good, "id": None}, {**good, "passages": ["t"]}, {**good, "id": "a b"}]
    rerank([good, *bad], "-q", "--out-format", "trec", code=3, out="out.trec")
    assert rerank.out.read_text().startswith("q1 Q0 a 1 ")
    codes = [error["error"]["code"] for error in rerank.errors]
    assert codes == ["no-query-id", "no-passage-id", "unfit-id"]
    assert rerank.report["counts"]["pairs"] == 1


def test_a_mixture_of_shapes_is_refused_with_the_row(rerank: Rerank, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [nim("a"), nim("b"), {"query": "q", "passages": ["a"]}]
    rerank(list(rows), "-q", code=4)
    told = capsys.readouterr().err
    assert "in.jsonl:3: a row of the shape list among rows of the shape nim (" in told
    assert "hint: `--shape nim` makes rows of other shapes bad rows" in told
    assert len(rerank(list(rows), "-q", "--shape", "nim", code=3)) == 2


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--shape", "nom"], "known are auto, list, flat, nim, cohere, tei, openai-batch, trec"),
        (
            ["--out-format", "xlsx"],
            "known are auto, jsonl, parquet, csv, tsv, list, flat, nim, cohere, tei, openai-batch, trec",
        ),
        (["--in-format", "cohere"], "`--shape cohere` says what the rows are"),
        (["--shape", "trec"], "--queries and --corpus are needed"),
        (["--corpus", "x"], "the input has its texts itself"),
        (["--shape", "nim", "--text-field", "body"], "--text-field: the fields of the shape nim have fixed names"),
        (
            ["--out-format", "cohere", "--model", str(PARITY / "nemotron-vl-embed-open" / "checkpoint")],
            "gives a cosine, which is not the logit of a probability",
        ),
    ],
)
def test_what_cannot_be_done_is_refused(
    rerank: Rerank, options: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    rerank([nim("a")] if "nim" in options else [{"query": "q", "passages": ["a"]}], *options, code=2)
    assert said in capsys.readouterr().err


def test_an_embedding_model_answers_with_cosines(rerank: Rerank) -> None:
    (answer,) = rerank([nim("a", "b")], "--model", str(PARITY / "nemotron-vl-embed-open" / "checkpoint"), "-q")
    assert all(-1 <= entry["cosine"] <= 1 for entry in answer["rankings"])


def test_score_takes_pairs_only(tmp_path: Path, tiny_model: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["score", str(SAMPLES / "pairs.jsonl"), "--model", tiny_model, "--out-format", "nim"]) == 2
    assert "`rerank-file` writes other shapes" in capsys.readouterr().err
    assert main(["score", str(SAMPLES / "bm25.trec"), "--model", tiny_model, "--query", "q"]) == 2
    assert "is a TREC run, and `score` reads pairs" in capsys.readouterr().err


def test_a_dry_run_counts_what_a_request_forbids_to_cut(rerank: Rerank, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [nim("a", LONG), nim("a", LONG, truncate="END")]
    rerank(list(rows), "--dry-run", "--format", "json", "--max-tokens", "64", code=3)
    told = json.loads(capsys.readouterr().out)
    assert (told["counts"]["pairs"], told["unscorable"], told["truncated"]) == (4, 1, 1)
