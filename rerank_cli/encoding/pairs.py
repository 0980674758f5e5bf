"""Pairs of texts to token ids, for encoders that read `[CLS] query [SEP] passage [SEP]`.

Three decisions shape this module.

**Each distinct text of a window is tokenised once.** A query is in as many pairs as it has passages, and tokenising is
most of the work of a host beside a GPU. So texts are tokenised alone, without special tokens, in one call of the Rust
batch API, and the template joins the ids of a pair. A table of texts for the whole run would save 0.3 % of a run in
int8 where each text comes in five windows (`benchmarks/RESULTS.md`). The template is not assumed: the checkpoint's own
tokenizer encodes a pair, which shows it, and further pairs check it when the encoder is made.

**Truncation is ours.** The tokenizers library cuts the longer of the two texts (`longest_first`), which can cut the
query. The modes here:

    end        the passage is cut, from the right unless the checkpoint says otherwise; query and template stay whole
    error      a pair over the limit cannot be scored
    chunk      the passage is cut in overlapping pieces, each read with the whole query; their logits are pooled later
    reference  as the reference code of the family does: longest_first

A query that leaves no room for its passage is a problem of the pair in every mode but `reference`.

**Special tokens written in a text are text.** Otherwise `[SEP]` in a passage would end it, and so would `</s>`, which
is also HTML. The same holds for tokens of the template that their file does not mark as special (`mark_special`, the
rule of `prompt.py`). `special_tokens="allow"` gives the reference behaviour.

Token types are those of the tokenizer's own encoding: without them logits shift by more than 1. They are all 0 where
the checkpoint says that its model does not get them.

**What else a checkpoint declares** is in `PairForm`: a prompt before the query's text, and which end of a text is cut.
That end counts in every mode that cuts tokens; a request that asks for some tokens of a passage gets the first ones.

**Unknown tokens are counted** in the two texts of each pair, not around them: a model that cannot read the language of
a text still gives it a logit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from rerank_cli.encoding.choices import CHUNK_OVERLAP, SpecialTokens, Truncation
from rerank_cli.encoding.chunks import chunk_starts
from rerank_cli.encoding.tokenizer import encode_texts, mark_special, without_special_pieces
from rerank_cli.errors import ModelError, UsageError
from rerank_cli.records import NO_LIMITS, EncodedPair, Limits, Window

Ids = npt.NDArray[np.int32]
_NO_IDS: Ids = np.empty(0, dtype=np.int32)


@dataclass(frozen=True, slots=True)
class EncodingProblem:
    """Why a pair cannot be scored: a stable code and a sentence."""

    code: str
    message: str


Joined = tuple[Ids, Ids, int]
"""Query and passage of a pair as they are read, and the pair's length before truncation."""

Encoded = tuple[EncodedPair, ...] | EncodingProblem
"""One pair's token ids (several where its passage was cut in chunks), or why there are none."""


@dataclass(frozen=True, slots=True)
class PairTemplate:
    """The special tokens around the two texts: `before` query `between` passage `after`.

    first_type_of_between: how many ids of `between` have token type 0. typed: the passage has token type 1. unknown:
    the id that is counted as unknown in the texts. unpooled: see `EncodedPair`.
    """

    before: Ids
    between: Ids
    after: Ids
    first_type_of_between: int
    typed: bool
    unknown: int | None = None
    unpooled: int = 0

    @property
    def ids(self) -> list[int]:
        """The special tokens of a pair."""
        return [*self.before.tolist(), *self.between.tolist(), *self.after.tolist()]

    @property
    def size(self) -> int:
        """Number of special tokens of a pair."""
        return len(self.before) + len(self.between) + len(self.after)

    def join(self, texts: Sequence[Joined]) -> list[EncodedPair]:
        """The pairs of some texts. All at once, as each call of numpy costs as much as a pair has tokens."""
        if not texts:
            return []
        before, between, after, size = self.before, self.between, self.after, self.size
        flat = np.concatenate([ids for query, passage, _ in texts for ids in (before, query, between, passage, after)])
        ends = np.cumsum([size + len(query) + len(passage) for query, passage, _ in texts])
        unknown = np.zeros(len(texts), dtype=np.int64)
        if self.unknown is not None:
            places = np.flatnonzero(flat == self.unknown)
            unknown += np.diff(np.searchsorted(places, ends), prepend=0) - self.ids.count(self.unknown)
        first = len(before) + self.first_type_of_between
        pairs, begin = [], 0
        for (query, _, tokens), end, missed in zip(texts, ends.tolist(), unknown.tolist(), strict=True):
            second = first + len(query) if self.typed else end - begin
            pairs.append(EncodedPair(flat[begin:end], second, tokens, None, size, missed, self.unpooled))
            begin = end
        return pairs


@dataclass(frozen=True, slots=True)
class PairForm:
    """What is known about a checkpoint's pairs besides its tokenizer.

    prompt: goes before the query's text. typed: the model gets token types. cuts_left: a text that is too long loses
    its beginning. unknown: the id of the unknown token. max_unknown: the user's limit on its share in the texts of a
    pair that is scored. bare: there may be no tokens around and between the texts. unpooled: the pooling leaves the
    prompt out.
    """

    prompt: str = ""
    typed: bool = True
    cuts_left: bool = False
    unknown: int | None = None
    max_unknown: float | None = None
    bare: bool = False
    unpooled: bool = False


class PairEncoder:
    """Encodes pairs for one checkpoint; does not use the weights.

    max_tokens: the longest pair after truncation, template included. where: names the tokenizer in messages.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        where: str,
        max_tokens: int,
        truncate: Truncation = "end",
        chunk_overlap: int = CHUNK_OVERLAP,
        special_tokens: SpecialTokens = "neutral",
        form: PairForm | None = None,
    ) -> None:
        self._tokenizer = tokenizer
        self._form = form or PairForm()
        self._template = _read_template(tokenizer, where, bare=self._form.bare)
        self._template = replace(
            self._template,
            typed=self._template.typed and self._form.typed,
            unknown=self._form.unknown,
            unpooled=_prompt_tokens(tokenizer, self._form.prompt, max_tokens, where) if self._form.unpooled else 0,
        )
        self._lead, self._prefix = _NO_IDS, self._form.prompt
        if special_tokens == "neutral":
            self._lead, self._prefix = _split_prompt(tokenizer, self._form.prompt, where)
            around = {tokenizer.id_to_token(number) for number in self._template.ids}
            mark_special(tokenizer, around.__contains__)
        self._tokenizer.encode_special_tokens = special_tokens == "neutral"
        self._acting = acting_special_ids(tokenizer) if special_tokens == "neutral" else []
        self.max_tokens = max_tokens
        self._truncate = truncate
        self._chunk_overlap = chunk_overlap
        self._size = self._template.size
        self._room = max_tokens - self._size
        if self._room < 2:
            raise UsageError(f"--max-tokens {max_tokens}: the template alone has {self._template.size} tokens")

    @property
    def template(self) -> str:
        """What is put around a query and a passage."""
        before, between, after = (
            "".join(self._tokenizer.id_to_token(number) or "" for number in ids.tolist())
            for ids in (self._template.before, self._template.between, self._template.after)
        )
        return f"{before}{self._form.prompt}{{query}}{between}{{passage}}{after}"

    def encode(self, pairs: Sequence[tuple[str, str]], limits: Limits = NO_LIMITS) -> list[Encoded]:
        """The token ids of each (query, passage), in order; each distinct text is tokenised once."""
        if self._prefix:
            pairs = [(self._prefix + query, passage) for query, passage in pairs]
        texts = list(dict.fromkeys(text for pair in pairs for text in pair))
        found = list(encode_texts(self._tokenizer, texts))
        if self._acting:  # texts in which a special token acts are tokenised again, as plain text
            acting = np.flatnonzero(np.isin(np.concatenate([_NO_IDS, *found]), self._acting))
            ends = np.cumsum([len(one) for one in found])
            for place in set(np.searchsorted(ends, acting, side="right").tolist()):
                plain = self._plain_tokenizer.encode(texts[place], add_special_tokens=False).ids
                found[place] = np.array(plain, dtype=np.int32)
        ids = dict(zip(texts, found, strict=True))
        queries = ids
        if len(self._lead):
            queries = {query: np.concatenate((self._lead, ids[query])) for query, _ in pairs}
        cut = [self._cut_pair(queries[query], ids[passage], limits) for query, passage in pairs]
        read = [texts for one in cut if not isinstance(one, EncodingProblem) for texts in one]
        joined = iter(self._template.join(read))
        encoded: list[Encoded] = [
            one if isinstance(one, EncodingProblem) else tuple(islice(joined, len(one))) for one in cut
        ]
        if self._form.max_unknown is None:
            return encoded
        return [unless_unread(entry, self._form.max_unknown) for entry in encoded]

    @cached_property
    def _plain_tokenizer(self) -> Tokenizer:
        """Made when a text first needs it, as it takes more than a second for a vocabulary of 250,000 pieces."""
        return without_special_pieces(self._tokenizer)

    def _cut_pair(  # noqa: PLR0911 (a mode of truncation each)
        self, query: Ids, passage: Ids, limits: Limits
    ) -> Sequence[Joined] | EncodingProblem:
        """What is read of a pair: of each of its chunks, if it has several."""
        tokens = size = self._size + len(query) + len(passage)
        if limits.passage_tokens is not None:
            passage = passage[: limits.passage_tokens]
            size = self._size + len(query) + len(passage)
        if size == 0:
            return EncodingProblem("empty-pair", "query and passage have no token, and nothing stands around them")
        if size <= self._template.unpooled:
            return EncodingProblem("empty-pair", "nothing is left but the prompt, whose tokens do not count")
        if size <= self.max_tokens:
            return ((query, passage, tokens),)
        if limits.whole or self._truncate == "error":
            return EncodingProblem("too-long", f"the pair has {size} tokens, the limit is {self.max_tokens}")
        if self._truncate == "reference":
            kept_query, kept_passage = longest_first(len(query), len(passage), self._room)
            return ((self._cut(query, kept_query), self._cut(passage, kept_passage), tokens),)
        room = self._room - len(query)
        if room < 1:
            return EncodingProblem(
                "query-too-long",
                f"the query alone has {len(query)} tokens: no room for its passage in a limit of {self.max_tokens}",
            )
        if self._truncate == "end":
            return ((query, self._cut(passage, room), tokens),)
        # A piece of at most `room` tokens each; together they hold the whole passage.
        begins = chunk_starts(len(passage), room, self._chunk_overlap)
        pieces = [passage[begin : begin + room] for begin in begins]
        return [(query, piece, self._template.size + len(query) + len(piece)) for piece in pieces]

    def _cut(self, ids: Ids, kept: int) -> Ids:
        """The `kept` tokens of a text that stay."""
        return ids[len(ids) - kept :] if self._form.cuts_left else ids[:kept]


def count_of(number: int | None, ids: Ids) -> int:
    """How often `number` occurs in `ids`; 0 for None."""
    return 0 if number is None else int(np.count_nonzero(ids == number))


def unless_unread(entry: Encoded, most: float | None) -> Encoded:
    """The entry, or a problem where its share of unknown tokens is above `most`."""
    if isinstance(entry, EncodingProblem) or most is None:
        return entry
    unknown, read = sum(pair.unknown for pair in entry), sum(len(pair.input_ids) - pair.template for pair in entry)
    if unknown <= most * read:
        return entry
    share = f"{100 * unknown / read:.3g} %"
    return EncodingProblem(
        "unknown-tokens",
        f"{unknown} of the pair's {read} tokens ({share}) are unknown to the model, --max-unknown allows "
        f"{100 * most:g} %",
    )


def longest_first(first: int, second: int, room: int) -> tuple[int, int]:
    """How many tokens of two texts stay when they are cut to `room` together, the longer one first.

    Source: the behaviour of `truncation="longest_first"` of the tokenizers library, with which a test compares it.
    """
    short, long = min(first, second), max(first, second)
    if first + second <= room:
        return first, second
    long = max(short, room - short)
    if short + long > room:
        short = room // 2
        long = short + room % 2
    return (short, long) if first <= second else (long, short)


def _split_prompt(tokenizer: Tokenizer, prompt: str, where: str) -> tuple[Ids, str]:
    """The ids of a prompt up to its last special token, and the rest of its text, which is tokenised with the query.

    Special tokens of a prompt act, although those in texts do not.
    """
    special = [token.content for token in tokenizer.get_added_tokens_decoder().values() if token.special]
    end = max((prompt.rfind(token) + len(token) for token in special if token in prompt), default=0)
    if end == 0:
        return _NO_IDS, prompt
    lead, rest = tokenizer.encode(prompt[:end], add_special_tokens=False).ids, prompt[end:]
    for text in ("a", " b", "Ä 東京"):
        apart = [*lead, *tokenizer.encode(rest + text, add_special_tokens=False).ids]
        if apart != tokenizer.encode(prompt + text, add_special_tokens=False).ids:
            raise ModelError(
                f"{where}: the prompt {prompt!r} cannot be cut behind its special token",
                hint="`--special-tokens allow` reads prompt and query as one text",
            )
    return np.array(lead, dtype=np.int32), rest


def _prompt_tokens(tokenizer: Tokenizer, prompt: str, max_tokens: int, where: str) -> int:
    """How many tokens at the beginning of a pair belong to the prompt, with the special ones before it.

    Source: sentence-transformers 6.2, Transformer._get_prompt_length: the prompt is tokenised as a text of its own and
    cut to the limit, and a special token behind it does not count. Where its last piece joins with the query's first
    one, the number is still that of the prompt alone, as there.
    """
    if not prompt:
        return 0
    encoding = tokenizer.encode(prompt)
    if not encoding.special_tokens_mask[-1]:
        raise ModelError(
            f"{where}: `include_prompt` of its Pooling is false, and the tokenizer puts no special token behind a text",
            hint='`--instruction ""` scores without a prompt',
        )
    return min(len(encoding.ids), max_tokens) - 1


def acting_special_ids(tokenizer: Tokenizer) -> list[int]:
    """Special tokens that this tokenizer finds in a text although it was told not to look for them."""
    # A character that is in no vocabulary gives the id of the unknown token.
    unknown = tokenizer.encode("\U0010fffd", add_special_tokens=False).ids
    return [
        number
        for number, token in tokenizer.get_added_tokens_decoder().items()
        if token.special
        and number not in unknown
        and number in tokenizer.encode(token.content, add_special_tokens=False).ids
    ]


def _read_template(tokenizer: Tokenizer, where: str, *, bare: bool) -> PairTemplate:
    """What the tokenizer puts around the texts of a pair, checked on pairs of different lengths."""
    encoding = tokenizer.encode("a", "b")
    parts = encoding.sequence_ids
    if 0 not in parts or 1 not in parts:
        raise ModelError(f"{where}: the tokenizer gives no tokens for a plain letter")
    first, second = parts.index(0), parts.index(1)
    after_first, after_second = first + parts.count(0), second + parts.count(1)
    types = encoding.type_ids
    if after_first > second or types != sorted(types) or types[0] != 0 or types[-1] not in (0, 1):
        raise ModelError(f"{where}: pair encoding is not `query passage` with token types 0 and then 1")
    ids = np.array(encoding.ids, dtype=np.int32)
    template = PairTemplate(
        before=ids[:first],
        between=ids[after_first:second],
        after=ids[after_second:],
        first_type_of_between=types[after_first:second].count(0),
        typed=types[-1] == 1,
    )
    if template.size == 0 and not bare:
        raise ModelError(
            f"{where}: the tokenizer puts no special tokens around a pair",
            hint="its post-processor is missing: save it again from the original tokenizer; a language model needs a "
            "prompt: `--template`",
        )
    for query, passage in [
        ("", ""),
        ("a b", ""),
        ("", "a b"),
        ("how many?", "Three, or four."),
        ("Ä 東京 1", "x" * 50),
    ]:
        expected = tokenizer.encode(query, passage)
        one, other = (
            np.array(tokenizer.encode(text, add_special_tokens=False).ids, np.int32) for text in (query, passage)
        )
        (joined,) = template.join([(one, other, 0)])
        types = [int(i >= joined.second_start) for i in range(len(joined.input_ids))]
        if joined.input_ids.tolist() != expected.ids or types != expected.type_ids:
            raise ModelError(f"{where}: the tokenizer encodes a pair otherwise than its two texts one by one")
    return template


@dataclass(frozen=True, slots=True)
class EncodedWindow:
    """A window with the token ids of its distinct pairs.

    encoded: one entry a distinct pair. places: for each pair of the window, in order, its place in `encoded`.
    """

    window: Window
    encoded: list[Encoded]
    places: list[int]
