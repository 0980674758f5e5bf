"""Rows to train on: which passages are in them, and that sentence-transformers and FlagEmbedding's format take them."""

from __future__ import annotations

import importlib
import importlib.util
import json
import sys
import types
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rerank_cli.cli import main
from tests.conftest import TINY_CHECKPOINT, read_lines, write_lines

SAMPLES = Path(__file__).parents[2] / "samples"
QRELS = SAMPLES / "qrels.txt"
TINY = ("--model", str(TINY_CHECKPOINT), "--limit", "12")


def rerank(
    out: Path,
    *options: str | Path,
    source: Path = SAMPLES / "python-docs.jsonl",
    model: Sequence[str] = TINY,
) -> int:
    return main(["rerank-file", str(source), "-o", str(out), "-q", "--max-tokens", "64", *model, *map(str, options)])


@pytest.fixture(scope="module")
def lists(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """The rankings, and of each passage whether it is positive."""
    out = tmp_path_factory.mktemp("lists") / "out.jsonl"
    assert rerank(out) == 0
    grades = {(query, name): int(grade) for query, _, name, grade in map(str.split, QRELS.read_text().splitlines())}
    rows = read_lines(out)
    for row in rows:
        for one in row["passages"]:
            one["positive"] = grades.get((row["query_id"], one["id"]), 0) > 0
    return rows


def sigmoid(logit: float) -> float:
    return float(1 / (1 + np.exp(-logit)))


def below(row: dict[str, Any], positives: list[dict[str, Any]], count: int, absolute: float = 0.0) -> list[Any]:
    """The hardest negatives of a list that lie below all positives by both margins."""
    lowest = min(one["logit"] for one in positives)
    found = [
        one for one in row["passages"]
        if not one["positive"] and one["logit"] <= lowest - absolute and sigmoid(one["logit"]) <= 0.95 * sigmoid(lowest)
    ]  # fmt: skip
    return found[:count]


def made(tmp_path: Path, name: str, *options: str) -> list[dict[str, Any]]:
    out = tmp_path / "out.jsonl"
    assert rerank(out, "--qrels", QRELS, "--out-format", name, *options) == 0
    return read_lines(out)


def test_triplets_have_each_positive_with_its_hardest_negatives(lists: list[dict[str, Any]], tmp_path: Path) -> None:
    expected = [
        (row["query"], positive["text"], one["text"], positive["logit"] - one["logit"])
        for row in lists
        for positive in row["passages"]
        if positive["positive"]
        for one in below(row, [positive], 2, absolute=1.0)
    ]
    found = made(tmp_path, "triplet", "--negatives", "2", "--absolute-margin", "1")
    assert len(found) > 4
    assert [tuple(one.values())[:3] for one in found] == [one[:3] for one in expected]
    assert [one["label"] for one in found] == pytest.approx([one[3] for one in expected], abs=1e-4)


def test_tuples_have_all_their_columns_or_are_not_there(lists: list[dict[str, Any]], tmp_path: Path) -> None:
    expected = [
        [row["query"], positive["text"], *(one["text"] for one in negatives)]
        for row in lists
        for positive in row["passages"]
        if positive["positive"] and len(negatives := below(row, [positive], 3)) == 3
    ]
    found = made(tmp_path, "n-tuple", "--negatives", "3")
    assert len(found) > 4
    assert [list(one.values())[:-1] for one in found] == expected
    assert all(len(one["label"]) == 4 and one["label"][0] > max(one["label"][1:]) for one in found)


@pytest.mark.parametrize("name", ["labeled-list", "flagembedding"])
def test_lists_have_negatives_below_all_positives(name: str, lists: list[dict[str, Any]], tmp_path: Path) -> None:
    found_rows = made(tmp_path, name)
    assert len(found_rows) > 4
    rows = iter(found_rows)
    for row in lists:
        positives = [one for one in row["passages"] if one["positive"]]
        if not (negatives := below(row, positives, 5)):
            continue
        found, texts = next(rows), [[one["text"] for one in some] for some in (positives, negatives)]
        if name == "labeled-list":
            assert found["docs"] == texts[0] + texts[1]
            assert found["labels"] == pytest.approx(
                [sigmoid(one["logit"]) for one in (*positives, *negatives)], abs=1e-4
            )
        else:
            assert list(found) == ["query", "pos", "neg", "pos_scores", "neg_scores"]
            assert [found["pos"], found["neg"]] == texts
            assert found["neg_scores"] == pytest.approx([one["logit"] for one in negatives], abs=1e-4)
    assert next(rows, None) is None


def test_lists_without_a_positive_are_bad_rows_and_those_without_a_negative_are_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one = {"text": "red apples are sweet", "good": True}
    rows = [
        {"query": "apples", "passages": [one, {"text": "how to weld steel"}]},
        {"query": "apples", "passages": [{"text": "apples"}, {"text": "pears", "good": False}]},
        {"query": "apples", "passages": [one]},
        {"query": "how to weld steel", "passages": [one, {"text": "how to weld steel"}]},
        {"query": "apples", "passages": [one, {"text": "red apples are sweet"}]},
    ]
    write_lines(tmp_path / "in.jsonl", rows)
    options = ("--out-format", "triplet", "--positive-field", "good")
    assert rerank(tmp_path / "out.jsonl", *options, source=tmp_path / "in.jsonl", model=()) == 3
    assert [row["negative"] for row in read_lines(tmp_path / "out.jsonl")] == ["how to weld steel"]
    errors = read_lines(tmp_path / "out.jsonl.errors.jsonl")
    assert [(error["row"], error["error"]["code"]) for error in errors] == [(2, "no-positive"), (3, "no-negative")]
    report = json.loads((tmp_path / "out.jsonl.report.json").read_text())
    assert report["counts"]["lists_without_rows"] == 2


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--out-format", "triplet"], "nothing says which passages are positive"),
        (["--out-format", "triplet", "--qrels", str(QRELS), "--top-n", "3"], "--top-n: rows of triplet are chosen"),
        (
            ["--out-format", "triplet", "--qrels", str(QRELS), "--depth", "3"],
            "rows of the shape triplet are ordered by score",
        ),
    ],
)
def test_what_has_no_meaning_is_refused(
    options: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert rerank(tmp_path / "out.jsonl", *options) == 2
    assert said in capsys.readouterr().err


def test_the_lowest_grade_of_a_positive_has_one_name_and_its_older_one(tmp_path: Path) -> None:
    rows = [
        {"query_id": "q", "query": "which way", "passages": [
            {"id": f"p{n}", "text": f"a road {n}", "grade": n} for n in range(4)
        ]}
    ]  # fmt: skip
    source = write_lines(tmp_path / "in.jsonl", rows)
    options = ["--out-format", "flagembedding", "--positive-field", "grade", "--relative-margin", "0"]
    found = []
    for name in ("--relevant-from", "--positive-from"):
        out = tmp_path / f"{name}.jsonl"
        assert main(["rerank-file", source, "-o", str(out), "-q", *TINY, *options, name, "3"]) == 0
        found.append(read_lines(out))
    assert found[0] == found[1]
    assert all(row["pos"] == ["a road 3"] for row in found[0])


def test_another_margin_is_another_run(tmp_path: Path) -> None:
    made(tmp_path, "triplet")
    options = ("--qrels", QRELS, "--out-format", "triplet")
    assert rerank(tmp_path / "out.jsonl", *options) == 0  # nothing to do
    assert rerank(tmp_path / "out.jsonl", *options, "--relative-margin", "0.2") == 4


def test_losses_of_sentence_transformers_take_the_rows(tmp_path: Path) -> None:
    pytest.importorskip("sentence_transformers", reason="sentence-transformers is not installed")
    torch = pytest.importorskip("torch")
    from sentence_transformers import CrossEncoder
    from sentence_transformers.cross_encoder.losses import LambdaLoss, MarginMSELoss, MultipleNegativesRankingLoss

    model = CrossEncoder(str(Path(__file__).parents[1] / "parity" / "bert-ce-open" / "checkpoint"), device="cpu")
    for name, losses in {
        "triplet": (MarginMSELoss, MultipleNegativesRankingLoss),
        "n-tuple": (MarginMSELoss, MultipleNegativesRankingLoss),
        "labeled-list": (LambdaLoss,),
    }.items():
        out = tmp_path / f"{name}.jsonl"
        assert rerank(out, "--qrels", QRELS, "--out-format", name, "--negatives", "2") == 0
        rows = read_lines(out)[:4]  # as a dataset has them: columns in order, the labels by their name
        label = next(column for column in ("label", "labels") if column in rows[0])
        inputs = [[row[column] for row in rows] for column in rows[0] if column != label]
        labels = [row[label] for row in rows]
        tensor = [torch.tensor(one) for one in labels] if name == "labeled-list" else torch.tensor(labels)
        for loss in losses:
            value = loss(model)(inputs, tensor)
            assert torch.isfinite(value)
            assert value.requires_grad


def test_the_loader_of_flagembedding_takes_the_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its loader alone: the whole package imports modules that newer versions of transformers do not have."""
    spec = importlib.util.find_spec("FlagEmbedding")
    if spec is None or spec.submodule_search_locations is None:
        pytest.skip("FlagEmbedding is not installed")
    home = Path(spec.submodule_search_locations[0])
    for name in ("", ".abc", ".abc.finetune", ".abc.finetune.reranker"):
        bare = types.ModuleType(f"FlagEmbedding{name}")
        bare.__path__ = [str(home.joinpath(*name.split(".")))]
        monkeypatch.setitem(sys.modules, bare.__name__, bare)
    loader = importlib.import_module("FlagEmbedding.abc.finetune.reranker.AbsDataset")
    settings = importlib.import_module("FlagEmbedding.abc.finetune.reranker.AbsArguments")
    from transformers import AutoTokenizer

    made(tmp_path, "flagembedding")
    tokenizer = AutoTokenizer.from_pretrained(Path(__file__).parents[1] / "parity" / "bert-ce-open" / "checkpoint")
    for distillation in (True, False):
        asked = settings.AbsRerankerDataArguments(
            train_data=[str(tmp_path / "out.jsonl")], knowledge_distillation=distillation, train_group_size=4,
            cache_path=str(tmp_path / "cache"),
        )  # fmt: skip
        rows = loader.AbsRerankerTrainDataset(asked, tokenizer)
        assert len(rows) == len(read_lines(tmp_path / "out.jsonl"))
        for place in range(len(rows)):
            pairs, scores = rows[place]
            assert len(pairs) == 4
            assert scores is None if not distillation else scores[0] > max(scores[1:])
