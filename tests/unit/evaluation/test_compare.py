from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
import scipy.stats

from rerank_cli.evaluation.compare import kendall_tau, overlap_at, rbo


def ids(*names: int) -> npt.NDArray[np.uint64]:
    return np.array(names, dtype=np.uint64)


def written_out(one: list[int], other: list[int], p: float) -> float:
    """Equation 32 of Webber, Moffat and Zobel (2010), a term at a time."""
    short, long = sorted((one, other), key=len)
    s, size = len(short), len(long)

    def common(depth: int) -> int:
        return len(set(short[:depth]) & set(long[:depth]))

    total = sum(common(d) / d * p**d for d in range(1, size + 1))
    total += sum(common(s) * (d - s) / (s * d) * p**d for d in range(s + 1, size + 1))
    return (1 - p) / p * total + ((common(size) - common(s)) / size + common(s) / s) * p**size


@pytest.mark.parametrize("p", [0.5, 0.9, 0.98])
@pytest.mark.parametrize("sizes", [(1, 1), (5, 5), (3, 9), (20, 12)])
def test_rbo_is_the_published_sum(sizes: tuple[int, int], p: float) -> None:
    generator = np.random.default_rng(sum(sizes))
    one, other = (generator.permutation(25)[:size].tolist() for size in sizes)
    assert rbo(ids(*one), ids(*other), p) == pytest.approx(written_out(one, other, p))


def test_rbo_of_equal_orders_is_1_and_of_others_0() -> None:
    assert rbo(ids(1, 2, 3), ids(1, 2, 3)) == pytest.approx(1)
    assert rbo(ids(1, 2), ids(3, 4)) == 0
    assert rbo(ids(), ids()) == 1
    assert rbo(ids(), ids(1)) == 0


def test_kendalls_tau_is_scipys() -> None:
    generator = np.random.default_rng(5)
    one, other = generator.permutation(30), generator.permutation(30)
    wanted = scipy.stats.kendalltau(np.argsort(one), np.argsort(other)).statistic
    assert kendall_tau(ids(*one.tolist()), ids(*other.tolist())) == pytest.approx(wanted)
    assert kendall_tau(ids(1), ids(1)) is None


def test_overlap_counts_what_both_have_at_the_top() -> None:
    assert overlap_at(ids(1, 2, 3, 4), ids(4, 3, 2, 1), 2) == 0
    assert overlap_at(ids(1, 2, 3, 4), ids(2, 1, 3, 4), 2) == 1
    assert overlap_at(ids(1, 2), ids(1, 9)) == 0.5
