"""Pairs of texts to token ids, for models whose template (a chat template mostly) is tokenised with them as one text.

A template writes the query and the passage into one text, which is tokenised as a whole: a tokenizer may join the end
of a passage with what follows it (Qwen's has one token for "." and a line break), so parts tokenised by themselves
would give other ids. Special tokens in the template act.

**Truncation.** The modes of `pairs.py`:

    end        tokens inside of the passage are dropped, from its right (from its left where the checkpoint cuts
               there); every other token stays, and at least one of the passage, or the pair cannot be scored
    error      a pair over the limit cannot be scored
    chunk      the passage is cut between characters; each piece is written into the template and tokenised again
    reference  as in sentence-transformers, id by id: the whole text is cut, and if the limit was reached its last ids
               are replaced by those that end every text of this template

If the text does not hold the passage unchanged (a template may shorten it), `end` takes the longest beginning of the
passage whose text fits.

**Special tokens written in a text are text**, as in `prompt.py`: a copy of the tokenizer has special tokens with names
that nobody can write, and those of the template are written with these names.

Source of `reference`: sentence-transformers 6.2, base/modules/transformer.py (_restore_chat_template_suffix).

Over 400 lines: the four modes cut the same text and share how they find the passage in it.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from rerank_cli.encoding.chat_template import TemplateFailedError
from rerank_cli.encoding.choices import CHUNK_OVERLAP, SpecialTokens, Truncation
from rerank_cli.encoding.chunks import read_chunks, token_ends
from rerank_cli.encoding.pairs import Encoded, EncodingProblem, Ids, count_of, unless_unread
from rerank_cli.encoding.prompt import Slot, read_wrapping
from rerank_cli.encoding.tokenizer import encode_texts, mark_special
from rerank_cli.errors import ModelError, UsageError
from rerank_cli.records import NO_LIMITS, EncodedPair, Limits

_NO_IDS: Ids = np.empty(0, dtype=np.int32)
_MARKS = "\ue000\ue001\ue002\ue003\uf8ff"  # private characters, of which one is used that is in neither text


class TextTemplate(Protocol):
    """Whatever writes a query and a passage as one text."""

    def render(self, query: str, passage: str) -> str:
        """The text of a pair; `TemplateFailedError` where there is none."""


@dataclass(frozen=True, slots=True)
class UserTemplate:
    """A user's template: text with `{query}` and `{passage}`, each once; all other text stays as it is."""

    text: str

    def __post_init__(self) -> None:
        for slot in Slot:
            found = self.text.count(slot.value)
            if found != 1:
                raise UsageError(f"--template: `{slot.value}` must stand in the template once, not {found} times")

    def render(self, query: str, passage: str) -> str:
        """The text of a pair."""
        texts = {Slot.QUERY.value: query, Slot.PASSAGE.value: passage}
        return "".join(texts.get(piece, piece) for piece in re.split(r"(\{query\}|\{passage\})", self.text))


class WholeTextEncoder:
    """Encodes pairs for one checkpoint that reads a template; does not use the weights.

    max_tokens: the longest text after truncation. where: names the tokenizer in messages. wrapped: the tokenizer puts
    its own special tokens around the text. cuts_left: truncation drops tokens from the beginning. unknown: the id of
    the unknown token. max_unknown: the largest share of it in the texts of a pair that is scored.
    """

    def __init__(  # noqa: PLR0913 (one argument an option)
        self,
        tokenizer: Tokenizer,
        template: TextTemplate,
        *,
        where: str,
        max_tokens: int,
        truncate: Truncation = "end",
        chunk_overlap: int = CHUNK_OVERLAP,
        special_tokens: SpecialTokens = "neutral",
        wrapped: bool = False,
        cuts_left: bool = False,
        unknown: int | None = None,
        max_unknown: float | None = None,
    ) -> None:
        self._tokenizer = tokenizer
        self._template = template
        self._where = where
        self._before, self._after = read_wrapping(tokenizer, where) if wrapped else (_NO_IDS, _NO_IDS)
        self.max_tokens = max_tokens
        self._room = max_tokens - len(self._before) - len(self._after)
        self._truncate = truncate
        self._chunk_overlap = chunk_overlap
        self._cuts_left = cuts_left
        self._unknown, self._max_unknown = unknown, max_unknown
        self._special: re.Pattern[str] | None = None
        if special_tokens == "neutral":
            own = template.render("", "")
            mark_special(tokenizer, own.__contains__)
            tokens = tokenizer.get_added_tokens_decoder().values()
            contents = [re.escape(token.content) for token in tokens if token.special and token.content]
            if contents:  # any special token in a text, the longest first
                self._special = re.compile("|".join(sorted(contents, key=len, reverse=True)))
        if (
            truncate != "reference"
            and not isinstance(ids := self._ids("", ""), EncodingProblem)
            and len(ids) >= self._room
        ):
            size = len(ids) + self.max_tokens - self._room
            raise UsageError(f"--max-tokens {self.max_tokens}: the template alone has {size} tokens")

    @property
    def template(self) -> str:
        """What is put around a query and a passage."""
        try:
            return self._template.render(Slot.QUERY.value, Slot.PASSAGE.value)
        except TemplateFailedError as failure:
            return f"a template that fails for braces ({failure})"

    def encode(self, pairs: Sequence[tuple[str, str]], limits: Limits = NO_LIMITS) -> list[Encoded]:
        """The token ids of each (query, passage), in order. limits: those of their request."""
        texts: dict[str, None] = {}
        rendered: list[str | EncodingProblem | None] = []
        for query, passage in pairs:
            text = None if self._holds_special(query, passage) else self._render(query, passage)
            if isinstance(text, str):
                texts[text] = None
            rendered.append(text)
        ids = dict(zip(texts, encode_texts(self._tokenizer, list(texts)), strict=True))
        encoded: list[Encoded] = []
        for (query, passage), text in zip(pairs, rendered, strict=True):
            if isinstance(text, EncodingProblem):
                encoded.append(text)
            else:
                found_ids = None if text is None else ids[text]
                entry = self._encode_pair(query, passage, found_ids, limits)
                encoded.append(unless_unread(entry, self._max_unknown))
        return encoded

    def _holds_special(self, query: str, passage: str) -> bool:
        special = self._special
        return special is not None and bool(special.search(query) or special.search(passage))

    def _render(self, query: str, passage: str) -> str | EncodingProblem:
        try:
            return self._template.render(query, passage)
        except TemplateFailedError as failure:
            return EncodingProblem("template-failed", f"the chat template has no text for this pair: {failure}")

    def _ids(self, query: str, passage: str) -> Ids | EncodingProblem:
        """The ids of the whole text before truncation, without the special ones around it."""
        if self._holds_special(query, passage):
            return self._neutral_ids(query, passage)
        text = self._render(query, passage)
        if isinstance(text, EncodingProblem):
            return text
        return np.array(self._tokenizer.encode(text, add_special_tokens=False).ids, dtype=np.int32)

    def _neutral_ids(self, query: str, passage: str) -> Ids | EncodingProblem:
        """`_ids` for texts that hold special tokens, which are text."""
        special = self._special
        assert special is not None, "only asked for texts with special tokens"
        mark = next((mark for mark in _MARKS if mark not in query + passage), None)
        if mark is None:
            return EncodingProblem("special-tokens", "special tokens in a text beside private characters of all kinds")
        # With the mark behind its first character a special token of the query or passage is not found again below.
        text = self._render(
            *(special.sub(lambda found: f"{found[0][0]}{mark}{found[0][1:]}", one) for one in (query, passage))
        )
        if isinstance(text, EncodingProblem):
            return text
        copy, names = self._renamed
        text = special.sub(lambda found: names[found[0]], text).replace(mark, "")
        return np.array(copy.encode(text, add_special_tokens=False).ids, dtype=np.int32)

    @cached_property
    def _renamed(self) -> tuple[Tokenizer, dict[str, str]]:
        """A copy whose special tokens have names that no text holds, and these names by the old ones; all ids stay.

        Made when a text first needs it, as it takes a second for a vocabulary of 150,000 pieces.
        """
        state = json.loads(self._tokenizer.to_str())
        word = secrets.token_hex(8)  # somebody could write a fixed one in a text
        names = {token["content"]: f"qzx{word}x{token['id']}xzq" for token in state["added_tokens"] if token["special"]}
        for token in state["added_tokens"]:
            token["content"] = names.get(token["content"], token["content"])
        model = state["model"]
        vocabulary = model["vocab"]
        if isinstance(vocabulary, dict):
            model["vocab"] = {names.get(piece, piece): number for piece, number in vocabulary.items()}
        else:
            model["vocab"] = [[names.get(piece, piece), score] for piece, score in vocabulary]
        if model.get("unk_token") in names:
            model["unk_token"] = names[model["unk_token"]]
        state["post_processor"] = None
        try:
            copy = Tokenizer.from_str(json.dumps(state))
        except Exception as error:
            raise ModelError(
                f"{self._where}: special tokens written in a text cannot be made text: {error}",
                hint="`--special-tokens allow` lets them act",
            ) from error
        for old, new in names.items():
            number = self._tokenizer.token_to_id(old)
            if copy.token_to_id(new) != number or number in copy.encode(old, add_special_tokens=False).ids:
                raise ModelError(
                    f"{self._where}: `{old}` written in a text acts as a special token whatever is done",
                    hint="`--special-tokens allow` accepts that",
                )
        return copy, names

    def _join(self, ids: Ids, *, tokens: int | None = None) -> EncodedPair:
        """tokens: the length before truncation, if anything was cut."""
        whole = np.concatenate((self._before, ids, self._after))
        return EncodedPair(
            input_ids=whole,
            second_start=len(whole),
            tokens=len(whole) if tokens is None else tokens,
            template=min(self.max_tokens - self._room + len(self._around), len(whole)),
            unknown=max(0, count_of(self._unknown, ids) - count_of(self._unknown, self._around)),
        )

    @cached_property
    def _around(self) -> Ids:
        """The ids of the text for an empty query and an empty passage."""
        ids = self._ids("", "")
        return _NO_IDS if isinstance(ids, EncodingProblem) else ids

    def _encode_pair(  # noqa: PLR0911 (a mode of truncation each)
        self, query: str, passage: str, ids: Ids | EncodingProblem | None, limits: Limits
    ) -> Encoded:
        if ids is None:
            ids = self._ids(query, passage)
        if isinstance(ids, EncodingProblem):
            return ids
        around = self.max_tokens - self._room
        if len(ids) + around == 0:
            return EncodingProblem("empty-pair", "the template has no token for an empty query and an empty passage")
        tokens = len(ids) + around
        if limits.passage_tokens is not None:
            passage = self._shorten(passage, limits.passage_tokens)
            shorter = self._ids(query, passage)
            if isinstance(shorter, EncodingProblem):
                return shorter
            ids = shorter
        size = len(ids) + around
        if size > self.max_tokens and (limits.whole or self._truncate == "error"):
            return EncodingProblem("too-long", f"the pair has {size} tokens, the limit is {self.max_tokens}")
        if self._truncate == "reference":
            return (self._join(self._cut_as_reference(ids), tokens=tokens),)
        if size <= self.max_tokens:
            return (self._join(ids, tokens=tokens),)
        if self._truncate == "end":
            cut = self._cut_passage(query, passage, len(ids) - self._room)
            return cut if isinstance(cut, EncodingProblem) else (self._join(cut, tokens=tokens),)
        return self._chunks(query, passage)

    def _shorten(self, passage: str, most: int) -> str:
        """The beginning of a passage, cut to `most` tokens."""
        ends = self._passage_ends(passage)
        if len(ends) <= most:
            return passage
        return passage[: int(ends[most - 1])] if most else ""

    def _cut_as_reference(self, ids: Ids) -> Ids:
        if len(ids) < self._room:
            return ids
        cut = ids[len(ids) - self._room :] if self._cuts_left else ids[: self._room]
        kept = min(len(self._tail), len(cut))
        return cut if kept == 0 else np.concatenate((cut[:-kept], self._tail[-kept:]))

    @cached_property
    def _tail(self) -> Ids:
        """The ids that end every text of the template; empty where they cannot be told."""
        one, other = (self._ids(filler, filler) for filler in ("0", "1 2 3 4"))
        if isinstance(one, EncodingProblem) or isinstance(other, EncodingProblem):
            return _NO_IDS
        least = min(len(one), len(other))
        differs = np.flatnonzero(one[::-1][:least] != other[::-1][:least])
        return one[len(one) - int(differs[0]) :] if len(differs) else _NO_IDS

    def _cut_passage(self, query: str, passage: str, excess: int) -> Ids | EncodingProblem:
        """The pair's ids without `excess` tokens of the passage."""
        place = None if self._holds_special(query, passage) else self._place_of(query, passage)
        if place is None:
            return self._longest_begin(query, passage)
        text, start, stop = place
        encoding = self._tokenizer.encode(text, add_special_tokens=False)
        inside = [
            number
            for number, (begin, end) in enumerate(encoding.offsets)
            if begin >= start and end <= stop and begin < end
        ]
        ids = np.array(encoding.ids, dtype=np.int32)
        if len(inside) <= excess:
            return self._no_room_problem(len(ids) - len(inside))
        gone = inside[:excess] if self._cuts_left else inside[-excess:]
        return np.delete(ids, gone)

    def _no_room_problem(self, size: int) -> EncodingProblem:
        return EncodingProblem(
            "query-too-long",
            f"query and template have {size + self.max_tokens - self._room} tokens: no room for the passage in a "
            f"limit of {self.max_tokens}",
        )

    def _place_of(self, query: str, passage: str) -> tuple[str, int, int] | None:
        """The text, and where the passage begins and ends in it; None where it is not there unchanged."""
        mark = next((mark for mark in _MARKS if mark not in query + passage), None)
        text = self._render(query, passage)
        other = self._render(query, mark or "")
        if mark is None or isinstance(text, EncodingProblem) or isinstance(other, EncodingProblem):
            return None
        if other.count(mark) != 1:
            return None
        begin = other.index(mark)
        end = len(text) - (len(other) - begin - 1)
        shown = text[begin:end]
        same = text[:begin] == other[:begin] and text[end:] == other[begin + 1 :]
        if not same or shown not in (passage, passage.strip(), passage.lstrip(), passage.rstrip()):
            return None
        return text, begin, end

    def _longest_begin(self, query: str, passage: str) -> Ids | EncodingProblem:
        """The ids of the pair with as much of the passage's beginning (or end) as fits."""
        best, low, high = None, 1, len(passage)
        while low <= high:
            kept = (low + high) // 2
            ids = self._ids(query, passage[-kept:] if self._cuts_left else passage[:kept])
            if isinstance(ids, EncodingProblem):
                return ids
            if len(ids) <= self._room:
                best, low = ids, kept + 1
            else:
                high = kept - 1
        if best is not None:
            return best
        empty = self._ids(query, "")
        return empty if isinstance(empty, EncodingProblem) else self._no_room_problem(len(empty))

    def _passage_ends(self, passage: str) -> npt.NDArray[np.int64]:
        """Where each token of the passage ends, in characters, never falling."""
        return token_ends(self._tokenizer.encode(passage, add_special_tokens=False).offsets)

    def _chunks(self, query: str, passage: str) -> Encoded:
        """A pair for each piece of the passage, as `read_chunks` cuts it."""
        empty = self._ids(query, "")
        if isinstance(empty, EncodingProblem):
            return empty

        def read(piece: str) -> EncodedPair | EncodingProblem:
            ids = self._ids(query, piece)
            return ids if isinstance(ids, EncodingProblem) else self._join(ids)

        chunks = read_chunks(
            passage, self._passage_ends(passage), read, room=self._room - len(empty), overlap=self._chunk_overlap,
            most=self.max_tokens,
        )  # fmt: skip
        return self._no_room_problem(len(empty)) if chunks is None else chunks
