"""Plots of the figures in `results/*.json`, as SVG: `python -m benchmarks.plots [--results DIR] [--plots DIR]`.

speed*.svg      pairs a second of each side, with the least and the most of the rounds
growth.svg      CPU seconds and peak memory by tokens, lines of what exact proportion would be
length.svg      what a million tokens cost by the length of a pair, and how well the cores are used
candidates.svg  the same cost by candidates of a list

Needs matplotlib (the extras `bench` and `plot`). The same figures give the same bytes.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.tables import OURS, RESULTS, read

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PLOTS = Path(__file__).parent / "plots"
SPEEDS = ("speed", "speed-amx", "speed-zen5", "speed-llama")
GROWTHS = ("growth", "length", "candidates")
_COLOURS = {"fp32": "#4477aa", "bf16": "#228833", "int8": "#ccbb44"}
_SETTINGS = {"svg.hashsalt": "rerank-cli", "svg.fonttype": "none", "font.size": 9, "axes.spines.top": False}

Result = Mapping[str, Any]


def main() -> None:
    """Draw all for which there are figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--plots", type=Path, default=PLOTS)
    options = parser.parse_args()
    for file in draw(options.results, options.plots):
        print(file)


def draw(results: Path, plots: Path) -> list[Path]:
    """Draw all for which there are figures; returns the files."""
    import matplotlib as mpl

    plots.mkdir(parents=True, exist_ok=True)
    drawn = []
    with mpl.rc_context({**_SETTINGS, "axes.spines.right": False}):
        for name in SPEEDS:
            if (file := results / f"{name}.json").exists():
                drawn.append(_save(_speed(read(file)), plots / f"{name}.svg"))
        if (file := results / "growth.json").exists():
            grown = read(file)
            for name, figure in zip(GROWTHS, (_growth, _length, _candidates), strict=True):
                drawn.append(_save(figure(grown), plots / f"{name}.svg"))
    return drawn


def _save(figure: Figure, path: Path) -> Path:
    figure.savefig(path, metadata={"Date": None})
    return path


def _figure(width: float, height: float, columns: int = 1) -> tuple[Figure, Sequence[Axes]]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots(1, columns, squeeze=False)[0]
    return figure, axes


def _speed(result: Result) -> Figure:
    sides = [side for side in result["sides"] if "failure" not in side]
    sides.sort(key=lambda side: side["pairs_per_second"]["median"])
    figure, (axes,) = _figure(8, 0.8 + 0.3 * len(sides))
    for row, side in enumerate(sides):
        speed = side["pairs_per_second"]
        error = [[speed["median"] - speed["least"]], [speed["most"] - speed["median"]]]
        bold = {"edgecolor": "black", "linewidth": 1.2} if side["name"].startswith(OURS) else {}
        axes.barh(row, speed["median"], xerr=error, color=_COLOURS[side["precision"]], capsize=2, **bold)
        axes.annotate(f"{speed['median']:.1f}", (speed["most"], row), (4, -3), textcoords="offset points")
    axes.set_yticks(range(len(sides)), [side["name"] for side in sides])
    clock = "a CPU second, one thread" if result["clock"] == "cpu" else f"a second, {result['threads']} threads"
    axes.set_xlabel(f"pairs {clock}")
    axes.margins(x=0.1)
    axes.set_title(result["work"].partition(";")[0], loc="left")
    return figure


def _growth(result: Result) -> Figure:
    figure, (cost, memory) = _figure(8, 3.2, 2)
    points = _section(result, "pairs")
    tokens = [at["tokens"] for at in points]
    seconds = [at["cpu_seconds"] - at["start_cpu_seconds"] for at in points]
    cost.loglog(tokens, seconds, "o", color=_COLOURS["fp32"], label="measured")
    straight = [seconds[-1] * some / tokens[-1] for some in tokens]
    cost.loglog(tokens, straight, "--", color="grey", label="in proportion to the last")
    cost.set(xlabel="tokens", ylabel="CPU seconds after the start")
    cost.legend(frameon=False)
    memory.semilogx([at["pairs"] for at in points], [at["peak_rss_mib"] for at in points], "o-", color=_COLOURS["fp32"])
    memory.set(xlabel="pairs", ylabel="peak RSS, MiB")
    memory.set_ylim(bottom=0)
    return figure


def _length(result: Result) -> Figure:
    figure, (cost, used) = _figure(8, 3.2, 2)
    points = _section(result, "length")
    lengths = [at["value"] for at in points]
    _ticks(cost, lengths)
    _ticks(used, lengths)
    seconds = [at["cpu_seconds_per_million"] for at in points]
    # Utilisation being level, operations divide the time.
    products = [one * (1 - at["attention_share"]) for one, at in zip(seconds, points, strict=True)]
    places = range(len(points))
    cost.bar(places, products, color=_COLOURS["fp32"], label="by operations of layers")
    rest = [one - part for one, part in zip(seconds, products, strict=True)]
    cost.bar(places, rest, bottom=products, color=_COLOURS["int8"], label="by operations of attention")
    cost.set(xlabel="tokens of a pair", ylabel="CPU seconds a million tokens")
    cost.legend(frameon=False)
    used.plot(places, [100 * at["utilisation"] for at in points], "o-", color=_COLOURS["fp32"])
    used.set(xlabel="tokens of a pair", ylabel="% of the speed of a matrix product", ylim=(0, 100))
    return figure


def _candidates(result: Result) -> Figure:
    figure, (axes,) = _figure(4, 3)
    points = _section(result, "candidates")
    _ticks(axes, [at["value"] for at in points])
    axes.bar(range(len(points)), [at["cpu_seconds_per_million"] for at in points], color=_COLOURS["fp32"])
    axes.set(xlabel="candidates of a list", ylabel="CPU seconds a million tokens")
    return figure


def _ticks(axes: Axes, values: Sequence[int]) -> None:
    axes.set_xticks(range(len(values)), [f"{value:,}" for value in values])


def _section(result: Result, name: str) -> list[Result]:
    return [at for at in result["points"] if at["section"] == name]


if __name__ == "__main__":
    main()
