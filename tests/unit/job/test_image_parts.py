"""A window with many images goes in parts: each image is read once, and everything comes back in its place."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rerank_cli.checkpoint import read_checkpoint
from rerank_cli.encoding.encoder import Encoded, EncodingProblem, ImageLimits, open_encoder
from rerank_cli.encoding.images import ImageReader
from rerank_cli.encoding.images.ahead import ImagesAhead
from rerank_cli.encoding.pairs import EncodedWindow
from rerank_cli.job.image_parts import encode_parts
from rerank_cli.job.ranking import ScoredPart, image_counts, join_parts, without_pixels
from rerank_cli.job.scoring_loop import Ahead, expect_images, one_ahead
from rerank_cli.records import CandidateList, EncodedPair, ImageBlock, ImagePassage, ImageSource, Passage, Tiles, Window
from tests.conftest import json_row
from tests.unit.images import saved

CHECKPOINT = Path(__file__).parents[2] / "parity" / "nemotron-vl-rerank-open" / "checkpoint"
IMAGES = 40  # more than two parts hold


class PictureEncoder:
    """Satisfies `ReadsImages`: an image's one tile holds the number that is its name; `bad` is a problem.

    calls: the images of each call, in order.
    """

    max_tiles = 1
    reason = "there is no other way"

    def __init__(self) -> None:
        self.calls: list[list[str | bytes]] = []
        self.images = ImagesAhead(ImageReader(tile_size=2, max_tiles=1))

    def with_images(self, images: ImagesAhead) -> PictureEncoder:
        raise NotImplementedError

    def encode(self, pairs: Sequence[tuple[str, Passage]], limits: object = None) -> list[Encoded]:
        tiles: dict[ImageSource, Tiles] = {}
        found: list[Encoded] = []
        for query, passage in pairs:
            ids = np.array([len(query)], dtype=np.int32)
            if isinstance(passage, str):
                found.append((EncodedPair(ids, 1, 1),))
            elif passage.image.value == "bad":
                found.append(EncodingProblem("bad-image", "no image"))
            else:
                number = np.full((1, 2, 2, 3), int(passage.image.value), dtype=np.uint8)
                image = tiles.setdefault(passage.image, Tiles(number))
                found.append((EncodedPair(ids, 1, 1, ImageBlock(0, 1, tiles=1, full_tiles=1, image=image)),))
        named = [passage.image.value for _, passage in pairs if isinstance(passage, ImagePassage)]
        self.calls.append(list(dict.fromkeys(named)))
        return found


def page(name: object, text: str = "") -> ImagePassage:
    return ImagePassage(text, ImageSource(str(name)))


def window_of(*lists: tuple[str, list[Passage]]) -> Window:
    found = tuple(CandidateList(query, tuple(passages), (json_row({}),)) for query, passages in lists)
    return Window(number=0, lists=found, errors=(), rows=len(found), blank=0)


WINDOW = window_of(
    ("q", ["a text", *(page(number) for number in range(IMAGES)), page("bad")]),
    ("longer", [page(number, "with text") for number in reversed(range(IMAGES))] + [page(3, "with text"), "a text"]),
)


def logit_of(entry: Encoded) -> float:
    """What the test's model gives: the image's number and the query's length; -1 for a text, NaN for a problem."""
    if isinstance(entry, EncodingProblem):
        return float("nan")
    (pair,) = entry
    if pair.block is None:
        return -1.0
    assert pair.block.image is not None
    return int(pair.block.image.pixels[0, 0, 0, 0]) + 100 * int(pair.input_ids[0])


def scored(encoder: PictureEncoder) -> tuple[EncodedWindow, list[float]]:
    done = []
    for part in encode_parts(WINDOW, encoder):
        logits = np.array([logit_of(entry) for entry in part.encoded], dtype=np.float32)
        done.append(ScoredPart(part.members, [without_pixels(entry) for entry in part.encoded], logits, {}))
        if part.places is not None:
            whole, together = join_parts(part.window, done, part.places)
    return whole, together.tolist()


def test_a_window_is_cut_in_parts_of_sixteen_images_and_each_is_in_one() -> None:
    encoder = PictureEncoder()
    parts = list(encode_parts(WINDOW, encoder))
    assert [part.places is None for part in parts] == [True, True, False]
    assert max(len(call) for call in encoder.calls) <= 16
    named = [name for call in encoder.calls for name in call]
    assert sorted(named) == sorted([*map(str, range(IMAGES)), "bad"])
    members = [place for part in parts for place in part.members]
    assert sorted(members) == list(range(len(members)))


def test_every_pair_has_its_own_logit_again() -> None:
    whole, logits = scored(PictureEncoder())
    found = [logits[place] for place in whole.places]
    first, second = found[: IMAGES + 2], found[IMAGES + 2 :]
    assert first[:-1] == [-1.0, *(100 + number for number in range(IMAGES))]
    assert np.isnan(first[-1])
    assert second == [*(600 + number for number in reversed(range(IMAGES))), 603, -1.0]


def test_no_pixels_are_kept_of_parts_that_are_scored() -> None:
    whole, _ = scored(PictureEncoder())
    blocks = [entry[0].block for entry in whole.encoded if isinstance(entry, tuple) and entry[0].block]
    assert len(blocks) == 2 * IMAGES
    assert all(block.image is None for block in blocks)


def test_an_image_of_many_pairs_counts_once() -> None:
    counts = [image_counts(part.encoded) for part in encode_parts(WINDOW, PictureEncoder())]
    total = {name: sum(one[name] for one in counts) for name in counts[0]}
    assert total == {"images": IMAGES, "tiles": IMAGES, "image_tokens": 2 * IMAGES}


def test_a_window_without_pairs_is_one_part() -> None:
    (part,) = encode_parts(window_of(("q", [])), PictureEncoder())
    assert (part.encoded, part.members, part.places) == ([], [], [])


class Expected(ImagesAhead):
    """Keeps what is expected of it. expected: the images, in order."""

    def __init__(self) -> None:
        super().__init__(ImageReader(tile_size=2, max_tiles=1))
        self.expected: list[str | bytes] = []

    def expect(self, sources: Sequence[ImageSource]) -> None:
        self.expected += [source.value for source in sources]


def test_images_are_expected_in_the_order_in_which_they_are_asked_for() -> None:
    encoder = PictureEncoder()
    encoder.images = expected = Expected()
    expect_images(WINDOW, encoder.images)
    list(encode_parts(WINDOW, encoder))
    assert expected.expected == [name for call in encoder.calls for name in call]


def test_the_images_of_the_next_window_are_expected_before_its_turn() -> None:
    windows = [window_of(("q", [page(number)])) for number in range(4)]
    encoder = PictureEncoder()
    encoder.images = expected = Expected()

    def input_() -> Iterator[Window]:
        yield from windows
        raise OSError("the disk")

    ahead = Ahead(input_(), name="read")
    came: list[Window] = []
    with pytest.raises(OSError, match="the disk"):  # after all windows before it
        for window in one_ahead(ahead, encoder.images):
            came.append(window)
            while not ahead.is_ready:
                time.sleep(0.01)
            assert expected.expected == [str(number) for number in range(len(expected.expected))]
            assert len(expected.expected) in (len(came), len(came) + 1)
    assert came == windows
    assert len(expected.expected) == len(windows)


@pytest.mark.parametrize("count", [16, 17])
def test_files_are_read_and_cut_in_the_part_they_belong_to(count: int, tmp_path: Path) -> None:
    colours = [(10 * number, 0, 0) for number in range(count)]
    names = [saved(tmp_path, f"{colour[0]}.png", Image.new("RGB", (20, 30), colour)) for colour in colours]
    encoder = open_encoder(read_checkpoint(CHECKPOINT), max_tokens=600, images=ImageLimits(max_tiles=1))
    passages: list[Passage] = [ImagePassage("", ImageSource(name, str(tmp_path))) for name in names]
    parts = list(encode_parts(window_of(("q", passages)), encoder))
    assert [len(part.encoded) for part in parts] == [16, *[count - 16] * (count > 16)]
    blocks = [entry[0].block for part in parts for entry in part.encoded if isinstance(entry, tuple)]
    assert [tuple(block.image.pixels[0, 0, 0]) for block in blocks if block and block.image] == colours
