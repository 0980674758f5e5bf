"""Which pairs of a window need not be computed, because this run or another one has scored them before.

    look_up     thread `read`       give the distinct pairs of a window keys, and find the scores of known ones
    take        thread `tokenise`   fetch what was found; the other pairs are encoded
    settle      caller's thread     a part is scored: give its logits to its pairs, and to those that wait for them
    keep        caller's thread     the window is complete: put what is new into the store

A pair is looked up by its texts and the bytes of its image, before anything is tokenised. The store gives the logit and
the lengths for the output and the report, but no token ids; a found pair has zeros in their place.

A list that has not changed since it was scored is found at once, by one key of all its texts: the store keeps the
values of its pairs a second time, packed into one entry. Only if there is no such entry, the pairs are looked up.

A pair that an earlier window is still computing is not computed again: it waits for that window, whose parts are always
scored first.

Over 400 lines: how pairs and lists are packed stands beside the only code that looks them up.

An int8 model has no keys before it is calibrated. So the first window of a run is not looked up, and the reading thread
then waits until the engine has that window.
"""

from __future__ import annotations

import hashlib
import math
import struct
import threading
from array import array
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from rerank_cli.encoding.encoder import Encoded, EncodingProblem
from rerank_cli.encoding.images.source import ImageProblem, read_source
from rerank_cli.engine.protocols import NeedsCalibration
from rerank_cli.job.score_store import Rate, ScoreStore
from rerank_cli.job.score_store.database import KEY_BYTES, QUERY_BYTES
from rerank_cli.job.score_store.memory_table import LENGTHS, LOGIT, VALUE_BYTES, MemoryTable
from rerank_cli.records import CandidateList, EncodedPair, ImageBlock, ImagePassage, Limits, Passage, Timing, Window

if TYPE_CHECKING:
    from rerank_cli.engine import Engine

Asked = tuple[Limits, str, Passage]
"""A pair, with its limits on tokens."""

_LIST_PAIRS = range(8, 4097)  # of a list with an entry of its own: fewer save nothing, and more make a row too large
_HASHED_AT_ONCE = 2000  # bytes; hashing more than 2,047 would give the interpreter's lock away, and wait for it
_SHARED_BYTES = LENGTHS.size + LENGTHS.size // 8
_ENTRIES = 4096  # kept, as many pairs have the same lengths, and differ in the logit alone
_IMAGE_BYTES = 512 * 2**20  # above the limit of the image reader, which reports a larger file
_ONE_ZERO = np.zeros(1, dtype=np.int32)


def distinct_pairs(window: Window) -> tuple[list[Asked], list[int]]:
    """The distinct pairs of a window; and for each of its pairs, in order, its place among them."""
    distinct: dict[Asked, int] = {}
    places = [distinct.setdefault((item.limits, *pair), len(distinct)) for item in window.lists for pair in item.pairs]
    return list(distinct), places


@dataclass(slots=True)
class ComputedPair:
    """A pair that a window computes; filled in when it is scored.

    entry: the pair with its lengths, or its problem. value: for the store; empty if there is no score to keep.
    """

    entry: Encoded | None = None
    logit: float = float("nan")
    value: bytes = b""


@dataclass(slots=True)
class FoundPairs:
    """The distinct pairs of a window, and what is known about them, by their places."""

    pairs: list[Asked]
    places: list[int]
    """Of each pair of the window; see `distinct_pairs`."""
    keys: list[bytes | None] = field(init=False)
    """None for a pair that cannot be looked up."""
    entries: list[Encoded | None] = field(init=False)
    """The pairs whose scores are known, with their lengths, or also with their token ids; None for other pairs."""
    logits: npt.NDArray[np.float32] = field(init=False)
    """Of the pairs whose scores are known."""
    awaited: dict[int, ComputedPair] = field(default_factory=dict)
    """The pairs that an earlier window computes; it is scored before this one."""
    own: dict[int, ComputedPair] = field(default_factory=dict)
    """The pairs that this window computes."""
    images: dict[int, bytes] = field(default_factory=dict)
    """The digests of their images."""
    repeats: bool = False
    """Known pairs come from earlier windows of this process, not from a store."""
    tokens: int = 0
    """Of the pairs that were computed."""
    lists: dict[bytes, list[int]] = field(default_factory=dict)
    """Lists without an entry in the store, by their keys: the places of their pairs."""
    without_keys: dict[int, bytes] = field(default_factory=dict)
    """Values for the store of pairs that were computed before there were keys."""

    def __post_init__(self) -> None:
        self.keys, self.entries = [None] * len(self.pairs), [None] * len(self.pairs)
        self.logits = np.full(len(self.pairs), np.nan, dtype=np.float32)

    def to_compute(self) -> list[int]:
        """The places of the pairs that this window must compute."""
        return [place for place, entry in enumerate(self.entries) if entry is None and place not in self.awaited]

    def value_of(self, place: int) -> bytes:
        """The value for the store of a pair without an image; empty if it has no score."""
        if pair := self.own.get(place) or self.awaited.get(place):
            return pair.value
        entry = self.entries[place]
        return b"" if entry is None else _pack_pair(entry, self.logits[place].item(), None)


class KnownScores:
    """The scores that are known before they are computed, for one pass over an input.

    Args:
        store: Of the scores; a `MemoryTable` if they are for this run alone.
        basis_of: Makes a digest of all that decides a logit except the pair, from the calibration of the engine.
        engine: Of the run.
        timing: Its `compute` says what computing has cost.
        encodes_all: Encode known pairs too, because their token ids will be needed.
    """

    def __init__(
        self,
        store: ScoreStore | MemoryTable,
        basis_of: Callable[[Mapping[str, Any] | None], bytes],
        engine: Engine,
        *,
        timing: Timing,
        encodes_all: bool = False,
    ) -> None:
        self.store, self.encodes_all = store, encodes_all
        self._reads_images = isinstance(store, ScoreStore)
        self._basis_of, self._timing, self._spent = basis_of, timing, timing.compute
        self._basis: bytes | None = None
        self._turn = threading.Condition()
        self._waits_for_calibration = self._is_closed = False
        self._under_way: dict[bytes, ComputedPair] = {}
        self._windows: dict[int, FoundPairs] = {}
        self.see(engine)

    def see(self, engine: Engine) -> None:
        """Note that the engine has another part. Once it is calibrated, pairs have keys."""
        with self._turn:
            if self._basis is None:
                calibration = engine.calibration if isinstance(engine, NeedsCalibration) else None
                if not (isinstance(engine, NeedsCalibration) and engine.needs_calibration):
                    self._basis = self._basis_of(calibration)
            self._waits_for_calibration = False
            self._turn.notify_all()

    def close(self) -> None:
        """Let no thread wait any more."""
        with self._turn:
            self._is_closed = True
            self._turn.notify_all()

    def look_up(self, window: Window) -> FoundPairs:
        """Find what is known about the distinct pairs of a window; kept for `take`."""
        found = FoundPairs(*distinct_pairs(window), repeats=not isinstance(self.store, ScoreStore))
        with self._turn:
            while self._basis is None and self._waits_for_calibration and not self._is_closed:
                self._turn.wait()
            self._waits_for_calibration = self._basis is None
            self._windows[window.number] = found
        if self._basis is None:
            return found
        if isinstance(self.store, ScoreStore):
            self._find_lists(self.store, window, found, self._basis)
        if left := found.to_compute():
            images: dict[int, bytes] = {}
            pairs = [found.pairs[place] for place in left]
            keys = self._keys(pairs, self._basis, images, reads_images=self._reads_images)
            wanted = {place: key for place, key in zip(left, keys, strict=True) if key}
            for place, key in wanted.items():
                found.keys[place] = key
            found.images = {left[place]: image for place, image in images.items()}
            with self._turn:
                under_way = {place: self._under_way.get(key) for place, key in wanted.items()}
            found.awaited = {place: pair for place, pair in under_way.items() if pair}
            values = self.store.find([key for place, key in wanted.items() if place not in found.awaited])
            for place, key in wanted.items():
                if (value := values.get(key)) and (known := _unpack_pair(value)):
                    found.entries[place], found.logits[place] = known
            with self._turn:
                for place in found.to_compute():
                    if place in wanted:
                        found.own[place] = self._under_way[wanted[place]] = ComputedPair()
        return found

    @staticmethod
    def _find_lists(store: ScoreStore, window: Window, found: FoundPairs, basis: bytes) -> None:
        """Find the lists of a window that have not changed; the others are noted for `keep`."""
        begin = 0
        for item in window.lists:
            places = found.places[begin : begin + len(item.passages)]
            begin += len(item.passages)
            if len(places) in _LIST_PAIRS and (key := _key_of_list(item, basis)):
                found.lists[key] = places
        for key, value in store.find(list(found.lists), of_lists=True).items():
            if unpacked := _unpack_list(value, len(found.lists[key])):
                entries, logits = unpacked
                places = found.lists.pop(key)
                found.logits[places] = logits
                for place, entry in zip(places, entries, strict=True):
                    found.entries[place] = entry

    def take(self, window: Window) -> FoundPairs:
        """What `look_up` has found for a window."""
        with self._turn:
            return self._windows.pop(window.number)

    def asked_of(self, window: Window) -> list[Passage]:
        """The passages of a window whose pairs will be encoded; asked between `look_up` and `take`."""
        with self._turn:
            found = self._windows[window.number]
        places = range(len(found.pairs)) if self.encodes_all else found.to_compute()
        return [found.pairs[place][2] for place in places]

    def settle(
        self, found: FoundPairs, places: Sequence[int], entries: Sequence[Encoded], logits: npt.NDArray[np.float32]
    ) -> None:
        """Note the scores of some pairs. places: theirs among the window's distinct pairs."""
        for place, entry, logit in zip(places, entries, logits.tolist(), strict=True):
            found.tokens += kept_tokens(entry)
            value = _pack_pair(entry, logit, found.images.get(place))
            if pair := found.own.get(place):
                pair.entry, pair.logit, pair.value = entry, logit, value
            elif found.entries[place] is None and place not in found.awaited and value:
                found.without_keys[place] = value

    def keep(self, found: FoundPairs) -> None:
        """Put what is new in a scored window into the store."""
        new = {key: pair.value for place, pair in found.own.items() if pair.value and (key := found.keys[place])}
        if found.without_keys and self._basis is not None and not any(found.keys):
            pairs = [found.pairs[place] for place in found.without_keys]
            images: dict[int, bytes] = {}
            if not any(isinstance(passage, ImagePassage) for _, _, passage in pairs):  # images may have changed since
                keys = self._keys(pairs, self._basis, images)
                new |= {key: value for key, value in zip(keys, found.without_keys.values(), strict=True) if key}
        spent, self._spent = self._timing.compute - self._spent, self._timing.compute
        lists = {}
        for key, places in found.lists.items():
            values = [found.value_of(place) for place in places]
            if all(len(value) == VALUE_BYTES for value in values):
                lists[key] = _pack_list(values)
        self.store.add(new, self._basis or b"", Rate(found.tokens, spent) if found.tokens else None, lists)
        with self._turn:
            for place in found.own:
                self._under_way.pop(found.keys[place] or b"", None)

    def seconds_saved(self, tokens: int) -> float | None:
        """How long computing pairs of so many tokens takes; None if not known."""
        return self.store.rate(self._basis or b"").seconds_of(tokens)

    @staticmethod
    def _keys(
        pairs: Sequence[Asked], basis: bytes, digests: dict[int, bytes], *, reads_images: bool = True
    ) -> list[bytes | None]:
        """The keys of pairs; None for one whose image cannot be read, or is not read. digests: gets those of images."""
        queries: dict[str, tuple[bytes, hashlib.blake2b]] = {}
        images: dict[object, bytes | None] = {}
        keys: list[bytes | None] = []
        for place, (limits, query, passage) in enumerate(pairs):
            if (of_query := queries.get(query)) is None:
                text = query.encode("utf-8", "surrogatepass")
                digest = hashlib.blake2b(text, digest_size=KEY_BYTES - QUERY_BYTES, key=basis)
                first = _begin_of_key(text, basis)
                digest.update(b"%d" % len(text))  # where the query ends
                queries[query] = of_query = (first, digest)
            first, begun = of_query
            digest = begun.copy()
            if isinstance(passage, ImagePassage):
                if not reads_images:
                    keys.append(None)
                    continue
                if passage.image not in images:
                    images[passage.image] = _image_digest(passage)
                if (image := images[passage.image]) is None:
                    keys.append(None)  # encoding it will say what is wrong
                    continue
                digests[place] = image
                digest.update(b"\xff" + image)
                text = passage.text.encode("utf-8", "surrogatepass")
            else:
                text = b"\xfe" + passage.encode("utf-8", "surrogatepass")
            if limits.whole or limits.passage_tokens is not None:
                digest.update(f"{limits.whole} {limits.passage_tokens}".encode() + b"\xfd")
            digest.update(text)
            keys.append(first + digest.digest())
        return keys


def _key_of_list(item: CandidateList, basis: bytes) -> bytes | None:
    """The key of a whole list, in its order; None for one with images, which may change, or with several queries."""
    texts = [item.query, *(passage for passage in item.passages if isinstance(passage, str))]
    if item.queries or len(texts) <= len(item.passages):
        return None
    data = "".join(texts).encode("utf-8", "surrogatepass")
    limits = f"{item.limits.whole} {item.limits.passage_tokens} "
    digest = hashlib.blake2b(limits.encode(), digest_size=KEY_BYTES - QUERY_BYTES, key=basis, person=b"list 2")
    digest.update(array("Q", map(len, texts)).tobytes())  # where each text ends
    for begin in range(0, len(data), _HASHED_AT_ONCE):
        digest.update(data[begin : begin + _HASHED_AT_ONCE])
    return _begin_of_key(item.query.encode("utf-8", "surrogatepass"), basis) + digest.digest()


def _begin_of_key(query: bytes, basis: bytes) -> bytes:
    """How all keys of a query begin, those of its pairs and of its lists, so that they lie together in the store."""
    return hashlib.blake2b(query, digest_size=QUERY_BYTES, key=basis).digest()


def _image_digest(passage: ImagePassage) -> bytes | None:
    try:
        data = read_source(passage.image, max_bytes=_IMAGE_BYTES)
    except ImageProblem:
        return None
    return hashlib.blake2b(data, digest_size=16).digest()


def _pack_pair(entry: Encoded, logit: float, image: bytes | None) -> bytes:
    """The value of a pair for the store; empty for one without a score, or with lengths that do not fit.

    image: the image's digest in the pair's key. The value is empty if another image was encoded: the file has changed.
    """
    if isinstance(entry, EncodingProblem) or not math.isfinite(logit):
        return b""
    if image is not None and not all(pair.block and pair.block.digest.endswith(image) for pair in entry):
        return b""
    try:
        return LOGIT.pack(logit) + b"".join(
            LENGTHS.pack(
                pair.tokens, len(pair.input_ids), pair.unknown, pair.template,
                pair.block.tiles if pair.block else 0, pair.block.full_tiles if pair.block else 0,
            )
            for pair in entry
        )  # fmt: skip
    except struct.error:
        return b""


def _unpack_pair(value: bytes) -> tuple[Encoded, float] | None:
    """The pair in a value of the store, and its logit; None if the value is not one of a pair."""
    entry = _entry_of(value[LOGIT.size :])
    return (entry, LOGIT.unpack_from(value)[0]) if entry else None


def _pack_list(values: Sequence[bytes]) -> bytes:
    """The value of a list for the store, from those of its pairs.

    Logits; then lengths. Most bytes of the lengths are the same for all pairs: these stand once, with zeros in the
    places of the others. A mask follows, with a bit for each byte that may differ, and these bytes of each pair.
    """
    table = np.frombuffer(b"".join(values), dtype=np.uint8).reshape(len(values), VALUE_BYTES)
    logits, lengths = table[:, : LOGIT.size], table[:, LOGIT.size :]
    differ = (lengths != lengths[0]).any(axis=0)
    differ[0] = True  # so that each pair has a byte
    parts = (logits, np.where(differ, 0, lengths[0]).astype(np.uint8), np.packbits(differ), lengths[:, differ])
    return b"".join(part.tobytes() for part in parts)


def _unpack_list(data: bytes, count: int) -> tuple[list[tuple[EncodedPair, ...]], npt.NDArray[np.float32]] | None:
    """The `count` pairs of a list with their lengths, and their logits; None if the data are something else."""
    begin = LOGIT.size * count
    end = begin + _SHARED_BYTES
    entries = _entries_like(data[begin:end])
    width = len(entries.places)
    if not width or len(data) != end + width * count:
        return None
    rows = np.frombuffer(data, dtype=f"V{width}", offset=end).tolist()
    return [entries[row] for row in rows], np.frombuffer(data, dtype="<f4", count=count)


class _Entries(dict[bytes, tuple[EncodedPair, ...]]):
    """Pairs with their lengths, by those bytes of the lengths that differ in a list.

    shared: the other bytes, and the mask; see `_pack_list`.
    """

    def __init__(self, shared: bytes) -> None:
        super().__init__()
        self.shared = shared[: LENGTHS.size]
        mask = np.frombuffer(shared[LENGTHS.size :], dtype=np.uint8)
        self.places: list[int] = np.flatnonzero(np.unpackbits(mask)).tolist()

    def __missing__(self, row: bytes) -> tuple[EncodedPair, ...]:
        lengths = bytearray(self.shared)
        for place, byte in zip(self.places, row, strict=True):
            lengths[place] = byte
        if len(self) >= _ENTRIES:
            self.clear()
        self[row] = entry = (_without_ids(*LENGTHS.unpack(lengths)),)
        return entry


_entries_like = lru_cache(64)(_Entries)


@lru_cache(_ENTRIES)
def _entry_of(lengths: bytes) -> tuple[EncodedPair, ...] | None:
    if not lengths or len(lengths) % LENGTHS.size:
        return None
    return tuple(_without_ids(*one) for one in LENGTHS.iter_unpack(lengths))


def _without_ids(tokens: int, kept: int, unknown: int, template: int, tiles: int, full_tiles: int) -> EncodedPair:
    """A pair of which only the lengths are known."""
    return EncodedPair(
        input_ids=np.broadcast_to(_ONE_ZERO, (kept,)),
        second_start=0,
        tokens=tokens,
        block=ImageBlock(0, 0, tiles, full_tiles, None) if tiles else None,
        template=template,
        unknown=unknown,
    )


def kept_tokens(entry: Encoded | None) -> int:
    """How many tokens of a pair the model reads."""
    return sum(len(pair.input_ids) for pair in entry) if isinstance(entry, tuple) else 0
