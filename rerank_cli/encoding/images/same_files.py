"""Whether the image files that rows name are still those that were scored.

There may be millions of them, so their content is not hashed, only size and time. One digest stands for the files of
all windows; a journal keeps it. The process that resumes a run looks at the same files and must find the same digest.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rerank_cli.records import ImagePassage, Passage, Window


@dataclass(slots=True)
class SeenImages:
    """The image files of all windows so far. digest: stands for them; empty while there are none."""

    digest: str = ""

    def add(self, window: Window) -> None:
        """Take in the images of the next window."""
        found = [fact for item in window.lists for passage in item.passages if (fact := _fact(passage))]
        if found:
            self.digest = hashlib.sha256((self.digest + json.dumps(found)).encode()).hexdigest()


def _fact(passage: Passage) -> list[Any] | None:
    """Name, size and time of a passage's image file; the name alone where the file cannot be looked up."""
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
