"""An embedding model as a place where pairs are scored: the cosine of the query's vector and the passage's.

Each distinct text is embedded once in a run, however many pairs it stands in. Batches are cut by the tokens of texts.
A vector can differ in its last digit with the batch it was computed in, so a run that goes on in another process is
given the vectors of the windows before (`restore`) and forms the batches that it would have formed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import BinaryIO

import numpy as np
import numpy.typing as npt
import torch

from rerank_cli.checkpoint import Checkpoint
from rerank_cli.encoding import split_pair
from rerank_cli.engine.batching import plan_batches
from rerank_cli.engine.scorer import OnBatch
from rerank_cli.engine.vectors import VectorStore
from rerank_cli.models import load_embedder
from rerank_cli.models.embedder import Embedder
from rerank_cli.records import EncodedPair
from rerank_cli.run_plan import Plan

Vectors = npt.NDArray[np.float32]

_KEY_BYTES = 16
_RESTORED_VECTORS = 1024  # at a time


class EmbeddingEngine:
    """The plan's embedding model in this process; satisfies `Engine`. Loads the weights when it is made.

    texts, tokens: how many were embedded so far.
    """

    def __init__(self, plan: Plan, checkpoint: Checkpoint, *, model: Embedder | None = None) -> None:
        if plan.device == "cpu":
            torch.set_num_threads(plan.threads)
        self._token_budget = plan.token_budget
        self._model = model or load_embedder(
            checkpoint, device=plan.device, precision=plan.precision, attention=plan.attention
        )
        self._store = VectorStore(self._model.dimensions)
        self._fresh: list[bytes] = []
        self.texts = 0
        self.tokens = 0

    @property
    def kernels(self) -> str:
        """Which implementations the model runs on, in words, for the report."""
        return self._model.kernels

    @property
    def dimensions(self) -> int:
        """Numbers in a vector."""
        return self._model.dimensions

    def score(self, pairs: Sequence[EncodedPair], *, on_batch: OnBatch | None = None) -> npt.NDArray[np.float32]:
        """The cosine of each pair, float32 [len(pairs)]; NaN where a vector is zero."""
        if not pairs:
            return np.empty(0, dtype=np.float32)
        places: dict[bytes, int] = {}
        texts: dict[bytes, EncodedPair] = {}
        sides = np.empty((len(pairs), 2), dtype=np.int64)
        for row, pair in enumerate(pairs):
            for side, text in enumerate(split_pair(pair)):
                key = _key(text)
                texts.setdefault(key, text)
                sides[row, side] = places.setdefault(key, len(places))
        self._embed_missing(texts, on_batch)
        if on_batch:
            on_batch(len(pairs), 0)
        vectors = self._store.get(list(places))
        with np.errstate(invalid="ignore"):  # 0 / 0 of a vector of zeros
            directions = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
        cosines: npt.NDArray[np.float32] = np.einsum("ij,ij->i", directions[sides[:, 0]], directions[sides[:, 1]])
        return cosines

    def keys(self, pair: EncodedPair) -> list[bytes]:
        """What the vectors of a scored pair's query and passage are kept under."""
        return [_key(text) for text in split_pair(pair)]

    def vectors(self, keys: Sequence[bytes]) -> Vectors:
        """The vectors under `keys`, float32 [len(keys), dimensions], as the model gave them."""
        return self._store.get(keys)

    def take_fresh(self) -> bytes:
        """The vectors that were computed since the last call, with their keys, for `restore`."""
        fresh, self._fresh = self._fresh, []
        return b"".join(fresh)

    def restore(self, stream: BinaryIO, *, texts: int, tokens: int) -> None:
        """Take what an earlier process has embedded of the run, `take_fresh` after `take_fresh`."""
        size = _KEY_BYTES + 4 * self.dimensions
        while block := stream.read(size * _RESTORED_VECTORS):
            found = [block[start : start + size] for start in range(0, len(block), size)]
            vectors = {entry[:_KEY_BYTES]: np.frombuffer(entry[_KEY_BYTES:], dtype=np.float32) for entry in found}
            self._store.put(vectors)
        self.texts, self.tokens = texts, tokens

    def is_new(self, kind: str, text: str) -> bool:
        """Whether this is the first time in the run that this text of this kind is asked about."""
        return self._store.mark(
            hashlib.blake2b(f"{kind} {text}".encode(errors="surrogatepass"), digest_size=_KEY_BYTES).digest()
        )

    @torch.inference_mode()
    def _embed_missing(self, texts: dict[bytes, EncodedPair], on_batch: OnBatch | None) -> None:
        keys = self._store.missing(list(texts))
        lengths = [len(texts[key].input_ids) for key in keys]
        for batch in plan_batches(lengths, token_budget=self._token_budget):
            vectors = self._model.embed([texts[keys[place]] for place in batch]).cpu().numpy()
            made = {keys[place]: vector for place, vector in zip(batch, vectors, strict=True)}
            self._store.put(made)
            self._fresh += [key + vector.tobytes() for key, vector in made.items()]
            tokens = sum(lengths[place] for place in batch)
            self.texts += len(batch)
            self.tokens += tokens
            if on_batch:
                on_batch(0, tokens)

    def close(self) -> None:
        """Drop the model and the vectors."""
        self._store.close()
        del self._model


def _key(text: EncodedPair) -> bytes:
    return hashlib.blake2b(text.input_ids.tobytes(), digest_size=_KEY_BYTES).digest()
