"""Rows to train a smaller model on, with the scores of the reranker as its teacher.

    triplet         {"query", "positive", "negative", "label"}; label: by how much the positive's score is higher
    n-tuple         {"query", "positive", "negative_1", ..., "negative_N", "label"}; label: the scores, in this order
    labeled-list    {"query", "docs", "labels"}; labels: the sigmoids of the logits, or the similarities
    flagembedding   {"query", "pos", "neg", "pos_scores", "neg_scores"}, as FlagEmbedding's loaders read it

The first three are read by the losses of sentence-transformers (MultipleNegativesRanking, MarginMSE, DistillKLDiv,
LambdaLoss), whose inputs are the columns in their order, and their labels the column of that name.

Positives are what judgements or a field say. A passage that nobody has judged may answer too, and the teacher's score
tells: a negative must lie below the positive by both margins, of which the relative one is of the sigmoid of a logit
(0.05: at most 95 % of the positive's). The hardest come first. Where a row has several positives, its negatives lie
below all of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rerank_cli.errors import UsageError
from rerank_cli.evaluation.qrels import id_text
from rerank_cli.formats.choices import Selection, Teacher
from rerank_cli.formats.shapes import FieldNames, Texts, lookup
from rerank_cli.formats.shapes.shape import ALL_CONTENT, Exchange, Kind, Shape
from rerank_cli.records import RankedList, RankedPassage, sigmoid

Grades = Mapping[str, Mapping[str, int]]


def teacher_kind(name: str, asked: Teacher, grades: Grades | None) -> Kind:
    """The shape of rows in this format; `UsageError` where nothing says which passages are positive."""
    if grades is None and asked.positive_field is None:
        raise UsageError(
            f"--out-format {name}: nothing says which passages are positive",
            hint="`--qrels FILE` has judgements, `--positive-field FIELD` names a field of the passages",
        )
    rules = _Rules(name, asked, grades)
    return Kind(
        name, lambda fields, names: 0, _open, rules.write, refuse=rules.refuse,
        # Rows to train on have texts and scores alone; that the rest stays behind is what they are for.
        carries=ALL_CONTENT | {"logits", "marks of truncation"},
    )  # fmt: skip


def _open(names: FieldNames, texts: Texts) -> Shape:
    raise AssertionError("no rows are read in this shape")


@dataclass(frozen=True, slots=True)
class _Scored:
    text: str
    score: float
    value: float
    """What the relative margin and the labels of lists are of."""


@dataclass(frozen=True, slots=True)
class _Rules:
    name: str
    asked: Teacher
    grades: Grades | None

    def is_positive(self, exchange: Exchange, index: int) -> bool:
        """Whether judgements or the field say so."""
        if self.asked.positive_field is not None:
            found = lookup(exchange.passages[index], self.asked.positive_field)
            return isinstance(found, (bool, int, float)) and found >= self.asked.relevant_from
        assert self.grades is not None, "one of both is there"
        of_query = self.grades.get(id_text(exchange.id), {})
        return of_query.get(id_text(exchange.ids[index]), 0) >= self.asked.relevant_from

    def refuse(self, exchange: Exchange) -> tuple[str, str] | None:
        """A list from which no row can come, before anything is computed for it."""
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
        """The rows of a list; none where too few negatives lie below the margins."""
        positives: list[_Scored] = []
        others: list[_Scored] = []
        for entry in ranked.ranking:
            if entry.is_scored:
                mine = positives if self.is_positive(exchange, entry.index) else others
                mine.append(_scored_passage(exchange, entry, selection))
        if not positives:
            return
        if self.name in ("triplet", "n-tuple"):
            for positive in positives:
                yield from self._rows_of_positive(exchange.query, positive, self._negatives_below(others, [positive]))
        elif negatives := self._negatives_below(others, positives):
            yield self._row_of_list(exchange.query, positives, negatives)

    def _negatives_below(self, others: Sequence[_Scored], positives: Sequence[_Scored]) -> list[_Scored]:
        score = min(one.score for one in positives) - self.asked.absolute_margin
        value = min(one.value for one in positives)
        value -= abs(value) * self.asked.relative_margin
        known = {one.text for one in positives}  # an other id may stand for the same text
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

    def _row_of_list(self, query: str, positives: Sequence[_Scored], negatives: Sequence[_Scored]) -> dict[str, Any]:
        if self.name == "labeled-list":
            both = [*positives, *negatives]
            return {"query": query, "docs": [one.text for one in both], "labels": [one.value for one in both]}
        return {
            "query": query,
            "pos": [one.text for one in positives],
            "neg": [one.text for one in negatives],
            "pos_scores": [one.score for one in positives],
            "neg_scores": [one.score for one in negatives],
        }


def _scored_passage(exchange: Exchange, entry: RankedPassage, selection: Selection) -> _Scored:
    value = sigmoid(entry.logit) if selection.score == "logit" else entry.logit
    return _Scored(exchange.passages[entry.index]["text"], entry.logit, value)
