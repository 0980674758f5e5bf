"""Where the chunks of a passage begin and end, and how many tokens neighbours share (`--chunk-overlap`).

Where a passage is tokenised by itself, it is cut between its tokens (`chunk_starts`). Prompts and whole texts are cut
between characters, because a piece alone may be tokenised differently than within its text. The steps are still counted
in tokens of the whole text.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

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


def last_token(ends: Ends, start: int, room: int) -> int:
    """How many tokens of the passage may lie before the end of a chunk of `room` tokens from character `start` on."""
    return int(np.searchsorted(ends, start, side="right")) + room


def chunk_end(ends: Ends, start: int, stop: int, length: int) -> int:
    """The character where a chunk ends that holds the tokens before `stop`: at least one character after `start`."""
    if stop >= len(ends):
        return length
    return max(int(ends[stop - 1]) if stop > 0 else 0, start + 1)


def next_start(ends: Ends, start: int, end: int, overlap: int) -> int:
    """The character where the chunk after [start, end) begins: `overlap` tokens before `end`, but after `start`."""
    shared = int(np.searchsorted(ends, end, side="right")) - overlap
    back = int(ends[shared - 1]) if overlap and shared > 0 else end
    return back if back > start else end
