"""Images for encoders: read and cut in this process when they are needed, or ahead of time in other processes.

Pillow takes 0.1 s of a core for a page of 1700 x 2200 pixels (`benchmarks/page_images.py`), and a GPU may score twenty
pages a second. Threads beside the tokenising one cannot do it: how Pillow treats its warnings is a setting of the whole
process, and an image that kills its process would end the run. So processes do it once there are enough images
(`reader_pool.py`): one for every `_IMAGES_A_PROCESS` images that are known, up to a number from the plan. A process
takes 0.15 s to start, as long as one or two images take here. A run with fewer images never starts one, and a run
without images pays nothing.

The calls are the same either way: open an image (its path, header and size are good), get its grid, get its tiles.
`expect` announces images. Tiles that are made ahead are those of the first grid for which the longest pair has room; if
the texts of a pair leave room for fewer, the image is read and cut once more (`want`).
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from rerank_cli.encoding.images.decode import OpenImage
from rerank_cli.encoding.images.reader import ImageReader
from rerank_cli.encoding.images.reader_pool import Answer, ImagePool
from rerank_cli.encoding.images.source import ImageProblem, shown
from rerank_cli.encoding.images.tile_grid import TileGrid
from rerank_cli.records import ImageSource, Tiles

_IMAGES_A_PROCESS = 4


@dataclass(slots=True)
class Page:
    """An image whose header is good. held: its bytes in this process, or what another process made of it.

    again: the number by which the pool gives its tiles in another grid.
    """

    source: ImageSource
    held: OpenImage | Answer
    again: int | None = None


class ImagesAhead:
    """The images of one pass over an input, for one thread.

    reader: knows the grids of an image. squares: how many the longest pair has room for; None where images are never
    cut in fewer tiles. processes: the most that may read images; with 0 this process does. seconds: the time that the
    thread read images or waited for them.
    """

    def __init__(
        self,
        reader: ImageReader,
        *,
        squares: int | None = None,
        processes: int = 0,
        on_note: Callable[[str], None] | None = None,
    ) -> None:
        self.reader = reader
        self._squares = squares
        self._processes = processes
        self._on_note = on_note
        self._pool: ImagePool | None = None
        self._known = 0
        self._expected: deque[ImageSource] = deque()  # while there is no pool
        self._asked: dict[ImageSource, list[int]] = {}  # of the pool
        self.seconds = 0.0

    def ahead(self, processes: int, on_note: Callable[[str], None] | None = None) -> ImagesAhead:
        """A copy for one pass with so many processes; close it at the end. on_note: see `ImagePool`."""
        return ImagesAhead(self.reader, squares=self._squares, processes=processes, on_note=on_note)

    def expect(self, sources: Sequence[ImageSource]) -> None:
        """Say that these images will be opened next, in this order, after those that were expected before."""
        if not self._processes:
            return
        self._known += len(sources)
        self._expected.extend(sources)
        if wanted := min(self._processes, self._known // _IMAGES_A_PROCESS):
            if self._pool is None:
                self._pool = ImagePool(self.reader, squares=self._squares, on_note=self._on_note)
            self._pool.grow(wanted)
            while self._expected:
                source = self._expected.popleft()
                self._asked.setdefault(source, []).append(self._pool.ask(source))

    def open(self, source: ImageSource) -> Page:
        """The image, after reading its header; raises `ImageProblem`."""
        with self._timed():
            if self._pool is None:
                if source in self._expected:
                    self._expected.remove(source)
            else:
                numbers = self._asked.get(source) or [self._pool.ask(source, at_once=True)]
                number = numbers.pop(0)
                if not numbers:
                    self._asked.pop(source, None)
                if (answer := self._pool.take(number)) is not None:
                    return Page(source, answer)
            return Page(source, self.reader.open(source))

    def want(self, page: Page, grid: TileGrid) -> None:
        """Say that `page` will be cut in `grid`: a process begins, unless that is done already. `cut` must follow."""
        if self._pool is None or isinstance(page.held, OpenImage) or page.held.grid == grid:
            return
        page.again = self._pool.ask(page.source, grid=grid, at_once=True)

    def cut(self, page: Page, grid: TileGrid) -> Tiles:
        """The tiles of the image; raises `ImageProblem`."""
        with self._timed():
            if page.again is not None:
                assert self._pool is not None, "it has given the number"
                found: OpenImage | Answer = self._pool.take(page.again) or self.reader.open(page.source)
                if found.digest != page.held.digest:
                    name = f" `{shown(page.source.value)}`" if isinstance(page.source.value, str) else ""
                    raise ImageProblem("image-unreadable", f"image{name}: the file was changed while it was read")
                page.held, page.again = found, None
            held = page.held
            if isinstance(held, OpenImage):
                return self.reader.cut(held, grid)
            assert held.grid == grid, "`want` comes before another grid"
            if isinstance(held.tiles, ImageProblem):
                raise held.tiles
            return held.tiles

    def close(self) -> None:
        """End the processes."""
        if self._pool is not None:
            self._pool.close()

    @contextmanager
    def _timed(self) -> Iterator[None]:
        began = time.perf_counter()
        try:
            yield
        finally:
            self.seconds += time.perf_counter() - began
