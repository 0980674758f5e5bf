"""Judgements as people have them: those of TREC and of BEIR, byte order marks, numbers written in several ways."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from rerank_cli.errors import InputError
from rerank_cli.evaluation.evaluator import Evaluator
from rerank_cli.evaluation.orders import Orders
from rerank_cli.evaluation.qrels import read_qrels
from rerank_cli.formats.jsonl import ExactFloat
from rerank_cli.formats.shapes.fields import id_text

EXPECTED = {"11": {"a1": 1, "a2": 0}, "12": {"b1": 2}}


@pytest.mark.parametrize(
    "content",
    [
        b"11 0 a1 1\n11 0 a2 0\n12 0 b1 2\n",
        b"\xef\xbb\xbf11\t0\ta1\t1\r\n11\t0\ta2\t0\r\n\r\n12\t0\tb1\t2",
        b"query-id\tcorpus-id\tscore\n11\ta1\t1\n11\ta2\t0\n12\tb1\t2\n",
        b"\xef\xbb\xbfquery-id\tcorpus-id\tscore\r\n11\ta1\t1\r\n11\ta2\t0\r\n12\tb1\t2\r\n",
        b"qid doc_id relevance\n11 a1 1\n11 a2 0\n12 b1 2\n",
        b"corpus-id\tscore\tquery-id\na1\t1\t11\na2\t0\t11\nb1\t2\t12\n",
        b"11 a1 1.0\n11 a2 0.0\n12 b1 2\n",
        b'{"query-id": 11, "corpus-id": "a1", "score": 1}\n{"query-id": 11.0, "corpus-id": "a2", "score": 0}\n'
        b'{"query-id": "12", "corpus-id": "b1", "score": 2.0}\n',
        b"11 0 a1 1\n11 0 a1 1\n11 0 a2 0\n12 0 b1 2\n",
    ],
)
def test_judgements_are_read_in_each_of_their_forms(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "qrels"
    path.write_bytes(content)
    assert read_qrels(str(path)) == EXPECTED
    packed = tmp_path / "qrels.tsv.gz"
    packed.write_bytes(gzip.compress(content))
    assert read_qrels(str(packed)) == EXPECTED


@pytest.mark.parametrize(
    ("grade", "says"),
    [
        ("1_0", "the grade is `1_0`, not a whole number"),
        ("\u0661", "not a whole number"),
        ("0.5", "not a whole number"),
        ("2147483647", "the grade is 2147483647, more than 1,000,000"),
        ("1e30", "more than 1,000,000"),
    ],
)
def test_a_grade_that_no_measure_takes_is_refused(tmp_path: Path, grade: str, says: str) -> None:
    path = tmp_path / "qrels"
    path.write_text(f"11 0 a1 {grade}\n")
    with pytest.raises(InputError, match=f"qrels:1: .*{says}"):
        read_qrels(str(path))


def test_a_passage_that_is_judged_twice_and_otherwise_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "qrels"
    path.write_bytes(b"11 0 a1 1\n11 0 a1 0\n")
    with pytest.raises(InputError, match="qrels:2: passage `a1` of query `11` is judged twice, with different grades"):
        read_qrels(str(path))


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (1, "1"),
        (1.0, "1"),
        (ExactFloat("1.00"), "1"),
        (1.5, "1.5"),
        ("1.0", "1.0"),
        ("007", "007"),
        (2**60, str(2**60)),
        ("é".encode(), "é"),
        (b"\xff", "/w=="),
    ],
)
def test_a_whole_number_is_an_id_without_its_fraction_and_a_text_stays(value: object, text: str) -> None:
    assert id_text(value) == text


def evaluated(tmp_path: Path, qrels: str, *orders: Orders) -> Evaluator:
    path = tmp_path / "qrels"
    path.write_text(qrels)
    evaluator = Evaluator(str(path), ["nDCG@10"])
    evaluator.add(orders)
    return evaluator


def test_of_a_repeated_id_the_first_place_counts_and_repeats_are_told(tmp_path: Path) -> None:
    order = ["a1", "a2", "a3", "a1"]
    found = evaluated(tmp_path, "11 0 a1 1\n", Orders("11", order, ["a2", "a1", "a1", "a3"])).finish()
    (metric,) = found.metrics
    assert (metric.given, metric.reranked) == (1.0, pytest.approx(0.6309, abs=1e-4))
    assert found.repeated_passages == 1
    assert found.problem is None


def test_passages_that_never_meet_are_a_problem_with_one_of_each_side(tmp_path: Path) -> None:
    found = evaluated(tmp_path, "11 0 x 1\n", Orders("11", ["a"], ["a"])).finish()
    assert found.problem is not None
    assert found.problem.endswith("judges: query `11` has `a`, the judgements have `x`")
    none = evaluated(tmp_path, "11 0 x 1\n", Orders("q11", ["x"], ["x"])).finish()
    assert none.problem is not None
    assert none.problem.endswith("the input has `q11`, the judgements have `11`")


def test_few_that_meet_are_a_warning(tmp_path: Path) -> None:
    qrels = "".join(f"{n} 0 x{n} 1\n" for n in range(10))
    orders = [Orders(str(n), ["a"], ["a"]) for n in range(9)]
    found = evaluated(tmp_path, qrels, *orders, Orders("9", ["x9"], ["x9"])).finish()
    assert found.problem is None
    assert found.note is not None
    assert found.note.startswith("only 1 of 10 judged queries have a judged passage in their list")
    many = evaluated(tmp_path, qrels, *[Orders(str(n), [f"x{n}"], [f"x{n}"]) for n in range(10)]).finish()
    assert many.note is None


def test_what_a_later_process_is_told_says_the_same(tmp_path: Path) -> None:
    first = evaluated(tmp_path, "11 0 a1 1\n12 0 b 1\n", Orders("11", ["a1", "a1"], ["a1", "a1"]))
    second = Evaluator(str(tmp_path / "qrels"), ["nDCG@10"])
    second.restore(first.note)
    assert second.finish() == first.finish()
