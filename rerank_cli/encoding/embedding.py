"""Pairs to token ids, for models that embed the query and the passage each by itself.

Both get the prefix that the model was trained with, `query: ` or `passage: `, and the special tokens that the tokenizer
puts around a text. An image follows the passage's prefix, and its text follows the image. An `EncodedPair` holds the
ids of the query, then those of the passage from `second_start` on.

`max_tokens` is the limit of each text, prefix included. They are cut as in `prompt.py` and `vision.py`: the passage's
text from its right, then its image in fewer tiles, the query never; with `reference` either text.

The processor of the Nemotron embedder takes the first `<image>` in a passage as the place of its image, and deletes it
where there is no image. With `special_tokens="allow"` this is done here too; otherwise `<image>` is text.

Source: NVIDIA NeMo AutoModel, llama_nemotron_vl/processor.py (process_queries, process_documents).
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from dataclasses import replace
from typing import Any, Self

import numpy as np
from tokenizers import Tokenizer

from rerank_cli.checkpoint import Checkpoint
from rerank_cli.checkpoint.similarity import declared_prefixes
from rerank_cli.encoding.choices import Truncation
from rerank_cli.encoding.images.ahead import ImagesAhead
from rerank_cli.encoding.pairs import Encoded, EncodingProblem, unless_unread
from rerank_cli.encoding.prompt import IMAGE, Part, Prompt, PromptEncoder, Slot
from rerank_cli.encoding.vision import VisionEncoder, VisionPrompts
from rerank_cli.errors import ModelError
from rerank_cli.records import NO_LIMITS, EncodedPair, Limits, Passage


def embedding_prompts(prefix: str) -> VisionPrompts:
    """The prompts of a passage with this prefix, with an image and without."""
    before: tuple[Part, ...] = ((prefix,),) if prefix else ()
    image = Prompt(parts=(*before, (IMAGE,), (" ", Slot.PASSAGE)), wrapped=True)
    return VisionPrompts(text=_prompt_of_prefix(prefix), image=image, rgb_first=True)


def _prompt_of_prefix(prefix: str) -> Prompt:
    # The text is in the place of a passage, at the end, so that it is cut where it is too long.
    return Prompt(parts=((prefix, Slot.PASSAGE),), wrapped=True)


class EmbeddingEncoder:
    """Encodes pairs for one checkpoint that embeds texts and images; does not use the weights.

    max_unknown: the largest share of unknown tokens in a pair that is scored. tokenizer: for queries. prefix: before a
    query. passages: encodes passages, each with an empty query (`embedding_prompts`). options: of `PromptEncoder`.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        prefix: str,
        passages: VisionEncoder,
        *,
        truncate: Truncation,
        max_unknown: float | None = None,
        **options: Any,
    ) -> None:
        self._passages = passages
        self._max_unknown = max_unknown
        query_truncate: Truncation = "reference" if truncate == "reference" else "error"
        self._queries = PromptEncoder(tokenizer, _prompt_of_prefix(prefix), truncate=query_truncate, **options)
        self.max_tokens = self._queries.max_tokens
        self.max_tiles, self.reason = passages.max_tiles, passages.reason
        self.images = passages.images
        query = self._queries.template.replace(Slot.PASSAGE.value, Slot.QUERY.value)
        self.template = f"{query} | {passages.template}"

    def with_images(self, images: ImagesAhead) -> Self:
        """A copy that takes its images from `images`."""
        other = copy(self)
        other._passages = self._passages.with_images(images)
        other.images = images
        return other

    def encode(self, pairs: Sequence[tuple[str, Passage]], limits: Limits = NO_LIMITS) -> list[Encoded]:
        """The token ids, and tiles, of each (query, passage), in order; each distinct one is encoded once."""
        queries = list(dict.fromkeys(query for query, _ in pairs))
        passages = list(dict.fromkeys(passage for _, passage in pairs))
        query_ids = dict(zip(queries, self._queries.encode([("", query) for query in queries]), strict=True))
        found = self._passages.encode([("", passage) for passage in passages], limits)
        passage_ids = dict(zip(passages, found, strict=True))
        joined = (self._join(query_ids[query], passage_ids[passage]) for query, passage in pairs)
        return [unless_unread(entry, self._max_unknown) for entry in joined]

    def _join(self, query: Encoded, passage: Encoded) -> Encoded:
        if isinstance(query, EncodingProblem):
            return replace(query, code="query-too-long", message=query.message.replace("the pair", "the query"))
        if isinstance(passage, EncodingProblem):  # in the words of a passage without a query
            if passage.code == "query-too-long":  # only an image can be too long to be cut
                return EncodingProblem(
                    "too-long", f"the passage's image has no room in a limit of {self.max_tokens} tokens"
                )
            return replace(passage, message=passage.message.replace("the pair", "the passage"))
        (first,) = query
        before = len(first.input_ids)
        return tuple(
            EncodedPair(
                input_ids=np.concatenate((first.input_ids, piece.input_ids)),
                second_start=before,
                tokens=first.tokens + piece.tokens,
                block=piece.block and replace(piece.block, start=piece.block.start + before),
                template=first.template + piece.template,
                unknown=first.unknown + piece.unknown,
            )
            for piece in passage
        )


def split_pair(pair: EncodedPair) -> tuple[EncodedPair, EncodedPair]:
    """The query and the passage of a pair from an `EmbeddingEncoder`, each as a text by itself."""
    cut = pair.second_start
    query, passage = (
        EncodedPair(input_ids=ids, second_start=len(ids), tokens=len(ids))
        for ids in (pair.input_ids[:cut], pair.input_ids[cut:])
    )
    return query, replace(passage, block=pair.block and replace(pair.block, start=pair.block.start - cut))


def embedding_prefixes(checkpoint: Checkpoint) -> tuple[str, str]:
    """The prefixes of queries and of passages, from prompts by role, processor_config.json or config.json."""
    if (declared := declared_prefixes(checkpoint)) is not None:
        return declared
    sources = (checkpoint.processor_config, checkpoint.config)
    found = []
    for key, default in (("query_prefix", "query:"), ("passage_prefix", "passage:")):
        value = next((source[key] for source in sources if source.get(key) is not None), default)
        if not isinstance(value, str):
            raise ModelError(f"{checkpoint.path}: `{key}` must be text: {value!r}")
        found.append(f"{value} " if value else "")
    return found[0], found[1]
