"""A picture of `mem-estimate`: memory against batch size, a line for each length, the card's limit drawn in."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

from rerank_cli.errors import OutputError, UsageError
from rerank_cli.memory_answer import MemoryAnswer

_GIB = 2**30


def draw(answer: MemoryAnswer, path: str) -> None:
    """Write the picture; `UsageError` where it cannot be drawn here."""
    if Path(path).suffix.lower() != ".png":
        raise UsageError(f"--plot {path}: only .png can be drawn")
    lines: dict[int, list[tuple[int, float]]] = {}
    for row in answer.rows:
        if row.estimate is not None:
            lines.setdefault(row.max_tokens, []).append((row.batch_size, row.estimate.total / _GIB))
    try:
        # Without pyplot: no window system is looked for, and no state is left behind.
        figures = import_module("matplotlib.figure")
    except ImportError as error:
        raise UsageError(
            f"--plot {path}: matplotlib is not installed", hint="`pip install 'rerank-cli[plot]'` brings it"
        ) from error
    figure: Any = figures.Figure(figsize=(8, 5), layout="constrained")
    axes = figure.add_subplot()
    for length, points in sorted(lines.items()):
        sizes, totals = zip(*sorted(points), strict=True)
        axes.plot(sizes, totals, marker="o", label=f"{length:,} tokens")
    if answer.question.capacity is not None:
        limit = answer.question.capacity / _GIB
        axes.axhline(limit, color="black", linestyle="--", label=f"{limit:.1f} GiB there")
    place = answer.question.place
    device = place.sku or ("CPU" if place.cpu else "GPU")
    axes.set(title=f"{answer.known.name}, {place.precision} on {device}", xlabel="pairs of a batch", ylabel="GiB")
    axes.set_ylim(bottom=0)
    axes.grid(visible=True, alpha=0.3)
    axes.legend()
    try:
        figure.savefig(path, dpi=120)
    except OSError as error:
        raise OutputError(f"--plot {path}: {error.strerror or error}") from error
