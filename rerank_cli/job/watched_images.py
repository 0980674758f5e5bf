"""Watches the image files that rows name: none may change before its window is finished.

There may be millions, so they are not known in advance. Each is looked at when its window is read, which is before its
pixels are read, and again when its window is written. In a run of files, which can be read again, an image that was
made or changed since the run began stops the run too, because another window may have read the older one. Rows from a
pipe may name images that are made while the run goes on.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from threading import Lock

from rerank_cli.errors import InputError
from rerank_cli.job.run_paths import RunPaths
from rerank_cli.records import CandidateList, ImagePassage, Passage, Window


class WatchedImages:
    """The images of the windows in progress. began_ns: the start of the run, since when no image may change."""

    def __init__(self, paths: RunPaths | None = None, *, began_ns: int | None = None) -> None:
        self._paths = paths
        self._began = began_ns
        self._seen: dict[Path, os.stat_result] = {}
        self._times: Counter[Path] = Counter()
        self._both = Lock()  # rows are read in one thread, windows finished in another

    def look(self, window: Window) -> None:
        """Look at the images of a window, before any of them is read."""
        for item in window.lists:
            for path in _paths_of(item.passages):
                with self._both:
                    self._times[path] += 1
                    if path in self._seen or (found := _stat(path)) is None:
                        continue
                    self._seen[path] = found
                if self._paths:
                    self._paths.refuse_image(path, found)

    def finish(self, window: Window) -> None:
        """`InputError` if an image of a finished window has changed since it was looked at."""
        for item in window.lists:
            for path in _paths_of(item.passages):
                before, now = self._seen.get(path), _stat(path)
                if before is not None and (now is None or _times(now) != _times(before)):
                    raise InputError(f"{path}: was changed while it was read (an image of {_place(item)})", hint=_HINT)
                if now is not None and self._began is not None and now.st_ctime_ns > self._began:
                    raise InputError(
                        f"{path}: was changed since the run began (an image of {_place(item)})", hint=_HINT
                    )
                with self._both:
                    self._times[path] -= 1
                    if self._times[path] <= 0:
                        del self._times[path]
                        self._seen.pop(path, None)


_HINT = "what was finished before is kept; run the same command again when its files rest"


def _paths_of(passages: Iterable[Passage]) -> Iterator[Path]:
    for image in (passage.image for passage in passages if isinstance(passage, ImagePassage)):
        if isinstance(image.value, str) and image.value[:5].lower() != "data:":
            yield Path(image.root) / image.value


def _stat(path: Path) -> os.stat_result | None:
    try:
        return path.stat()
    except (OSError, ValueError):  # ValueError: a NUL in the name
        return None


def _times(found: os.stat_result) -> tuple[int, ...]:
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


def _place(item: CandidateList) -> str:
    row = item.rows[0]
    return f"{row.file}:{row.number}"
