from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
import scipy.stats

from rerank_cli.evaluation import likeness as module
from rerank_cli.evaluation.likeness import Ids, compare, kendall_tau, match, overlap_at, rbo


def ids(*names: int) -> Ids:
    return np.array(names, dtype=np.uint64)


def drawn(seed: int, count: int) -> list[tuple[Ids, Ids]]:
    """Lists of all lengths that share some passages."""
    generator = np.random.default_rng(seed)
    sizes = generator.integers(0, 14, size=(count, 2)).tolist()
    return [
        (ids(*generator.permutation(16)[:a].tolist()), ids(*generator.permutation(16)[:b].tolist())) for a, b in sizes
    ]


def written_out(one: list[int], other: list[int], p: float) -> float:
    """Equation 32 of Webber, Moffat and Zobel (2010), a term at a time."""
    short, long = sorted((one, other), key=len)
    s, size = len(short), len(long)
    if not s:
        return float(not size)

    def common(depth: int) -> int:
        return len(set(short[:depth]) & set(long[:depth]))

    total = sum(common(d) / d * p**d for d in range(1, size + 1))
    total += sum(common(s) * (d - s) / (s * d) * p**d for d in range(s + 1, size + 1))
    return (1 - p) / p * total + ((common(size) - common(s)) / size + common(s) / s) * p**size


@pytest.mark.parametrize("p", [0.5, 0.9, 0.98])
def test_rbo_is_the_published_sum_whatever_the_lists_beside_it(p: float) -> None:
    pairs = drawn(3, 60)
    found = rbo(match(*zip(*pairs, strict=True)), p)
    assert found.tolist() == pytest.approx([written_out(one.tolist(), other.tolist(), p) for one, other in pairs])


@pytest.mark.parametrize(
    ("one", "other", "p", "published"),
    [
        ("abcde", "abcde", 0.9, 1.0),
        ("abc", "cba", 0.9, 0.8550000000000001),
        ("abcdefg", "acbdf", 0.9, 0.9095416428571428),
        ("ab", "cdefg", 0.9, 0.0),
        ("abcdefghij", "jihgfedcba", 0.98, 0.8780443726553534),
        ("zabcde", "abcdefghiz", 0.5, 0.3064453125),
    ],
)
def test_rbo_is_that_of_the_rbo_package(one: str, other: str, p: float, published: float) -> None:
    """`RankingSimilarity(one, other).rbo_ext(p)` of https://pypi.org/project/rbo/ 0.1.3, which wants an older numpy."""
    lists = match([ids(*map(ord, one))], [ids(*map(ord, other))])
    assert rbo(lists, p)[0] == pytest.approx(published, abs=1e-12)


def test_rbo_of_equal_orders_is_1_and_of_others_0() -> None:
    pairs = [(ids(1, 2, 3), ids(1, 2, 3)), (ids(1, 2), ids(3, 4)), (ids(), ids()), (ids(), ids(1))]
    assert rbo(match(*zip(*pairs, strict=True))).tolist() == pytest.approx([1, 0, 1, 0])


def test_kendalls_tau_is_scipys_over_what_both_have() -> None:
    pairs = drawn(5, 60)
    found = kendall_tau(match(*zip(*pairs, strict=True)))
    for (one, other), value in zip(pairs, found.tolist(), strict=True):
        both = [name for name in one.tolist() if name in other.tolist()]
        places = [[order.tolist().index(name) for name in both] for order in (one, other)]
        wanted = scipy.stats.kendalltau(*places).statistic if len(both) > 1 else np.nan
        assert value == pytest.approx(wanted, nan_ok=True)


def test_overlap_counts_what_both_have_at_the_top() -> None:
    four, turned = ids(1, 2, 3, 4), ids(4, 3, 2, 1)
    pairs = [(four, turned), (four, ids(2, 1, 3, 4))]
    assert overlap_at(match(*zip(*pairs, strict=True)), 2).tolist() == [0, 1]
    pairs = [(ids(1, 2), ids(1, 9)), (ids(1, 2), ids(1, 2, 3)), (ids(), ids()), (ids(), ids(1))]
    assert overlap_at(match(*zip(*pairs, strict=True))).tolist() == pytest.approx([0.5, 2 / 3, 1, 0])


def test_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = ({str(at): pair[side] for at, pair in enumerate(drawn(7, 50))} for side in (0, 1))
    whole = compare("a", first, "b", second)
    monkeypatch.setattr(module, "_CELLS_AT_ONCE", 30)
    assert compare("a", first, "b", second) == whole
    by_rbo: npt.NDArray[np.float64] = rbo(match(list(first.values()), list(second.values())))
    assert [float(by_rbo[int(query)]) for query in whole.most_different] == pytest.approx(np.sort(by_rbo)[:5].tolist())
    assert compare("a", {}, "b", second).queries == 0
