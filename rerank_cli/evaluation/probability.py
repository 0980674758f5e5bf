"""What the scores of a system tell about relevance: how probable it is, and the threshold that keeps a precision.

An unjudged passage counts as not relevant, as it does in the measures. A threshold is chosen on all queries; its
precision and recall are measured with thresholds chosen without the query (folds as in `calibration`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from rerank_cli.evaluation.calibration import (
    FOLDS,
    KINDS,
    Curve,
    Floats,
    Kind,
    Marks,
    errors_of,
    fit,
    held_out,
    pooled_lists,
    reason_against,
    reliability,
    sigmoid_of,
    threshold_for,
)
from rerank_cli.evaluation.kept_lists import UNJUDGED, sample_of
from rerank_cli.evaluation.systems import System
from rerank_cli.evaluation.t_distribution import quantile

RELEVANT_FROM = 1

_MOST_QUERIES = 20_000  # curves are checked on so many; more would change no digit that is shown


@dataclass(frozen=True, slots=True)
class Pool:
    """The passages of a system's judged queries, one query after another."""

    scores: Floats
    relevant: Marks
    fold: npt.NDArray[np.intp]
    """The fold of each passage's query."""
    starts: npt.NDArray[np.intp]
    """Where each query begins."""
    judged: float
    """The share of passages that the judgements name."""

    @property
    def queries(self) -> int:
        """The number of queries."""
        return len(self.starts)


def pool_of(system: System, relevant_from: int = RELEVANT_FROM, most: int | None = _MOST_QUERIES) -> Pool | None:
    """The passages of the queries that have scores, of at most `most` queries; None if there are none."""
    queries = [query for query, one in system.lists.items() if one.scores is not None and len(one.scores)]
    if not system.score or not queries:
        return None
    queries = sample_of(queries, most)
    lists = [system.lists[query] for query in queries]
    marked = [(one.scores, one.grades >= relevant_from) for one in lists if one.scores is not None]
    scores, relevant, fold = pooled_lists(marked)
    starts = np.cumsum([0, *(len(one) for one, _ in marked)])[:-1]
    judged = float(np.mean(np.concatenate([one.grades for one in lists]) != UNJUDGED))
    return Pool(scores, relevant, fold, starts, judged)


def check_curves(pool: Pool, *, plain: bool) -> tuple[Kind, dict[str, Any]]:
    """The better kind of curve, and how good both are on queries that they have not seen, as the page shows it.

    plain: the score is a logit, so its own sigmoid is checked as well.
    """
    values = {kind: held_out(kind, pool.scores, pool.relevant, pool.fold) for kind in KINDS}
    checked = {kind: errors_of(found, pool.relevant) for kind, found in values.items()}
    # Of two equal kinds the sigmoid, which needs two numbers only.
    kind: Kind = "isotonic" if checked["isotonic"]["brier"] < checked["platt"]["brier"] else "platt"
    document: dict[str, Any] = {
        "kind": kind,
        "queries": pool.queries,
        "passages": len(pool.scores),
        "relevant": int(pool.relevant.sum()),
        "judged": pool.judged,
        "checked": dict(checked),
        "reliability": reliability(values[kind], pool.relevant),
    }
    if plain:
        own = sigmoid_of(pool.scores)
        document["checked"]["sigmoid"] = errors_of(own, pool.relevant)
        document["reliability_of_sigmoid"] = reliability(own, pool.relevant)
    return kind, document


def probabilities_of(system: System, pool: Pool | None) -> dict[str, Any]:
    """How well the scores predict relevance; a `reason` where that cannot be told."""
    if pool is None:
        return {"reason": "the file has no scores of its new order"}
    if reason := reason_against(pool.scores, pool.relevant, pool.queries):
        return {"reason": reason}
    return check_curves(pool, plain=system.score == "logit")[1]


def fit_system(system: System, kind: Kind | None, relevant_from: int = RELEVANT_FROM) -> tuple[Curve, dict[str, Any]]:
    """A curve fitted on all queries, and how good it is. kind: None takes the better one. Raises `ValueError`."""
    whole = pool_of(system, relevant_from, most=None)
    if whole is None:
        raise ValueError("the file has no scores of its new order")
    if reason := reason_against(whole.scores, whole.relevant, whole.queries):
        raise ValueError(reason)
    checked = pool_of(system, relevant_from)
    assert checked is not None, "the whole is there"
    better, document = check_curves(checked, plain=system.score == "logit")
    chosen = kind or better
    facts = {name: document[name] for name in ("queries", "passages", "relevant", "judged", "checked")}
    return fit(chosen, whole.scores, whole.relevant), facts


def keep_precision(pool: Pool | None, precision: float) -> dict[str, Any]:
    """The lowest score above which that share of passages is relevant, and what it keeps; or a `reason`.

    `precision` and `recall` are measured on queries that the threshold was chosen without; `low` and `high` are the
    ends of a 95 % interval of the precision.
    """
    asked: dict[str, Any] = {"asked": precision}
    if pool is None:
        return {**asked, "reason": "the file has no scores of its new order"}
    threshold = threshold_for(precision, pool.scores, pool.relevant)
    if threshold is None:
        return {**asked, "reason": f"from no score on are {precision:.0%} of the passages relevant"}
    kept = np.zeros(len(pool.scores), dtype=bool)
    for one in range(FOLDS):
        out = pool.fold == one
        found = threshold_for(precision, pool.scores[~out], pool.relevant[~out])
        if found is not None:
            kept[out] = pool.scores[out] >= found
    sums = [np.add.reduceat(values.astype(np.float64), pool.starts) for values in (kept & pool.relevant, kept)]
    low, high = _ratio_interval(*sums)
    now = pool.scores >= threshold
    return {
        **asked,
        "threshold": threshold,
        "precision": float(sums[0].sum() / sums[1].sum()) if sums[1].sum() else None,
        "low": low,
        "high": high,
        "recall": float(sums[0].sum() / max(1, pool.relevant.sum())),
        "kept": float(now.mean()),
        "queries_with_nothing": int((np.add.reduceat(now.astype(np.intp), pool.starts) == 0).sum()),
        "queries": pool.queries,
        "passages": len(pool.scores),
    }


def _ratio_interval(hits: Floats, kept: Floats) -> tuple[float | None, float | None]:
    """95 % interval of the ratio of two sums over queries (linearised: passages of one query are not independent)."""
    count, whole = len(kept), kept.sum()
    if count < 2 or not whole:
        return None, None
    ratio = hits.sum() / whole
    error = math.sqrt(count / (count - 1) * float(((hits - ratio * kept) ** 2).sum())) / whole
    reach = quantile(0.95, count - 1) * error
    return max(0.0, float(ratio - reach)), min(1.0, float(ratio + reach))
