"""Images from rows to tiles: what is read, what is refused, and how pixels become tiles."""

from __future__ import annotations

import os
import struct
import threading
import warnings
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from rerank_cli.encoding.images import ImageProblem, ImageReader, TileGrid
from rerank_cli.encoding.images.cut_tiles import cut_tiles
from rerank_cli.encoding.images.decode import open_image
from rerank_cli.records import ImageSource
from tests.unit.images import data_uri, encoded, picture, saved

READER = ImageReader(tile_size=32, max_tiles=6)
SMALL = ImageReader(tile_size=32, max_tiles=6, max_pixels=1000)


def problem_of(value: str | bytes, root: Path | str = ".", reader: ImageReader = READER) -> str:
    """The code of the problem of an image, which is opened and decoded."""
    with pytest.raises(ImageProblem) as caught:
        image = reader.open(ImageSource(value, str(root)))
        reader.cut(image, reader.grid(image))
    assert str(caught.value)
    return caught.value.code


def test_an_image_is_read_from_a_path_a_data_uri_and_bytes(tmp_path: Path) -> None:
    name, data = saved(tmp_path, "a/b.png"), encoded(picture())
    values: list[str | bytes] = [name, str(tmp_path / name), "a/../a/./b.png", data_uri(data), data]
    opened = [READER.open(ImageSource(value, str(tmp_path))) for value in values]
    assert {image.digest for image in opened} == {opened[0].digest}
    assert (opened[0].width, opened[0].height) == (40, 30)


def test_a_link_that_stays_below_the_root_is_followed(tmp_path: Path) -> None:
    saved(tmp_path, "pages/a.png")
    (tmp_path / "link.png").symlink_to("pages/a.png")
    (tmp_path / "folder").symlink_to("pages")
    for name in ("link.png", "folder/a.png"):
        assert READER.open(ImageSource(name, str(tmp_path))).width == 40


def test_paths_that_lead_out_of_the_root_are_refused(tmp_path: Path) -> None:
    root = tmp_path / "root"
    saved(tmp_path, "outside.png")
    saved(root, "inside.png")
    (root / "link.png").symlink_to("../outside.png")
    (root / "folder").symlink_to("..")
    (root / "circle").symlink_to("circle")
    for name in ("../outside.png", str(tmp_path / "outside.png"), "link.png", "folder/outside.png", "/etc/passwd"):
        assert problem_of(name, root) == "image-outside-root"
    assert problem_of("circle", root) in ("image-unreadable", "image-missing")


def test_what_is_not_a_regular_file_is_refused_without_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    found: list[str] = []
    names = ("pipe", "folder", ".")
    reader = threading.Thread(target=lambda: found.extend(problem_of(name, tmp_path) for name in names), daemon=True)
    reader.start()
    reader.join(timeout=20)
    assert found == ["image-not-a-file"] * 3
    assert problem_of("/dev/zero", "/dev") == "image-not-a-file"


@pytest.mark.parametrize(
    ("value", "code"),
    [
        ("nothing.png", "image-missing"),
        ("nothing/below.png", "image-missing"),
        ("nul\0byte.png", "image-unreadable"),
        ("long" * 500, "image-unreadable"),
        ("http://169.254.169.254/latest", "image-url"),
        ("HTTPS://example.org/a.png", "image-url"),
        ("file:///etc/passwd", "image-url"),
        ("data:image/png,rawtext", "bad-data-uri"),
        ("data:", "bad-data-uri"),
        ("data:image/png;base64,@@@@", "bad-data-uri"),
        ("data:image/png;base64,YQ", "bad-data-uri"),
        ("data:image/png;base64,", "not-an-image"),
        (b"", "not-an-image"),
        (b"%PDF-1.7 not an image", "not-an-image"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "not-an-image"),
        (data_uri(b"no image at all"), "not-an-image"),
    ],
)
def test_a_source_that_is_no_image_has_a_reason(value: str | bytes, code: str, tmp_path: Path) -> None:
    assert problem_of(value, tmp_path) == code


def png_header(width: int, height: int, depth: int = 8, kind: int = 2) -> bytes:
    """A PNG that claims a size and holds no pixels."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    head = struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"\0" * 10)) + chunk(b"IEND", b"")


def frames(format: str) -> bytes:
    return encoded(picture(), format, save_all=True, append_images=[picture(mode="L").convert("RGB")])


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (png_header(20_000, 20_000), "image-too-large"),
        (png_header(9_000, 9_000), "image-too-large"),
        (png_header(6_400, 6_400), "image-too-large"),
        (png_header(0, 10), "not-an-image"),
        (png_header(100, 100), "bad-image"),
        (encoded(picture(400, 300))[:-900], "bad-image"),
        (encoded(picture(400, 300), "JPEG")[:2000], "bad-image"),
        (encoded(picture(400, 300), "JPEG")[:20], "not-an-image"),
        (encoded(picture(400, 300), "WEBP")[:-300], "bad-image"),
        (encoded(picture(), "PNG").replace(b"IDAT", b"IDAX", 1), "not-an-image"),
        (frames("GIF"), "animated-image"),
        (frames("WEBP"), "animated-image"),
        (frames("PNG"), "animated-image"),
        (encoded(Image.new("I;16", (9, 9))), "image-mode"),
        (encoded(picture(), "TIFF"), "not-an-image"),
        (encoded(picture(), "BMP"), "not-an-image"),
        (encoded(picture(), "PDF"), "not-an-image"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_file_that_will_not_be_scored_has_a_reason(data: bytes, code: str) -> None:
    assert problem_of(data) == code


def test_the_limit_is_of_pixels_and_of_the_bytes_that_so_many_pixels_can_have() -> None:
    assert SMALL.open(ImageSource(encoded(picture(40, 25)))).width == 40
    assert problem_of(encoded(picture(40, 26)), reader=SMALL) == "image-too-large"
    padded = encoded(picture(4, 4)) + b"\0" * (2**20 + 4000)
    assert problem_of(padded, reader=SMALL) == "image-too-large"
    assert problem_of(data_uri(padded), reader=SMALL) == "image-too-large"


def test_a_file_beyond_the_limit_is_not_read_to_its_end(tmp_path: Path) -> None:
    with (tmp_path / "huge.png").open("wb") as stream:
        stream.truncate(2**40)  # sparse
    assert problem_of("huge.png", tmp_path, SMALL) == "image-too-large"


@given(st.binary(max_size=200), st.integers(0, 400), st.sampled_from(["PNG", "JPEG", "WEBP", "GIF"]))
def test_a_damaged_file_is_an_image_or_has_a_reason(junk: bytes, place: int, format: str) -> None:
    whole = encoded(picture(), format)
    data = whole[:place] + junk + whole[place + len(junk) :]
    try:
        image = READER.open(ImageSource(data))
        assert len(READER.cut(image, READER.grid(image))) >= 1
    except ImageProblem as problem:
        assert problem.code in ("not-an-image", "bad-image", "image-too-large", "animated-image", "image-mode")


# Tiles


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK", "P", "1", "RGBA", "LA"])
def test_tiles_are_cut_in_the_mode_of_the_file_and_made_rgb_one_by_one(mode: str) -> None:
    image = picture(77, 60, mode)
    tiles = cut_tiles(image.copy(), TileGrid(2, 1), tile_size=32).pixels
    whole = image.resize((64, 32))
    expected = [whole.crop((0, 0, 32, 32)), whole.crop((32, 0, 64, 32)), image.resize((32, 32))]
    assert tiles.dtype == np.uint8
    assert tiles.shape == (3, 32, 32, 3)
    for tile, part in zip(tiles, expected, strict=True):
        assert np.array_equal(tile, np.asarray(part.convert("RGB")))


def test_an_image_of_the_size_of_its_grid_keeps_its_pixels() -> None:
    image = picture(64, 96)
    tiles = cut_tiles(image, TileGrid(2, 3), tile_size=32).pixels
    rows = [np.concatenate(tiles[place : place + 2], axis=1) for place in (0, 2, 4)]
    assert np.array_equal(np.concatenate(rows), np.asarray(picture(64, 96)))
    assert len(tiles) == 7


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK", "P", "1", "RGBA", "LA"])
def test_an_image_may_be_made_rgb_before_it_is_cut(mode: str) -> None:
    image = picture(70, 40, mode)
    if mode in ("RGBA", "LA"):
        image.putalpha(picture(70, 40, "L"))
    grid = TileGrid(2, 1)
    found = cut_tiles(image.copy(), grid, tile_size=32, rgb_first=True).pixels
    assert np.array_equal(found, cut_tiles(image.convert("RGB"), grid, tile_size=32).pixels)
    in_its_mode = cut_tiles(image.copy(), grid, tile_size=32).pixels
    assert np.array_equal(found, in_its_mode) == (mode in ("RGB", "L", "CMYK"))


def test_a_palette_with_transparent_colours_is_scored_by_its_colours_and_says_nothing() -> None:
    plain = picture(64, 64).quantize(16)
    data = encoded(plain, transparency=bytes(range(16)))
    image = READER.open(ImageSource(data))
    with warnings.catch_warnings(record=True) as said:
        tiles = READER.cut(image, READER.grid(image))
    assert said == []
    assert np.array_equal(tiles.pixels, cut_tiles(plain, READER.grid(image), tile_size=32).pixels)


def test_the_orientation_in_exif_is_not_applied() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = READER.open(ImageSource(encoded(picture(64, 32), exif=exif)))
    assert (turned.width, turned.height) == (64, 32)
    assert np.array_equal(
        READER.cut(turned, TileGrid(2, 1)).pixels, cut_tiles(picture(64, 32), TileGrid(2, 1), tile_size=32).pixels
    )


def test_the_first_of_the_pictures_of_a_camera_is_the_image() -> None:
    data = encoded(picture(64, 32), "MPO", save_all=True, append_images=[picture(8, 4)])
    assert (open_image(data, max_pixels=10_000).width, READER.open(ImageSource(data)).height) == (64, 32)


def test_a_single_frame_of_gif_is_an_image() -> None:
    image = READER.open(ImageSource(encoded(picture(), "GIF")))
    assert len(READER.cut(image, READER.grid(image))) >= 1


def test_the_readers_grid_has_its_limits() -> None:
    image: Any = READER.open(ImageSource(encoded(picture(400, 300))))
    assert READER.grid(image).cols * READER.grid(image).rows <= 6
    assert READER.grid(image, max_tiles=1) == TileGrid(1, 1)
    assert ImageReader(tile_size=32, max_tiles=6, thumbnail=False).grid(image).thumbnail is False
