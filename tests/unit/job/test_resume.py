"""A run that is stopped after a window and run again: what the two leave is what one leaves."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from rerank_cli.errors import JobChangedError, OutputError, StoppedError
from rerank_cli.formats.shapes import FieldNames, Selection, Texts
from rerank_cli.job.options import JobOptions, Names
from rerank_cli.job.run import Outcome, Watcher, run_job
from rerank_cli.job.stop import Stop
from rerank_cli.records import Counts
from tests.conftest import TINY_CHECKPOINT, write_lines
from tests.unit.images import data_uri, encoded, picture, saved

EMBEDDER = Path(__file__).parents[2] / "parity" / "nemotron-vl-embed-open" / "checkpoint"
WORDS = ["two", "roads", "diverged", "in", "a", "yellow", "wood", "and", "sorry", "i", "could", "not", "travel", "both"]
# Of 90 pairs, so two windows of `score`; the texts come again in both.
PAIRS = [
    {
        "query_id": f"q{n % 13}",
        "id": n,
        "query": WORDS[n % 13],
        "passage": " ".join(WORDS[n % 5 : 5 + n % 9]) + f" {n % 37}",
    }
    for n in range(90)
]
TIMES = {
    "seconds", "speed", "peak_rss_bytes", "continued", "job", "output", "embeddings", "per_query", "options",
    "timeline", "memory", "finished", "errors_file",
}  # fmt: skip


@pytest.fixture
def source(tmp_path: Path) -> str:
    return write_lines(tmp_path / "pairs.jsonl", [*PAIRS[:20], b"{", b"", *PAIRS[20:]])


def run(
    source: str, out: Path, *, model: Path = TINY_CHECKPOINT, stop_after: int | None = None, **options: Any
) -> Outcome:
    """A run of `score`; stopped when `stop_after` windows are done."""
    stop, seen = Stop(), []

    def on_progress(counts: Counts, share: float | None) -> None:
        seen.append(counts.rows_in)
        if len(seen) == stop_after:
            stop.request(StoppedError("enough", exit_code=9))

    fields: dict[str, Any] = {"pairs": True, "checkpoint_every": 0.0, "model": str(model), **options}
    names = Names(str(out), **fields.pop("names", {}))
    return run_job(JobOptions((source,), names, **fields), Watcher(on_progress=on_progress), stop=stop)


def whole_and_resumed(source: str, folder: Path, name: str, options: Callable[[Path], dict[str, Any]]) -> list[Outcome]:
    """The same run twice, each in a folder of its own; the second one is stopped after its first window."""
    outcomes = []
    for part in ("whole", "resumed"):
        (folder / part).mkdir()
        out, fields = folder / part / name, options(folder / part)
        if part == "resumed":
            with pytest.raises(StoppedError):
                run(source, out, **fields, stop_after=1)
            assert not out.exists()
        outcomes.append(run(source, out, **fields))
        assert not Path(f"{out}.job").exists()
    assert [outcome.report["continued"] for outcome in outcomes] == [0, 1]
    return outcomes


def written(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if not path.name.endswith(".report.json")}


def facts(outcome: Outcome) -> dict[str, Any]:
    """What a report says of the work, not of the time and the place."""
    return {name: value for name, value in outcome.report.items() if name not in TIMES}


@pytest.mark.parametrize("name", ["out.jsonl", "out.jsonl.gz", "out.parquet"])
def test_the_bytes_and_the_report_are_those_of_one_run(source: str, tmp_path: Path, name: str) -> None:
    whole, resumed = whole_and_resumed(source, tmp_path, name, lambda folder: {})
    assert written(tmp_path / "whole") == written(tmp_path / "resumed")
    assert facts(whole) == facts(resumed)
    assert whole.counts.rows_in == 91


@pytest.mark.parametrize("name", ["out.jsonl", "out.parquet"])
def test_an_embedding_model_has_all_vectors_and_embeds_each_text_once(source: str, tmp_path: Path, name: str) -> None:
    whole, resumed = whole_and_resumed(
        source,
        tmp_path,
        name,
        lambda folder: {"model": EMBEDDER, "names": {"embeddings": str(folder / "vectors.parquet")}},
    )
    assert written(tmp_path / "whole") == written(tmp_path / "resumed")
    assert facts(whole) == facts(resumed)
    table = pq.read_table(tmp_path / "resumed" / "vectors.parquet").to_pylist()
    texts = [(row["kind"], row["text"]) for row in table]
    assert set(texts) == {(kind, row[kind]) for row in PAIRS for kind in ("query", "passage")}
    assert len(texts) == len(set(texts)) == resumed.report["embedded"]["texts"]


def test_an_embedding_model_without_a_file_of_vectors_goes_on_too(source: str, tmp_path: Path) -> None:
    whole, resumed = whole_and_resumed(source, tmp_path, "out.jsonl", lambda folder: {"model": EMBEDDER})
    assert written(tmp_path / "whole") == written(tmp_path / "resumed")
    assert whole.report["embedded"] == resumed.report["embedded"]


def test_the_best_rows_of_a_run_are_those_of_all_its_processes(source: str, tmp_path: Path) -> None:
    whole_and_resumed(source, tmp_path, "out.jsonl", lambda folder: {"selection": Selection(top_n=7)})
    assert written(tmp_path / "whole") == written(tmp_path / "resumed")


@pytest.mark.parametrize("stop_after", [1, 2, 3])
def test_pairs_that_come_again_count_alike_wherever_a_run_was_stopped(tmp_path: Path, stop_after: int) -> None:
    rows = [PAIRS[n % 50] for n in range(290)]  # five windows, four of pairs that were there before
    source = write_lines(tmp_path / "pairs.jsonl", rows)
    whole = run(source, tmp_path / "whole.jsonl")
    assert whole.counts.pairs_repeated > 150
    with pytest.raises(StoppedError):
        run(source, tmp_path / "resumed.jsonl", stop_after=stop_after)
    resumed = run(source, tmp_path / "resumed.jsonl")
    assert (tmp_path / "whole.jsonl").read_bytes() == (tmp_path / "resumed.jsonl").read_bytes()
    assert facts(whole) == facts(resumed)
    assert resumed.counts.pairs_repeated < whole.counts.pairs_repeated
    assert resumed.report["speed"]["computed_tokens"] > whole.report["speed"]["computed_tokens"]


def test_an_evaluation_is_that_of_all_processes(tmp_path: Path) -> None:
    # Grouped rows: 13 queries of 40 passages are two windows of 512 pairs.
    rows = [{**PAIRS[n % 90], "query_id": f"q{n % 13}", "query": WORDS[n % 13], "id": n} for n in range(520)]
    source = write_lines(tmp_path / "rows.jsonl", [row for query in range(13) for row in rows[query::13]])
    qrels = tmp_path / "qrels.txt"
    qrels.write_text("".join(f"q{n % 13} 0 {n} {n % 3}\n" for n in range(0, 520, 7)))
    whole, resumed = whole_and_resumed(
        source,
        tmp_path,
        "out.jsonl",
        lambda folder: {
            "pairs": False,
            "fields": FieldNames(group_by="query_id"),
            "qrels": str(qrels),
            "metrics": ("nDCG@10", "RR"),
            "names": {"per_query": str(folder / "values.tsv.gz")},
        },
    )
    assert written(tmp_path / "whole") == written(tmp_path / "resumed")
    values = gzip.decompress((tmp_path / "resumed" / "values.tsv.gz").read_bytes()).decode().splitlines()
    assert len(values) == 1 + 13 * 2
    assert whole.evaluation == resumed.evaluation
    assert whole.evaluation is not None
    assert whole.evaluation.queries == 13
    assert facts(whole) == facts(resumed)


def body(number: int) -> dict[str, Any]:
    return {"query": WORDS[number % 13], "documents": [f"{WORDS[k % 13]} {number} {k}" for k in range(20)]}


SHAPED: dict[str, list[Any]] = {
    "nim": [
        {"query": {"text": found["query"]}, "passages": [{"text": text} for text in found["documents"]]}
        for found in map(body, range(40))
    ],
    "cohere": [{**body(number), "top_n": 3} for number in range(40)],
    "openai-batch": [
        {"custom_id": str(number), "method": "POST", "url": "/v1/rerank", "body": body(number)} for number in range(40)
    ],
}


@pytest.mark.parametrize("shape", SHAPED)
def test_every_shape_of_rows_goes_on(tmp_path: Path, shape: str) -> None:
    source = write_lines(tmp_path / "rows.jsonl", [*SHAPED[shape][:30], b"{", *SHAPED[shape][30:]])
    whole, resumed = whole_and_resumed(source, tmp_path, "out.jsonl", lambda folder: {"pairs": False, "shape": shape})
    assert written(tmp_path / "whole") == written(tmp_path / "resumed")
    assert facts(whole) == facts(resumed)
    assert whole.counts.rows_out == 40


def test_a_trec_run_goes_on_and_is_done_while_its_texts_are_the_same(tmp_path: Path) -> None:
    queries, corpus, source = tmp_path / "queries.tsv", tmp_path / "corpus.tsv", tmp_path / "in.trec"
    queries.write_text("".join(f"q{n}\t{WORDS[n % 13]}\n" for n in range(40)))
    corpus.write_text("".join(f"d{n}\t{WORDS[n % 13]} {n}\n" for n in range(60)))
    source.write_text("".join(f"q{n} Q0 d{(n + k) % 60} {k + 1} {20 - k} bm25\n" for n in range(40) for k in range(20)))
    options = {"pairs": False, "texts": Texts(str(queries), str(corpus))}
    whole, resumed = whole_and_resumed(str(source), tmp_path, "out.trec", lambda folder: options)
    assert written(tmp_path / "whole") == written(tmp_path / "resumed")
    assert facts(whole) == facts(resumed)
    assert run(str(source), tmp_path / "whole" / "out.trec", **options).was_done
    corpus.write_text(corpus.read_text().replace("wood", "wool"))
    with pytest.raises(OutputError, match="exists"):
        run(str(source), tmp_path / "whole" / "out.trec", **options)


def test_a_finished_run_with_its_vectors_has_nothing_to_do(source: str, tmp_path: Path) -> None:
    vectors = tmp_path / "vectors.parquet"
    options: dict[str, Any] = {"model": EMBEDDER, "names": {"embeddings": str(vectors)}}
    assert not run(source, tmp_path / "out.jsonl", **options).was_done
    assert run(source, tmp_path / "out.jsonl", **options).was_done
    vectors.unlink()
    assert not run(source, tmp_path / "out.jsonl", **options, overwrite=True).was_done
    assert vectors.exists()


def test_a_finished_run_without_its_errors_file_is_done_again(source: str, tmp_path: Path) -> None:
    errors = Path(run(source, tmp_path / "out.jsonl").errors or "")
    assert run(source, tmp_path / "out.jsonl").was_done
    errors.unlink()
    assert not run(source, tmp_path / "out.jsonl", overwrite=True).was_done
    assert json.loads(errors.read_bytes())["row"] == 21


def test_answers_of_other_programs_are_those_of_one_run(tmp_path: Path) -> None:
    body = {"query": "roads", "documents": [f"{WORDS[n % 14]} {n}" for n in range(200)]}
    lines = [{"custom_id": f"r{n}", "url": "/v1/rerank", "body": body} for n in range(5)]
    # In the first window and, of the same id, in the second.
    bad = [{"custom_id": "r9", "url": "/v1/rerank", "body": {}}, {"custom_id": "r0", "url": "/v1/rerank", "body": body}]
    source = write_lines(tmp_path / "batch.jsonl", [lines[0], bad[0], *lines[1:], bad[1]])
    whole, resumed = whole_and_resumed(source, tmp_path, "out.jsonl", lambda folder: {"pairs": False})
    assert written(tmp_path / "whole") == written(tmp_path / "resumed")
    assert facts(whole) == facts(resumed)
    assert (whole.counts.rows_out, whole.counts.rows_error) == (5, 2)


def test_a_run_of_trec_with_its_measures_is_that_of_one_process(tmp_path: Path) -> None:
    (tmp_path / "queries.tsv").write_text("".join(f"q{n}\t{word}\n" for n, word in enumerate(WORDS)))
    (tmp_path / "corpus.tsv").write_text("".join(f"d{n}\t{WORDS[n % 14]} {n}\n" for n in range(60)))
    run_file = tmp_path / "given.trec"
    run_file.write_text("".join(f"q{n % 13} Q0 d{n // 13} 1 {780 - n} t\n" for n in range(780)))
    (tmp_path / "qrels.txt").write_text("".join(f"q{n % 13} 0 d{n} 1\n" for n in range(0, 60, 7)))
    whole, resumed = whole_and_resumed(
        str(run_file),
        tmp_path,
        "out.trec",
        lambda folder: {
            "pairs": False,
            "texts": Texts(str(tmp_path / "queries.tsv"), str(tmp_path / "corpus.tsv")),
            "qrels": str(tmp_path / "qrels.txt"),
        },
    )
    assert written(tmp_path / "whole") == written(tmp_path / "resumed")
    assert whole.evaluation == resumed.evaluation
    assert whole.counts.output_rows == 780


def test_a_judged_query_with_an_empty_list_counts_in_every_process(tmp_path: Path) -> None:
    passages = [{"id": f"d{n}", "text": f"{WORDS[n % 14]} {n}"} for n in range(300)]
    rows = [{"query_id": f"q{n}", "query": WORDS[n], "passages": [] if n == 1 else passages} for n in range(5)]
    (tmp_path / "qrels.txt").write_text("".join(f"q{n} 0 d{n * 7} 1\n" for n in range(6)))
    source = write_lines(tmp_path / "lists.jsonl", rows)
    options = {"pairs": False, "qrels": str(tmp_path / "qrels.txt")}
    whole, resumed = whole_and_resumed(source, tmp_path, "out.jsonl", lambda folder: options)
    assert whole.evaluation == resumed.evaluation
    assert whole.evaluation is not None
    assert whole.evaluation.queries == 5


@pytest.mark.parametrize(
    ("change", "goes_on"),
    [
        (lambda folder: saved(folder, "9.png", picture(30, 31)), True),  # of a row that was not finished
        (lambda folder: saved(folder, "0.png", picture(30, 31)), False),
        (lambda folder: (folder / "0.png").unlink(), False),
    ],
    ids=["a later one", "an earlier one", "gone"],
)
def test_a_run_whose_finished_images_were_changed_does_not_go_on(
    tmp_path: Path, change: Callable[[Path], object], goes_on: bool
) -> None:
    names = [
        "gone.png",
        *(saved(tmp_path, f"{n}.png", picture(20 + n)) for n in range(10)),
        data_uri(encoded(picture())),
    ]
    rows = [{"query": "two roads", "passage": "", "image": name} for name in names]
    source, out = write_lines(tmp_path / "pairs.jsonl", rows), tmp_path / "out.jsonl"
    with pytest.raises(StoppedError):
        run(source, out, model=EMBEDDER, stop_after=1)  # 8 rows: one with an image counts as 8 pairs of 64
    change(tmp_path)
    if goes_on:
        assert run(source, out, model=EMBEDDER).counts.rows_out == 11
        return
    with pytest.raises(JobChangedError) as caught:
        run(source, out, model=EMBEDDER)
    assert caught.value.message == (
        f"{out}.job: the unfinished job in it differs from this run: an image file of its finished rows has changed"
    )
    assert "--restart" in str(caught.value.hint)
    assert getattr(caught.value, "__notes__", []) == []
    assert Path(f"{out}.job").exists()
