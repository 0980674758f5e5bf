from __future__ import annotations

import gzip
import hashlib
import json
import math
import os
from pathlib import Path
from typing import Any

import ir_measures
import pyarrow.parquet as pq
import pytest

from rerank_cli.checkpoint import Checkpoint, read_checkpoint
from rerank_cli.errors import InputError, OutputError, RerankError, TooManyBadRowsError, UsageError
from rerank_cli.formats.shapes import FieldNames, Selection
from rerank_cli.job.options import ErrorLimit, JobOptions, Names
from rerank_cli.job.run import Outcome, Watcher, run_job
from rerank_cli.planning.run_plan import Plan
from rerank_cli.records import Counts, RowError
from tests.conftest import TINY_CHECKPOINT, read_lines, told, write_lines, write_table

GOLDEN = TINY_CHECKPOINT.parent
TEXTS = [
    "two roads diverged in a yellow wood", "the optimized profile needs about 3 GiB", "paris is the capital of france",
    "", "a b c", "how much memory does the reranker need", "vitamin d", "sorry i could not travel both",
]  # fmt: skip
LISTS = [
    {
        "query_id": f"q{number}",
        "query": TEXTS[(number * 3 + 1) % 8],
        "passages": [{"id": f"p{place}", "text": TEXTS[(number + place) % 8]} for place in range(1 + number % 5)],
    }
    for number in range(9)
]
PAIRS = [{"query": row["query"], "passage": p["text"], "n": row["query_id"]} for row in LISTS for p in row["passages"]]


def job(
    *inputs: str, out: Path | str, watcher: Watcher | None = None, errors: str | None = None, **options: Any
) -> Outcome:
    """A run with the tiny model."""
    names = Names(str(out), errors=errors)
    return run_job(JobOptions(inputs, names, model=str(TINY_CHECKPOINT), **options), watcher)


@pytest.fixture
def lists(tmp_path: Path) -> str:
    return write_lines(tmp_path / "lists.jsonl", LISTS)


@pytest.fixture
def pairs(tmp_path: Path) -> str:
    return write_lines(tmp_path / "pairs.jsonl", PAIRS)


# The result


def test_pairs_get_the_logits_of_the_reference(tmp_path: Path) -> None:
    cases = [case for case in read_lines(GOLDEN / "cases.jsonl") if case["max_length"] == 512]
    expected = {row["id"]: row for row in read_lines(GOLDEN / "expected.jsonl")}
    assert len(cases) > 5
    job(write_lines(tmp_path / "in.jsonl", cases), out=tmp_path / "out.jsonl", pairs=True)
    rows = read_lines(tmp_path / "out.jsonl")
    assert [row["id"] for row in rows] == [case["id"] for case in cases]
    for row in rows:
        assert row["logit"] == pytest.approx(expected[row["id"]]["logit"], abs=2e-4)
        assert row.get("truncated", False) == expected[row["id"]]["truncated"]


def test_lists_come_in_the_order_of_the_logits_of_their_pairs(tmp_path: Path, lists: str, pairs: str) -> None:
    job(pairs, out=tmp_path / "scored.jsonl", pairs=True)
    logits = {(row["query"], row["passage"]): row["logit"] for row in read_lines(tmp_path / "scored.jsonl")}
    job(lists, out=tmp_path / "out.jsonl")
    rows = read_lines(tmp_path / "out.jsonl")
    assert [row["query_id"] for row in rows] == [row["query_id"] for row in LISTS]
    for row, source in zip(rows, LISTS, strict=True):
        passages = row["passages"]
        assert [p["rank"] for p in passages] == list(range(1, len(passages) + 1))
        assert [(p["id"], p["text"]) for p in passages] == [
            (source["passages"][p["index"]]["id"], source["passages"][p["index"]]["text"]) for p in passages
        ]
        assert [p["logit"] for p in passages] == sorted((p["logit"] for p in passages), reverse=True)
        for p in passages:
            assert p["logit"] == pytest.approx(logits[row["query"], p["text"]], abs=1e-5)


@pytest.mark.parametrize("name", ["out.jsonl", "out.jsonl.gz", "out.jsonl.zst", "out.parquet"])
def test_the_same_run_gives_the_same_bytes(tmp_path: Path, lists: str, name: str) -> None:
    (tmp_path / "again").mkdir()
    for folder in (tmp_path, tmp_path / "again"):
        job(lists, out=folder / name)
    assert (tmp_path / name).read_bytes() == (tmp_path / "again" / name).read_bytes()


def test_flat_rows_and_lists_get_the_same_ranks(tmp_path: Path, lists: str) -> None:
    flat = [
        {"query_id": row["query_id"], "query": row["query"], "passage": p["text"], "pid": p["id"]}
        for row in LISTS
        for p in row["passages"]
    ]
    job(lists, out=tmp_path / "out.jsonl")
    job(write_table(tmp_path / "flat.parquet", flat), out=tmp_path / "flat-out.parquet")
    rows = pq.read_table(tmp_path / "flat-out.parquet").to_pylist()
    ranked = [
        (row["query_id"], p["id"], p["rank"]) for row in read_lines(tmp_path / "out.jsonl") for p in row["passages"]
    ]
    assert [(row["query_id"], row["pid"], row["rank"]) for row in rows] == ranked


@pytest.mark.parametrize(
    ("skip", "limit", "kept"),
    [(0, None, slice(None)), (3, None, slice(3, None)), (0, 4, slice(4)), (2, 3, slice(2, 5))],
)
def test_skip_and_limit_choose_the_rows(tmp_path: Path, lists: str, skip: int, limit: int | None, kept: slice) -> None:
    outcome = job(lists, out=tmp_path / "out.jsonl", skip=skip, limit=limit)
    ids = [row["query_id"] for row in LISTS[kept]]
    assert [row["query_id"] for row in read_lines(tmp_path / "out.jsonl")] == ids
    assert outcome.counts.rows_in == len(ids)


def test_the_selection_drops_passages_and_keeps_ranks(tmp_path: Path, lists: str) -> None:
    job(lists, out=tmp_path / "all.jsonl")
    everything = [row["passages"] for row in read_lines(tmp_path / "all.jsonl")]
    threshold = sorted(p["logit"] for passages in everything for p in passages)[10]
    outcome = job(lists, out=tmp_path / "some.jsonl", selection=Selection(top_n=2, threshold=threshold, prob=True))
    kept = [row["passages"] for row in read_lines(tmp_path / "some.jsonl")]
    expected = [[p for p in passages[:2] if p["logit"] >= threshold] for passages in everything]
    assert [[{k: v for k, v in p.items() if k != "prob"} for p in passages] for passages in kept] == expected
    for passages in kept:
        for p in passages:
            assert p["prob"] == pytest.approx(1 / (1 + math.exp(-p["logit"])), rel=1e-15)
    dropped = sum(map(len, everything)) - sum(map(len, kept))
    assert outcome.counts.dropped == dropped > 0
    assert outcome.counts.output_rows == outcome.counts.rows_out == len(LISTS)


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_the_best_pairs_of_a_run_come_best_first(tmp_path: Path, pairs: str, suffix: str) -> None:
    source = write_table(tmp_path / "pairs.parquet", [*PAIRS] * 5) if suffix == "parquet" else pairs
    job(source, out=tmp_path / "all.jsonl", pairs=True)
    rows = read_lines(tmp_path / "all.jsonl")
    best = sorted(rows, key=lambda row: -row["logit"])[:4]
    outcome = job(source, out=tmp_path / "best.jsonl", pairs=True, selection=Selection(top_n=4))
    assert read_lines(tmp_path / "best.jsonl") == best
    counts = outcome.counts
    assert (counts.rows_out, counts.output_rows, counts.dropped) == (len(rows), 4, len(rows) - 4)


def test_one_query_serves_plain_lines(tmp_path: Path) -> None:
    (tmp_path / "in.txt").write_text("paris\n\nvitamin d\n")
    outcome = job(
        str(tmp_path / "in.txt"), out=tmp_path / "out.jsonl", pairs=True, in_format="text", query="what is paris?"
    )
    assert [row["passage"] for row in read_lines(tmp_path / "out.jsonl")] == ["paris", "vitamin d"]
    assert (outcome.counts.rows_in, outcome.counts.blank) == (2, 1)


@pytest.mark.parametrize("source", ["empty.jsonl", "empty.parquet"])
@pytest.mark.parametrize("out", ["out.jsonl", "out.parquet"])
def test_an_input_without_rows_gives_an_output_without_rows(tmp_path: Path, source: str, out: str) -> None:
    if source == "empty.parquet":
        full = pq.read_table(write_table(tmp_path / "full.parquet", LISTS))
        path = write_table(tmp_path / source, full.slice(0, 0))
    else:
        path = write_lines(tmp_path / source, [])
    outcome = job(path, out=tmp_path / out)
    assert outcome.counts == Counts()
    if out == "out.jsonl":
        assert (tmp_path / out).read_bytes() == b""
    else:
        table = pq.read_table(tmp_path / out)
        assert table.num_rows == 0
        assert table.schema.names == (["query_id", "query", "passages"] if source == "empty.parquet" else [])
    again = job(str(tmp_path / out), out=tmp_path / f"again-{out}")
    assert again.counts == Counts()


# The report


def test_the_report_says_what_was_done(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "in.jsonl", [*LISTS, b"{", b"", {"query": "", "passages": ["x " * 600]}])
    outcome = job(path, out=tmp_path / "out.jsonl", selection=Selection(top_n=1))
    report = json.loads((tmp_path / "out.jsonl.report.json").read_text())
    digest = hashlib.sha256((tmp_path / "out.jsonl").read_bytes()).hexdigest()
    assert report == json.loads(json.dumps(outcome.report))
    assert {name: report["output"][name] for name in ("path", "sha256")} == {
        "path": str(tmp_path / "out.jsonl"),
        "sha256": digest,
    }
    counts = report["counts"]
    distinct = {(row["query"], p["text"]) for row in LISTS for p in row["passages"]} | {("", "x " * 600)}
    assert counts["pairs"] == len(PAIRS) + 1
    assert counts["pairs_scored"] == len(distinct)
    assert (counts["rows_in"], counts["rows_out"], counts["rows_error"], counts["blank"]) == (11, 10, 1, 1)
    assert (counts["lists"], counts["output_rows"], counts["truncated"]) == (10, 10, 1)
    assert counts["dropped"] == len(PAIRS) - len(LISTS)
    assert counts["empty_queries"] == sum(not row["query"] for row in LISTS) + 1
    assert counts["empty_passages"] == sum(not pair["passage"] for pair in PAIRS)
    assert report["model"]["sha256"] == read_checkpoint(TINY_CHECKPOINT).sha256
    assert report["options"]["inputs"] == [path]
    assert report["options"]["selection"]["top_n"] == 1
    assert report["plan"]["reasons"]
    assert report["seconds"]["wall"] >= report["seconds"]["compute"] > 0
    assert report["speed"]["pairs_per_second"] > 0
    assert outcome.errors == f"{tmp_path}/out.jsonl.errors.jsonl"
    assert outcome.first_error is not None
    assert outcome.first_error[:2] == (path, 10)


def test_a_file_name_that_is_no_text_is_no_obstacle(tmp_path: Path) -> None:
    path = tmp_path / os.fsdecode(b"in\xff.jsonl")
    try:
        write_lines(path, [*LISTS[:1], b"{"])
    except OSError:
        pytest.skip("this file system takes only names that are UTF-8")
    outcome = job(str(path), out=tmp_path / "out.jsonl")
    assert outcome.counts.rows_error == 1
    report = json.loads((tmp_path / "out.jsonl.report.json").read_bytes())
    assert report["options"]["inputs"] == [str(path)]


# Evaluation


def judgements(folder: Path) -> str:
    lines = [f"{row['query_id']} 0 p{place} {place % 3}\n" for row in LISTS[:7] for place in range(5)]
    (folder / "qrels").write_text("".join(lines))
    return str(folder / "qrels")


@pytest.mark.parametrize("selection", [Selection(), Selection(top_n=1, threshold=0.0)])
def test_the_evaluation_is_that_of_ir_measures_on_the_complete_runs(
    tmp_path: Path, lists: str, selection: Selection
) -> None:
    metrics = ("nDCG@3", "RR@10", "P@1")
    qrels = judgements(tmp_path)
    outcome = job(lists, out=tmp_path / "out.jsonl", qrels=qrels, metrics=metrics, selection=selection)
    job(lists, out=tmp_path / "all.jsonl")
    given, reranked = (
        [
            ir_measures.ScoredDoc(row["query_id"], p["id"], -float(place))
            for row in rows[:7]
            for place, p in enumerate(row["passages"])
        ]
        for rows in (LISTS, read_lines(tmp_path / "all.jsonl"))
    )
    judged = list(ir_measures.read_trec_qrels(qrels))
    measures = [ir_measures.parse_measure(metric) for metric in metrics]
    assert outcome.evaluation is not None
    for found, measure in zip(outcome.evaluation.metrics, measures, strict=True):
        assert found.metric == str(measure)
        assert found.given == pytest.approx(ir_measures.calc_aggregate([measure], judged, given)[measure])
        assert found.reranked == pytest.approx(ir_measures.calc_aggregate([measure], judged, reranked)[measure])
    assert (outcome.evaluation.queries, outcome.evaluation.unjudged) == (7, 2)
    assert outcome.report["evaluation"]["queries"] == 7
    plain = job(lists, out=tmp_path / "plain.jsonl", selection=selection)
    assert (tmp_path / "plain.jsonl").read_bytes() == (tmp_path / "out.jsonl").read_bytes()
    assert plain.counts == outcome.counts
    assert plain.evaluation is None


# Bad rows


def test_bad_rows_go_to_the_errors_file_and_the_rest_goes_on(tmp_path: Path) -> None:
    long = {"query_id": "long", "query": "q", "passages": ["short", "x " * 600]}
    path = write_lines(tmp_path / "in.jsonl", [LISTS[0], b"{", long, {"query": 5, "passages": []}, LISTS[1]])
    seen: list[RowError] = []
    outcome = job(path, out=tmp_path / "out.jsonl", truncate="error", watcher=Watcher(on_error=seen.append))
    assert [row["query_id"] for row in read_lines(tmp_path / "out.jsonl")] == ["q0", "long", "q1"]
    errors = read_lines(tmp_path / "out.jsonl.errors.jsonl")
    assert [(told(error), error["id"]) for error in errors] == [
        ((2, "bad-json"), None),
        ((3, "too-long"), "long"),
        ((4, "wrong-type"), None),
    ]
    assert errors[1]["error"]["message"].startswith("passages[1]: ")
    assert errors[1]["raw"] == json.dumps(long["passages"][1])  # the passage alone is bad
    assert [told(error) for error in seen] == [told(error) for error in errors]
    assert outcome.counts.rows_in == outcome.counts.rows_out + outcome.counts.rows_error == 5
    assert outcome.counts.passages_error == 1


def test_a_run_over_its_limit_of_bad_rows_goes_on_with_a_higher_limit(tmp_path: Path, lists: str) -> None:
    with Path(lists).open("ab") as stream:
        stream.write(b"{\n{\n")
    out = tmp_path / "out.jsonl"
    with pytest.raises(TooManyBadRowsError) as caught:
        job(lists, out=out, error_limit=ErrorLimit(rows=1))
    assert [path.name for path in tmp_path.iterdir()] == ["lists.jsonl", "out.jsonl.job"]
    assert f"kept in {out}.job" in caught.value.__notes__[0]
    assert job(lists, out=out, error_limit=ErrorLimit(rows=2)).report["continued"] == 1
    assert len(read_lines(f"{out}.errors.jsonl")) == 2


# Progress


def test_a_watcher_sees_the_plan_the_batches_and_the_share_of_the_input(tmp_path: Path, pairs: str) -> None:
    started: list[tuple[Checkpoint, Plan]] = []
    batches: list[tuple[int, int]] = []
    progress: list[tuple[int, float | None]] = []
    outcome = job(
        write_lines(tmp_path / "in.jsonl", [*PAIRS] * 7),
        out=tmp_path / "out.jsonl",
        pairs=True,
        watcher=Watcher(
            on_start=lambda checkpoint, plan: started.append((checkpoint, plan)),
            on_batch=lambda *batch: batches.append(batch),
            on_progress=lambda counts, share: progress.append((counts.rows_in, share)),
        ),
    )
    assert [checkpoint.architecture for checkpoint, _ in started] == ["BertForSequenceClassification"]
    assert sum(count for count, _ in batches) == outcome.counts.pairs_scored - outcome.counts.pairs_repeated
    assert sum(tokens for _, tokens in batches) == outcome.counts.tokens - outcome.counts.tokens_repeated
    assert [rows for rows, _ in progress] == [*range(64, len(PAIRS) * 7, 64), len(PAIRS) * 7]
    shares = [share for _, share in progress if share is not None]
    assert shares == sorted(shares)
    assert shares[-1] == 1.0


@pytest.mark.parametrize("name", ["in.jsonl.gz", "in.parquet"])
def test_the_share_of_a_compressed_input_and_of_a_table_is_known(tmp_path: Path, name: str) -> None:
    if name == "in.parquet":
        path = write_table(tmp_path / name, PAIRS)
    else:
        (tmp_path / name).write_bytes(gzip.compress(Path(write_lines(tmp_path / "x", PAIRS)).read_bytes()))
        path = str(tmp_path / name)
    progress: list[float | None] = []
    watcher = Watcher(on_progress=lambda counts, share: progress.append(share))
    job(path, out=tmp_path / "out.jsonl", pairs=True, watcher=watcher)
    assert progress[-1] == 1.0


# Refused before the weights are loaded


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"selection": Selection(threshold=math.nan)}, UsageError, "--threshold nan: not a number to compare with"),
        ({"selection": Selection(threshold=-math.inf)}, UsageError, "--threshold -inf: not a number"),
        ({"pairs": True, "query": "\udcff"}, UsageError, "--query: not UTF-8"),
        ({"shape": "pairs"}, UsageError, "--shape pairs"),
        ({"in_format": "xlsx"}, UsageError, "--in-format xlsx"),
        ({"fields": FieldNames(passages="x.y"), "in_format": "parquet"}, InputError, "is not a Parquet file"),
        ({"qrels": "nowhere"}, InputError, "nowhere: no such file"),
        ({"qrels": "nowhere", "metrics": ("quality",)}, UsageError, "--metric quality"),
        ({"out": "out.xlsx"}, UsageError, "the suffix tells no format"),
        ({"out": "lists.jsonl", "overwrite": True}, UsageError, "would replace an input"),
        ({"out": "older.jsonl"}, OutputError, "older.jsonl: exists"),
        ({"out": "no/out.jsonl"}, OutputError, "its folder does not exist"),
    ],
)
def test_what_cannot_work_is_refused_before_the_weights_are_loaded(
    tmp_path: Path, lists: str, options: dict[str, Any], error: type[RerankError], message: str
) -> None:
    (tmp_path / "older.jsonl").write_text("older")
    before = sorted(tmp_path.iterdir())
    started: list[object] = []
    watcher = Watcher(on_start=lambda *facts: started.append(facts))
    out = tmp_path / options.pop("out", "out.jsonl")
    with pytest.raises(error) as caught:
        job(lists, out=out, watcher=watcher, **options)
    assert message in caught.value.message
    assert started == []
    assert sorted(tmp_path.iterdir()) == before
    assert (tmp_path / "older.jsonl").read_text() == "older"


def test_a_missing_input_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nowhere\.jsonl: no such file"):
        job(str(tmp_path / "nowhere.jsonl"), out=tmp_path / "out.jsonl")
