"""An embedding model as a place where pairs are scored: the cosine of two vectors, or the dot that is declared.

Each distinct text and image is embedded once in a run, however many pairs it stands in: vectors are kept under a digest
of the token ids and the image. ("Text" is either side of a pair, with an image or without.) What computes them is an
engine like any other (`local.py`, `pool.py`), whose results are vectors: batches, several processes, memory that runs
out and numbers that are none are its affair.

With `known` a text is embedded once in its life: its vector may be that of another run.

A vector can differ in its last digit with the batch it was computed in. So a run that is resumed in another process
gets the vectors of the windows before (`restore`), and forms the batches that it would have formed.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, BinaryIO, Protocol

import numpy as np
import numpy.typing as npt

from rerank_cli.checkpoint import Checkpoint
from rerank_cli.checkpoint.similarity import similarity_of
from rerank_cli.encoding.encoder import EncodingProblem, split_pair
from rerank_cli.engine.protocols import InProcess, OnBatch, Trouble
from rerank_cli.engine.vector_cache import VectorCache
from rerank_cli.records import EncodedPair

if TYPE_CHECKING:
    from rerank_cli.engine.local import LocalEngine
    from rerank_cli.engine.pool import PoolEngine

Vectors = npt.NDArray[np.float32]

_KEY_BYTES = 16
_WAIT_SECONDS = 1.0
_AT_A_TIME = 1024  # vectors that are restored, or asked of `known`


class KnownVectors(Protocol):
    """The vectors that any run has computed, by the keys of their texts (`EmbeddingEngine.keys`)."""

    def find(self, keys: Sequence[bytes]) -> dict[bytes, Vectors]:
        """Those of `keys` that are known, as they were added."""

    def add(self, vectors: Mapping[bytes, Vectors], *, tokens: int, seconds: float) -> None:
        """Keep `vectors`. tokens, seconds: of their texts, and what these have taken."""


class EmbeddingEngine(InProcess):
    """The cosine (or dot) of vectors that an engine gives of texts. It takes `model`, and closes it.

    dimensions: numbers in a vector. known: asked for vectors before they are computed, if it is set. texts: how many
    were embedded so far; found, tokens_found: how many were known, and their tokens. work: what the model has read so
    far, by the names of a run's counts; less than what the pairs hold together.
    """

    def __init__(self, checkpoint: Checkpoint, model: LocalEngine | PoolEngine) -> None:
        self._similarity = similarity_of(checkpoint)
        self._model = model
        self.trouble = Trouble()
        (self.dimensions,) = model.shape
        self.cache = VectorCache(self.dimensions)
        """The vectors of the run as the model gave them, by `keys`; and marks of what the run has had."""
        self._fresh: list[bytes] = []
        self.known: KnownVectors | None = None
        self.texts = self.found = self.tokens_found = 0
        self.work = {"tokens": 0, "images": 0, "tiles": 0, "image_tokens": 0}

    @property
    def kernels(self) -> str:
        """Which implementations the model runs on, in words, for the report."""
        return self._model.kernels

    @property
    def peak_bytes(self) -> int | None:
        """See `Engine`."""
        return self._model.peak_bytes

    def score(self, pairs: Sequence[EncodedPair], *, on_batch: OnBatch | None = None) -> npt.NDArray[np.float32]:
        """The cosine (or dot product) of each pair, float32 [len(pairs)]; NaN where a vector of a cosine is zero."""
        self.trouble = Trouble()
        keys = [self.keys(pair) for pair in pairs]
        texts: dict[bytes, EncodedPair] = {}
        for pair, both in zip(pairs, keys, strict=True):
            texts |= dict(zip(both, split_pair(pair), strict=True))
        failed = self._embed_missing(texts, on_batch)
        for place, both in enumerate(keys):
            if problem := next((failed[key] for key in both if key in failed), None):
                self.trouble.failed[place] = problem
        scores = np.full(len(pairs), np.nan, dtype=np.float32)
        scored = [place for place in range(len(pairs)) if place not in self.trouble.failed]
        if scored:
            scores[scored] = self._similarities([keys[place] for place in scored])
        if on_batch and pairs:
            on_batch(len(pairs), 0)
        return scores

    def _similarities(self, keys: Sequence[Sequence[bytes]]) -> npt.NDArray[np.float32]:
        places = {key: place for place, key in enumerate(dict.fromkeys(key for both in keys for key in both))}
        sides = np.array([[places[key] for key in both] for both in keys], dtype=np.int64)
        vectors = self.cache.get(list(places))
        with np.errstate(invalid="ignore"):  # 0 / 0 of a vector of zeros, and vectors with NaN
            if self._similarity == "cosine":
                vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
            scores: npt.NDArray[np.float32] = np.einsum("ij,ij->i", vectors[sides[:, 0]], vectors[sides[:, 1]])
        return scores

    def keys(self, pair: EncodedPair) -> list[bytes]:
        """What the vectors of a scored pair's query and passage are kept under: digests of all that the model reads."""
        keys = []
        for text in split_pair(pair):
            digest = hashlib.blake2b(text.input_ids.tobytes(), digest_size=_KEY_BYTES)
            if text.block:
                digest.update(f"image at {text.block.start} ".encode() + text.block.digest)
            keys.append(digest.digest())
        return keys

    def take_fresh(self) -> bytes:
        """The vectors that were computed or found since the last call, with their keys, for `restore`."""
        fresh, self._fresh = self._fresh, []
        return b"".join(fresh)

    def restore(
        self, stream: BinaryIO, *, texts: int, work: Mapping[str, int], found: int = 0, tokens_found: int = 0
    ) -> None:
        """Take what an earlier process has embedded of the run, `take_fresh` after `take_fresh`."""
        size = _KEY_BYTES + 4 * self.dimensions
        while block := stream.read(size * _AT_A_TIME):
            entries = [block[start : start + size] for start in range(0, len(block), size)]
            vectors = {entry[:_KEY_BYTES]: np.frombuffer(entry[_KEY_BYTES:], dtype=np.float32) for entry in entries}
            self.cache.put(vectors)
        self.texts, self.work, self.found, self.tokens_found = texts, dict(work), found, tokens_found

    def _embed_missing(self, texts: dict[bytes, EncodedPair], on_batch: OnBatch | None) -> dict[bytes, EncodingProblem]:
        """Embed the texts that have no vector yet; returns why some still have none."""
        keys = self.cache.missing(list(texts))
        if self.known:
            keys = self._without_known(texts, keys, self.known)
        asked = [texts[key] for key in keys]
        # The vision tower is to see each distinct image once.
        blocks = [text.block for text in asked if text.block]
        distinct = {block.image: block.tiles for block in blocks}
        self.work["images"] += len(distinct)
        self.work["tiles"] += sum(distinct.values())
        self.work["image_tokens"] += sum(block.length for block in blocks)
        began = time.perf_counter()
        pending = self._model.submit(asked, on_batch=on_batch and (lambda _, tokens: on_batch(0, tokens)))
        while (scores := pending.scores()) is None:
            self._model.wait(_WAIT_SECONDS)
        self.trouble.add(replace(scores.trouble, failed={}), ())
        failed = {keys[place]: problem for place, problem in scores.trouble.failed.items()}
        made = {key: vector for key, vector in zip(keys, scores.logits, strict=True) if key not in failed}
        tokens = sum(len(texts[key].input_ids) for key in made)
        if self.known and made:
            self.known.add(made, tokens=tokens, seconds=time.perf_counter() - began)
        self._keep(made)
        self.texts += len(made)
        self.work["tokens"] += tokens
        return failed

    def _without_known(self, texts: Mapping[bytes, EncodedPair], keys: list[bytes], known: KnownVectors) -> list[bytes]:
        """The keys that have no known vector; those of the others are taken."""
        left: list[bytes] = []
        for begin in range(0, len(keys), _AT_A_TIME):
            asked = keys[begin : begin + _AT_A_TIME]
            found = known.find(asked)
            self._keep(found)
            self.found += len(found)
            self.tokens_found += sum(len(texts[key].input_ids) for key in found)
            left += [key for key in asked if key not in found]
        return left

    def _keep(self, vectors: Mapping[bytes, Vectors]) -> None:
        """Keep vectors for the run, and for `take_fresh`."""
        self.cache.put(vectors)
        self._fresh += [key + vector.tobytes() for key, vector in vectors.items()]

    def close(self) -> None:
        """Drop the model and the vectors."""
        self.cache.close()
        self._model.close()
