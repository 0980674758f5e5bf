"""A process that reads and cuts images for another one: `ImageReader` at the end of a socket.

    parent                       worker
    settings of the reader ->    ReaderReady
    Wanted                 ->    reads, decodes and cuts it
                           <-    Cut, then its pixels as they are; or Unread with the reason
    the end of the socket  ->    leaves at once, whatever it is doing

Everything that touches an image, also its path and header, happens here: an image that kills a process kills this one.
The limits are those of the parent's reader. The process imports Pillow and numpy and starts in 0.15 s; when memory runs
out, the kernel is asked to kill it before its parent.

Pixels go through the socket as bytes, without shared memory: containers limit its size (often to 64 MB), and somebody
must free it when a process is killed. Seven tiles take 9 ms of both ends together, of about 100 ms for the image.
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
"""For workers: numpy would start a thread for each core at import, which would have nothing to do."""

_LIKELIER = 500  # of 1000: how much likelier than its parent it is killed when memory runs out, see proc(5)


class ReaderReady:
    """The process has started."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """An image to cut. grid: None for the first of the reader's grids that has at most `squares` squares."""

    number: int
    source: ImageSource
    grid: TileGrid | None
    squares: int | None


@dataclass(frozen=True, slots=True)
class Cut:
    """An image whose header was read. problem: of its pixels, as (code, message); else pixels of this `shape` follow.

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
    """An image that cannot be scored, found before its pixels were read. problem: (code, message)."""

    number: int
    problem: tuple[str, str]


@dataclass(frozen=True, slots=True)
class ReaderBroken:
    """The process is about to end. reason: in words."""

    reason: str


Heard = ReaderReady | Cut | Unread | ReaderBroken
"""What a worker says."""


def serve(connection: Connection[Any, Any]) -> None:
    """Cut the images that are asked for until the socket ends."""
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
    """The pixels that `send_pixels` writes at the other end; raises `EOFError` where it ends early."""
    pixels = np.empty(shape, dtype=np.uint8)
    left = pixels.data.cast("B")
    while left:
        count = os.readv(connection.fileno(), [left])
        if not count:
            raise EOFError
        left = left[count:]
    return pixels


def main() -> None:
    """Serve the process that started this one."""
    with suppress(OSError, ValueError):  # no Linux, or a kernel that does not allow it
        file = Path("/proc/self/oom_score_adj")
        file.write_text(str(min(1000, int(file.read_text()) + _LIKELIER)))
    try:
        serve(parent_of_this_process())
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return  # the parent was gone before this process was ready
