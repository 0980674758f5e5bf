"""Which pairs of a window need not be computed: those that were scored before, by this run or by another.

    look_up     thread `read`       the distinct pairs of a window get keys, and those that are known their scores
    take        thread `tokenise`   what was found of a window; its other pairs are encoded
    settle      the caller's        a part is scored: its pairs get their logits, those that wait for them too
    keep        the caller's        the window is whole: what is new of it goes into the store

A pair is looked up by its texts and the bytes of its image, before anything is tokenised. What comes back is the logit
and the lengths that an output and a report tell of it; token ids do not, and in their place stand as many zeros.

A list that has not changed since it was scored is found at once, by one key of all its texts: the store keeps the
values of its pairs a second time, packed into one. Only where there is no such entry each pair is looked up.

A pair that an earlier window has, and that is not in the store yet, is not computed again either: it waits for that
window, whose parts are always scored before.

An int8 model has no keys before it is calibrated. So the first window of a run passes without being looked up, and the
thread that reads waits there until that window is with the engine.
"""

from __future__ import annotations

import hashlib
import math
import struct
import threading
import zlib
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
"""A pair with all that its score can depend on."""

_LIST_PAIRS = range(8, 4097)  # of a list with an entry of its own: fewer spare nothing, and an entry is one row
_IMAGE_BYTES = 512 * 2**20  # the reader itself has a smaller limit, and says so
_ONE_ZERO = np.zeros(1, dtype=np.int32)


def distinct_pairs(window: Window) -> tuple[list[Asked], list[int]]:
    """The distinct pairs of a window, and of each of its pairs, in order, the place among them."""
    distinct: dict[Asked, int] = {}
    places = [distinct.setdefault((item.limits, *pair), len(distinct)) for item in window.lists for pair in item.pairs]
    return list(distinct), places


@dataclass(slots=True)
class Slot:
    """The score of a pair, once it is there. entry: with its lengths, or the problem that it has."""

    entry: Encoded | None = None
    logit: float = float("nan")
    value: bytes = b""


@dataclass(slots=True)
class FoundPairs:
    """The distinct pairs of a window, and what is known of them by their places.

    pairs, places: see `distinct_pairs`. keys: of those that have one. known: of those that need not be computed. own:
    of those that this window computes. images: the digests of those that have one.
    """

    pairs: list[Asked]
    places: list[int]
    keys: list[bytes | None] = field(default_factory=list)
    known: dict[int, Slot] = field(default_factory=dict)
    own: dict[int, Slot] = field(default_factory=dict)
    images: dict[int, bytes] = field(default_factory=dict)
    repeats: bool = False
    """What is known is known of earlier windows of this process, and of no store."""
    entries: dict[int, Encoded] = field(default_factory=dict)
    """Of known pairs, with their token ids, where these are asked for."""
    tokens: int = 0
    """Of the pairs that were computed."""
    lists: dict[bytes, list[int]] = field(default_factory=dict)
    """Of lists that the store does not know as a whole, by their keys: the places of their pairs."""
    without_keys: dict[int, bytes] = field(default_factory=dict)
    """What the store is to keep of pairs that were computed before there were keys."""


class KnownScores:
    """The scores that are known before they are computed, for one pass over an input.

    Args:
        store: Where they are; a `MemoryTable` where no other run shall know them.
        basis_of: A digest of all that decides a logit but the pair, by the calibration of the engine.
        engine: Of the run.
        timing: Tells what computing has cost.
        encodes_all: Pairs that are known are encoded too, as somebody will ask for their token ids.
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
        self._under_way: dict[bytes, Slot] = {}
        self._windows: dict[int, FoundPairs] = {}
        self.see(engine)

    def see(self, engine: Engine) -> None:
        """The engine has a part more; whether it is calibrated by now decides whether pairs have keys."""
        with self._turn:
            if self._basis is None:
                calibration = engine.calibration if isinstance(engine, NeedsCalibration) else None
                if not (isinstance(engine, NeedsCalibration) and engine.needs_calibration):
                    self._basis = self._basis_of(calibration)
            self._waits_for_calibration = False
            self._turn.notify_all()

    def close(self) -> None:
        """Nobody waits any more."""
        with self._turn:
            self._is_closed = True
            self._turn.notify_all()

    def look_up(self, window: Window) -> FoundPairs:
        """Find what is known of the distinct pairs of a window; kept for `take`."""
        found = FoundPairs(*distinct_pairs(window), repeats=not isinstance(self.store, ScoreStore))
        with self._turn:
            while self._basis is None and self._waits_for_calibration and not self._is_closed:
                self._turn.wait()
            self._waits_for_calibration = self._basis is None
            self._windows[window.number] = found
        if self._basis is None:
            found.keys = [None] * len(found.pairs)
        else:
            if isinstance(self.store, ScoreStore):
                self._find_lists(self.store, window, found, self._basis)
            left = [place for place in range(len(found.pairs)) if place not in found.known]
            images: dict[int, bytes] = {}
            pairs = [found.pairs[place] for place in left]
            keys = self._keys(pairs, self._basis, images, reads_images=self._reads_images)
            found.keys = [None] * len(found.pairs)
            for place, key in zip(left, keys, strict=True):
                found.keys[place] = key
            found.images = {left[place]: image for place, image in images.items()}
            self._find(found)
        return found

    @staticmethod
    def _find_lists(store: ScoreStore, window: Window, found: FoundPairs, basis: bytes) -> None:
        """Find the lists of a window that have not changed; what is not found is noted for `keep`."""
        begin = 0
        for item in window.lists:
            places = found.places[begin : begin + len(item.passages)]
            begin += len(item.passages)
            if len(places) in _LIST_PAIRS and (key := _key_of_list(item, basis)):
                found.lists[key] = places
        for key, value in store.find(list(found.lists), of_lists=True).items():
            values = _unpack_list(value, len(found.lists[key]))
            if values is None:
                continue
            for place, begin in zip(found.lists.pop(key), range(0, len(values), VALUE_BYTES), strict=True):
                if place not in found.known and (slot := _unpack_slot(values[begin : begin + VALUE_BYTES])):
                    found.known[place] = slot

    def take(self, window: Window) -> FoundPairs:
        """What `look_up` has found."""
        with self._turn:
            return self._windows.pop(window.number)

    def asked_of(self, window: Window) -> list[Passage]:
        """The passages of a window that is looked up and not taken, whose pairs will be encoded."""
        with self._turn:
            found = self._windows[window.number]
        return [
            passage for place, (_, _, passage) in enumerate(found.pairs) if self.encodes_all or place not in found.known
        ]

    def _find(self, found: FoundPairs) -> None:
        keys, known = found.keys, found.known
        with self._turn:
            if self._under_way:
                known |= {place: slot for place, key in enumerate(keys) if key and (slot := self._under_way.get(key))}
        values = self.store.find([key for place, key in enumerate(keys) if key and place not in known])
        for place, key in enumerate(keys):
            if key and (value := values.get(key)) and (slot := _unpack_slot(value)):
                known[place] = slot
        if len(known) < len(keys):
            with self._turn:
                for place, key in enumerate(keys):
                    if key and place not in known:
                        found.own[place] = self._under_way[key] = Slot()

    def settle(
        self, found: FoundPairs, places: Sequence[int], entries: Sequence[Encoded], logits: npt.NDArray[np.float32]
    ) -> None:
        """Pairs of a window are scored. places: theirs among its distinct pairs."""
        for place, entry, logit in zip(places, entries, logits.tolist(), strict=True):
            found.tokens += kept_tokens(entry)
            value = _pack_slot(entry, logit, found.images.get(place))
            if slot := found.own.get(place):
                slot.entry, slot.logit, slot.value = entry, logit, value
            elif place not in found.known and value:
                found.without_keys[place] = value

    def keep(self, found: FoundPairs) -> None:
        """A window is scored: keep what is new of it."""
        new = {key: slot.value for place, slot in found.own.items() if slot.value and (key := found.keys[place])}
        if found.without_keys and self._basis is not None and not any(found.keys):
            pairs = [found.pairs[place] for place in found.without_keys]
            images: dict[int, bytes] = {}
            if not any(isinstance(passage, ImagePassage) for _, _, passage in pairs):  # they may have changed
                keys = self._keys(pairs, self._basis, images)
                new |= {key: value for key, value in zip(keys, found.without_keys.values(), strict=True) if key}
        spent, self._spent = self._timing.compute - self._spent, self._timing.compute
        lists = {}
        for key, places in found.lists.items():
            slots = [found.own.get(place) or found.known.get(place) for place in places]
            values = [slot.value if slot else b"" for slot in slots]
            if all(len(value) == VALUE_BYTES for value in values):
                lists[key] = _pack_list(values)
        self.store.add(new, self._basis or b"", Rate(found.tokens, spent) if found.tokens else None, lists)
        with self._turn:
            for place in found.own:
                self._under_way.pop(found.keys[place] or b"", None)

    def seconds_saved(self, tokens: int) -> float | None:
        """The time that pairs of so many tokens take where they are computed; None where that is not known."""
        return self.store.rate(self._basis or b"").seconds_of(tokens)

    @staticmethod
    def _keys(
        pairs: Sequence[Asked], basis: bytes, digests: dict[int, bytes], *, reads_images: bool = True
    ) -> list[bytes | None]:
        """The keys of pairs; None of one whose image cannot be read, or is not. digests: gets those of images."""
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
                    keys.append(None)  # encoding it says what is wrong
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
    """The key of a whole list, in its order; None of one with images, which may change, or with several queries."""
    texts = [item.query]
    for passage in item.passages:
        if not isinstance(passage, str):
            return None
        texts.append(passage)
    if item.queries:
        return None
    limits = f"{item.limits.whole} {item.limits.passage_tokens} "
    digest = hashlib.blake2b(limits.encode(), digest_size=KEY_BYTES - QUERY_BYTES, key=basis, person=b"list")
    digest.update(np.fromiter(map(len, texts), dtype="<u8", count=len(texts)).tobytes())  # where each text ends
    digest.update("".join(texts).encode("utf-8", "surrogatepass"))
    return _begin_of_key(item.query.encode("utf-8", "surrogatepass"), basis) + digest.digest()


def _begin_of_key(query: bytes, basis: bytes) -> bytes:
    """What all keys of a query begin with, those of its pairs and of its lists: they lie together in the store."""
    return hashlib.blake2b(query, digest_size=QUERY_BYTES, key=basis).digest()


def _image_digest(passage: ImagePassage) -> bytes | None:
    try:
        data = read_source(passage.image, max_bytes=_IMAGE_BYTES)
    except ImageProblem:
        return None
    return hashlib.blake2b(data, digest_size=16).digest()


def _pack_slot(entry: Encoded, logit: float, image: bytes | None) -> bytes:
    """What the store keeps of a pair; nothing of one without a score, or of a size that nobody has.

    image: the digest of the image that the pair's key has, which may have changed before it was encoded.
    """
    if isinstance(entry, EncodingProblem) or not math.isfinite(logit):
        return b""
    if image is not None and not all(pair.block and pair.block.digest.endswith(image) for pair in entry):
        return b""
    try:
        return LOGIT.pack(logit) + b"".join(
            LENGTHS.pack(
                pair.tokens, pair.kept_tokens, pair.unknown, pair.template,
                pair.block.tiles if pair.block else 0, pair.block.full_tiles if pair.block else 0,
            )
            for pair in entry
        )  # fmt: skip
    except struct.error:
        return b""


def _unpack_slot(value: bytes) -> Slot | None:
    """What the store has kept of a pair."""
    if (entry := _entry_of(value[LOGIT.size :])) is None:
        return None
    return Slot(entry, LOGIT.unpack_from(value)[0], value)


def _pack_list(values: Sequence[bytes]) -> bytes:
    """What the store keeps of a list whose pairs have these values: logits, then lengths, which are much alike."""
    table = np.frombuffer(b"".join(values), dtype=np.uint8).reshape(len(values), VALUE_BYTES)
    return table[:, : LOGIT.size].tobytes() + zlib.compress(table[:, LOGIT.size :].T.tobytes(), level=1)


def _unpack_list(data: bytes, count: int) -> bytes | None:
    """The values of `count` pairs, one behind the other; None where the store has kept something else."""
    size = LENGTHS.size * count
    try:
        lengths = zlib.decompressobj().decompress(data[LOGIT.size * count :], size + 1)
    except zlib.error:
        return None
    if len(lengths) != size:
        return None
    table = np.empty((count, VALUE_BYTES), dtype=np.uint8)
    table[:, : LOGIT.size] = np.frombuffer(data, dtype=np.uint8, count=LOGIT.size * count).reshape(count, -1)
    table[:, LOGIT.size :] = np.frombuffer(lengths, dtype=np.uint8).reshape(-1, count).T
    return table.tobytes()


@lru_cache(4096)  # most pairs are as long as others, and nothing of them differs but the logit
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
    """What a model reads of a pair."""
    return sum(pair.kept_tokens for pair in entry) if isinstance(entry, tuple) else 0
