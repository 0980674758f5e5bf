"""Pairs whose passage may be an image, to token ids and tiles, for the Llama-Nemotron VL models.

A text is read in one prompt, an image (with text or without) in another one that has a place for it. At that place are
`<img>`, one `<IMG_CONTEXT>` for each vision vector, and `</img>`; the vectors replace the embeddings of the tokens
between. These tokens are known by their place, never by their id, so no text can move an image (`ImageBlock`).

**Long pairs.** The passage's text is cut as `prompt.py` says, if need be to nothing. If query, template and image alone
are too long, the image is cut in fewer tiles until they fit, and the pair says so (`ImageBlock.full_tiles`). With
`--truncate error` such a pair is a bad one; with `reference` too, if the cut would go through the image, as the
reference code then gives the next image wrong vectors.

**Markers written in a text are text.** `<img>`, `<IMG_CONTEXT>` and `<image>` in a query or passage say nothing about
images. With `--special-tokens allow` they act as in the reference code: the first `<image>` of a pair without an image
disappears, and `<IMG_CONTEXT>` has its own embedding. Beside an image it would take one of the image's vectors, so such
a pair cannot be scored.

Source: the published processor of llama-nemotron-rerank-vl-1b-v2 (its prompt template `v1`), whose ids the tests
compare.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
from tokenizers import Tokenizer

from rerank_cli.checkpoint import Checkpoint
from rerank_cli.encoding.images import ImageProblem, ImageReader, TileGrid
from rerank_cli.encoding.images.ahead import ImagesAhead, Page
from rerank_cli.encoding.pairs import Encoded, EncodingProblem, Ids, unless_unread
from rerank_cli.encoding.prompt import IMAGE, NEMOTRON, Prompt, PromptEncoder, Slot
from rerank_cli.encoding.vision_config import VisionGeometry
from rerank_cli.errors import ModelError
from rerank_cli.records import NO_LIMITS, EncodedPair, ImageBlock, ImagePassage, ImageSource, Limits, Passage, Tiles

_PLACEHOLDER = "<image>"  # what the reference code looks for in the prompt
_FRAME = 2  # tokens around those of an image's tiles


@dataclass(frozen=True, slots=True)
class VisionPrompts:
    """How a model reads a text, and an image with or without text.

    rgb_first: its processor makes an image RGB before it cuts it (`images/cut_tiles.py`).
    """

    text: Prompt
    image: Prompt
    rgb_first: bool = False


NEMOTRON_RERANK = VisionPrompts(
    text=NEMOTRON,
    image=Prompt(parts=((IMAGE,), (" question:", Slot.QUERY, " \n \n passage:", Slot.PASSAGE)), wrapped=True),
)
"""The rerankers' prompts (`prompt_template` v1)."""


class VisionEncoder:
    """Encodes pairs for one checkpoint that reads images; satisfies `TextEncoder` and `ReadsImages`.

    max_unknown: the largest share of unknown tokens in a pair that is scored. options: of `PromptEncoder`.
    """

    def __init__(  # noqa: PLR0913 (one argument an option)
        self,
        tokenizer: Tokenizer,
        prompts: VisionPrompts,
        reader: ImageReader,
        geometry: VisionGeometry,
        *,
        special_tokens: str,
        truncate: str,
        where: str,
        max_unknown: float | None = None,
        **options: Any,
    ) -> None:
        # Each marker of an image is one token, and the parts of the prompt can be tokenised one by one.
        markers = tokenizer.encode(IMAGE, add_special_tokens=False).tokens
        if "".join(markers) != IMAGE or len(markers) != 3:
            raise ModelError(f"{where}: `{IMAGE}` must be three tokens, it is {markers}")
        parts = [
            "".join(piece if isinstance(piece, str) else piece.value for piece in part) for part in prompts.image.parts
        ]
        apart = [number for part in parts for number in tokenizer.encode(part, add_special_tokens=False).ids]
        if apart != tokenizer.encode("".join(parts), add_special_tokens=False).ids:
            raise ModelError(f"{where}: the text beside an image is tokenised otherwise than by itself")
        # The image's prompt comes first: its markers are looked up before special tokens become text.
        options |= {"special_tokens": special_tokens, "truncate": truncate, "where": where}
        self._image = PromptEncoder(tokenizer, prompts.image, **options)
        self._text = PromptEncoder(tokenizer, prompts.text, **options)
        self._tokens_per_tile = geometry.tokens_per_tile
        self.template = f"{self._text.template} | {self._image.template}"
        self.max_tiles, self.reason = reader.max_tiles, geometry.max_tiles_reason
        self._as_reference = truncate == "reference"
        self._fewer_tiles = truncate in ("end", "chunk")
        self._max_unknown = max_unknown
        self._acts = special_tokens == "allow"
        self.max_tokens = self._text.max_tokens
        room = (self._image.image_room - _FRAME) // self._tokens_per_tile
        self.images = ImagesAhead(reader, squares=max(1, room) if self._fewer_tiles else None)

    def with_images(self, images: ImagesAhead) -> Self:
        """A copy that takes its images from `images`."""
        other = copy(self)
        other.images = images
        return other

    def encode(self, pairs: Sequence[tuple[str, Passage]], limits: Limits = NO_LIMITS) -> list[Encoded]:
        """The token ids of each (query, passage), in order; images are read, and each is cut once in each grid."""
        encoded: dict[int, Encoded] = {}
        texts = [(place, query, passage) for place, (query, passage) in enumerate(pairs) if isinstance(passage, str)]
        found = self._text.encode([self._without_placeholder(query, passage) for _, query, passage in texts], limits)
        encoded.update(zip((place for place, _, _ in texts), found, strict=True))
        images = [
            (place, query, passage) for place, (query, passage) in enumerate(pairs) if isinstance(passage, ImagePassage)
        ]
        found = self._encode_images([(query, passage) for _, query, passage in images], limits)
        encoded.update(zip((place for place, _, _ in images), found, strict=True))
        return [unless_unread(encoded[place], self._max_unknown) for place in range(len(pairs))]

    def _without_placeholder(self, query: str, passage: str) -> tuple[str, str]:
        if not self._acts:
            return query, passage
        if _PLACEHOLDER in query:
            return query.replace(_PLACEHOLDER, "", 1), passage
        return query, passage.replace(_PLACEHOLDER, "", 1)

    def _encode_images(self, pairs: Sequence[tuple[str, ImagePassage]], limits: Limits) -> list[Encoded]:
        album = _Album(self.images)
        results: dict[int, Encoded] = {}
        opened: list[tuple[int, Page]] = []
        for place, (_, passage) in enumerate(pairs):
            page = album.open(passage.image)
            if isinstance(page, EncodingProblem):
                results[place] = page
            else:
                opened.append((place, page))
        grids = [self.images.reader.grid(page.held) for _, page in opened]
        texts = [(pairs[place][0], pairs[place][1].text) for place, _ in opened]
        found = self._image.encode(texts, limits, images=[self._ids_of_image(grid) for grid in grids])
        fitting = [
            self._fitting(page, text, grid, entry, limits)
            for (_, page), grid, text, entry in zip(opened, grids, texts, found, strict=True)
        ]
        for (_, page), (entry, grid) in zip(opened, fitting, strict=True):
            if not isinstance(entry, EncodingProblem):
                album.want(page, grid)
        for (place, page), (entry, grid), full in zip(opened, fitting, grids, strict=True):
            if isinstance(entry, EncodingProblem):
                results[place] = entry
            else:
                results[place] = self._with_tiles(album, page, entry, grid, full=full)
        return [results[place] for place in range(len(pairs))]

    def _ids_of_image(self, grid: TileGrid) -> Ids:
        """The ids of an image in a grid."""
        first, context, last = self._image.image_ids.tolist()
        return np.array([first, *[context] * (grid.tiles * self._tokens_per_tile), last], dtype=np.int32)

    def _fitting(
        self, page: Page, text: tuple[str, str], grid: TileGrid, entry: Encoded, limits: Limits
    ) -> tuple[Encoded, TileGrid]:
        """`entry`, or that of the next smaller grid in which the pair has room for its query.

        A problem where a text of the pair holds the token that an image's vectors replace.
        """
        if self._as_reference and len(self._ids_of_image(grid)) > self._image.image_room:
            message = (
                f"the image has {len(self._ids_of_image(grid))} tokens; truncation to {self.max_tokens} would cut it"
            )
            return EncodingProblem("image-cut", message), grid
        if isinstance(entry, EncodingProblem) and self._fewer_tiles and not limits.whole:
            for grid in self.images.reader.smaller_grids(page.held):
                (entry,) = self._image.encode([text], limits, images=[self._ids_of_image(grid)])
                if not isinstance(entry, EncodingProblem):
                    break
        block = self._ids_of_image(grid)
        if not isinstance(entry, EncodingProblem) and any(
            np.count_nonzero(pair.input_ids == block[1]) != len(block) - _FRAME for pair in entry
        ):
            message = "query or passage hold the token that stands for an image's parts, beside an image"
            return EncodingProblem("image-token-in-text", message), grid
        return entry, grid

    def _with_tiles(
        self, album: _Album, page: Page, entry: tuple[EncodedPair, ...], grid: TileGrid, *, full: TileGrid
    ) -> Encoded:
        tiles = album.cut(page, grid)
        if isinstance(tiles, EncodingProblem):
            return tiles
        start, length = self._image.image_start + 1, grid.tiles * self._tokens_per_tile
        digest = f"{grid.cols}x{grid.rows} ".encode() + page.held.digest
        place = ImageBlock(start, length, tiles=grid.tiles, full_tiles=full.tiles, image=tiles, digest=digest)
        more = (full.tiles - grid.tiles) * self._tokens_per_tile
        return tuple(replace(pair, block=place, tokens=pair.tokens + more) for pair in entry)


class _Album:
    """The images of one call: each file is opened once, and each distinct image cut once in each grid."""

    def __init__(self, images: ImagesAhead) -> None:
        self._images = images
        self._opened: dict[ImageSource, Page | EncodingProblem] = {}
        self._wanted: dict[tuple[bytes, TileGrid], Page] = {}
        self._cut: dict[tuple[bytes, TileGrid], Tiles | EncodingProblem] = {}

    def open(self, source: ImageSource) -> Page | EncodingProblem:
        """The image of a source, or why there is none."""
        if source not in self._opened:
            try:
                self._opened[source] = self._images.open(source)
            except ImageProblem as problem:
                self._opened[source] = EncodingProblem(problem.code, str(problem))
        return self._opened[source]

    def want(self, page: Page, grid: TileGrid) -> None:
        """Say that the image will be cut in this grid."""
        key = page.held.digest, grid
        if key not in self._wanted:
            self._wanted[key] = page
            self._images.want(page, grid)

    def cut(self, page: Page, grid: TileGrid) -> Tiles | EncodingProblem:
        """The tiles of an image in a grid that was wanted, or why it has none."""
        key = page.held.digest, grid
        if key not in self._cut:
            try:
                self._cut[key] = self._images.cut(self._wanted[key], grid)
            except ImageProblem as problem:
                self._cut[key] = EncodingProblem(problem.code, str(problem))
        return self._cut[key]


def check_context_token(checkpoint: Checkpoint, tokenizer: Tokenizer, where: str) -> None:
    """Refuse a tokenizer whose token for an image's vectors is not the one that config.json names."""
    token = IMAGE[IMAGE.index(">") + 1 : IMAGE.rindex("<")]
    named, found = checkpoint.integer("img_context_token_id"), tokenizer.token_to_id(token)
    if named != found:
        raise ModelError(
            f"{checkpoint.path / 'config.json'}: `img_context_token_id` is {named}, in {where} `{token}` is {found}",
            hint="tokenizer and weights are of different models",
        )
