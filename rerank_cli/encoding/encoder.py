"""Text to token ids, without torch: which encoder and which length limit a checkpoint asks for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, Self, runtime_checkable

from tokenizers import Tokenizer

from rerank_cli.checkpoint import Checkpoint
from rerank_cli.checkpoint.families import family_of
from rerank_cli.checkpoint.max_tokens import model_max_tokens
from rerank_cli.encoding.choices import CHUNK_OVERLAP, ImageLimits, SpecialTokens, Truncation
from rerank_cli.encoding.embedding import EmbeddingEncoder, embedding_prefixes, embedding_prompts, split_pair
from rerank_cli.encoding.images import ImageReader
from rerank_cli.encoding.images.ahead import ImagesAhead
from rerank_cli.encoding.pairs import Encoded, EncodingProblem, PairEncoder
from rerank_cli.encoding.prompt import NEMOTRON, Prompt, PromptEncoder, parse_template
from rerank_cli.encoding.tokenizer import load_tokenizer, read_tokenizer_file
from rerank_cli.encoding.vision import NEMOTRON_RERANK, VisionEncoder, VisionPrompts, check_context_token
from rerank_cli.encoding.vision_config import read_vision_geometry
from rerank_cli.encoding.yes_no import answer_ids, taken_for, yes_no_prompt
from rerank_cli.errors import UsageError
from rerank_cli.records import NO_LIMITS, Limits, Passage

__all__ = [
    "EmbeddingEncoder",
    "Encoded",
    "Encoder",
    "EncodingProblem",
    "ImageLimits",
    "PairEncoder",
    "PromptEncoder",
    "ReadsImages",
    "SpecialTokens",
    "TextEncoder",
    "Truncation",
    "VisionEncoder",
    "answer_ids",
    "encode_pairs",
    "open_encoder",
    "split_pair",
    "taken_for",
]


class Encoder(Protocol):
    """Texts to token ids; one that takes images too is a `ReadsImages`."""

    def encode(self, pairs: Sequence[tuple[str, str]], limits: Limits = NO_LIMITS) -> list[Encoded]:
        """The token ids of each (query, passage), in order; limits: what their request says of them."""


class TextEncoder(Protocol):
    """Encodes pairs of texts for one checkpoint."""

    max_tokens: int

    @property
    def template(self) -> str:
        """What is put around a query and a passage, with `{query}` and `{passage}` in their places."""

    def encode(self, pairs: Sequence[tuple[str, str]], limits: Limits = NO_LIMITS) -> list[Encoded]:
        """The token ids of each (query, passage), in order; limits: what their request says of them."""


@runtime_checkable
class ReadsImages(Protocol):
    """A `TextEncoder` whose passages may be images."""

    @property
    def max_tiles(self) -> int:
        """Parts that an image is cut in at most."""

    @property
    def reason(self) -> str:
        """What said so."""

    @property
    def images(self) -> ImagesAhead:
        """Where its images come from."""

    def with_images(self, images: ImagesAhead) -> Self:
        """The same, with its images from `images`."""

    def encode(self, pairs: Sequence[tuple[str, Passage]], limits: Limits = NO_LIMITS) -> list[Encoded]:
        """The token ids, and tiles, of each (query, passage), in order; limits: what their request says of them."""


def open_encoder(  # noqa: PLR0913 (one argument an option)
    checkpoint: Checkpoint,
    *,
    max_tokens: int,
    truncate: Truncation = "end",
    chunk_overlap: int = CHUNK_OVERLAP,
    special_tokens: SpecialTokens = "neutral",
    instruction: str | None = None,
    template: str | None = None,
    images: ImageLimits | None = None,
) -> TextEncoder:
    """The encoder of a checkpoint; `UsageError` where an option does not fit the model.

    instruction: in place of a yes/no model's own. template: in place of the family's prompt: text with `{query}` and
    `{passage}`, or `none` for the tokenizer's own encoding of a pair.
    """
    limit = model_max_tokens(checkpoint)
    if max_tokens > limit:
        raise UsageError(f"--max-tokens {max_tokens}: {checkpoint.name} reads at most {limit} tokens")
    where = str(checkpoint.tokenizer_file)
    family = family_of(checkpoint.architecture)
    if instruction is not None and (not family.answers or template is not None):
        reason = "--template replaces the whole prompt" if family.answers else f"{checkpoint.name} takes no instruction"
        raise UsageError(f"--instruction: {reason}")
    options: dict[str, Any] = {
        "where": where,
        "max_tokens": max_tokens,
        "truncate": truncate,
        "chunk_overlap": chunk_overlap,
        "special_tokens": special_tokens,
    }
    images = images or ImageLimits()
    if family.embeds:
        if template is not None:
            raise UsageError(
                f"--template: {checkpoint.name} embeds each text by itself, with the prefixes of its files"
            )
        return _open_embedding_encoder(checkpoint, images, **options)
    if family.images:
        if template is not None:
            raise UsageError(f"--template: {checkpoint.name} has two prompts of its own, with and without an image")
        tokenizer = read_tokenizer_file(checkpoint)
        return _open_vision_encoder(checkpoint, tokenizer, NEMOTRON_RERANK, images, **options)
    if images.max_tiles is not None:
        raise UsageError(f"--max-input-tiles: {checkpoint.name} reads no images")
    return _open_text_encoder(checkpoint, instruction, template, **options)


def _open_embedding_encoder(checkpoint: Checkpoint, images: ImageLimits, **options: Any) -> EmbeddingEncoder:
    """options: of `PromptEncoder`."""
    query, passage = embedding_prefixes(checkpoint)
    tokenizer = read_tokenizer_file(checkpoint)
    # The passages first: an image's markers are looked up before special tokens become text.
    passages = _open_vision_encoder(checkpoint, tokenizer, embedding_prompts(passage), images, **options)
    return EmbeddingEncoder(tokenizer, query, passages, **options)


def _open_vision_encoder(
    checkpoint: Checkpoint,
    tokenizer: Tokenizer,
    prompts: VisionPrompts,
    images: ImageLimits,
    *,
    where: str,
    **options: Any,
) -> VisionEncoder:
    """options: of `PromptEncoder`."""
    geometry = read_vision_geometry(checkpoint, max_tiles=images.max_tiles)
    check_context_token(checkpoint, tokenizer, where)
    reader = ImageReader(
        tile_size=geometry.tile_size,
        max_tiles=geometry.max_tiles,
        thumbnail=geometry.thumbnail,
        max_pixels=images.max_pixels,
        rgb_first=prompts.rgb_first,
    )
    return VisionEncoder(tokenizer, prompts, reader, geometry, where=where, **options)


def _open_text_encoder(
    checkpoint: Checkpoint, instruction: str | None, template: str | None, *, where: str, **options: Any
) -> TextEncoder:
    """options: of `PairEncoder` and `PromptEncoder`."""
    family = family_of(checkpoint.architecture)
    if template == "none" and family.answers:
        raise UsageError(f"--template none: {checkpoint.name} answers a prompt")
    if not family.prompted or template == "none":
        if template not in (None, "none"):
            raise UsageError(f"--template: {checkpoint.name} reads query and passage as a pair, without a prompt")
        return PairEncoder(
            load_tokenizer(checkpoint),
            where=where,
            **options,
        )
    # The classes that these checkpoints name (PreTrainedTokenizerFast, Qwen2Tokenizer, GemmaTokenizer) are the file as
    # it is; transformers 5 fails on some of them.
    tokenizer = read_tokenizer_file(checkpoint)
    prompt: Prompt = NEMOTRON
    if template is not None:
        prompt = parse_template(template, tokenizer, wrapped=not family.answers)
    elif family.answers:
        prompt = yes_no_prompt(checkpoint, tokenizer, instruction)
    return PromptEncoder(
        tokenizer,
        prompt,
        where=where,
        **options,
    )


def encode_pairs(
    pairs: Sequence[tuple[str, Passage]], encoder: Encoder | ReadsImages, limits: Limits = NO_LIMITS
) -> list[Encoded]:
    """An image that is given to a model of texts is a problem of its pair, also where there is a text beside it."""
    if isinstance(encoder, ReadsImages):
        return encoder.encode(pairs, limits)
    texts = [(query, passage) for query, passage in pairs if isinstance(passage, str)]
    encoded = iter(encoder.encode(texts, limits))
    unread = EncodingProblem(
        "image-not-read", "the passage has an image, and the model reads text only (`--image-field none` leaves it out)"
    )
    return [next(encoded) if isinstance(passage, str) else unread for _, passage in pairs]
