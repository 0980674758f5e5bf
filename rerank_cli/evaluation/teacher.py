"""Writes rows to train a smaller model on, with the reranker as its teacher.

    triplet         {"query", "positive", "negative", "label"}; label: by how much the positive's score is higher
    n-tuple         {"query", "positive", "negative_1", ..., "negative_N", "label"}; label: the scores, in this order
    labeled-list    {"query", "docs", "labels"}; labels: the sigmoids of the logits, or the similarities
    flagembedding   {"query", "pos", "neg", "pos_scores", "neg_scores"}, as FlagEmbedding's loaders read it

The first three are for the losses of sentence-transformers (MultipleNegativesRanking, MarginMSE, DistillKLDiv,
LambdaLoss): their inputs are the columns in this order, their label is the column of that name.

Judgements or a field tell which passages are positive. A passage that nobody judged may be an answer too, so a negative
must score below the positive by two margins: the absolute one in the score, the relative one in the sigmoid of the
logit (0.05: at most 95 % of the positive's). The hardest negatives come first. In a row with several positives, the
negatives lie below all of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rerank_cli.errors import UsageError
from rerank_cli.formats.choices import Selection, Teacher
from rerank_cli.formats.shapes import FieldNames, Texts, lookup
from rerank_cli.formats.shapes.fields import id_text
from rerank_cli.formats.shapes.shape import ALL_ROW_CONTENT, Exchange, Kind, Shape
from rerank_cli.records import RankedList, sigmoid

Grades = Mapping[str, Mapping[str, int]]


def teacher_kind(name: str, asked: Teacher, grades: Grades | None) -> Kind:
    """The shape of rows in this format; `UsageError` if nothing says which passages are positive."""
    if grades is None and asked.positive_field is None:
        raise UsageError(
            f"--out-format {name}: nothing says which passages are positive",
            hint="`--qrels FILE` has judgements, `--positive-field FIELD` names a field of the passages",
        )
    rules = _Rules(name, asked, grades)
    return Kind(
        name, lambda fields, names: 0, _open, rules.write, refuse=rules.refuse,
        # Training rows hold texts and scores only; leaving out the rest is intended, so nothing is said about it.
        carries=ALL_ROW_CONTENT | {"logits", "marks of truncation"},
    )  # fmt: skip


def _open(names: FieldNames, texts: Texts) -> Shape:
    raise AssertionError("no rows are read in this shape")


@dataclass(frozen=True, slots=True)
class _Scored:
    text: str
    score: float
    value: float
    """The sigmoid of a logit, or a similarity: for the relative margin and the labels of lists."""


@dataclass(frozen=True, slots=True)
class _Rules:
    name: str
    asked: Teacher
    grades: Grades | None

    def is_positive(self, exchange: Exchange, index: int) -> bool:
        """Whether a passage is positive, by its field or the judgements."""
        if self.asked.positive_field is not None:
            found = lookup(exchange.passages[index], self.asked.positive_field)
            return isinstance(found, (bool, int, float)) and found >= self.asked.relevant_from
        assert self.grades is not None, "one of both is there"
        of_query = self.grades.get(id_text(exchange.id), {})
        return of_query.get(id_text(exchange.ids[index]), 0) >= self.asked.relevant_from

    def refuse(self, exchange: Exchange) -> tuple[str, str] | None:
        """The error code and message of a list that can give no row; found before it is scored."""
        if self.asked.positive_field is None and exchange.id is None:
            return "no-query-id", "the row has no query id, by which judgements name it"
        if self.asked.positive_field is None and None in exchange.ids:
            return "no-passage-id", "a passage has no id, by which judgements name it"
        positive = [self.is_positive(exchange, index) for index in range(len(exchange.passages))]
        if not any(positive):
            return "no-positive", "none of its passages is positive"
        if all(positive):
            return "no-negative", "all of its passages are positive"
        if not all(isinstance(one.get("text"), str) and one["text"] for one in exchange.passages):
            return "no-text", f"one of its passages has no text, which {self.name} needs"
        return None

    def write(self, exchange: Exchange, ranked: RankedList, selection: Selection) -> Iterator[dict[str, Any]]:
        """The rows of a list; none if too few negatives lie below the margins."""
        positives: list[_Scored] = []
        others: list[_Scored] = []
        for entry in ranked.ranking:
            if entry.is_scored:
                value = sigmoid(entry.logit) if selection.score == "logit" else entry.logit
                scored = _Scored(exchange.passages[entry.index]["text"], entry.logit, value)
                (positives if self.is_positive(exchange, entry.index) else others).append(scored)
        if not positives:
            return
        if self.name in ("triplet", "n-tuple"):
            for positive in positives:
                yield from self._rows_of_positive(exchange.query, positive, self._negatives_below(others, [positive]))
            return
        negatives = self._negatives_below(others, positives)
        if negatives and self.name == "labeled-list":
            both = [*positives, *negatives]
            texts, labels = [one.text for one in both], [one.value for one in both]
            yield {"query": exchange.query, "docs": texts, "labels": labels}
        elif negatives:
            yield {
                "query": exchange.query,
                "pos": [one.text for one in positives],
                "neg": [one.text for one in negatives],
                "pos_scores": [one.score for one in positives],
                "neg_scores": [one.score for one in negatives],
            }

    def _negatives_below(self, others: Sequence[_Scored], positives: Sequence[_Scored]) -> list[_Scored]:
        score = min(one.score for one in positives) - self.asked.absolute_margin
        value = min(one.value for one in positives)
        value -= abs(value) * self.asked.relative_margin
        known = {one.text for one in positives}  # the same text may have another id
        below = [one for one in others if one.score <= score and one.value <= value and one.text not in known]
        return below[: self.asked.negatives]

    def _rows_of_positive(
        self, query: str, positive: _Scored, negatives: Sequence[_Scored]
    ) -> Iterator[dict[str, Any]]:
        pair = {"query": query, "positive": positive.text}
        if self.name == "triplet":
            for one in negatives:
                yield {**pair, "negative": one.text, "label": positive.score - one.score}
        elif len(negatives) == self.asked.negatives:  # all rows have the same columns
            columns = {f"negative_{place}": one.text for place, one in enumerate(negatives, 1)}
            yield {**pair, **columns, "label": [one.score for one in (positive, *negatives)]}
