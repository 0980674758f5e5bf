"""Student's t distribution: its two tails and its quantiles. scipy has them too, but its import costs seconds.

The tails are the regularised incomplete beta function, by its continued fraction (Lentz; Numerical Recipes 6.4).
"""

from __future__ import annotations

import math

_TINY = 1e-300
_TERMS = 10_000
_EPSILON = 1e-15


def two_tails(t: float, freedom: float) -> float:
    """The probability of a value at least as far from 0 as `t`: the p-value of a two-sided t-test."""
    if math.isinf(t):
        return 0.0
    a, b = freedom / 2, 0.5
    x, rest = freedom / (freedom + t * t), t * t / (freedom + t * t)  # rest: 1 - x, not rounded
    if x <= 0:
        return 0.0
    if rest <= 0:
        return 1.0
    logs = math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log(rest)
    if x < (a + 1) / (a + b + 2):
        return math.exp(logs) * _fraction(a, b, x) / a
    return 1 - math.exp(logs) * _fraction(b, a, rest) / b


def quantile(level: float, freedom: float) -> float:
    """The t beyond which both tails together have `1 - level`: 1.96 for .95 and many degrees of freedom."""
    low, high = 0.0, 1.0
    while two_tails(high, freedom) > 1 - level:
        low, high = high, 2 * high
    for _ in range(200):
        middle = (low + high) / 2
        if middle in (low, high):
            break
        low, high = (middle, high) if two_tails(middle, freedom) > 1 - level else (low, middle)
    return (low + high) / 2


def _fraction(a: float, b: float, x: float) -> float:
    c, d = 1.0, 1 - (a + b) * x / (a + 1)
    d = 1 / (d if abs(d) > _TINY else _TINY)
    found = d
    for m in range(1, _TERMS):
        for step in (
            m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m)),
            -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1)),
        ):
            d, c = 1 + step * d, 1 + step / c
            d, c = 1 / (d if abs(d) > _TINY else _TINY), c if abs(c) > _TINY else _TINY
            found *= c * d
        if abs(c * d - 1) < _EPSILON:
            break
    return found
