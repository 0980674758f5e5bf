"""How often is the verdict of `rerank-cli evaluate` wrong? Collections with a known truth, drawn by the thousand.

    python -m benchmarks.verdict [vaswani.jsonl:qrels.txt cranfield.jsonl:qrels.txt ...] [--collections 1000]

Normal differences have a standard deviation of .25 a query. Realistic ones are drawn, queries with replacement, from
scored files that are named: every setting (depth and blend) of three systems is shifted so that in the whole file it
makes no difference, so whatever is chosen is chosen for its luck. The three systems are the file's own scores and two
copies with noise of a third of their deviation.

`small` draws 25 queries of a file as they are, follows the recommendation made on them, and holds it against the scores
alone on all queries of the file: a setting that is recommended for its luck loses there.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from rerank_cli.evaluation.crossfit import TopMeasure, best_gains, choose, settings_for, values_of
from rerank_cli.evaluation.qrels import read_qrels
from rerank_cli.evaluation.significance import Significance, randomisation_test
from rerank_cli.evaluation.systems import Measurer, read_system
from rerank_cli.evaluation.verdict import decide, paired_test
from rerank_cli.formats.shapes import FieldNames

Floats = npt.NDArray[np.float64]

_DEVIATION = 0.25
_GAIN = 0.05
_QUERIES = 200
_SYSTEMS = 3
_CHOICES = 4_000  # of signs that settle most randomisation tests; the others draw 100,000, as the product does
_NEAR = (0.01, 0.065)  # p-values at which a verdict may turn, alone or with two others
_SIGNS: dict[int, Floats] = {}


def randomise(differences: Any) -> Significance | None:
    """The product's randomisation test, shortened where a few choices of signs already settle it."""
    count = len(differences)
    if count not in _SIGNS:
        _SIGNS[count] = np.random.default_rng(1).integers(0, 2, (_CHOICES, count)).astype(np.float64) * 2 - 1
    as_far = np.abs(_SIGNS[count] @ differences) >= abs(differences.sum()) - 1e-12
    p_value = (1 + int(as_far.sum())) / (1 + _CHOICES)
    if _NEAR[0] < p_value < _NEAR[1]:
        return randomisation_test(differences)
    return Significance(p_value, _CHOICES, "sampled", 1)


def shares(words: Sequence[str]) -> dict[str, float]:
    """How often each verdict was given."""
    return {word: words.count(word) / len(words) for word in ("ship", "don't ship", "undecided")}


def normal(mean: float, collections: int, queries: int = _QUERIES) -> dict[str, float]:
    """Verdicts on one system with a true difference of `mean`."""
    generator = np.random.default_rng(2)
    drawn = generator.normal(mean, _DEVIATION, (collections, queries))
    return shares([decide([paired_test(one, randomise)])[0].word for one in drawn])


def matrices(path: str, qrels: str) -> tuple[list[Floats], Floats]:
    """The values of every setting of three systems, [settings, queries] each, and those of the given order."""
    grades = read_qrels(qrels)
    system = read_system(path, Measurer(grades, ["nDCG@10"]), grades, names=FieldNames(), on_error=print)
    lists = list(system.lists.items())
    longest = max(len(one.ids) for _, one in lists)
    scores, gains = np.full((len(lists), longest), -np.inf), np.zeros((len(lists), longest))
    for row, (_, one) in enumerate(lists):
        scores[row, one.places], gains[row, one.places] = one.scores, np.maximum(one.grades, 0)
    measure = TopMeasure("nDCG", 10, np.array([best_gains(list(grades[query].values()), 10) for query, _ in lists]))
    spread = scores[np.isfinite(scores)].std() / 3
    generator = np.random.default_rng(3)
    noisy = [scores, *(scores + generator.normal(0, spread, scores.shape) for _ in range(_SYSTEMS - 1))]
    settings = settings_for(longest)
    return [values_of(one, gains, settings, measure) for one in noisy], measure.of(gains)


def without_effect(systems: list[Floats], given: Floats, collections: int, queries: int) -> dict[str, float]:
    """The verdict of a whole page, the systems as they are and their recommended settings, where nothing has an effect.

    ship: in any of the verdicts. chosen: a setting was recommended.
    """
    generator = np.random.default_rng(4)
    level = [one - given - (one - given).mean(1, keepdims=True) for one in systems]
    words, chosen = [], 0
    for _ in range(collections):
        drawn = generator.integers(0, len(given), queries)
        differences = [one[:, drawn] for one in level]
        found = [one.word for one in decide([paired_test(one[0], randomise) for one in differences])]
        choices = [choice for one in differences if (choice := choose(one)).is_better]
        chosen += bool(choices)
        found += [one.word for one in decide([paired_test(choice.values, randomise) for choice in choices])]
        words.append("ship" if "ship" in found else next((one for one in found if one != "undecided"), "undecided"))
    return {**shares(words), "chosen": chosen / collections}


def small(values: Floats, collections: int, queries: int = 25) -> dict[str, float]:
    """What the recommendations of few queries bring on all of them, in the mean, against the scores alone."""
    generator = np.random.default_rng(5)
    truth = values.mean(1) - values[0].mean()
    brings, always = [], []
    for _ in range(collections):
        drawn = values[:, generator.choice(values.shape[1], queries, replace=False)]
        choice = choose(drawn)
        brings.append(truth[choice.place] if choice.is_better else 0.0)
        always.append(truth[drawn.mean(1).argmax()])
    made = float(np.mean([one != 0 for one in brings]))
    return {
        "recommended": made,
        "brings": float(np.mean(brings)),
        "the best of all would bring": float(np.mean(always)),
    }


def level_best(values: Floats, loss: float = 0.012) -> Floats:
    """The same values, shifted so that every setting is truly worse than the plain order by `loss`."""
    differences = values - values[0]
    shift = differences.mean(1, keepdims=True) + loss
    shift[0] = 0
    return values - shift


def main() -> None:
    """Print every table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*", metavar="SCORED:QRELS")
    parser.add_argument("--collections", type=int, default=1000)
    parser.add_argument("--normal", type=float, nargs="*", default=[0.0, _GAIN, -_GAIN], metavar="MEAN")
    given = parser.parse_args()
    for mean in given.normal:
        found = normal(mean, 10 * given.collections)
        _show(f"normal, true difference {mean:+.2f}, {_QUERIES} queries", found)
    for name in given.files:
        path, _, qrels = name.partition(":")
        systems, before = matrices(path, qrels)
        for queries in (25, len(before)):
            found = without_effect(systems, before, given.collections, queries)
            _show(f"{path}, no effect, three systems and their settings, {queries} queries", found)
        _show(f"{path}, 25 queries", small(systems[0], given.collections))
        _show(f"{path}, 25 queries, every setting truly loses .012", small(level_best(systems[0]), given.collections))


def _show(title: str, found: dict[str, float]) -> None:
    numbers = ", ".join(
        f"{name} {value:+.4f}" if "bring" in name else f"{name} {value:.1%}" for name, value in found.items()
    )
    error = math.sqrt(0.05 * 0.95 / 1000)
    print(f"{title}: {numbers}" + (f" (5 % is simulated to +-{error:.1%})" if "no effect" in title else ""))


if __name__ == "__main__":
    main()
