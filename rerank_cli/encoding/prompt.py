"""Pairs of texts to token ids, for models that read a prompt whose parts are tokenised one by one.

A `Prompt` is a sequence of parts that are tokenised one by one; their ids are joined. A part is literal text with slots
for the query and the passage. So `question:{query} \\n \\n passage:{passage}` is one part and tokenised as one string,
as its model was trained, while a chat template's prefix and suffix are parts of their own. The passage always ends its
part: what follows is another part, so cutting the passage cannot change it.

**Truncation.** The modes of `pairs.py`:

    end        tokens of the passage are dropped from the right; query and template stay whole. If not one token of
               the passage fits, the pair cannot be scored
    error      a pair over the limit cannot be scored
    chunk      the passage is cut between characters, where the tokens of the whole text end; each piece is tokenised
               again with the whole prompt, and made shorter until it fits
    reference  what the reference code of the family does (`Prompt.cut`), even if it cuts the query or passes the limit

**Images.** A part `IMAGE` is the place of one; the caller gives its ids for each pair. No mode cuts them. A passage
with an image may lose all of its text.

**Special tokens written in a text are text.** Besides those that the tokenizer marks as special, this concerns added
tokens in the template itself (`</think>`) and those of the form `<|...|>`. Other added tokens are left alone, since
some vocabularies have runs of white space and HTML tags there, which are text. Tokens in the constant parts of the
template always act.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from rerank_cli.encoding.choices import CHUNK_OVERLAP, SpecialTokens, Truncation
from rerank_cli.encoding.chunks import read_chunks, token_ends
from rerank_cli.encoding.pairs import Encoded, EncodingProblem, Ids, acting_special_ids, count_of, unless_unread
from rerank_cli.encoding.tokenizer import encode_texts, mark_special
from rerank_cli.errors import ModelError, UsageError
from rerank_cli.records import NO_LIMITS, EncodedPair, Limits


class Slot(enum.Enum):
    """A place in a template for one of the two texts."""

    QUERY = "{query}"
    PASSAGE = "{passage}"


Part = tuple[str | Slot, ...]
"""Literal text and slots that are tokenised as one string."""

Cut = Callable[["Prompt", Sequence[Ids], int], list[Ids]]
"""How reference code truncates: (prompt, ids of each part, limit) to the ids of each part that remain."""

IMAGE = "<img><IMG_CONTEXT></img>"
"""A part of its own, the place of an image: its middle token occurs once for each vector of the image."""

_NOTHING: Ids = np.empty(0, dtype=np.int32)


def cut_right(prompt: Prompt, parts: Sequence[Ids], limit: int) -> list[Ids]:
    """The part with the passage, and a query in it, is cut from the right to the room that the other parts leave."""
    place = prompt.passage_part
    room = limit - sum(map(len, parts)) + len(parts[place])
    return [ids[: max(0, room)] if part == place else ids for part, ids in enumerate(parts)]


@dataclass(frozen=True)
class Prompt:
    """What surrounds the two texts of a pair.

    parts: tokenised one by one. wrapped: the tokenizer puts its own special tokens around them all. cut: how the
    reference code truncates.
    """

    parts: tuple[Part, ...]
    wrapped: bool = False
    cut: Cut = cut_right

    @cached_property
    def passage_part(self) -> int:
        """Which part ends with the passage."""
        return next(place for place, part in enumerate(self.parts) if Slot.PASSAGE in part)

    @cached_property
    def query_part(self) -> int:
        """Which part holds the query."""
        return next(place for place, part in enumerate(self.parts) if Slot.QUERY in part)

    @cached_property
    def image_part(self) -> int | None:
        """Which part is the place of an image."""
        return next((place for place, part in enumerate(self.parts) if part == (IMAGE,)), None)

    @property
    def text(self) -> str:
        """The template as one text with `{query}` and `{passage}`."""
        return "".join(piece if isinstance(piece, str) else piece.value for part in self.parts for piece in part)


NEMOTRON = Prompt(parts=(("question:", Slot.QUERY, " \n \n passage:", Slot.PASSAGE),), wrapped=True)
"""Source: NVIDIA NeMo AutoModel, CrossEncoderCollator; NeMo-Retriever; vLLM's nemotron-rerank.jinja."""


class PromptEncoder:
    """Encodes pairs for one checkpoint that reads a prompt; does not use the weights.

    max_tokens: the longest pair after truncation, template included. where: names the tokenizer in messages. unknown:
    the id of the unknown token. max_unknown: the largest share of it in the texts of a pair that is scored.

    template: the prompt as one text. image_ids: the ids of `IMAGE`; empty in a prompt without. image_start: how many
    ids come before the image, in every pair. image_room: the most ids of an image that stays whole where a pair is cut
    from the right.
    """

    def __init__(  # noqa: PLR0913 (one argument an option)
        self,
        tokenizer: Tokenizer,
        prompt: Prompt,
        *,
        where: str,
        max_tokens: int,
        truncate: Truncation = "end",
        chunk_overlap: int = CHUNK_OVERLAP,
        special_tokens: SpecialTokens = "neutral",
        unknown: int | None = None,
        max_unknown: float | None = None,
    ) -> None:
        self._tokenizer = tokenizer
        self._prompt = prompt
        self._unknown, self._max_unknown = unknown, max_unknown
        self._before, self._after = read_wrapping(tokenizer, where) if prompt.wrapped else (_NOTHING, _NOTHING)
        self._constant: dict[int, Ids] = {}
        for place, part in enumerate(prompt.parts):
            if not any(isinstance(piece, Slot) for piece in part):
                ids = tokenizer.encode("".join(map(str, part)), add_special_tokens=False).ids
                self._constant[place] = np.array(ids, dtype=np.int32)
        if special_tokens == "neutral":
            _neutralise(tokenizer, prompt.text, where)
        self.template = prompt.text
        self.max_tokens = max_tokens
        self.image_ids = _NOTHING if prompt.image_part is None else self._constant[prompt.image_part]
        self.image_start = len(self._before) + sum(len(self._constant[part]) for part in range(prompt.image_part or 0))
        self.image_room = max_tokens - self.image_start - len(self._after)
        self._room = max_tokens - len(self._before) - len(self._after)
        self._truncate = truncate
        self._chunk_overlap = chunk_overlap
        empty = next(self._tokenise([("", "")]))
        self._template_size, self._template_unknown = self._size(empty), self._count_unknown(empty)
        size = self._template_size - len(self._before) - len(self._after)
        if truncate == "reference":
            size = sum(map(len, self._constant.values())) if prompt.cut is cut_right else 0
        if self._room - size < 1:
            raise UsageError(
                f"--max-tokens {max_tokens}: the template alone has {size + max_tokens - self._room} tokens"
            )

    def encode(
        self, pairs: Sequence[tuple[str, str]], limits: Limits = NO_LIMITS, *, images: Sequence[Ids] = ()
    ) -> list[Encoded]:
        """The token ids of each (query, passage), in order. limits: those of their request.

        images: for a prompt with the place of an image, the ids of the image of each pair.
        """
        encoded = []
        for place, ((query, passage), parts) in enumerate(zip(pairs, self._tokenise(pairs), strict=True)):
            if images and self._prompt.image_part is not None:
                parts[self._prompt.image_part] = images[place]
            encoded.append(unless_unread(self._encode_pair(query, passage, parts, limits), self._max_unknown))
        return encoded

    def _tokenise(self, pairs: Sequence[tuple[str, str]]) -> Iterator[list[Ids]]:
        """The ids of each part of each pair; each distinct text is tokenised once."""
        texts: dict[str, int] = {}
        places = [
            [
                texts.setdefault(self._render(part, query, passage), len(texts))
                for part in range(len(self._prompt.parts))
                if part not in self._constant
            ]
            for query, passage in pairs
        ]
        ids = list(encode_texts(self._tokenizer, list(texts)))
        for row in places:
            variable = iter(row)
            yield [
                self._constant[part] if part in self._constant else ids[next(variable)]
                for part in range(len(self._prompt.parts))
            ]

    def _render(self, part: int, query: str, passage: str) -> str:
        texts = {Slot.QUERY: query, Slot.PASSAGE: passage}
        return "".join(piece if isinstance(piece, str) else texts[piece] for piece in self._prompt.parts[part])

    def _join(self, parts: Sequence[Ids], *, tokens: int | None = None) -> EncodedPair:
        """tokens: the length before truncation, if anything was cut."""
        ids = np.concatenate((self._before, *parts, self._after))
        image = self._prompt.image_part
        around = self._template_size + (0 if image is None else len(parts[image]) - len(self._constant[image]))
        return EncodedPair(
            input_ids=ids,
            second_start=len(ids),
            tokens=len(ids) if tokens is None else tokens,
            template=min(around, len(ids)),
            unknown=max(0, self._count_unknown(parts) - self._template_unknown),
        )

    def _count_unknown(self, parts: Sequence[Ids]) -> int:
        return sum(count_of(self._unknown, ids) for ids in parts)

    def _encode_pair(self, query: str, passage: str, parts: list[Ids], limits: Limits) -> Encoded:
        tokens = self._size(parts)
        if limits.passage_tokens is not None:
            passage = self._shorten(query, passage, parts, limits.passage_tokens)
        size = self._size(parts)
        if size > self.max_tokens and (limits.whole or self._truncate == "error"):
            return EncodingProblem("too-long", f"the pair has {size} tokens, the limit is {self.max_tokens}")
        if self._truncate == "reference":
            return (self._join(self._prompt.cut(self._prompt, parts, self._room), tokens=tokens),)
        if size <= self.max_tokens:
            return (self._join(parts, tokens=tokens),)
        place = self._prompt.passage_part
        ends = self._passage_ends(query, passage)
        before = len(parts[place]) - len(ends)
        room = self.max_tokens - size + len(parts[place])
        least = 0 if self._truncate == "end" and self._prompt.image_part is not None else 1
        if room < before + least or not len(ends):
            return EncodingProblem(
                "query-too-long",
                f"query and template have {size - len(ends)} tokens: no room for the passage in a limit of "
                f"{self.max_tokens}",
            )
        if self._truncate == "end":
            parts[place] = parts[place][:room]
            return (self._join(parts, tokens=tokens),)

        def read(piece: str) -> EncodedPair:
            text = self._render(place, query, piece)
            ids = np.array(self._tokenizer.encode(text, add_special_tokens=False).ids, dtype=np.int32)
            return self._join([*parts[:place], ids, *parts[place + 1 :]])

        chunks = read_chunks(passage, ends, read, room=room - before, overlap=self._chunk_overlap, most=self.max_tokens)
        problem = EncodingProblem(
            "query-too-long", f"no piece of the passage fits beside the query in {self.max_tokens} tokens"
        )
        return problem if chunks is None else chunks

    def _size(self, parts: Sequence[Ids]) -> int:
        return len(self._before) + sum(map(len, parts)) + len(self._after)

    def _shorten(self, query: str, passage: str, parts: list[Ids], most: int) -> str:
        """Cut the passage in `parts` to `most` tokens; returns the text that is left of it."""
        place = self._prompt.passage_part
        if len(parts[place]) <= most:
            return passage
        ends = self._passage_ends(query, passage)
        if len(ends) <= most:
            return passage
        parts[place] = parts[place][: len(parts[place]) - len(ends) + most]
        return passage[: int(ends[most - 1])]

    def _passage_ends(self, query: str, passage: str) -> npt.NDArray[np.int64]:
        """Where each token that holds text of the passage ends in it, in characters, never falling."""
        text = self._render(self._prompt.passage_part, query, passage)
        offsets = self._tokenizer.encode(text, add_special_tokens=False).offsets
        ends = token_ends(offsets) - (len(text) - len(passage))
        return ends[np.searchsorted(ends, 0, side="right") :]


def read_wrapping(tokenizer: Tokenizer, where: str) -> tuple[Ids, Ids]:
    """The special tokens that the tokenizer puts before and after a text, checked on different texts."""
    found: tuple[list[int], list[int]] | None = None
    for text in ("a", "how many? ", "Ä 東京 1"):
        plain = tokenizer.encode(text, add_special_tokens=False).ids
        whole = tokenizer.encode(text).ids
        begins = [at for at in range(len(whole) - len(plain) + 1) if whole[at : at + len(plain)] == plain]
        if not plain or not begins:
            raise ModelError(f"{where}: the tokenizer encodes a text otherwise with its special tokens than without")
        around = whole[: begins[0]], whole[begins[0] + len(plain) :]
        if found is not None and around != found:
            raise ModelError(f"{where}: the tokenizer puts other special tokens around other texts")
        found = around
    assert found is not None, "three texts were encoded"
    return np.array(found[0], dtype=np.int32), np.array(found[1], dtype=np.int32)


def _neutralise(tokenizer: Tokenizer, template: str, where: str) -> None:
    """From now on special tokens in texts are text (see the head of this file)."""
    mark_special(tokenizer, lambda content: content in template)
    tokenizer.encode_special_tokens = True
    for number in acting_special_ids(tokenizer):
        token = tokenizer.get_added_tokens_decoder()[number]
        raise ModelError(
            f"{where}: `{token.content}` written in a text acts as a special token whatever is done",
            hint="`--special-tokens allow` accepts that",
        )
