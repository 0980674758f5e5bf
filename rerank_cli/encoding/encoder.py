"""From text to token ids, without torch: `open_encoder` chooses the encoder that a checkpoint needs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol, Self, runtime_checkable

from tokenizers import Tokenizer

from rerank_cli.checkpoint import Checkpoint
from rerank_cli.checkpoint.families import family_of
from rerank_cli.checkpoint.max_tokens import model_max_tokens
from rerank_cli.checkpoint.similarity import check_embedder
from rerank_cli.encoding.choices import (
    CHUNK_OVERLAP,
    ImageLimits,
    SpecialTokens,
    Truncation,
)
from rerank_cli.encoding.embedding import EmbeddingEncoder, embedding_prefixes, embedding_prompts, split_pair
from rerank_cli.encoding.images import ImageReader
from rerank_cli.encoding.images.ahead import ImagesAhead
from rerank_cli.encoding.pairs import Encoded, EncodingProblem, PairEncoder, PairForm
from rerank_cli.encoding.prompt import NEMOTRON, Prompt, PromptEncoder
from rerank_cli.encoding.recipe_prompts import recipe_prompt
from rerank_cli.encoding.scoring import Scoring, answer_ids, decide_scoring
from rerank_cli.encoding.tokenizer import (
    cuts_left,
    gives_token_types,
    is_panic,
    load_tokenizer,
    unknown_id,
)
from rerank_cli.encoding.vision import NEMOTRON_RERANK, VisionEncoder, VisionPrompts, check_context_token
from rerank_cli.encoding.vision_config import read_vision_geometry
from rerank_cli.encoding.whole_text import TextTemplate, UserTemplate, WholeTextEncoder
from rerank_cli.errors import ModelError, UsageError
from rerank_cli.records import NO_LIMITS, ImagePassage, Limits, Passage

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
    "WholeTextEncoder",
    "answer_ids",
    "decide_scoring",
    "encode_pairs",
    "open_encoder",
    "split_pair",
]

MAX_TEXT_CHARACTERS = 2**20
"""The longest query and the longest passage; a long novel has half as many. While a text is tokenised a character takes
up to 475 bytes (CJK and punctuation, which are a token each): the longest text takes 500 MB at most, mostly 130 MB."""
_REASON_CHARACTERS = 200


class Encoder(Protocol):
    """Texts to token ids; one that takes images too is a `ReadsImages`."""

    def encode(self, pairs: Sequence[tuple[str, str]], limits: Limits = NO_LIMITS) -> list[Encoded]:
        """The token ids of each (query, passage), in order. limits: those of their request."""


class TextEncoder(Encoder, Protocol):
    """Encodes pairs of texts for one checkpoint."""

    max_tokens: int

    @property
    def template(self) -> str:
        """What is put around a query and a passage, with `{query}` and `{passage}` in their places."""


@runtime_checkable
class ReadsImages(Protocol):
    """A `TextEncoder` whose passages may be images.

    max_tiles: the most parts that an image is cut in. reason: what set this number. images: where images come from.
    """

    max_tiles: int
    reason: str
    images: ImagesAhead

    def with_images(self, images: ImagesAhead) -> Self:
        """A copy that takes its images from `images`."""

    def encode(self, pairs: Sequence[tuple[str, Passage]], limits: Limits = NO_LIMITS) -> list[Encoded]:
        """The token ids, and tiles, of each (query, passage), in order. limits: those of their request."""


def open_encoder(  # noqa: PLR0913 (one argument an option)
    checkpoint: Checkpoint,
    *,
    max_tokens: int,
    truncate: Truncation = "end",
    chunk_overlap: int = CHUNK_OVERLAP,
    special_tokens: SpecialTokens = "neutral",
    instruction: str | None = None,
    max_unknown: float | None = None,
    template: str | None = None,
    images: ImageLimits | None = None,
) -> TextEncoder:
    """The encoder of a checkpoint; `UsageError` where an option does not fit the model.

    instruction: replaces the prompt that the checkpoint declares, or that of a yes/no model; an empty one means no
    prompt. max_unknown: the largest share of unknown tokens in a pair that is scored. template: replaces the family's
    prompt: text with `{query}` and `{passage}`, or `none` for the tokenizer's own encoding of a pair.
    """
    limit = model_max_tokens(checkpoint)
    if max_tokens > limit:
        raise UsageError(f"--max-tokens {max_tokens}: {checkpoint.name} reads at most {limit} tokens")
    where = str(checkpoint.tokenizer_file)
    family = family_of(checkpoint.architecture)
    scoring = decide_scoring(checkpoint, instruction=instruction, own_template=template is not None)
    takes = scoring.recipe or scoring.template or checkpoint.declared.prompts or instruction == ""
    if instruction is not None and (not takes or template is not None):
        reason = "--template replaces the whole prompt" if takes else f"{checkpoint.name} takes no instruction"
        raise UsageError(f"--instruction: {reason}")
    options: dict[str, Any] = {
        "where": where,
        "max_tokens": max_tokens,
        "truncate": truncate,
        "chunk_overlap": chunk_overlap,
        "special_tokens": special_tokens,
        "max_unknown": max_unknown,
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
        tokenizer = load_tokenizer(checkpoint, options["special_tokens"])
        options["unknown"] = unknown_id(tokenizer, checkpoint.tokenizer_config)
        return _open_vision_encoder(checkpoint, tokenizer, NEMOTRON_RERANK, images, **options)
    if images.max_tiles is not None:
        raise UsageError(f"--max-input-tiles: {checkpoint.name} reads no images")
    return _open_text_encoder(checkpoint, scoring, instruction, template, **options)


def _refuse_left(checkpoint: Checkpoint, truncate: Truncation) -> None:
    """Refuse a checkpoint whose texts lose their beginning, where its prompt is cut on the right alone.

    Called once the tokenizer is loaded; see `cuts_left`.
    """
    if truncate in ("end", "reference") and cuts_left(checkpoint):
        raise ModelError(
            f"{checkpoint.path}: its tokenizer's `truncation_side` is left, and texts in this model's prompt are cut "
            "on the right alone",
            hint="`--truncate chunk` or `--truncate error` cuts no text",
        )


def _open_embedding_encoder(checkpoint: Checkpoint, images: ImageLimits, **options: Any) -> EmbeddingEncoder:
    """options: of `PromptEncoder`."""
    check_embedder(checkpoint)
    query, passage = embedding_prefixes(checkpoint)
    tokenizer = load_tokenizer(checkpoint, options["special_tokens"])
    options["unknown"] = unknown_id(tokenizer, checkpoint.tokenizer_config)
    # The passages come first: an image's markers are looked up before special tokens become text.
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
    _refuse_left(checkpoint, options["truncate"])
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
    checkpoint: Checkpoint,
    scoring: Scoring,
    instruction: str | None,
    template: str | None,
    *,
    where: str,
    **options: Any,
) -> TextEncoder:
    """options: of `PairEncoder` and `PromptEncoder`."""
    family = family_of(checkpoint.architecture)
    if template == "none" and family.answers:
        raise UsageError(f"--template none: {checkpoint.name} answers a prompt")
    if template not in (None, "none"):
        if not (family.prompted or family.decoder or scoring.template):
            raise UsageError(f"--template: {checkpoint.name} reads query and passage as a pair, without a prompt")
        return _open_whole_text(checkpoint, UserTemplate(template), where=where, wrapped=not family.decoder, **options)
    if scoring.template is not None:
        return _open_whole_text(checkpoint, scoring.template, where=where, **options)
    if scoring.recipe is None and (not family.prompted or family.decoder or template == "none"):
        tokenizer = load_tokenizer(checkpoint, options["special_tokens"])
        prompt_text = (checkpoint.declared.prompt or "") if instruction is None else instruction
        pooling = checkpoint.declared.pooling
        form = PairForm(
            prompt=prompt_text,
            typed=gives_token_types(checkpoint),
            cuts_left=cuts_left(checkpoint),
            unknown=unknown_id(tokenizer, checkpoint.tokenizer_config),
            max_unknown=options.pop("max_unknown"),
            bare=family.decoder and checkpoint.declared.listed,
            unpooled=pooling is not None and pooling.skips_prompt,
        )
        return PairEncoder(tokenizer, where=where, form=form, **options)
    tokenizer = load_tokenizer(checkpoint, options["special_tokens"])
    _refuse_left(checkpoint, options["truncate"])
    prompt: Prompt = NEMOTRON
    if scoring.recipe is not None:
        prompt = recipe_prompt(checkpoint, scoring.recipe, tokenizer, instruction)
    return PromptEncoder(
        tokenizer,
        prompt,
        where=where,
        unknown=unknown_id(tokenizer, checkpoint.tokenizer_config),
        **options,
    )


def _open_whole_text(checkpoint: Checkpoint, template: TextTemplate, *, where: str, **options: Any) -> WholeTextEncoder:
    """options: of `WholeTextEncoder`."""
    tokenizer = load_tokenizer(checkpoint, options["special_tokens"])
    return WholeTextEncoder(
        tokenizer,
        template,
        where=where,
        cuts_left=cuts_left(checkpoint),
        unknown=unknown_id(tokenizer, checkpoint.tokenizer_config),
        **options,
    )


def encode_pairs(
    pairs: Sequence[tuple[str, Passage]], encoder: Encoder | ReadsImages, limits: Limits = NO_LIMITS
) -> list[Encoded]:
    """The token ids of each pair, in order.

    A text that is too long to be tokenised is a problem of its pair. So is an image for a model that reads only text,
    even with a text beside it.
    """
    reads_images = isinstance(encoder, ReadsImages)
    problems: dict[int, EncodingProblem] = {}
    for place, (query, passage) in enumerate(pairs):
        text = passage.text if isinstance(passage, ImagePassage) else passage
        if len(query) > MAX_TEXT_CHARACTERS or len(text) > MAX_TEXT_CHARACTERS:
            name, size = ("query", len(query)) if len(query) > MAX_TEXT_CHARACTERS else ("passage", len(text))
            problems[place] = EncodingProblem(
                "text-too-long", f"the {name} has {size} characters; at most {MAX_TEXT_CHARACTERS} are tokenised"
            )
        elif not reads_images and not isinstance(passage, str):
            problems[place] = EncodingProblem(
                "image-not-read",
                "the passage has an image, and the model reads text only (`--image-field none` leaves it out)",
            )
    if not problems:
        return _encoded(encoder.encode, pairs, limits)
    others = [pair for place, pair in enumerate(pairs) if place not in problems]
    encoded = iter(_encoded(encoder.encode, others, limits))
    return [problems.get(place) or next(encoded) for place in range(len(pairs))]


def _encoded(encode: Callable[[Any, Limits], list[Encoded]], pairs: Sequence[Any], limits: Limits) -> list[Encoded]:
    """What `encode` gives for the pairs; a pair on which the tokenizer itself fails is a problem.

    A regular expression that meets its library's limit on one text panics, and the call fails for all texts: the pairs
    are halved until the bad one is alone.
    """
    try:
        return encode(pairs, limits)
    except BaseException as error:
        # The library fails with a panic, which is not an `Exception`, or with a plain `Exception`.
        if type(error) is not Exception and not is_panic(error):
            raise
        reason = str(error).partition("\n")[0][:_REASON_CHARACTERS]
    if len(pairs) == 1:
        return [EncodingProblem("tokenizer-failed", f"the tokenizer fails on a text of the pair: {reason}")]
    middle = len(pairs) // 2
    return [*_encoded(encode, pairs[:middle], limits), *_encoded(encode, pairs[middle:], limits)]
