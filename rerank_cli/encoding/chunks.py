"""Where the chunks of a passage begin and end, and how many tokens neighbours share (`--chunk-overlap`).

Where a passage is tokenised by itself, it is cut between its tokens (`chunk_starts`). Prompts and whole texts are cut
between characters (`read_chunks`), because a piece alone may be tokenised differently than within its text. The steps
are still counted in tokens of the whole text.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from rerank_cli.records import EncodedPair

_Problem = TypeVar("_Problem")

Ends = npt.NDArray[np.int64]


def shared_tokens(overlap: int, room: int) -> int:
    """How many tokens a chunk of `room` tokens shares with the one before: at most half, so each brings new ones."""
    return max(0, min(overlap, room // 2))


def chunk_starts(length: int, room: int, overlap: int) -> range:
    """The first token of each chunk of a passage of `length` tokens, each with at most `room` of them."""
    step = room - shared_tokens(overlap, room)
    return range(0, max(1, length - room + step), step)


def token_ends(offsets: Sequence[tuple[int, int]]) -> Ends:
    """Where each token ends, in characters, never falling; `offsets` as the tokenizer gives them."""
    ends = np.fromiter((end for _, end in offsets), dtype=np.int64, count=len(offsets))
    return np.maximum.accumulate(ends) if len(ends) else ends


def read_chunks(
    passage: str, ends: Ends, read: Callable[[str], EncodedPair | _Problem], *, room: int, overlap: int, most: int
) -> tuple[EncodedPair, ...] | _Problem | None:
    """A pair for each piece of the passage; neighbours share tokens, together the pieces hold all of it.

    None where not even one character fits. The first problem of a piece is that of the passage.

    Args:
        passage: The whole text.
        ends: Where its tokens end, in characters.
        read: The pair with this piece of the passage, not cut, or why there is none.
        room: How many tokens the passage may have beside query and template.
        overlap: Of `--chunk-overlap`.
        most: How many tokens a pair may have.
    """
    overlap = shared_tokens(overlap, room)
    chunks: list[EncodedPair] = []
    start = end = 0
    while end < len(passage):
        # How many tokens of the passage may lie before the end of the chunk that begins at the character `start`.
        stop = int(np.searchsorted(ends, start, side="right")) + room
        while True:
            end = len(passage)
            if stop < len(ends):
                end = max(int(ends[stop - 1]) if stop > 0 else 0, start + 1)
            chunk = read(passage[start:end])
            if not isinstance(chunk, EncodedPair):
                return chunk
            excess = len(chunk.input_ids) - most
            if excess <= 0:
                break
            if end == start + 1:
                return None
            # A piece may have more tokens by itself than inside of its text.
            stop = min(stop, len(ends)) - excess
        chunks.append(chunk)
        shared = int(np.searchsorted(ends, end, side="right")) - overlap
        back = int(ends[shared - 1]) if overlap and shared > 0 else end
        start = back if back > start else end
    return tuple(chunks)
