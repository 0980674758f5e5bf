"""A process that reads and cuts images for another one: `ImageReader` at the end of a socket.

    parent                       worker
    settings of the reader ->    Ready
    Wanted                 ->    reads, decodes and cuts it
                           <-    Cut, then its pixels as they are; or Unread with the reason
    the end of the socket  ->    leaves at once, whatever it is doing

All that looks at an image happens here, its path and its header too: an image that ends a process ends this one. The
limits are those of the parent's reader. It imports Pillow and numpy, and starts in 0.15 s; where memory ends, the
kernel is asked to end it before its parent.

Pixels go through the socket as bytes. They need no shared memory, whose size containers limit (often to 64 MB), and
which somebody must give back when a process is killed; seven tiles take 9 ms, of both ends together, of about 100.
"""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from rerank_cli.encoding.images.reader import ImageReader
from rerank_cli.encoding.images.source import ImageProblem
from rerank_cli.encoding.images.tile_grid import TileGrid
from rerank_cli.machine.child_process import hear, parent_of_this_process
from rerank_cli.records import ImageSource

ENVIRONMENT = {"OPENBLAS_NUM_THREADS": "1"}
"""Of a worker: numpy's threads would be started at import, one a core, and have nothing to do."""

_LIKELIER = 500  # of 1000: how much likelier than its parent it is ended when memory runs out, see proc(5)


class ReaderReady:
    """The process has started."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """An image to cut. grid: how; None is the reader's own grid with at most `squares` squares, if it has so few."""

    number: int
    source: ImageSource
    grid: TileGrid | None
    squares: int | None


@dataclass(frozen=True, slots=True)
class Cut:
    """An image whose header was read. problem: of its pixels, as code and message; without one, `shape` pixels follow.

    digest: as in `OpenImage`.
    """

    number: int
    width: int
    height: int
    digest: bytes
    grid: TileGrid
    shape: tuple[int, ...]
    problem: tuple[str, str] | None


@dataclass(frozen=True, slots=True)
class Unread:
    """An image that cannot be scored, whatever its pixels are: a code and a message."""

    number: int
    problem: tuple[str, str]


@dataclass(frozen=True, slots=True)
class ReaderBroken:
    """The process ends; reason: in words."""

    reason: str


Heard = ReaderReady | Cut | Unread | ReaderBroken
"""What a worker says."""


def serve(connection: Connection[Any, Any]) -> None:
    """Cut what comes until the socket ends."""
    reader = ImageReader(**connection.recv())
    asked = hear(connection)
    connection.send(ReaderReady())
    while True:
        try:
            answer, pixels = _cut(reader, asked.get())
        except MemoryError:
            connection.send(ReaderBroken("out of memory"))
            return
        connection.send(answer)
        if pixels is not None:
            send_pixels(connection, pixels)


def _cut(reader: ImageReader, wanted: Wanted) -> tuple[Cut | Unread, npt.NDArray[np.uint8] | None]:
    try:
        image = reader.open(wanted.source)
    except ImageProblem as problem:
        return Unread(wanted.number, (problem.code, str(problem))), None
    grid = wanted.grid or reader.grid_within(image, wanted.squares)
    facts = (wanted.number, image.width, image.height, image.digest, grid)
    try:
        pixels = reader.cut(image, grid).pixels
    except ImageProblem as problem:
        return Cut(*facts, (), (problem.code, str(problem))), None
    return Cut(*facts, pixels.shape, None), pixels


def send_pixels(connection: Connection[Any, Any], pixels: npt.NDArray[np.uint8]) -> None:
    """Write all of `pixels`, C-contiguous."""
    left = pixels.data.cast("B")
    while left:
        left = left[os.write(connection.fileno(), left) :]


def receive_pixels(connection: Connection[Any, Any], shape: tuple[int, ...]) -> npt.NDArray[np.uint8]:
    """What `send_pixels` has written at the other end; raises `EOFError` where it ends early."""
    pixels = np.empty(shape, dtype=np.uint8)
    left = pixels.data.cast("B")
    while left:
        count = os.readv(connection.fileno(), [left])
        if not count:
            raise EOFError
        left = left[count:]
    return pixels


def main() -> None:
    """Serve the process that has started this one."""
    with suppress(OSError, ValueError):  # no Linux, or a kernel that does not allow it
        file = Path("/proc/self/oom_score_adj")
        file.write_text(str(min(1000, int(file.read_text()) + _LIKELIER)))
    try:
        serve(parent_of_this_process())
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return  # the parent has gone before this process was ready
