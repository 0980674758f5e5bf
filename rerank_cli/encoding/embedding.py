"""Pairs of texts to token ids, for models that embed the query and the passage each by itself.

The two texts get the prefixes that the model was trained with, `query: ` and `passage: `, and the special tokens that
the tokenizer puts around a text. In an `EncodedPair` their ids stand one behind the other; the passage's begin at
`second_start`.

`max_tokens` holds for each text, prefix included. What is cut, and when, is as in `prompt.py`: the passage from its
right, the query never; in `reference` either of them.

The processor of the Nemotron embedder takes the first `<image>` in a passage for the place of its image, and deletes it
where there is no image. With `special_tokens="allow"` this is done here too; otherwise `<image>` is text.

Source: NVIDIA NeMo AutoModel, llama_nemotron_vl/processor.py (process_queries, process_documents).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from tokenizers import Tokenizer

from rerank_cli.checkpoint import Checkpoint
from rerank_cli.encoding.pairs import Encoded, EncodingProblem, SpecialTokens, Truncation
from rerank_cli.encoding.prompt import Prompt, PromptEncoder, Slot
from rerank_cli.errors import ModelError
from rerank_cli.records import NO_LIMITS, EncodedPair, Limits

EMBEDDING_ARCHITECTURES = frozenset({"LlamaNemotronVLModel"})
"""Models that turn a text into a vector; their score is the cosine of two."""

_IMAGE_MARK = "<image>"


class EmbeddingEncoder:
    """Encodes pairs for one checkpoint that embeds texts; makes no use of the weights.

    prefixes: what stands before a query and before a passage. max_tokens: the longest text after truncation, prefix
    included. where: names the tokenizer in messages.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        prefixes: tuple[str, str],
        *,
        where: str,
        max_tokens: int,
        truncate: Truncation = "end",
        chunk_overlap: int = 64,
        special_tokens: SpecialTokens = "neutral",
    ) -> None:
        self.max_tokens = max_tokens
        self._prefixes = prefixes
        self._marks_act = special_tokens == "allow"
        query_truncate: Truncation = "reference" if truncate == "reference" else "error"
        # A text stands where a passage stands in a prompt: at the end, so that it is what is cut.
        self._queries, self._passages = (
            PromptEncoder(
                tokenizer,
                Prompt(parts=((prefix, Slot.PASSAGE),), wrapped=True),
                where=where,
                max_tokens=max_tokens,
                truncate=mode,
                chunk_overlap=chunk_overlap,
                special_tokens=special_tokens,
            )
            for prefix, mode in zip(prefixes, (query_truncate, truncate), strict=True)
        )

    @property
    def template(self) -> str:
        """What is put before a query, and before a passage."""
        query, passage = self._prefixes
        return f"{query}{{query}} | {passage}{{passage}}"

    def encode(self, pairs: Sequence[tuple[str, str]], limits: Limits = NO_LIMITS) -> list[Encoded]:
        """The token ids of each (query, passage), in order; each distinct text is tokenised once."""
        queries, passages = ([pair[side] for pair in pairs] for side in (0, 1))
        query_ids = _encode_distinct(self._queries, queries, NO_LIMITS)
        if self._marks_act:
            passages = [passage.replace(_IMAGE_MARK, "", 1) for passage in passages]
        passage_ids = _encode_distinct(self._passages, passages, limits)
        return [self._join(query_ids[query], passage_ids[text]) for query, text in zip(queries, passages, strict=True)]

    def _join(self, query: Encoded, passage: Encoded) -> Encoded:
        if isinstance(query, EncodingProblem):
            return replace(query, code="query-too-long", message=query.message.replace("the pair", "the query"))
        if isinstance(passage, EncodingProblem):
            return replace(passage, message=passage.message.replace("the pair", "the passage"))
        (first,) = query
        return tuple(
            EncodedPair(
                input_ids=np.concatenate((first.input_ids, piece.input_ids)),
                second_start=len(first.input_ids),
                tokens=first.tokens + piece.tokens,
            )
            for piece in passage
        )


def split_pair(pair: EncodedPair) -> tuple[EncodedPair, EncodedPair]:
    """The query and the passage of a pair that an `EmbeddingEncoder` made, each as a text by itself."""
    parts = pair.input_ids[: pair.second_start], pair.input_ids[pair.second_start :]
    query, passage = (EncodedPair(input_ids=ids, second_start=len(ids), tokens=len(ids)) for ids in parts)
    return query, passage


def embedding_prefixes(checkpoint: Checkpoint) -> tuple[str, str]:
    """What the checkpoint puts before a query and before a passage, from its processor_config.json or config.json."""
    sources = (checkpoint.read_json("processor_config.json"), checkpoint.config)
    found = []
    for key, default in (("query_prefix", "query:"), ("passage_prefix", "passage:")):
        value = next((source[key] for source in sources if source.get(key) is not None), default)
        if not isinstance(value, str):
            raise ModelError(f"{checkpoint.path}: `{key}` must be text: {value!r}")
        found.append(f"{value} " if value else "")
    return found[0], found[1]


def _encode_distinct(encoder: PromptEncoder, texts: Sequence[str], limits: Limits) -> dict[str, Encoded]:
    distinct = list(dict.fromkeys(texts))
    return dict(zip(distinct, encoder.encode([("", text) for text in distinct], limits), strict=True))
