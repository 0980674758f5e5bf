"""A model's profiles as values: what `profiles/<model>.toml` publishes of it, its GPUs and its memory.

An optimized profile matches by compute capability or by SKU. All optimized profiles of a file match by the same, so
that a SKU never decides where a capability does. Capabilities match exactly.

Memory is published as GB (1e9 bytes) in the fallback table and as GiB in the footprint tables; names say which. The
`fit` of a table (GiB = weights + a * batch * length + mask * batch * length^2) gives figures between its rows. They are
derived, stand beside the largest miss of the fit over the table's own rows, and are never shown as published.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date

from rerank_cli.planning.profiles.schema import Capability

GB, GIB, KIB = 10**9, 2**30, 2**10


@dataclass(frozen=True, slots=True)
class Source:
    """Where a block was read. release: of the product or document (`2.0.0`, a revision)."""

    key: str
    title: str
    url: str
    release: str
    read_on: date


@dataclass(frozen=True, slots=True)
class LanguageFacts:
    """The transformer of a model, as config.json would say it."""

    layers: int
    hidden_size: int
    intermediate_size: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab_size: int
    source: Source
    status: str


@dataclass(frozen=True, slots=True)
class VisionFacts:
    """The vision tower. parameters: of the tower with its unused head; connector_parameters: what joins it to the text.

    max_input_tiles: without the thumbnail that an image of more than one tile has.
    """

    layers: int
    hidden_size: int
    intermediate_size: int
    heads: int
    patch_size: int
    image_size: int
    tokens_per_tile: int
    max_input_tiles: int
    parameters: int
    connector_parameters: int
    source: Source
    status: str


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """What is known of a model without its checkpoint. language, vision: None where the shape is unknown or absent."""

    id: str
    aliases: tuple[str, ...]
    architecture: str
    max_tokens: int
    language: LanguageFacts | None
    vision: VisionFacts | None
    source: Source
    status: str


@dataclass(frozen=True, slots=True)
class Engines:
    """Engines of a device: by default, and for performance on a device of at least so much memory."""

    default: int
    performance: int
    performance_min_bytes: int
    source: Source
    status: str


@dataclass(frozen=True, slots=True)
class SelectionRule:
    """automatic: whether a policy may choose a profile `on_request`; if not, only the user can ask for it."""

    automatic: bool
    source: Source
    status: str


@dataclass(frozen=True, slots=True)
class Profile:
    """One validated way to run a model on some GPUs.

    kind: `optimized` matches by `compute_capabilities` or `skus`, `fallback` any GPU; `generic` is never in a file.
    on_request: not chosen unless its precision is asked for (see `SelectionRule`).
    min_memory_bytes: published need of the fallback, of one GPU or of equal GPUs together.
    """

    name: str
    kind: str
    precision: str
    max_tokens: int
    compute_capabilities: tuple[Capability, ...] = ()
    skus: tuple[str, ...] = ()
    on_request: bool = False
    min_memory_bytes: int | None = None
    disk_bytes: int | None = None
    note: str | None = None
    source: Source | None = None
    status: str = "certain"


@dataclass(frozen=True, slots=True)
class PublishedRow:
    """One published value. Batch size and length are None where the page prints none."""

    max_batch_size: int | None
    max_sequence_length: int | None
    gib: float


@dataclass(frozen=True, slots=True)
class PublishedFit:
    """The form that reads between the rows of one table. worst_gib: its largest miss over those rows."""

    weights_gib: float
    kib_per_token: float
    mask_bytes: float
    worst_gib: float

    def gib(self, batch_size: int, length: int) -> float:
        """Memory at a batch size and a length, in GiB."""
        linear = self.kib_per_token * KIB * batch_size * length
        mask = self.mask_bytes * batch_size * length**2
        return self.weights_gib + (linear + mask) / GIB


@dataclass(frozen=True, slots=True)
class PublishedTable:
    """A published memory table under its heading. sku: None where tables go by compute capability alone.

    values, headings: the certainty of the numbers and of what they are said to be about.
    """

    sku: str | None
    compute_capability: Capability
    precision: str
    rows: tuple[PublishedRow, ...]
    fit: PublishedFit | None
    values: str
    headings: str
    note: str | None
    source: Source

    def published(self, batch_size: int, length: int) -> PublishedRow | None:
        """The row printed for exactly this point, or None."""
        wanted = (batch_size, length)
        return next((row for row in self.rows if (row.max_batch_size, row.max_sequence_length) == wanted), None)

    def interpolated_gib(self, batch_size: int, length: int) -> float | None:
        """The fitted form at a point inside the printed ones; None outside them, or without a fit."""
        points = [(row.max_batch_size or 0, row.max_sequence_length or 0) for row in self.rows]
        batches, lengths = zip(*points, strict=True)
        inside = min(batches) <= batch_size <= max(batches) and min(lengths) <= length <= max(lengths)
        return self.fit.gib(batch_size, length) if self.fit and inside else None


@dataclass(frozen=True, slots=True)
class ModelProfiles:
    """One file: a model, its profiles in order of preference, its published memory tables."""

    file: str
    model: ModelFacts
    engines: Engines
    selection: SelectionRule
    profiles: tuple[Profile, ...]
    memory: tuple[PublishedTable, ...]

    def published_tables(
        self, *, precision: str, compute_capability: Capability | None, sku: str | None
    ) -> tuple[PublishedTable, ...]:
        """The published tables for a GPU: of its SKU where tables go by SKU, else of its exact capability.

        Of every GPU where neither is given.
        """
        tables = tuple(table for table in self.memory if table.precision == precision)
        if compute_capability is None and sku is None:
            return tables
        return tuple(
            table
            for table in tables
            if (same_sku(table.sku, sku) if table.sku else table.compute_capability == compute_capability)
        )


def same_sku(one: str | None, other: str | None) -> bool:
    """Whether both spell one SKU: NVML's `NVIDIA H100 NVL`, the page's `H100-NVL`, a container's `NVIDIA-H100-NVL`."""
    return one is not None and other is not None and plain_sku(one) == plain_sku(other)


def plain_sku(sku: str) -> str:
    """The one spelling by which SKUs are compared: `h100-nvl`."""
    return "-".join(sku.split()).casefold().removeprefix("nvidia-")


def show_capability(capability: Capability | None) -> str:
    """`9.0`, or `unknown`."""
    return "unknown" if capability is None else f"{capability[0]}.{capability[1]}"
