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

from rerank_cli.records import ImagePassage, Window


@dataclass(slots=True)
class SeenImages:
    """The image files of all windows so far. digest: stands for them; empty while there are none."""

    digest: str = ""

    def add(self, window: Window) -> None:
        """Take in the images of the next window: name, size and time of each file."""
        images = [
            passage.image for item in window.lists for passage in item.passages if isinstance(passage, ImagePassage)
        ]
        facts: list[list[Any]] = []
        for image in images:
            if not isinstance(image.value, str) or image.value[:5].lower() == "data:":
                continue
            try:
                found = (Path(image.root) / image.value).stat()
                facts.append([image.value, found.st_size, found.st_mtime_ns])
            except (OSError, ValueError):  # the file cannot be looked up; ValueError: a NUL in the name
                facts.append([image.value])
        if facts:
            self.digest = hashlib.sha256((self.digest + json.dumps(facts)).encode()).hexdigest()
