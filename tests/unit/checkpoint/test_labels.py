from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rerank_cli.checkpoint import Checkpoint, TensorInfo
from rerank_cli.checkpoint.labels import Score, check_labels, count_labels, read_score
from rerank_cli.errors import ModelError, UsageError


def checkpoint(rows: int | None = None, **config: Any) -> Checkpoint:
    tensors = {}
    if rows is not None:
        tensors["classifier.weight"] = TensorInfo(Path("x"), "F32", (rows, 8), 0, 32 * rows)
    config = {"architectures": ["BertForSequenceClassification"], **config}
    return Checkpoint(Path("nowhere"), "made up", config, {}, tensors)


@pytest.mark.parametrize(
    ("config", "rows", "labels"),
    [
        ({"num_labels": 1}, None, 1),
        ({"num_labels": 3}, 2, 3),
        ({"id2label": {"0": "LABEL_0"}, "num_labels": 3}, None, 1),
        ({"id2label": {"0": "no", "1": "yes"}}, None, 2),
        ({"id2label": None}, 1, 1),
        ({}, 3, 3),
        ({}, None, 2),
    ],
)
def test_the_labels_are_counted_by_their_names_then_their_number_then_the_head(config, rows, labels):
    assert count_labels(checkpoint(rows, **config)) == labels


@pytest.mark.parametrize(
    ("labels", "label", "score", "words"),
    [
        (1, None, Score(1, 0), "logit"),
        (1, 0, Score(1, 0), "logit"),
        (2, None, Score(2, 1, 0), "logit[1] - logit[0]"),
        (2, 0, Score(2, 0), "logit[0]"),
        (3, 2, Score(3, 2), "logit[2]"),
    ],
)
def test_the_score_is_the_logit_the_difference_of_two_or_the_one_that_is_wanted(labels, label, score, words):
    found = read_score(replace(checkpoint(num_labels=labels), label=label))
    assert found == score
    assert str(found) == words


@pytest.mark.parametrize(("labels", "label"), [(1, 1), (2, 2), (3, 7)])
def test_a_label_that_is_not_there_is_a_fault_of_usage(labels, label):
    with pytest.raises(UsageError, match=f"--label {label}: made up has {labels} label"):
        read_score(replace(checkpoint(num_labels=labels), label=label))


@pytest.mark.parametrize("architecture", ["Qwen3ForCausalLM", "LlamaNemotronVLModel", "ModernBertModel"])
def test_what_has_no_labels_takes_none(architecture):
    one = checkpoint(architectures=[architecture])
    check_labels(one)
    with pytest.raises(UsageError, match="--label: made up gives one score"):
        check_labels(replace(one, label=0))


def test_a_reranker_with_a_prompt_has_one_label():
    check_labels(checkpoint(num_labels=1, architectures=["LlamaBidirectionalForSequenceClassification"]))
    with pytest.raises(ModelError, match="gives 2 labels"):
        check_labels(checkpoint(num_labels=2, architectures=["LlamaBidirectionalForSequenceClassification"]))
