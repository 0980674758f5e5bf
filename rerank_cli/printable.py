"""Text from files as people may safely see it."""

from __future__ import annotations

import unicodedata


def printable(text: str) -> str:
    """`text` with control and bidirectional characters shown as escapes instead of acted on."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(
        _escaped(char) if unicodedata.category(char) in ("Cc", "Cf", "Cs", "Co", "Cn") else char for char in text
    )


def _escaped(char: str) -> str:
    return char.encode("unicode_escape").decode("ascii")
