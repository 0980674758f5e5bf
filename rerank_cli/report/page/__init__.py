"""The report of a run as one self-contained HTML page.

    report of a run   ->  run_page, charts                 ->  page.html.jinja        ->  bytes
    of `evaluate`     ->  evaluation_page, charts, curves  ->  evaluation.html.jinja  ->  bytes

Both share the style sheet (page.css) and the sections about two orders (two_orders, parts.html.jinja).

Only the document is read, so a report of an earlier run or an earlier version becomes a page too: sections without data
are left out. There is no script. The page's policy allows its own style sheet, by hash, and nothing else, so text from
a file could do nothing even if it were not escaped. It is escaped: control and bidirectional characters by `printable`,
markup by Jinja, and charts are built from numbers and escaped text.
"""

from __future__ import annotations

import base64
import hashlib
import shlex
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rerank_cli.errors import printable

if TYPE_CHECKING:
    from jinja2 import Environment
    from markupsafe import Markup

Document = Mapping[str, Any]
"""A report, or the document of `rerank-cli evaluate`."""

_FOLDER = Path(__file__).parent


def render_report(document: Document, title: str | None = None) -> bytes:
    """The page of a report; the same bytes for the same document. title: in place of the output's name."""
    # Imported here, as below: Jinja costs 0.1 s, which runs without a page need not pay.
    from rerank_cli.report.page.run_page import page_of

    return _render_template("page.html.jinja", page_of(document, title))


def render_evaluation(document: Document, title: str | None = None) -> bytes:
    """The page of the document that `rerank-cli evaluate` makes."""
    from rerank_cli.report.page.evaluation_page import evaluation_page_of

    return _render_template("evaluation.html.jinja", evaluation_page_of(document, title))


def _render_template(template: str, page: Mapping[str, Any]) -> bytes:
    style = (_FOLDER / "page.css").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    text = _environment().get_template(template).render(page=page, style=style, style_hash=digest)
    return text.encode("utf-8", "backslashreplace")


@cache
def _environment() -> Environment:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=FileSystemLoader(_FOLDER),
        autoescape=True,
        # Our own markup is a subclass of `str`, and is written as it is.
        finalize=lambda value: printable(value) if type(value) is str else value,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"coded": _mark_code, "ours": Markup, "quoted": shlex.quote}
    return environment


_UNBROKEN = 30
"""Characters of the longest code that stays on one line, so that no option is broken at its hyphens."""


def _mark_code(text: str) -> Markup:
    """Text with the parts between backticks marked as code."""
    from markupsafe import Markup

    def mark(place: int, part: str) -> Markup:
        if place % 2 == 0:
            return Markup("{}").format(part)
        return Markup('<code class="flag">{}</code>' if len(part) <= _UNBROKEN else "<code>{}</code>").format(part)

    return Markup("").join(mark(place, part) for place, part in enumerate(printable(text).split("`")))
