"""Draws the answer of `mem-estimate`: memory against batch size, a line for each length, and the card's limit.

As PNG, or as a self-contained page with the picture as SVG.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from importlib import import_module
from io import StringIO
from pathlib import Path
from typing import Any

from rerank_cli.errors import OutputError, UsageError
from rerank_cli.journal import identity_of
from rerank_cli.planning.memory_answer import MemoryAnswer

_GIB = 2**30


def draw(answer: MemoryAnswer, path: str, models: Sequence[str]) -> None:
    """Write the picture to `path`; `UsageError` if it cannot be drawn, or would replace a file of one of `models`."""
    kind = Path(path).suffix.lower()
    if kind not in (".png", ".html"):
        raise UsageError(f"--plot {path}: only .png and .html can be drawn")
    _refuse_model(path, models)
    lines: dict[int, list[tuple[int, float]]] = {}
    for row in answer.rows:
        if row.total is not None:
            lines.setdefault(row.max_tokens, []).append((row.batch_size, row.total / _GIB))
    try:
        # Without pyplot, which would look for a window system and keep global state.
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
        if kind == ".png":
            figure.savefig(path, dpi=120)
        else:
            picture = StringIO()
            figure.savefig(picture, format="svg", metadata={"Date": None})
            title, svg = escape(f"mem-estimate: {answer.known.name}"), picture.getvalue()
            page = (
                f'<!doctype html>\n<html lang="en">\n<meta charset="utf-8">\n<title>{title}</title>\n'
                '<meta name="viewport" content="width=device-width">\n'
                "<style>svg { max-width: 100%; height: auto }</style>\n"
                f"{svg[svg.index('<svg') :]}\n</html>\n"  # without the declarations of an SVG file
            )
            Path(path).write_text(page, encoding="utf-8")
    except OSError as error:
        raise OutputError(f"--plot {path}: {error.strerror or error}") from error


def _refuse_model(path: str, models: Sequence[str]) -> None:
    for folder in (Path(model).expanduser() for model in models):
        if folder.is_dir() and identity_of(Path(path)) in {identity_of(file) for file in folder.iterdir()}:
            raise UsageError(f"--plot {path}: would replace a file of the model in {folder}", hint="name another file")
