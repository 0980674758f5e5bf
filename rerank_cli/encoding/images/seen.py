"""Whether the image files that rows name are still those that were scored.

There may be millions, so they are not hashed: of each its size and time count, and of all windows together one digest,
which a journal keeps. The next process looks at the same files and must come to the same digest.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from rerank_cli.records import ImagePassage, Passage, Window


class SeenImages:
    """The image files of all windows so far. digest: tells them from others; empty while there is none."""

    def __init__(self) -> None:
        self.digest = ""

    def add(self, window: Window) -> None:
        """The next window."""
        found = [fact for item in window.lists for passage in item.passages if (fact := _fact(passage))]
        if found:
            self.digest = hashlib.sha256((self.digest + json.dumps(found)).encode()).hexdigest()


def _fact(passage: Passage) -> list[Any] | None:
    """Name, size and time of a passage's image file; the name alone where it cannot be looked at."""
    if not isinstance(passage, ImagePassage) or not isinstance(passage.image.value, str):
        return None
    name = passage.image.value
    if name[:5].lower() == "data:":
        return None
    try:
        found = (Path(passage.image.root) / name).stat()
    except (OSError, ValueError):  # ValueError: a NUL in the name
        return [name]
    return [name, found.st_size, found.st_mtime_ns]
