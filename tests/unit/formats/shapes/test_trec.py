from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rerank_cli.errors import InputError, UsageError
from rerank_cli.formats.inputs import ReadOptions, open_lists, resolve_inputs
from rerank_cli.formats.scattered_groups import ordered_by_group
from rerank_cli.formats.shapes import NO_TEXTS, SHAPES, FieldNames, Grouped, Selection, Shape, Texts
from rerank_cli.formats.shapes.trec import falling_scores
from rerank_cli.records import CandidateList, Gap, RowError
from tests.conftest import ranked_of, told

RUN = """q1 Q0 d1 1 12.5 bm25
q1 Q0 d2 2 11.25 bm25
q2\tQ0\td2\t1\t9\tbm25
q2 Q0 d3 2 8e0 bm25
"""
QUERIES = "q1\tfirst question\nq2\tsecond question\n"
CORPUS = (
    '{"_id": "d1", "title": "One", "text": "a"}\n{"_id": "d2", "title": "", "text": "b"}\n{"_id": "d3", "text": "c"}\n'
)


class Trec:
    """A run and its texts in a folder."""

    def __init__(self, folder: Path) -> None:
        self.run, self.queries, self.corpus = (str(folder / name) for name in ("a.trec", "queries.tsv", "corpus.jsonl"))
        Path(self.queries).write_text(QUERIES)
        Path(self.corpus).write_text(CORPUS)

    def open(self, run: str | bytes = RUN, **options: Any) -> tuple[Shape, list[Grouped]]:
        Path(self.run).write_bytes(run if isinstance(run, bytes) else run.encode())
        inputs, read = resolve_inputs([self.run]), ReadOptions(**options)
        shape, items = open_lists(inputs, FieldNames(), read, "auto", Texts(self.queries, self.corpus))
        return shape, list(shape.group(ordered_by_group(inputs, shape, items, read)))

    def lists(self, run: str = RUN) -> list[CandidateList]:
        found = self.open(run)[1]
        assert all(isinstance(item, CandidateList) for item in found), found
        return [item for item in found if isinstance(item, CandidateList)]


@pytest.fixture
def trec(tmp_path: Path) -> Trec:
    return Trec(tmp_path)


def lines_of(shape: Shape, item: CandidateList, *logits: float) -> str:
    rows = shape.render(ranked_of(item, *logits), Selection())
    return b"".join(map(shape.kind.dump, rows)).decode()


# In


def test_a_run_is_read_with_the_texts_of_its_ids(trec: Trec) -> None:
    first, second = trec.lists()
    assert (first.id, first.query, first.passages) == ("q1", "first question", ("One a", "b"))
    assert (second.id, second.query, second.passages) == ("q2", "second question", ("b", "c"))


def test_the_given_order_is_that_of_trec_eval_by_score(trec: Trec) -> None:
    run = "q1 Q0 d1 1 1.0 t\nq1 Q0 d2 2 3.0 t\nq1 Q0 d3 3 1.0 t\n"
    shape, (found,) = trec.open(run)
    assert isinstance(found, CandidateList)
    assert [shape.passage_id(found, index) for index in range(3)] == ["d2", "d1", "d3"]
    assert found.passages == ("b", "One a", "c")


def test_lines_of_a_query_are_brought_together(trec: Trec) -> None:
    first, second = trec.lists("q1 Q0 d1 1 2 t\nq2 Q0 d2 1 2 t\nq1 Q0 d2 2 1 t\n")
    assert (first.passages, second.passages) == (("One a", "b"), ("b",))


@pytest.mark.parametrize(
    ("line", "code"),
    [
        ("q1 Q0 d1 1 2", "bad-run-line"),
        ("q1 Q0 d1 1 2 my tag", "bad-run-line"),
        ("q1 Q0 d1 1 high t", "bad-run-line"),
        ("q1 Q0 d1 1 nan t", "bad-run-line"),
        ("q1 Q0 d1 1 inf t", "bad-run-line"),
        ("q1 Q0 d1 1 1_0 t", "bad-run-line"),
        ("q1 Q0 d1 1 \u0661 t", "bad-run-line"),
        ("\u00a0", "bad-run-line"),
        ('{"query": "q", "passages": []}', "bad-run-line"),
        ("q9 Q0 d1 1 2 t", "unknown-id"),
        ("q1 Q0 d9 1 2 t", "unknown-id"),
        ("q1 Q0 d2 1 2 t", "repeated-passage"),
        (b"q1 Q0 \xff 1 2 t", "bad-utf8"),
    ],
)
def test_a_bad_line_is_an_error_among_good_ones(trec: Trec, line: str | bytes, code: str) -> None:
    raw = line if isinstance(line, bytes) else line.encode()
    found = trec.open(b"q1 Q0 d2 1 3 t\n" + raw + b"\n\nq1 Q0 d3 2 1 t\n")[1]
    lists = [item for item in found if isinstance(item, CandidateList)]
    assert [item.passages for item in lists] == [("b", "c")]
    assert [told(item) for item in found if isinstance(item, RowError)] == [(2, code)]
    assert found.count(Gap.BLANK) == 1


def test_a_query_without_a_text_is_an_error_for_each_of_its_lines(trec: Trec) -> None:
    found = trec.open("q9 Q0 d1 1 2 t\nq9 Q0 d2 2 1 t\nq2 Q0 d2 1 2 t\n")[1]
    errors = [item for item in found if isinstance(item, RowError)]
    assert [(error.row, error.message) for error in errors] == [
        (1, f"query `q9` is not in {trec.queries}"),
        (2, f"query `q9` is not in {trec.queries}"),
    ]


def test_a_run_is_known_by_its_suffix_its_content_or_its_name(trec: Trec, tmp_path: Path) -> None:
    path = tmp_path / "run"
    path.write_text(RUN)
    assert [item.format for item in resolve_inputs([str(path)])] == ["trec"]
    assert [item.format for item in resolve_inputs(["-"], shape="trec")] == ["trec"]
    for name in ("a.run", "a.TREC"):
        (tmp_path / name).write_text(RUN)
        assert [item.format for item in resolve_inputs([str(tmp_path / name)])] == ["trec"]


def test_a_run_without_its_texts_is_refused(trec: Trec) -> None:
    Path(trec.run).write_text(RUN)
    with pytest.raises(UsageError, match="--queries and --corpus are needed"):
        open_lists(resolve_inputs([trec.run]), FieldNames(), ReadOptions(), "auto", Texts(queries=trec.queries))
    with pytest.raises(UsageError, match="--corpus -: texts are looked up in a file"):
        open_lists(resolve_inputs([trec.run]), FieldNames(), ReadOptions(), "auto", Texts(trec.queries, "-"))


def test_texts_without_a_run_are_refused(trec: Trec, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"query": "q", "passages": []}\n')
    inputs = resolve_inputs([str(tmp_path / "a.jsonl")])
    with pytest.raises(UsageError, match="the texts of rows that hold ids, and the input has its texts itself"):
        open_lists(inputs, FieldNames(), ReadOptions(), "auto", Texts(trec.queries, trec.corpus))
    with pytest.raises(UsageError, match=r"--shape trec: .*a.jsonl is read as jsonl"):
        open_lists(inputs, FieldNames(), ReadOptions(), "trec")


def test_a_run_beside_other_formats_is_refused(trec: Trec, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"query": "q", "passages": []}\n')
    Path(trec.run).write_text(RUN)
    with pytest.raises(InputError, match="a TREC run among files of other formats"):
        open_lists(resolve_inputs([str(tmp_path / "a.jsonl"), trec.run]), FieldNames(), ReadOptions(), "auto")


# Out


def test_a_run_comes_back_as_a_run(trec: Trec) -> None:
    shape, (first, second) = trec.open()
    assert isinstance(first, CandidateList)
    assert isinstance(second, CandidateList)
    assert lines_of(shape, first, -1.5, 2.25) == "q1 Q0 d2 1 2.250000 rerank-cli\nq1 Q0 d1 2 -1.500000 rerank-cli\n"
    assert lines_of(shape, second, 0.0, 0.0) == "q2 Q0 d2 1 0.000000 rerank-cli\nq2 Q0 d3 2 -0.000001 rerank-cli\n"


def test_no_two_ranks_have_the_same_score() -> None:
    assert falling_scores([1.0000001, 1.0, 1.0, 0.9999995]) == ["1.000000", "0.999999", "0.999998", "0.999997"]
    # At 20, six decimals are finer than a 32-bit float, by which trec_eval orders.
    assert falling_scores([20.0, 20.0, 20.0]) == ["20.000000", "19.999999", "19.999996"]
    assert falling_scores([]) == []


@given(st.lists(st.floats(-200, 200, width=32), max_size=60))
def test_scores_fall_strictly_also_as_32_bit_floats(logits: list[float]) -> None:
    logits.sort(reverse=True)
    scores = falling_scores(logits)
    assert all(len(score.partition(".")[2]) == 6 for score in scores)
    for kind in (float, np.float32):
        assert all(kind(after) < kind(before) for before, after in pairwise(scores))
    moved = [float(score) - logit for score, logit in zip(scores, logits, strict=True)]
    assert max(map(abs, moved), default=0) <= 2e-5 * (len(logits) + 1)


# From and to other shapes


def written(row: dict[str, Any]) -> str | tuple[str, str]:
    """A list row as a run, or why it cannot be one."""
    from rerank_cli.formats.shapes import written_as
    from tests.conftest import json_rows

    shape = written_as(SHAPES["list"].open(FieldNames(), NO_TEXTS), SHAPES["trec"])
    (found,) = shape.group(json_rows(row))
    if isinstance(found, RowError):
        return found.code, found.message
    assert isinstance(found, CandidateList)
    return lines_of(shape, found, *(float(-index) for index in range(len(found.passages))))


def test_a_list_with_ids_can_be_written_as_a_run() -> None:
    passages = [{"id": "a", "text": "x"}, {"docid": 7, "text": "y"}]
    assert written({"qid": 5, "query": "q", "passages": passages}) == (
        "5 Q0 a 1 0.000000 rerank-cli\n5 Q0 7 2 -1.000000 rerank-cli\n"
    )


def test_the_ids_of_a_run_are_those_that_judgements_have() -> None:
    passages = [{"id": 1.0, "text": "x"}, {"id": 2.5, "text": "y"}]
    assert written({"qid": 5.0, "query": "q", "passages": passages}) == (
        "5 Q0 1 1 0.000000 rerank-cli\n5 Q0 2.5 2 -1.000000 rerank-cli\n"
    )


def test_of_passages_with_the_same_id_a_run_has_the_best() -> None:
    chunks = [{"id": one, "text": one} for one in "abaca"]
    assert written({"qid": 5, "query": "q", "passages": chunks}) == (
        "5 Q0 a 1 0.000000 rerank-cli\n5 Q0 b 2 -1.000000 rerank-cli\n5 Q0 c 3 -3.000000 rerank-cli\n"
    )


@pytest.mark.parametrize(
    ("row", "code", "message"),
    [
        ({"passages": []}, "no-query-id", "the row has no query id, which a TREC run needs"),
        ({"id": "q", "passages": ["a"]}, "no-passage-id", "passages[0] has no id, which a TREC run needs"),
        ({"id": "q 1", "passages": []}, "unfit-id", "the id of the query is empty or has white space in it"),
        ({"id": "q", "passages": [{"id": "a\nb", "text": ""}]}, "unfit-id", "the id of passages[0] is empty or has wh"),
        ({"id": "q", "passages": [{"id": "", "text": ""}]}, "unfit-id", "the id of passages[0] is empty or has white"),
    ],
)
def test_a_list_that_a_run_cannot_hold_is_an_error_row(row: dict[str, Any], code: str, message: str) -> None:
    found = written({"query": "q", **row})
    assert isinstance(found, tuple)
    assert found[0] == code
    assert found[1].startswith(message)
