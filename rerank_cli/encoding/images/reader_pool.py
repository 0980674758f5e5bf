"""Processes that read and cut images, and what happens when one of them dies.

    image -> number -> the process that has least to do -> its size and tiles, under that number

A process has one image in hand and one waiting. At most `_AHEAD` images are being cut, or are cut and not yet taken:
for pages in seven tiles that is 88 MB, besides one decoded image in each process. Images that are asked for again in
another grid replace tiles that were taken, and go before all others.

A process that dies (killed for its memory, a fault of a decoder) or does not answer is started again. The image it had
in hand is cut once more while nothing else is, so that it has all the memory there is. If that kills a process too, the
image has a problem and its row is a bad one. Where no process can be started, the caller reads the image itself.
`machine/supervised_pool.py` has what this pool shares with that of the engines.

A thread of its own that listens all the time would gain nothing, as the calling thread is ahead of the scoring anyway.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace

from rerank_cli.encoding.images.reader import ImageReader
from rerank_cli.encoding.images.reader_worker import (
    ENVIRONMENT,
    Cut,
    Heard,
    ReaderReady,
    Unread,
    Wanted,
    receive_pixels,
)
from rerank_cli.encoding.images.source import ImageProblem
from rerank_cli.encoding.images.tile_grid import TileGrid
from rerank_cli.machine.supervised_pool import SupervisedPool, Worker
from rerank_cli.records import ImageSource, Tiles

_AHEAD = 16  # images; as many as a part of a window has, so that the next part is ready when one is scored
_IN_HAND = 2  # images that a process has: one in hand and one waiting
_TRIES = 2
_DEATHS = 40  # in a row, which takes twenty images
_LEAST_SECONDS = 60.0  # that a process may take to answer, and one more for every million pixels that are allowed


@dataclass(frozen=True, slots=True)
class Answer:
    """An image that was read. digest: as in `OpenImage`. grid: in which it was cut. tiles: or why it has none."""

    width: int
    height: int
    digest: bytes
    grid: TileGrid
    tiles: Tiles | ImageProblem


@dataclass(frozen=True, slots=True)
class _Request:
    """An image to cut. tries: how many processes it has killed. at_once: it does not count as one that is ahead."""

    wanted: Wanted
    tries: int = 0
    at_once: bool = False


class _Worker(Worker):
    """One process. silent: for how many seconds its answer has been waited for."""

    def __init__(self, reader: ImageReader, patience: float) -> None:
        super().__init__("rerank_cli.encoding.images.reader_worker", environment=ENVIRONMENT, patience=patience)
        self.doing: deque[_Request] = deque()
        self.silent = 0.0
        self.tell(dict(reader.settings))


class ImagePool(SupervisedPool[_Worker]):
    """Reads and cuts images in processes, which `grow` starts.

    squares: an image is cut in the first smaller grid with at most so many squares, where the reader's has more.
    patience: how many seconds a process may take for an image. on_note, deaths: see `SupervisedPool`.
    """

    def __init__(
        self,
        reader: ImageReader,
        *,
        squares: int | None = None,
        on_note: Callable[[str], None] | None = None,
        patience: float | None = None,
        deaths: int = _DEATHS,
    ) -> None:
        super().__init__(("reads images", "image it is"), deaths=deaths, on_note=on_note)
        self._reader = reader
        self._squares = squares
        self._patience = patience or _LEAST_SECONDS + reader.max_pixels / 1e6
        self._answers: dict[int, Answer | ImageProblem] = {}
        self._ahead: set[int] = set()
        self._numbers = 0
        self._cannot_start = False

    def grow(self, processes: int) -> None:
        """Start processes until there are so many, if they can be started."""
        while len(self._workers) < processes and not self._cannot_start:
            self._start()

    def ask(self, source: ImageSource, *, grid: TileGrid | None = None, at_once: bool = False) -> int:
        """Have an image cut; returns the number by which to take it. Every number must be taken.

        grid: replaces the reader's. at_once: before all others, and not limited by how many may be ahead.
        """
        self._numbers += 1
        request = _Request(Wanted(self._numbers, source, grid, self._squares), at_once=at_once)
        if at_once:
            self._waiting.insert(sum(one.at_once for one in self._waiting), request)
        else:
            self._waiting.append(request)
        self._give_out()
        return self._numbers

    def take(self, number: int) -> Answer | None:
        """Wait for the image; raises its `ImageProblem`. None where no process can read it."""
        place = next((place for place, one in enumerate(self._waiting) if one.wanted.number == number), None)
        if place is not None:  # to the front, outside of the limit on images ahead: the caller waits for it now
            request = self._waiting[place]
            del self._waiting[place]
            self._waiting.appendleft(replace(request, at_once=True))
            self._give_out()
        while number not in self._answers:
            if not self._workers:  # the caller may read the image, unless it has killed a process
                request = next(one for one in self._waiting if one.wanted.number == number)
                self._waiting.remove(request)
                if request.tries:
                    raise _died(request.tries, "and none can be started")
                return None
            began = time.monotonic()
            ready = self._listen(1.0)
            waited = time.monotonic() - began
            for worker in [one for one in self._workers if one not in ready and (one.doing or not one.is_ready)]:
                worker.silent += waited
                limit = self._patience if worker.is_ready else _LEAST_SECONDS
                if worker.silent > limit:
                    worker.process.kill()
                    self._replace(worker, f"no answer in {limit:.0f} s")
            self._give_out()
        answer = self._answers.pop(number)
        self._ahead.discard(number)
        self._give_out()
        if isinstance(answer, ImageProblem):
            raise answer
        return answer

    def _handle_message(self, worker: _Worker, message: Heard | None) -> None:
        worker.silent = 0.0
        if isinstance(message, ReaderReady):
            worker.is_ready = True
        elif isinstance(message, (Cut, Unread)):
            try:
                self._finish(worker, message)
            except (EOFError, OSError):  # it died while it sent pixels
                self._replace(worker, None)
        else:
            self._replace(worker, message.reason if message else None)

    def _finish(self, worker: _Worker, message: Cut | Unread) -> None:
        number = message.number
        assert number == worker.doing[0].wanted.number, "a worker cuts its images in their order"
        if isinstance(message, Unread):
            self._answers[number] = ImageProblem(*message.problem)
        else:
            tiles: Tiles | ImageProblem
            if message.problem:
                tiles = ImageProblem(*message.problem)
            else:
                tiles = Tiles(receive_pixels(worker.connection, message.shape))
            self._answers[number] = Answer(message.width, message.height, message.digest, message.grid, tiles)
        # Only now: the process may die while it sends the pixels.
        worker.doing.popleft()
        self._deaths_in_a_row = 0

    def _replace(self, worker: _Worker, reason: str | None) -> None:
        """Start a process in place of one that died, and give out its images again; the one in hand is tried alone."""
        reason = self._take_out(worker, reason)
        again = list(worker.doing)
        if not worker.is_ready:
            self._cannot_start = True
            self._note(f"a process that reads images ended while it started ({reason}): {self._describe_rest}")
        else:
            if again:
                suspect, tries = again[0], again[0].tries + 1
                if tries < _TRIES:
                    self._note(f"a process that reads images was lost ({reason}); its image is tried again alone")
                    again[0] = replace(suspect, tries=tries)
                else:
                    self._answers[suspect.wanted.number] = _died(tries, reason)
                    del again[0]
            if not self._cannot_start:
                self._start()
        self._ahead.difference_update(one.wanted.number for one in again)
        self._waiting.extendleft(reversed(again))

    def _start(self) -> None:
        try:
            self._workers.append(_Worker(self._reader, self._patience))
        except OSError as error:
            self._cannot_start = True
            self._note(f"a process that reads images cannot be started ({error.strerror}): {self._describe_rest}")

    @property
    def _describe_rest(self) -> str:
        count = len(self._workers)
        return f"{count} of them go on" if count else "images are read without"

    def _give_out(self) -> None:
        """Give requests to the processes that have least to do; one that is tried alone waits until all are idle."""
        while self._waiting and self._workers:
            request = self._waiting[0]
            worker = min(reversed(self._workers), key=lambda worker: len(worker.doing))  # the newest of the idle ones
            in_hand = [one for each in self._workers for one in each.doing]
            if any(one.tries for one in in_hand) or (request.tries and in_hand) or len(worker.doing) >= _IN_HAND:
                return
            if not request.at_once and not request.tries and len(self._ahead) >= _AHEAD:
                return
            self._waiting.popleft()
            if not request.at_once:
                self._ahead.add(request.wanted.number)
            worker.doing.append(request)
            worker.tell(request.wanted)


def _died(tries: int, reason: str) -> ImageProblem:
    times = f"{tries} processes" if tries > 1 else "the process"
    return ImageProblem("image-reader-died", f"the image has ended {times} that read it ({reason})")
