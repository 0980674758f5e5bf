"""Charts of an evaluation as inline SVG: changes by query, a curve over depth, reliability of probabilities.

As in `charts`, horizontal places are shares of the width, and colours are classes of the style sheet.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise

from markupsafe import Markup

from rerank_cli.report.page.charts import GUTTER, chart, element, level_of, percent_of, right_of_gutter, ticks
from rerank_cli.report.page.wording import percent, short, signed

_HEIGHT, _HEAD, _AXIS = 120, 14, 18


def changes(bars: Sequence[float], *, label: str) -> Markup:
    """Changes as bars on a line, gains up and losses down."""
    most = max((abs(one) for one in bars), default=0.0) or 1.0
    half = _HEIGHT / 2
    middle = _HEAD + half
    width = 100 / max(1, len(bars))
    parts = [element("line", x1="0", x2="100%", y1=middle, y2=middle, class_="grid strong")]
    for place, one in enumerate(bars):
        height = half * abs(one) / most
        if height:
            y = middle - height if one > 0 else middle
            kind = "part better" if one > 0 else "part worse"
            title = element("title", signed(one))
            parts.append(
                element(
                    "rect", title, x=percent_of(width * place), width=percent_of(width), y=y, height=height, class_=kind
                )
            )
    parts += [
        element("text", f"+{short(most)}", x=0, y=_HEAD - 3, class_="tick"),
        element("text", f"\N{MINUS SIGN}{short(most)}", x=0, y=_HEAD + _HEIGHT + 12, class_="tick"),
        element("text", "queries, best change first", x="100%", y=_HEAD + _HEIGHT + 12, text_anchor="end"),
    ]
    return chart(label, _HEAD + _HEIGHT + _AXIS, parts)


def curve(
    points: Sequence[tuple[float, float]], *, label: str, unit: str, levels: Iterable[tuple[float, str]] = ()
) -> Markup:
    """Points (x, y) joined by lines; x from 0. unit: of x. levels: horizontal lines, each with a word."""
    levels = list(levels)
    end = max(x for x, _ in points) or 1.0
    values = [y for _, y in points] + [level for level, _ in levels]
    low, high = min(values), max(values)
    room = (high - low) * 0.12 or 0.05
    low, high = low - room, high + room

    def across(x: float) -> float:
        return right_of_gutter(100 * x / end)

    def down(y: float) -> float:
        return _HEAD + _HEIGHT * (1 - (y - low) / (high - low))

    parts = []
    for tick in ticks(low, high):
        if low <= tick <= high:
            parts += level_of(down(tick), short(tick))
    for level, word in levels:
        parts.append(element("line", x1=percent_of(GUTTER), x2="100%", y1=down(level), y2=down(level), class_="limit"))
        parts.append(element("text", word, x="100%", y=down(level) - 4, class_="mark", text_anchor="end"))
    for (x1, y1), (x2, y2) in pairwise(points):
        parts.append(
            element(
                "line", x1=percent_of(across(x1)), x2=percent_of(across(x2)), y1=down(y1), y2=down(y2), class_="curve"
            )
        )
    for x, y in points:
        title = element("title", f"{short(x)} {unit}: {y:.4f}")
        parts.append(element("circle", title, cx=percent_of(across(x)), cy=down(y), r=3, class_="point"))
    shown = [tick for tick in ticks(0, end) if tick <= end]
    for tick in shown:
        share = 100 * tick / end
        anchor = "start" if share < 5 else "end" if share > 90 else "middle"
        text = f"{short(tick)} {unit}" if tick == max(shown) else short(tick)
        parts.append(_under_axis(text, right_of_gutter(share), anchor))
    return chart(label, _HEAD + _HEIGHT + _AXIS, parts)


def reliability(
    found: Sequence[tuple[float, float, int]], *, label: str, other: Sequence[tuple[float, float, int]] = ()
) -> Markup:
    """Points (probability, share that was relevant, passages), and the line on which both are equal."""

    def across(share: float) -> str:
        return percent_of(right_of_gutter(100 * share))

    def down(share: float) -> float:
        return _HEAD + _HEIGHT * (1 - share)

    parts = []
    for tick in (0.0, 0.5, 1.0):
        parts += level_of(down(tick), percent(tick))
    parts.append(element("line", x1=percent_of(GUTTER), x2="100%", y1=down(0), y2=down(1), class_="limit"))
    for points, kind in ((other, "other"), (found, "")):
        for (x1, y1, _), (x2, y2, _) in pairwise(points):
            parts.append(
                element(
                    "line", x1=across(x1), x2=across(x2), y1=down(y1), y2=down(y2),
                    class_=f"curve {kind}".strip(),
                )
            )  # fmt: skip
        for x, y, count in points:
            title = element("title", f"probability {percent(x)}: {percent(y)} relevant, of {count:,} passages")
            parts.append(element("circle", title, cx=across(x), cy=down(y), r=3.5, class_=f"point {kind}".strip()))
    for tick, anchor in ((0.0, "start"), (0.5, "middle"), (1.0, "end")):
        parts.append(_under_axis(percent(tick), right_of_gutter(100 * tick), anchor))
    return chart(label, _HEAD + _HEIGHT + _AXIS, parts)


def two_kinds(
    above: Sequence[int], below: Sequence[int], begin: float, width: float, *, label: str, words: tuple[str, str]
) -> Markup:
    """Two histograms on one axis, one upwards and one downwards; bars are shares of their own histogram."""
    half = _HEIGHT / 2
    middle = _HEAD + half
    step = 100 / len(above)
    parts = []
    most = max(max(counts) / (sum(counts) or 1) for counts in (above, below)) or 1.0
    for counts, kind, word, sign in ((above, "part better", words[0], -1), (below, "part other", words[1], 1)):
        whole = sum(counts) or 1
        for place, count in enumerate(counts):
            if count:
                share = count / whole
                height = half * share / most
                low, high = begin + width * place, begin + width * (place + 1)
                title = element("title", f"{short(low)} to {short(high)}: {count:,} {word}, {percent(share)}")
                y = middle - height if sign < 0 else middle
                parts.append(
                    element(
                        "rect", title, x=percent_of(step * place), width=percent_of(step), y=y, height=height,
                        class_=kind,
                    )
                )  # fmt: skip
    parts.append(element("line", x1="0", x2="100%", y1=middle, y2=middle, class_="grid strong"))
    parts.append(element("text", f"{words[0]}, up to {percent(most)}", x=0, y=_HEAD + 2, class_="mark"))
    parts.append(element("text", words[1], x=0, y=_HEAD + _HEIGHT, class_="mark"))
    end = begin + width * len(above)
    for tick in ticks(begin, end):
        if tick <= end:
            across = 100 * (tick - begin) / (end - begin)
            anchor = "start" if across < 5 else "end" if across > 95 else "middle"
            parts.append(_under_axis(short(tick), across, anchor))
    return chart(label, _HEAD + _HEIGHT + _AXIS, parts)


def _under_axis(text: str, share: float, anchor: str) -> Markup:
    """A number below the axis. share: percent of the width. anchor: which part of the text stands there."""
    return element("text", text, x=percent_of(share), y=_HEAD + _HEIGHT + 13, class_="tick", text_anchor=anchor)
