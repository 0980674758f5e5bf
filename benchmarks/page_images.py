"""Pages a second that a host reads and cuts, here and in processes: what it must have to feed a GPU.

python -m benchmarks.page_images [--pages 40] [--processes 0 1 2 4 8] [--rounds 3]

The pages are drawn: lines of text and a photograph, half of them with the noise of a scanner, 1700 x 2200 pixels, as
PNG and as JPEG of quality 90; each becomes six tiles and a thumbnail of 512 pixels. Every number of processes must give
the same bytes.
"""

from __future__ import annotations

import argparse
import hashlib
import resource
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from benchmarks.material import machine
from rerank_cli.encoding.images import ImageReader
from rerank_cli.encoding.images.ahead import ImagesAhead
from rerank_cli.records import ImageSource

WORDS = ("two", "roads", "diverged", "in", "a", "yellow", "wood", "and", "sorry", "i", "could", "not", "travel", "both")


def draw_pages(folder: Path, count: int) -> dict[str, list[ImageSource]]:
    """The pages of each format."""
    random = np.random.default_rng(0)
    font = ImageFont.load_default(28)
    sources: dict[str, list[ImageSource]] = {"PNG": [], "JPEG": []}
    for number in range(count):
        page = Image.new("RGB", (1700, 2200), "white")
        draw = ImageDraw.Draw(page)
        for top in range(120, 2050, 40):
            draw.text((120, top), " ".join(random.choice(WORDS, 14)), fill=(20, 20, 20), font=font)
        photograph = Image.fromarray(random.integers(0, 255, (150, 250, 3), dtype=np.uint8)).resize((1000, 600))
        page.paste(photograph, (350, int(random.integers(200, 1400))))
        if number % 2:
            noise = random.normal(0, 4, (2200, 1700, 1)).astype(np.int16)
            page = Image.fromarray((np.asarray(page).astype(np.int16) + noise).clip(0, 255).astype(np.uint8))
        for kind, found in sources.items():
            name = f"{number}.{kind.lower()}"
            page.save(folder / name, quality=90)
            found.append(ImageSource(name, str(folder)))
    return sources


def read_pages(sources: list[ImageSource], processes: int) -> tuple[float, str]:
    """Seconds from the first page that is expected to the last one that is cut, and a digest of all tiles."""
    images = ImagesAhead(ImageReader(tile_size=512, max_tiles=6)).ahead(processes)
    digest = hashlib.blake2b()
    spent = 0.0
    try:
        began = time.perf_counter()
        images.expect(sources)
        for source in sources:
            page = images.open(source)
            tiles = images.cut(page, images.reader.grid(page.held))
            paused = time.perf_counter()
            digest.update(tiles.pixels)
            spent -= time.perf_counter() - paused
        spent += time.perf_counter() - began
    finally:
        images.close()
    return spent, digest.hexdigest()


def cpu_seconds() -> float:
    """Of this process and of those that have ended."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pages", type=int, default=40)
    parser.add_argument("--processes", type=int, nargs="+", default=[0, 1, 2, 4, 8])
    parser.add_argument("--rounds", type=int, default=3)
    asked = parser.parse_args()
    print(machine())
    with tempfile.TemporaryDirectory() as folder:
        for kind, sources in draw_pages(Path(folder), asked.pages).items():
            expected = read_pages(sources, 0)[1]
            for processes in asked.processes:
                seconds, cpu = [], []
                for _ in range(asked.rounds):
                    before = cpu_seconds()
                    spent, digest = read_pages(sources, processes)
                    assert digest == expected, "the tiles are others"
                    seconds.append(spent / len(sources))
                    cpu.append((cpu_seconds() - before) / len(sources))
                each = statistics.median(seconds)
                print(
                    f"{kind:5s} {processes} processes: {1000 * each:5.1f} ms a page [{1000 * min(seconds):.1f}.."
                    f"{1000 * max(seconds):.1f}], {1 / each:5.1f} pages/s; {1000 * min(cpu):5.1f} ms of CPU time a page"
                )


if __name__ == "__main__":
    main()
