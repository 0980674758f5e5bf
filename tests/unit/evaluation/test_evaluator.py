from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, astuple
from pathlib import Path
from typing import Any

import ir_measures
import pytest

from rerank_cli.errors import InputError, UsageError
from rerank_cli.evaluation.evaluator import Evaluation, Evaluator
from rerank_cli.evaluation.measures import calculate, parse_measures
from rerank_cli.evaluation.orders import Orders, orders_of
from rerank_cli.formats.shapes import FieldNames, FlatShape, ListShape, Shape
from rerank_cli.records import CandidateList, RankedList
from tests.conftest import json_rows, ranked_of

LISTS = ListShape(FieldNames())


class RunEvaluator(Evaluator):
    """As a run uses it: with the shape of its rows."""

    def __init__(self, qrels: str, metrics: Sequence[str], shape: Shape) -> None:
        super().__init__(qrels, metrics)
        self._shape = shape

    def rank(self, ranked: Sequence[RankedList]) -> None:
        self.add(orders_of(ranked, self._shape, self.is_judged))


def test_gains_of_one_measure_change_no_other() -> None:
    """ir-measures gives them to those beside it."""
    grades = {"q": {"a": 2, "b": 1, "c": 0}}
    together, alone = ["nDCG@2", "nDCG(gains={1:1,2:9})@2", "nDCG(gains={1:5,2:6})@2"], {}
    for name in together:
        alone |= calculate(parse_measures([name]), grades, {"q": "bac"})
    assert calculate(parse_measures(together), grades, {"q": "bac"}) == alone
    assert len(set(alone.values())) == 3


QRELS = "q1 0 a 2\nq1 0 c 1\nq2 0 x 1\nq9 0 a 1\n"


@pytest.fixture
def qrels(tmp_path: Path) -> str:
    path = tmp_path / "qrels"
    path.write_text(QRELS)
    return str(path)


def ranked(query_id: object, passages: Sequence[Any], *logits: float, shape: Shape = LISTS) -> RankedList:
    row = {"query_id": query_id, "query": "q", "passages": [{"id": p, "text": "t"} for p in passages]}
    (found,) = shape.group(json_rows(row))
    assert isinstance(found, CandidateList)
    return ranked_of(found, *logits)


def flat(*rows: Mapping[str, Any], logits: Sequence[float]) -> RankedList:
    (found,) = FlatShape(FieldNames()).group(json_rows(*rows))
    assert isinstance(found, CandidateList)
    return ranked_of(found, *logits)


def test_both_orders_are_measured_on_the_same_judgements(qrels: str) -> None:
    evaluator = RunEvaluator(qrels, ["RR@10", "P@1"], LISTS)
    evaluator.rank([ranked("q1", "bac", 0.0, 2.0, 1.0), ranked("q2", "xy", 1.0, 2.0)])
    evaluator.rank([ranked("q3", "z", 1.0)])
    result = evaluator.finish()
    reciprocal, precision = result.metrics
    assert (reciprocal.metric, reciprocal.given, reciprocal.reranked) == ("RR@10", 0.75, 0.75)
    assert (reciprocal.wins, reciprocal.losses, reciprocal.ties) == (1, 1, 0)
    assert (precision.metric, precision.given, precision.reranked) == ("P@1", 0.5, 0.5)
    assert (result.queries, result.unjudged) == (2, 1)


@pytest.mark.parametrize("metric", ["nDCG@10", "nDCG@2", "RR@10", "AP", "P@5", "R@2"])
def test_the_values_are_those_of_ir_measures_on_runs_made_by_hand(qrels: str, metric: str) -> None:
    evaluator = RunEvaluator(qrels, [metric], LISTS)
    evaluator.rank([ranked("q1", "bxcad", 0.5, 2.0, 1.0, 2.0, -1.0), ranked("q2", "yxz", 1.0, 1.0, 3.0)])
    (found,) = evaluator.finish().metrics

    def measured(run: dict[str, str]) -> dict[str, float]:
        documents = [ir_measures.ScoredDoc(q, p, -float(n)) for q, order in run.items() for n, p in enumerate(order)]
        judged = [qrel for qrel in ir_measures.read_trec_qrels(QRELS) if qrel.query_id in run]
        measure = ir_measures.parse_measure(metric)
        return {value.query_id: value.value for value in ir_measures.iter_calc([measure], judged, documents)}

    given = measured({"q1": "bxcad", "q2": "yxz"})
    # Equal logits (x and a, y and x) stay in the order of the input.
    reranked = measured({"q1": "xacbd", "q2": "zyx"})
    assert found.given == pytest.approx(sum(given.values()) / 2, abs=1e-12)
    assert found.reranked == pytest.approx(sum(reranked.values()) / 2, abs=1e-12)
    assert found.wins == sum(reranked[q] > given[q] for q in given)
    assert found.losses == sum(reranked[q] < given[q] for q in given)
    assert found.wins + found.losses + found.ties == 2


@pytest.mark.parametrize("metric", ["nDCG@10", "RR@10", "AP", "P@5", "R@2", "Judged@10", "NumRet"])
@pytest.mark.parametrize("lists", [{"q1": "bxcad", "q2": ""}, {"q1": "", "q2": "", "q9": ""}, {"q2": "yx", "q3": ""}])
def test_a_judged_query_with_an_empty_list_counts_as_ir_measures_counts_it(
    qrels: str, metric: str, lists: dict[str, str]
) -> None:
    evaluator = RunEvaluator(qrels, [metric], LISTS)
    evaluator.rank([ranked(query, passages, *map(float, range(len(passages)))) for query, passages in lists.items()])
    result = evaluator.finish()

    def measured(orders: dict[str, str]) -> float:
        documents = [ir_measures.ScoredDoc(q, p, -float(n)) for q, order in orders.items() for n, p in enumerate(order)]
        judged = [qrel for qrel in ir_measures.read_trec_qrels(QRELS) if qrel.query_id in lists]
        measure = ir_measures.parse_measure(metric)
        return float(ir_measures.calc_aggregate([measure], judged, documents)[measure])

    (found,) = result.metrics
    assert found.given == pytest.approx(measured(lists), abs=1e-12)
    assert found.reranked == pytest.approx(measured({query: order[::-1] for query, order in lists.items()}), abs=1e-12)
    assert result.queries == len(lists.keys() & {"q1", "q2", "q9"})
    assert found.wins + found.losses + found.ties == result.queries


def test_flat_rows_have_their_ids_in_their_rows(qrels: str) -> None:
    evaluator = RunEvaluator(qrels, ["P@1"], FlatShape(FieldNames()))
    rows = [{"qid": "q1", "query": "q", "passage": "t", "docid": name} for name in "ba"]
    evaluator.rank([flat(*rows, logits=[1.0, 2.0]), flat({**rows[0], "qid": "q2", "docid": "x"}, logits=[1.0])])
    (found,) = evaluator.finish().metrics
    assert (found.given, found.reranked) == (0.5, 1.0)


def test_numbers_serve_as_ids(tmp_path: Path) -> None:
    path = tmp_path / "qrels"
    path.write_text("7 0 12 1\n")
    evaluator = RunEvaluator(str(path), ["P@1"], LISTS)
    evaluator.rank([ranked(7, [11, 12], 1.0, 2.0)])
    assert [(m.given, m.reranked) for m in evaluator.finish().metrics] == [(0.0, 1.0)]


def test_without_a_judged_query_nothing_is_averaged(qrels: str) -> None:
    evaluator = RunEvaluator(qrels, ["nDCG@10"], LISTS)
    evaluator.rank([ranked("q3", "z", 1.0), ranked("q3", "z", 1.0), ranked("q4", "z", 1.0)])
    result = evaluator.finish()
    assert (result.queries, result.unjudged) == (0, 2)
    assert [metric.significance for metric in result.metrics] == [None]
    assert [(m.given, m.reranked, m.wins, m.losses, m.ties) for m in result.metrics] == [(0.0, 0.0, 0, 0, 0)]


def test_a_list_without_an_id_is_named(qrels: str) -> None:
    with pytest.raises(InputError, match=r"in\.jsonl:1: no query id, which --qrels needs") as caught:
        RunEvaluator(qrels, ["P@1"], LISTS).rank([ranked(None, "a", 1.0)])
    assert "--id-field" in str(caught.value.hint)


def test_a_passage_without_an_id_is_named(qrels: str) -> None:
    with pytest.raises(InputError, match=r"in\.jsonl:1: passage 1 has no id, which --qrels needs"):
        RunEvaluator(qrels, ["P@1"], LISTS).rank([ranked("q1", ["a", None], 2.0, 1.0)])
    rows = [{"qid": "q1", "query": "q", "passage": "t", "docid": name} for name in ("a", None)]
    with pytest.raises(InputError, match=r"in\.jsonl:2: passage 1 has no id"):
        RunEvaluator(qrels, ["P@1"], FlatShape(FieldNames())).rank([flat(*rows, logits=[1.0, 2.0])])


@pytest.mark.parametrize("metric", ["quality", "nDCG@", "P@x", "", "nDCG(gain=2)@3", "AP(rel='x')", "nDCG@10 P@5"])
def test_a_measure_that_cannot_be_computed_is_refused_before_the_run(qrels: str, metric: str) -> None:
    with pytest.raises(UsageError) as caught:
        RunEvaluator(qrels, ["nDCG@10", metric], LISTS)
    assert caught.value.message.startswith(f"--metric {metric}: cannot be measured: ")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"q1 0 a\n", "the grade is `a`, not a whole number"),
        (b"q1 0 a good\n", "the grade is `good`, not a whole number"),
        (b"\xff 0 a 1\n", "not UTF-8"),
        (b"q1 0 a 1 more\n", "5 columns, which are no judgement"),
        (b"q1\n", "1 columns, which are no judgement"),
        (b"<html>\n", "1 columns, which are no judgement"),
    ],
)
def test_a_file_that_holds_no_qrels_is_refused_with_its_line(tmp_path: Path, content: bytes, reason: str) -> None:
    path = tmp_path / "qrels"
    path.write_bytes(content)
    with pytest.raises(InputError, match=f"qrels:1: {reason}"):
        RunEvaluator(str(path), ["P@1"], LISTS)


def test_missing_and_empty_qrels_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nowhere: no such file"):
        RunEvaluator(str(tmp_path / "nowhere"), ["P@1"], LISTS)
    with pytest.raises(InputError, match="is a directory"):
        RunEvaluator(str(tmp_path), ["P@1"], LISTS)
    (tmp_path / "empty").touch()
    with pytest.raises(InputError, match="empty: no judgements"):
        RunEvaluator(str(tmp_path / "empty"), ["P@1"], LISTS)


def test_the_first_list_of_a_query_counts_and_the_others_are_told(qrels: str) -> None:
    evaluator = RunEvaluator(qrels, ["P@1"], LISTS)
    evaluator.rank([ranked("q1", "ab", 1.0, 2.0), ranked("q1", "ba", 1.0, 2.0)])
    evaluator.rank([ranked("q1", "ba", 1.0, 2.0)])
    result = evaluator.finish()
    assert (result.queries, result.repeated) == (1, 2)
    assert (result.metrics[0].given, result.metrics[0].reranked) == (1.0, 0.0)


def test_what_a_process_notes_is_all_that_the_next_one_needs(qrels: str) -> None:
    whole, first, second = (RunEvaluator(qrels, ["nDCG@10", "AP"], LISTS) for _ in range(3))
    parts = [
        [ranked("q1", "bac", 0.0, 2.0, 1.0), ranked("q3", "z", 1.0)],
        [ranked("q1", "b", 1.0)],
        [ranked("q2", "yx", 1.0, 2.0)],
    ]
    for part in parts:
        whole.rank(part)
    for part in parts[:2]:
        first.rank(part)
        second.restore(json.loads(json.dumps(first.note)))
    second.rank(parts[2])
    assert second.finish() == whole.finish()
    assert list(second.per_query()) == list(whole.per_query())


def test_a_note_holds_values_and_no_list(qrels: str) -> None:
    evaluator = RunEvaluator(qrels, ["P@1", "R@2"], LISTS)
    evaluator.rank([ranked("q1", [f"p{n}" for n in range(500)], *map(float, range(500))), ranked("q3", "z", 1.0)])
    assert evaluator.note == [("q1", [0.0, 0.0], [0.0, 0.0], 0, False, "p499"), ("q3", None, None, 0, False, None)]


def test_each_query_has_its_values_and_their_difference(qrels: str) -> None:
    evaluator = RunEvaluator(qrels, ["RR@10", "P@1"], LISTS)
    evaluator.rank([ranked("q2", "yx", 1.0, 2.0), ranked("q3", "z", 1.0), ranked("q1", "ab", 1.0, 2.0)])
    assert [astuple(value) for value in evaluator.per_query()] == [
        ("q2", "RR@10", 0.5, 1.0, 0.5),
        ("q2", "P@1", 0.0, 1.0, 1.0),
        ("q1", "RR@10", 1.0, 0.5, -0.5),
        ("q1", "P@1", 1.0, 0.0, -1.0),
    ]


def test_where_the_given_order_is_not_known_only_the_new_one_is_measured(qrels: str) -> None:
    evaluator = Evaluator(qrels, ["RR"])
    evaluator.add([Orders("q1", None, "xa"), Orders("q2", None, "x")])
    (found,) = evaluator.finish(None).metrics
    assert (found.reranked, found.given, found.difference, found.wins, found.significance) == (
        0.75,
        None,
        None,
        None,
        None,
    )
    assert [value.difference for value in evaluator.per_query()] == [None, None]


def test_a_query_that_a_measure_has_no_value_for_is_counted_and_not_averaged(qrels: str) -> None:
    # Accuracy has none where all that was found is relevant, or nothing is.
    evaluator = Evaluator(qrels, ["Accuracy", "P@1"])
    evaluator.add([Orders("q1", "bac", "abc"), Orders("q2", "x", "x")])
    accuracy, precision = evaluator.finish().metrics
    assert (accuracy.given, accuracy.reranked, accuracy.undefined) == (0.0, 0.5, 1)
    assert (precision.reranked, precision.undefined) == (1.0, 0)
    assert [value.reranked for value in evaluator.per_query() if value.query_id == "q2"] == [None, 1.0]


def test_an_evaluation_comes_back_from_its_document(qrels: str) -> None:
    evaluator = RunEvaluator(qrels, ["RR@10", "P@1"], LISTS)
    evaluator.rank([ranked("q2", "yx", 1.0, 2.0), ranked("q3", "z", 1.0)])
    found = evaluator.finish()
    assert Evaluation.of_report(json.loads(json.dumps(asdict(found)))) == found


def test_a_measure_that_is_named_twice_is_measured_once(qrels: str) -> None:
    evaluator = Evaluator(qrels, ["RR@10", "MRR@10"])
    evaluator.add([Orders("q1", "a", "a")])
    assert [metric.metric for metric in evaluator.finish().metrics] == ["RR@10"]


@pytest.mark.parametrize(
    ("metric", "hint"),
    [
        ("ndcg@10", "did you mean nDCG@10?"),
        ("Acuracy", "did you mean Accuracy?"),
        ("xyz", "for example nDCG@10, RR@10, P@5"),
        ("nDCG@", "for example nDCG@10, RR@10, P@5"),
    ],
)
def test_the_nearest_measures_are_named(qrels: str, metric: str, hint: str) -> None:
    with pytest.raises(UsageError) as caught:
        Evaluator(qrels, [metric])
    assert caught.value.hint == hint
