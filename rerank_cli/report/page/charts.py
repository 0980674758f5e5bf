"""Charts as inline SVG.

Horizontal places are shares of the width: a chart fills its column, and its text has the size of other text, on a phone
and on paper. Colours are classes of the style sheet. Each chart is `role="img"` with a label that says what it shows;
its numbers stand in a table beside it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from rerank_cli.report.page.wording import short

GUTTER = 12
"""The share of the width, in percent, in which the numbers of the vertical axis stand."""

_HEIGHT, _AXIS, _HEAD = 132, 18, 30


@dataclass(frozen=True, slots=True)
class Bar:
    """A bar from `begin` to `end` on the horizontal axis. marked: the part of `value` in the second colour."""

    begin: float
    end: float
    value: float
    title: str
    marked: float = 0.0


@dataclass(frozen=True, slots=True)
class Line:
    """A vertical line across a chart, with a word beside it."""

    at: float
    title: str


def bars(found: Sequence[Bar], *, label: str, unit: str, lines: Sequence[Line] = (), seconds: bool = False) -> Markup:
    """A histogram, or a series over time. unit: of the values, in the plural, above. seconds: the axis is a time."""
    begin, end = found[0].begin, max(found[-1].end, *(line.at for line in lines), found[0].begin + 1e-9)
    scale = ticks(0, max(bar.value for bar in found), least=0 if seconds else 1)
    top = scale[-1] or 1.0
    base = _HEAD + _HEIGHT
    parts = [element("text", unit, x=0, y=_HEAD - 18, class_="tick")]
    for tick in scale:
        parts += level_of(_HEAD + _HEIGHT * (1 - tick / top), short(tick))
    for bar in found:  # one or two rectangles each, with the marked part on top
        left = percent_of(right_of_gutter(_place_on_axis(bar.begin, begin, end)))
        width = percent_of((100 - GUTTER) * (bar.end - bar.begin) / (end - begin))
        plain, marked = _HEIGHT * (bar.value - bar.marked) / top, _HEIGHT * bar.marked / top
        title = element("title", bar.title)
        parts += [
            element("rect", title, x=left, width=width, y=y, height=height, class_=kind)
            for y, height, kind in ((base - plain, plain, "bar"), (base - plain - marked, marked, "bar marked"))
            if height > 0
        ]
    for line in lines:
        across = right_of_gutter(_place_on_axis(line.at, begin, end))
        x = percent_of(across)
        dx, anchor = (-4, "end") if across > 70 else (4, "start")
        parts += [
            element("line", x1=x, x2=x, y1=_HEAD, y2=base, class_="limit"),
            element("text", line.title, x=x, y=_HEAD + 10, class_="mark", dx=dx, text_anchor=anchor),
        ]
    unit_of_axis, name = 1.0, ""
    if seconds:
        known = ((1.0, " s"), (60.0, " min"))
        unit_of_axis, name = next((one for one in known if end <= 150 * one[0]), (3600.0, " h"))
    for tick in ticks(begin / unit_of_axis, end / unit_of_axis):
        if tick * unit_of_axis <= end + 1e-9:
            across = right_of_gutter(_place_on_axis(tick * unit_of_axis, begin, end))
            x, anchor = percent_of(across), "end" if across > 95 else "middle"
            parts.append(element("text", f"{short(tick)}{name}", x=x, y=base + 13, class_="tick", text_anchor=anchor))
    return chart(label, base + _AXIS, parts)


def spread(points: Sequence[float], begin: float, end: float, *, label: str) -> Markup:
    """A box from the first to the third quartile, on a line from 5 % to 95 %, with the median.

    points: the 5 %, 25 %, 50 %, 75 % and 95 % points of a distribution. begin, end: of the axis.
    """
    low, first, middle, third, high = (_place_on_axis(value, begin, end) for value in points)
    zero = _place_on_axis(0.0, begin, end)
    parts = []
    if 0 < zero < 100:
        parts.append(element("line", x1=percent_of(zero), x2=percent_of(zero), y1=0, y2=18, class_="grid"))
    parts += [
        element("line", x1=percent_of(low), x2=percent_of(high), y1=9, y2=9, class_="whisker"),
        element(
            "rect", x=percent_of(first), width=percent_of(max(0.3, third - first)), y=3, height=12, class_="bar soft"
        ),
        element("line", x1=percent_of(middle), x2=percent_of(middle), y1=2, y2=16, class_="median"),
    ]
    return chart(label, 18, parts)


def stack(parts: Iterable[tuple[str, float]], *, label: str) -> Markup:
    """One bar divided into parts: (class, share of the width)."""
    left, found = 0.0, []
    for kind, share in parts:
        if share > 0:
            found.append(
                element("rect", x=percent_of(100 * left), width=percent_of(100 * share), y=0, height=14, class_=kind)
            )
        left += share
    return chart(label, 14, found)


def change(given: float, new: float) -> Markup:
    """Two values on a line from 0 to at least 1: a ring for the given one, a dot for the new one."""
    end = max(1.0, given, new)
    a, b = _place_on_axis(given, 0, end), _place_on_axis(new, 0, end)
    kind = "better" if new >= given else "worse"
    parts = [
        element("line", x1="0", x2="100%", y1=9, y2=9, class_="grid"),
        element("line", x1=percent_of(a), x2=percent_of(b), y1=9, y2=9, class_=f"move {kind}"),
        element("circle", cx=percent_of(a), cy=9, r=4.5, class_="ring"),
        element("circle", cx=percent_of(b), cy=9, r=5, class_=f"dot {kind}"),
    ]
    return chart(f"from {given:.4f} to {new:.4f}, on a line from 0 to {short(end)}", 18, parts)


def meter(share: float, kind: str, *, label: str) -> Markup:
    """A bar that fills a share of a whole one."""
    parts = [
        element("rect", x=0, width="100%", y=0, height=12, class_="ground"),
        element("rect", x=0, width=percent_of(100 * share), y=0, height=12, class_=kind),
    ]
    return chart(label, 12, parts)


def ticks(low: float, high: float, *, least: float = 0.0) -> list[float]:
    """Three to seven round numbers from `low` to at least `high`. least: the smallest step."""
    if high <= low:
        return [low]
    rough = (high - low) / 4
    scale = 10.0 ** math.floor(math.log10(rough))
    step = max(least, next(scale * factor for factor in (1, 2, 2.5, 5, 10) if scale * factor >= rough * (1 - 1e-9)))
    first = math.ceil(low / step - 1e-9)
    return [step * place for place in range(first, math.ceil(high / step - 1e-9) + 1)]


def _place_on_axis(value: float, begin: float, end: float) -> float:
    return min(100.0, max(0.0, 100 * (value - begin) / (end - begin))) if end > begin else 50.0


def right_of_gutter(share: float) -> float:
    """Where a share of a chart's own width, in percent, stands beside the numbers of its vertical axis."""
    return GUTTER + (100 - GUTTER) * share / 100


def level_of(y: float, text: str) -> list[Markup]:
    """A horizontal line of the grid with its number in the gutter."""
    return [
        element("line", x1=percent_of(GUTTER), x2="100%", y1=y, y2=y, class_="grid"),
        element("text", text, x=percent_of(GUTTER), dx=-5, y=y + 4, class_="tick", text_anchor="end"),
    ]


def percent_of(value: float) -> str:
    """A horizontal place as SVG writes it. value: percent of the width."""
    return f"{value:.3f}%"


def chart(label: str, height: int, parts: Iterable[Markup]) -> Markup:
    """A chart of these parts. label: what it shows, for screen readers."""
    return element("svg", *parts, role="img", aria_label=label, width="100%", height=height)


def element(name: str, *children: Markup | str, **attributes: str | float) -> Markup:
    """An SVG element; text and attribute values are escaped. `class_` and `text_anchor` become SVG's names."""
    written = Markup("").join(
        Markup(' {}="{}"').format(
            key.rstrip("_").replace("_", "-"), value if isinstance(value, str) else f"{value:.6g}"
        )
        for key, value in attributes.items()
    )
    return Markup("<{0}{1}>{2}</{0}>").format(name, written, Markup("").join(children))
