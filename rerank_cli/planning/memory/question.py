"""How much memory a model needs, point by point (a batch size and a length): the question of `mem-estimate`."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from rerank_cli.planning.memory.estimate import Estimate, MemoryModel, Placement, estimate
from rerank_cli.planning.memory.peak import BatchSize
from rerank_cli.planning.memory.published import PublishedMemory, published_memory
from rerank_cli.planning.profiles import PublishedTable
from rerank_cli.planning.profiles.fit import largest

MOST_PAIRS = 65536
"""The largest batch that is looked for."""
_PARTS = (
    "weights", "activations", "attention_workspace", "vision", "pooled", "cublas_workspace", "context", "slack",
    "waiting", "loading", "known_pairs",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class MemoryQuestion:
    """How much memory a model needs at a place.

    model: None where only published values are known of it. lengths: real lengths of pairs, longest first; a batch is
    then the longest of them, cut at `max_tokens`. images: of a batch, at most one a pair. capacity: bytes that the
    device has; None where nobody asks. limit: tokens that the model reads; None where no point is longer. first: the
    same question about the cheap scorer that is loaded beside the model.
    """

    model: MemoryModel | None
    place: Placement
    tables: tuple[PublishedTable, ...] = ()
    lengths: tuple[int, ...] | None = None
    images: int = 0
    max_input_tiles: int | None = None
    capacity: int | None = None
    limit: int | None = None
    first: MemoryQuestion | None = None

    def at(self, batch_size: int, max_tokens: int) -> MemoryRow:
        """The answer at a point."""
        nim = published_memory(self.tables, batch_size, max_tokens)
        if self.model is None:
            return MemoryRow(batch_size, max_tokens, nim=nim)
        vision = self.model.shape.vision
        tiles = min(self.images, batch_size) * vision.tiles(self.max_input_tiles) if vision else 0
        found = estimate(self.model, self.batch(batch_size, max_tokens), self.place, tiles=tiles)
        first = (
            self.first.at(batch_size, min(max_tokens, self.first.limit or max_tokens)).estimate if self.first else None
        )
        return self.judge(MemoryRow(batch_size, max_tokens, estimate=found, nim=nim, first=first))

    def judge(self, row: MemoryRow) -> MemoryRow:
        """The row with `fits`; None where the capacity or the need is not known."""
        return replace(row, fits=None if self.capacity is None or row.total is None else row.total <= self.capacity)

    def batch(self, batch_size: int, max_tokens: int) -> BatchSize:
        """The batch of a point."""
        if self.lengths is None:
            return BatchSize.of_runs([(batch_size, max_tokens)])
        return BatchSize.of(min(length, max_tokens) for length in self.lengths[:batch_size])

    def largest_batch(self, max_tokens: int) -> int:
        """The most pairs of `max_tokens` that fit; 0 where not even one does."""
        limit = MOST_PAIRS if self.lengths is None else min(MOST_PAIRS, len(self.lengths))
        return largest(lambda pairs: bool(self.at(pairs, max_tokens).fits), limit)

    def longest_pair(self, batch_size: int, limit: int) -> int:
        """The most tokens, up to `limit`, at which `batch_size` pairs fit; 0 where none do."""
        return largest(lambda tokens: bool(self.at(batch_size, tokens).fits), limit)


@dataclass(frozen=True, slots=True)
class MemoryRow:
    """One point with its answer.

    estimate: None where the model's shape is unknown, or where nothing fits. first: of the cheap scorer.
    """

    batch_size: int
    max_tokens: int
    estimate: Estimate | None = None
    fits: bool | None = None
    nim: PublishedMemory | None = None
    measured: dict[str, Any] = field(default_factory=dict)
    first: Estimate | None = None

    @property
    def total(self) -> int | None:
        """Bytes of all that is loaded; None where the model's shape is unknown."""
        return None if self.estimate is None else self.estimate.total + (self.first.total if self.first else 0)

    def with_forward(self, forward_bytes: int, share: float) -> MemoryRow:
        """The same with the bytes of a forward that a tracker followed. share: what the allocator adds to them."""
        if self.estimate is None:
            return self
        bound = self.estimate
        slack = bound.slack - int(share * bound.forward) + int(share * (forward_bytes + bound.pooled))
        followed = replace(bound, activations=forward_bytes, attention_workspace=0, slack=slack)
        return replace(self, estimate=followed)

    def to_json(self) -> dict[str, Any]:
        """The row as a document; sizes in bytes."""
        found = self.estimate
        return {
            "batch_size": self.batch_size,
            "max_tokens": self.max_tokens,
            **{f"{part}_bytes": found and getattr(found, part) for part in _PARTS},
            "engine_count": found and found.engines,
            "first_bytes": self.first.total if self.first else 0,
            "total_bytes": self.total,
            "fits": self.fits,
            "nim": self.nim and self.nim.to_json(),
            **({"measured": self.measured} if self.measured else {}),
        }
