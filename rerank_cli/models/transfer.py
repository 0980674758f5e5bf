"""Tensors between the host and the device of a model, so that neither waits for the other: all such copies are here.

    host                 to_device: pinned memory -> `copies`, a stream of its own
    stream `copies`      the next batch travels while this one is computed
    compute stream       waits for its batch alone; to_host: logits -> pinned memory, behind what computes them
    host                 asks whether they are there, and goes on meanwhile

* What `to_device` returns is made on one stream and read on another. The compute stream waits for an event of the copy,
  and `record_stream` keeps the allocator from giving the memory away before the compute stream is done with it
  (torch's notes on CUDA semantics and on `Tensor.record_stream`).
* The pinned buffers need no keeping: torch's host allocator remembers the streams that copied from or to a block of its
  own, and when the block is given back it waits for an event of each before it hands it out again (aten,
  `CachingHostAllocator.h`).
* A copy to the host is complete when its event is; only then may the buffer be read.
* The host is at most `AHEAD` copies before the device: ids and pixels of batches that wait take memory, and a run that
  is stopped should not have an hour of work in a queue. At the bound it sleeps and asks; it never spins.

A device reports a fault in a kernel to the next caller that asks it anything. Every call here lets that error through
(`torch.AcceleratorError`), so numbers computed after a fault are never read.

Elsewhere (`Direct`) a copy is `Tensor.to`, and done when it returns.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import ClassVar, Protocol

import torch
from torch import Tensor

from rerank_cli.planning.memory.pieces import AHEAD

PAUSE_SECONDS = 0.0005
"""Between two questions to a device; each takes a microsecond or two."""


class Arriving(Protocol):
    """A tensor on its way to the host."""

    def is_there(self) -> bool:
        """Whether it can be read."""

    def wait(self) -> Tensor:
        """The tensor, on the host."""


class Transfer(Protocol):
    """Copies to one device and back. overlaps: the device computes while the host goes on."""

    overlaps: ClassVar[bool]

    def has_room(self) -> bool:
        """Whether `to_device` would not have to wait now."""

    def to_device(self, host: Tensor) -> Tensor:
        """`host`, on the device."""

    def to_host(self, there: Tensor) -> Arriving:
        """Start to copy a tensor of the device; the copy is made once the tensor is computed."""


@dataclass(frozen=True, slots=True)
class There:
    """A tensor that has arrived; satisfies `Arriving`."""

    here: Tensor

    def is_there(self) -> bool:
        """See `Arriving`."""
        return True

    def wait(self) -> Tensor:
        """See `Arriving`."""
        return self.here


class Direct:
    """Copies that are done when they return; satisfies `Transfer`."""

    overlaps: ClassVar[bool] = False

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def has_room(self) -> bool:
        """See `Transfer`."""
        return True

    def to_device(self, host: Tensor) -> Tensor:
        """See `Transfer`."""
        return host.to(self._device)

    def to_host(self, there: Tensor) -> There:
        """See `Transfer`."""
        return There(there.cpu())


@dataclass(frozen=True, slots=True)
class _Pinned:
    """A buffer that a device writes, and the event after the last write; satisfies `Arriving`."""

    buffer: Tensor
    written: torch.cuda.Event

    def is_there(self) -> bool:
        """See `Arriving`."""
        return bool(self.written.query())

    def wait(self) -> Tensor:
        """See `Arriving`; asks and sleeps, as `Event.synchronize` would let no signal through."""
        while not self.is_there():
            time.sleep(PAUSE_SECONDS)
        return self.buffer


class Overlapping:
    """Copies of a CUDA device behind the host; satisfies `Transfer`. To be used by one thread."""

    overlaps: ClassVar[bool] = True

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._copies = torch.cuda.Stream(device)
        self._before: deque[torch.cuda.Event] = deque()  # of each recent copy: where the compute stream was before it

    def has_room(self) -> bool:
        """See `Transfer`."""
        while self._before and self._before[0].query():
            self._before.popleft()
        return len(self._before) < AHEAD

    def to_device(self, host: Tensor) -> Tensor:
        """See `Transfer`."""
        while not self.has_room():
            time.sleep(PAUSE_SECONDS)
        compute = torch.cuda.current_stream(self._device)
        self._before.append(compute.record_event())
        pinned = host.pin_memory()
        with torch.cuda.stream(self._copies):
            there = pinned.to(self._device, non_blocking=True)
        compute.wait_event(self._copies.record_event())
        there.record_stream(compute)
        return there

    def to_host(self, there: Tensor) -> _Pinned:
        """See `Transfer`."""
        compute = torch.cuda.current_stream(self._device)
        buffer = torch.empty(there.shape, dtype=there.dtype, pin_memory=True)
        buffer.copy_(there, non_blocking=True)
        return _Pinned(buffer, compute.record_event())


@contextmanager
def current(device: torch.device) -> Iterator[None]:
    """Make `device` the current one inside: the one of everything that names no device.

    Triton starts its kernels there, and pinned memory, streams and events wake the GPU that they are asked of: without
    this a model on the second GPU would fail or take half a GiB of the first.
    """
    if device.type != "cuda":
        yield
        return
    with torch.cuda.device(device):
        yield


@cache
def transfer_for(device: torch.device) -> Transfer:
    """The copies of a device; one object for all models on it, as they share its memory and its streams."""
    return Overlapping(device) if device.type == "cuda" else Direct(device)
