"""Did it help? `--qrels` of a run and `--evaluate-only` of a file, against ir-measures itself."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import ir_measures
import pytest

from rerank_cli.cli import main
from rerank_cli.formats.compression import open_input
from tests.conftest import read_lines, write_lines, write_table

ROOT = Path(__file__).parents[2]
SAMPLES = ROOT / "samples"
COLLECTIONS = Path(os.environ.get("RERANK_COLLECTIONS", ROOT.parent / "shared" / "collections"))
"""Collections that may not be redistributed."""

METRICS = ["nDCG@10", "RR@10", "P@5", "AP", "R@20", "Judged@10"]
QRELS = "q1 0 a 2\nq1 0 c 1\nq2 0 x 1\nq9 0 a 1\n"
# The new orders are a c b and x y; the given ones b a c and y x.
OURS = [
    {
        "query_id": "q1",
        "query": "t",
        "passages": [
            {"id": "a", "text": "t", "rank": 1, "logit": 3.5, "index": 1},
            {"id": "c", "text": "t", "rank": 2, "logit": 2.5, "index": 2},
            {"id": "b", "text": "t", "rank": 3, "logit": 2.5, "index": 0},
        ],
    },
    {
        "query_id": "q2",
        "query": "t",
        "passages": [
            {"id": "x", "text": "t", "rank": 1, "logit": 1.0, "index": 1},
            {"id": "y", "text": "t", "rank": 2, "logit": 0.5, "index": 0},
        ],
    },
    {"query_id": "q3", "query": "t", "passages": [{"text": "t", "rank": 1}]},
]
GIVEN, NEW = {"q1": "bac", "q2": "yx"}, {"q1": "acb", "q2": "xy"}


def flat(rows: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """A passage a row."""
    return [
        {"query_id": row["query_id"], "query": row["query"], **dict(passage.items())}
        for row in rows
        for passage in row["passages"]
    ]


def measured(metric: str, orders: Mapping[str, Sequence[str]], qrels: str) -> float:
    """What ir-measures says of orders, over the judged queries among them."""
    run = [ir_measures.ScoredDoc(query, p, -float(n)) for query, order in orders.items() for n, p in enumerate(order)]
    judged = [qrel for qrel in ir_measures.read_trec_qrels(qrels) if qrel.query_id in orders]
    measure = ir_measures.parse_measure(metric)
    return float(ir_measures.calc_aggregate([measure], judged, run)[measure])


class Evaluate:
    """`rerank-file --evaluate-only` with its document."""

    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys
        self.qrels = folder / "qrels"
        self.qrels.write_text(QRELS)
        self.said = ""

    def __call__(self, source: Path | str, *options: str, code: int = 0) -> dict[str, Any]:
        qrels = [] if "--qrels" in options else ["--qrels", str(self.qrels)]
        found = main(["rerank-file", "--evaluate-only", str(source), *qrels, "--format", "json", *options])
        printed = self._capsys.readouterr()
        self.said = printed.err
        assert found == code, printed.err
        return json.loads(printed.out) if printed.out else {}


@pytest.fixture
def evaluate(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Evaluate:
    return Evaluate(tmp_path, capsys)


def answers(name: str) -> list[dict[str, Any]]:
    """The rows as another program's answers, with the documents that were asked for."""
    rows = []
    for row in OURS[:2]:
        passages = row["passages"]
        assert isinstance(passages, list)
        results = [
            {"index": p["index"], "relevance_score": p["logit"] / 10, "document": {"id": p["id"]}} for p in passages
        ]
        if name == "cohere":
            rows.append({"id": row["query_id"], "results": results})
        elif name == "openai-batch":
            rows.append(
                {
                    "id": "batch_req_1",
                    "custom_id": row["query_id"],
                    "response": {"status_code": 200, "body": {"results": results}},
                }
            )
        else:
            asked = [{"id": p["id"], "text": "t"} for p in sorted(passages, key=lambda p: p["index"])]
            rankings = [{"index": p["index"], "logit": p["logit"]} for p in passages]
            rows.append({"id": row["query_id"], "passages": asked, "rankings": rankings})
    return rows


SOURCES: dict[str, Callable[[Path], str]] = {
    "list.jsonl": lambda path: write_lines(path, OURS),
    "list.jsonl.gz": lambda path: _gzipped(path, OURS),
    "list.parquet": lambda path: write_table(path, OURS[:2]),
    "flat.jsonl": lambda path: write_lines(path, flat(OURS)),
    "flat.parquet": lambda path: write_table(path, flat(OURS[:2])),
    "cohere.jsonl": lambda path: write_lines(path, answers("cohere")),
    "openai-batch.jsonl": lambda path: write_lines(path, answers("openai-batch")),
    "nim.jsonl": lambda path: write_lines(path, answers("nim")),
}


def _gzipped(path: Path, rows: list[Any]) -> str:
    import gzip

    path.write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode()))
    return str(path)


@pytest.mark.parametrize("name", SOURCES)
def test_every_shape_that_has_ids_is_measured_in_both_orders(name: str, tmp_path: Path, evaluate: Evaluate) -> None:
    source = SOURCES[name](tmp_path / name)
    found = evaluate(source, *(f"--metric={metric}" for metric in METRICS))
    assert found["schema"] == "rerank-cli/evaluation/1"
    assert (found["queries"], found["given_order"]) == (2, "`index`")
    for metric in found["metrics"]:
        assert metric["given"] == pytest.approx(measured(metric["metric"], GIVEN, str(evaluate.qrels)), abs=1e-12)
        assert metric["reranked"] == pytest.approx(measured(metric["metric"], NEW, str(evaluate.qrels)), abs=1e-12)
        assert metric["wins"] + metric["losses"] + metric["ties"] == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([name, "qrels"])


def test_queries_without_judgements_are_counted_and_need_no_passage_ids(tmp_path: Path, evaluate: Evaluate) -> None:
    found = evaluate(write_lines(tmp_path / "in.jsonl", OURS))
    assert (found["queries"], found["unjudged"]) == (2, 1)


@pytest.mark.parametrize(
    ("passages", "given", "new", "words"),
    [
        ([{"id": "b", "logit": 1}, {"id": "a", "logit": 2}], "ba", "ab", "the order of the file"),
        ([{"id": "a", "score": 1}, {"id": "b", "score": 2}], "ba", "ab", "`score`"),
        ([{"id": "a", "score": 1, "logit": 3}, {"id": "b", "score": 2, "logit": 1}], "ba", "ab", "`score`"),
        ([{"id": "a", "rank": 2, "score": 3}, {"id": "b", "rank": 1, "score": 1}], "ba", "ab", "`rank`"),
        ([{"id": "a", "rank": 2, "cosine": 3}, {"id": "b", "rank": 1, "cosine": 1}], "ba", "ab", "`rank`"),
        ([{"id": "a", "rank": 1, "index": 1}, {"id": "b", "rank": 2, "index": 0}], "ba", "ab", "`index`"),
        ([{"id": "a"}, {"id": "b"}], None, "ab", None),
    ],
)
def test_the_given_order_is_that_of_the_first_stage_and_is_named(
    passages: list[dict[str, Any]], given: str | None, new: str, words: str | None, tmp_path: Path, evaluate: Evaluate
) -> None:
    source = write_lines(tmp_path / "in.jsonl", [{"query_id": "q1", "passages": passages}])
    found = evaluate(source, "--metric", "RR")
    (metric,) = found["metrics"]
    assert found["given_order"] == words
    assert metric["reranked"] == measured("RR", {"q1": new}, str(evaluate.qrels))
    assert metric["given"] == (None if given is None else measured("RR", {"q1": given}, str(evaluate.qrels)))
    assert ("nothing in the file says the given order" in evaluate.said) == (given is None)


def test_a_field_that_says_the_new_order_again_is_not_passed_off_as_the_given_one(
    tmp_path: Path, evaluate: Evaluate
) -> None:
    passages = [{"id": "a", "rank": 1, "logit": 2}, {"id": "b", "rank": 2, "logit": 1}]
    evaluate(write_lines(tmp_path / "in.jsonl", [{"query_id": "q1", "passages": passages}]))
    assert "`rank` was taken for the given order, and in every list it is the new one" in evaluate.said


def test_what_a_selection_has_left_out_is_told(tmp_path: Path, evaluate: Evaluate) -> None:
    source = write_lines(tmp_path / "in.jsonl", [{**OURS[0], "passages": [OURS[0]["passages"][1]]}])
    found = evaluate(source)
    assert found["lists_cut"] == 1
    assert "1 lists have fewer passages than were reranked" in evaluate.said


def test_a_run_is_measured_by_its_scores(tmp_path: Path, evaluate: Evaluate) -> None:
    run = tmp_path / "new.trec"
    run.write_text("q1 Q0 b 1 0.5 x\nq1 Q0 a 2 2.5 x\nq2 Q0 x 1 1 x\nq3 Q0 z 1 1 x\n")
    found = evaluate(run, "--metric", "RR")
    assert (found["queries"], found["unjudged"], found["given_order"]) == (2, 1, None)
    assert found["metrics"][0]["reranked"] == 1.0


@pytest.mark.parametrize(
    ("rows", "options", "code", "said"),
    [
        ([{"passages": [{"id": "a"}]}], [], 4, "in.jsonl:1: no query id, which --qrels needs; the row has `passages`"),
        ([{"query_id": "q1", "passages": [{"text": "t"}]}], [], 4, "1: passages[0]: no passage id; it has `text`"),
        ([{"query_id": "q1", "passages": ["t"]}], [], 4, "no passage id; it has no fields"),
        ([{"query_id": "q1", "passages": [{"text": "t", "rank": 1, "logit": 1.5, "index": 0}]}], [], 4,
         "add an `id` to each passage of the file that is reranked; it is kept"),
        ([{"query_id": "q1", "passages": [{"text": "t", "key": "a", "logit": 1.5}]}], [], 4, "with `--id-field`: key"),
        ([{"query_id": "q1", "text": "t", "logit": 1.5}], [], 4, "add an `id` to each passage"),
        ([{"query": "q", "passages": [{"id": "a"}]}], [], 4, "add a `query_id`, as the judgements have it"),
        ([{"id": "q1", "rankings": [{"index": 0, "logit": 1.0}]}], [], 4, "`--out-format list` keeps them"),
        ([{"query_id": "7", "passages": [{"id": "a"}]}], [], 4, "the file has `7`, the judgements have `q1`"),
        ([], [], 4, "in.jsonl: no query of"),
        (OURS, ["--metric", "ndgc@10"], 2, "did you mean nDCG@10"),
        (OURS, ["--model", "somewhere"], 2, "--model: nothing is scored with --evaluate-only"),
        (OURS, ["--top-n", "3"], 2, "--top-n: nothing is scored with --evaluate-only"),
        (OURS, ["--qrels", "nowhere"], 4, "nowhere: no such file"),
        (OURS, ["--per-query", "values.csv"], 2, "end the name in .tsv or .jsonl"),
        (OURS, ["-o", "{folder}/in.jsonl"], 2, "is an input or another output"),
        (OURS, ["-o", "{folder}/x.tsv", "--per-query", "{folder}/x.tsv"], 2, "is an input or another output"),
        (OURS, ["-o", "{folder}/no/x.json"], 4, "its folder does not exist"),
        (
            [OURS[0], {**OURS[1], "passages": [{"id": "x", "rank": 1}]}],
            [], 4, "in.jsonl:2: passages[0] has no number in `index`",
        ),
        (
            [{"query_id": name, "id": "a", "logit": 1, "passage": "t"} for name in ("q1", "q2", "q1")],
            [], 4, "in.jsonl:3: the rows of query `q1` are not adjacent",
        ),
    ],
)  # fmt: skip
def test_what_cannot_be_evaluated_is_refused_in_a_sentence(
    rows: list[Any], options: list[str], code: int, said: str, tmp_path: Path, evaluate: Evaluate
) -> None:
    write_lines(tmp_path / "in.jsonl", rows)
    options = [option.format(folder=tmp_path) for option in options]
    before = sorted(tmp_path.iterdir())
    assert evaluate(tmp_path / "in.jsonl", *options, code=code) == {}
    assert said in evaluate.said
    assert sorted(tmp_path.iterdir()) == before


def test_without_judgements_there_is_nothing_to_evaluate(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["rerank-file", "--evaluate-only", "in.jsonl"]) == 2
    assert "missing option --qrels" in capsys.readouterr().err


def test_a_row_that_cannot_be_read_is_told_and_the_others_are_measured(tmp_path: Path, evaluate: Evaluate) -> None:
    found = evaluate(write_lines(tmp_path / "in.jsonl", [OURS[0], b"{", b"", OURS[1]]), code=3)
    assert (found["queries"], found["rows_error"]) == (2, 1)
    assert "in.jsonl:2: " in evaluate.said


def test_the_report_and_the_values_are_files_only_where_they_are_asked_for(tmp_path: Path, evaluate: Evaluate) -> None:
    source = write_lines(tmp_path / "in.jsonl", OURS)
    out, values = tmp_path / "report.json", tmp_path / "values.tsv"
    found = evaluate(source, "--metric", "RR", "-o", str(out), "--per-query", str(values))
    assert json.loads(out.read_text()) == found
    assert (
        values.read_text()
        == "query_id\tmetric\tgiven\treranked\tdifference\nq1\tRR\t0.5\t1.0\t0.5\nq2\tRR\t0.5\t1.0\t0.5\n"
    )
    evaluate(source, "-o", str(out), code=4)
    assert "--overwrite" in evaluate.said
    evaluate(source, "-o", str(out), "--overwrite")
    assert not list(tmp_path.glob("*.part"))


def test_the_report_may_be_stdout(tmp_path: Path, evaluate: Evaluate) -> None:
    found = evaluate(write_lines(tmp_path / "in.jsonl", OURS), "-o", "-", "--format", "text")
    assert found["schema"] == "rerank-cli/evaluation/1"
    assert not Path("-").exists()


@pytest.mark.parametrize(("name", "lines"), [("values.tsv", 4), ("values.jsonl.zst", 3)])
def test_a_run_into_a_pipe_leaves_its_values_too(
    name: str, lines: int, tmp_path: Path, evaluate: Evaluate, tiny_model: str
) -> None:
    values = tmp_path / name
    rows = [*OURS[:2], {**OURS[0], "query_id": "q9"}, {**OURS[0], "query_id": "q4"}, OURS[0]]
    source = write_lines(tmp_path / "in.jsonl", rows)
    run = ["rerank-file", source, "-o", "-", "--model", tiny_model, "--qrels", str(evaluate.qrels)]
    assert main([*run, "--metric", "P@1", "--per-query", str(values)]) == 0
    with open_input(str(values)) as stream:
        assert stream.read().count(b"\n") == lines
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["in.jsonl", "qrels", name])


def test_an_evaluation_never_loads_torch(tmp_path: Path) -> None:
    (tmp_path / "qrels").write_text(QRELS)
    write_table(tmp_path / "in.parquet", OURS[:2])
    script = (
        "import sys\n"
        "from rerank_cli.cli import main\n"
        f"assert main(['rerank-file', '--evaluate-only', {str(tmp_path / 'in.parquet')!r}, "
        f"'--qrels', {str(tmp_path / 'qrels')!r}, '--metric', 'nDCG@10']) == 0\n"
        "print('HEAVY', sorted({'torch', 'transformers', 'ray'} & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert "HEAVY []" in done.stdout


def test_a_terminal_gets_a_table(tmp_path: Path, evaluate: Evaluate, capsys: pytest.CaptureFixture[str]) -> None:
    source = write_lines(tmp_path / "in.jsonl", OURS)
    qrels = ["--qrels", str(evaluate.qrels)]
    assert main(["rerank-file", "--evaluate-only", source, *qrels, "--metric", "RR", "--format", "text"]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines() if line.strip()]
    assert lines[0] == ["2", "queries,", "1", "without", "judgements", "left", "out"]
    assert lines[1] == ["metric", "given", "reranked", "change", "better", "worse", "same", "p"]
    assert lines[3] == ["RR", "0.5000", "1.0000", "+0.5000", "2", "0", "0", "0.5000"]
    assert " ".join(lines[4]) == "given order: `index`; new order: `rank`"


# Against ir-measures


def pseudo_reranked(source: Path, rows: int, out: Path) -> tuple[str, dict[str, list[str]], dict[str, list[str]]]:
    """Lists in an order that a hash says, as this program writes them, and both orders of each query."""
    written, given, new = [], {}, {}
    with source.open() as lines:
        for row in map(json.loads, islice(lines, rows)):
            name = "candidates" if "candidates" in row else "passages"
            passages = [{**passage, "index": index} for index, passage in enumerate(row[name])]
            passages.sort(key=lambda passage: zlib.crc32(f"{row['query_id']} {passage['id']}".encode()))
            ranked = [{**p, "rank": rank, "logit": 10.0 - rank} for rank, p in enumerate(passages, 1)]
            written.append({**row, name: ranked})
            given[row["query_id"]] = [passage["id"] for passage in row[name]]
            new[row["query_id"]] = [passage["id"] for passage in ranked]
    return write_lines(out, written), given, new


@pytest.mark.parametrize("collection", ["samples", "cranfield"])
def test_the_figures_are_those_of_ir_measures(collection: str, tmp_path: Path, evaluate: Evaluate) -> None:
    lists, qrels = SAMPLES / "python-docs.jsonl", SAMPLES / "qrels.txt"
    if collection != "samples":
        lists, qrels = COLLECTIONS / collection / "candidates.jsonl", COLLECTIONS / collection / "qrels.txt"
        if not lists.is_file():
            pytest.skip(f"{lists} is not here; RERANK_COLLECTIONS names the folder of collections")
    source, given, new = pseudo_reranked(lists, 300, tmp_path / "in.jsonl")
    values = tmp_path / "values.jsonl"
    options = ["--qrels", str(qrels), "--per-query", str(values)]
    found = evaluate(source, *options, *(f"--metric={metric}" for metric in METRICS))
    assert found["queries"] + found["unjudged"] == len(new)
    for metric in found["metrics"]:
        assert metric["given"] == pytest.approx(measured(metric["metric"], given, str(qrels)), abs=1e-6)
        assert metric["reranked"] == pytest.approx(measured(metric["metric"], new, str(qrels)), abs=1e-6)
        assert 0 < metric["significance"]["p_value"] <= 1
    rows = read_lines(values)
    assert len(rows) == found["queries"] * len(METRICS)
    for metric in found["metrics"]:
        own = [row for row in rows if row["metric"] == metric["metric"]]
        assert sum(row["difference"] for row in own) / len(own) == pytest.approx(metric["difference"], abs=1e-12)
        assert sum(row["difference"] > 0 for row in own) == metric["wins"]


def test_a_run_its_report_its_output_and_ir_measures_on_the_command_line_agree(
    tmp_path: Path, evaluate: Evaluate, tiny_model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    lists, out, values = tmp_path / "lists.jsonl", tmp_path / "out.trec", tmp_path / "values.tsv"
    rows = [row | {"passages": row["passages"][:10]} for row in read_lines(SAMPLES / "python-docs.jsonl")[:12]]
    write_lines(lists, rows)
    qrels, names = tmp_path / "judged", {row["query_id"] for row in rows}
    judged = [line for line in (SAMPLES / "qrels.txt").read_text().splitlines() if line.split()[0] in names]
    qrels.write_text("\n".join(judged) + "\n")
    metrics = ["nDCG@10", "RR@10", "AP", "P@5"]
    asked = ["--qrels", str(qrels), *(f"--metric={metric}" for metric in metrics)]
    run = ["rerank-file", str(lists), "-o", str(out), "--model", tiny_model, "--per-query", str(values)]
    assert main([*run, *asked]) == 0
    report = json.loads(Path(f"{out}.report.json").read_text())["evaluation"]
    assert json.loads(capsys.readouterr().out) == {"schema": "rerank-cli/evaluation/1", **report}
    reported = {metric["metric"]: metric["reranked"] for metric in report["metrics"]}

    command = [sys.executable, "-m", "ir_measures", str(qrels), str(out), *metrics, "--places", "12"]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert reported == pytest.approx({name: float(value) for name, value in map(str.split, printed.splitlines())})

    assert {one["metric"]: one["reranked"] for one in evaluate(out, *asked)["metrics"]} == pytest.approx(reported)
    assert values.read_text().count("\n") == 1 + 12 * len(metrics)
    # A run that is done already says the same again, and knows its files.
    assert main([*run, *asked]) == 0
    assert json.loads(capsys.readouterr().out) == {"schema": "rerank-cli/evaluation/1", **report}
    values.unlink()
    assert main([*run, *asked, "--restart", "--overwrite"]) == 0
    assert values.is_file()


@pytest.mark.parametrize(
    ("options", "code", "said"),
    [
        (["--metric", "RR"], 2, "--metric: changes nothing without `--qrels FILE`"),
        (["--per-query", "x.tsv"], 2, "--per-query: nothing is measured without judgements"),
        (["--per-query", "{folder}/x.csv"], 2, "end the name in .tsv or .jsonl"),
        (["--qrels", "{folder}/qrels", "--per-query", "{folder}/qrels.tsv"], 4, "qrels.tsv: exists"),
    ],
)
def test_values_that_cannot_be_written_are_refused_before_the_run(
    options: list[str], code: int, said: str, tmp_path: Path, tiny_model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "qrels").write_text(QRELS)
    (tmp_path / "qrels.tsv").touch()
    source = write_lines(tmp_path / "in.jsonl", OURS)
    options = [option.format(folder=tmp_path) for option in options]
    assert main(["rerank-file", source, "-o", str(tmp_path / "out.jsonl"), "--model", tiny_model, *options]) == code
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out.jsonl").exists()
