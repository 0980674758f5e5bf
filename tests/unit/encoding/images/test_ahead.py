"""Images in processes of their own: real ones, that are killed, stopped and starved."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rerank_cli.encoding.images import ImageProblem, ImageReader, TileGrid
from rerank_cli.encoding.images.ahead import ImagesAhead, Page
from rerank_cli.encoding.images.reader_pool import ImagePool
from rerank_cli.errors import EngineError
from rerank_cli.records import ImageSource
from tests.processes import alive, left_by, wait_until
from tests.unit.images import data_uri, encoded, hurt_readers, picture, readers_of, saved

READER = ImageReader(tile_size=32, max_tiles=6, max_pixels=200_000)

Hurt = Callable[..., None]


@pytest.fixture
def hurt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hurt:
    """See `hurt_readers`."""
    return lambda *what, **more: monkeypatch.setenv("PYTHONPATH", hurt_readers(tmp_path / "hurt", *what, **more))


@pytest.fixture
def pages(tmp_path: Path) -> list[ImageSource]:
    """Thirty images, all different."""
    root = tmp_path / "pages"
    return [ImageSource(saved(root, f"{n:02}.png", picture(40 + n, 90 - n)), str(root)) for n in range(30)]


Opens = Callable[..., ImagesAhead]


@pytest.fixture
def opened() -> Iterator[Opens]:
    """`ImagesAhead.ahead`; what it returns is closed."""
    made: list[ImagesAhead] = []

    def make(processes: int, on_note: Callable[[str], None] | None = None) -> ImagesAhead:
        made.append(ImagesAhead(READER).ahead(processes, on_note))
        return made[-1]

    yield make
    for images in made:
        images.close()
    assert readers_of(os.getpid()) == []


@pytest.fixture
def pools() -> Iterator[Callable[..., ImagePool]]:
    """Pools with some processes, which are closed."""
    made: list[ImagePool] = []

    def make(processes: int, reader: ImageReader = READER, **options: object) -> ImagePool:
        made.append(ImagePool(reader, **options))
        made[-1].grow(processes)
        return made[-1]

    yield make
    for pool in made:
        pool.close()
    assert readers_of(os.getpid()) == []


def taken(pool: ImagePool, numbers: list[int]) -> list[str | bytes]:
    """The pixels of these images, or the codes of their problems."""
    return [outcome(lambda number=number: pixels_of(pool, number)) for number in numbers]


def pixels_of(pool: ImagePool, number: int) -> bytes:
    answer = pool.take(number)
    assert answer is not None
    if isinstance(answer.tiles, ImageProblem):
        raise answer.tiles
    return answer.tiles.pixels.tobytes()


def outcome(do: Callable[[], bytes]) -> str | bytes:
    try:
        return do()
    except ImageProblem as problem:
        return problem.code


def in_this_process(sources: list[ImageSource]) -> list[str | bytes]:
    def pixels(source: ImageSource) -> bytes:
        image = READER.open(source)
        return READER.cut(image, READER.grid(image)).pixels.tobytes()

    return [outcome(lambda source=source: pixels(source)) for source in sources]


def finished(images: ImagesAhead, source: ImageSource) -> tuple[object, ...]:
    """Everything that is told of an image, also where it is bad."""
    try:
        page = images.open(source)
    except ImageProblem as problem:
        return problem.code, str(problem)
    grid = images.reader.grid(page.held)
    images.want(page, grid)
    facts = page.held.width, page.held.height, page.held.digest, grid
    try:
        return *facts, images.cut(page, grid).pixels.tobytes()
    except ImageProblem as problem:
        return *facts, problem.code, str(problem)


# What comes out


def sources_of_all_kinds(folder: Path) -> list[ImageSource]:
    root = folder / "root"
    page = picture(300, 400)
    for number, mode in enumerate(["RGB", "L", "P", "1", "RGBA", "LA"]):
        saved(root, f"{number}.png", picture(200 + number, 100, mode))
    for number, mode in enumerate(["RGB", "L", "CMYK"]):
        saved(root, f"{number}.jpg", picture(90, 180 + number, mode), "JPEG")
    saved(root, "page.webp", page, "WEBP")
    saved(root, "page.gif", page, "GIF")
    whole = encoded(page)
    files = {
        "cut.png": whole[:-300], "cut.jpg": encoded(page, "JPEG")[:2000], "head.png": whole[:20], "text.png": b"words",
        "empty.png": b"", "large.png": encoded(picture(500, 401)), "bomb.png": encoded(Image.new("1", (10_000, 9_000))),
        "moving.gif": encoded(picture(), "GIF", save_all=True, append_images=[picture(mode="L")]),
        "deep.png": encoded(picture().convert("I;16")),
    }  # fmt: skip
    for name, data in files.items():
        (root / name).write_bytes(data)
    saved(folder, "secret.png")
    (root / "link.png").symlink_to("0.png")
    (root / "out.png").symlink_to("../secret.png")
    os.mkfifo(root / "fifo.png")
    names = [*sorted(path.name for path in root.iterdir()), "../secret.png", "none.png", "https://a.invalid/b.png"]
    values = [*names, "a\0b", data_uri(whole), data_uri(b"no image"), "data:image/png;base64,@", whole, whole[:900]]
    return [ImageSource(value, str(root)) for value in values]


def test_processes_tell_of_every_image_what_this_process_would(tmp_path: Path, opened: Opens) -> None:
    sources = sources_of_all_kinds(tmp_path)
    here, apart = ImagesAhead(READER), opened(2)
    apart.expect(sources)
    found = [finished(apart, source) for source in sources]
    expected = [finished(here, source) for source in sources]
    assert found == expected
    codes = {facts[-2] for facts in expected if isinstance(facts[-1], str)}
    assert codes == {
        "bad-image", "not-an-image", "image-too-large", "animated-image", "image-mode", "image-outside-root",
        "image-not-a-file", "image-missing", "image-url", "image-unreadable", "bad-data-uri",
    }  # fmt: skip
    assert sum(isinstance(facts[-1], bytes) for facts in expected) == 14


def test_images_come_by_their_numbers_in_any_order(pools: Callable[..., ImagePool], pages: list[ImageSource]) -> None:
    pool = pools(2)
    numbers = [pool.ask(page) for page in pages]
    assert taken(pool, numbers[::-1]) == in_this_process(pages)[::-1]


def test_an_image_in_another_grid_is_cut_again(pages: list[ImageSource], opened: Opens) -> None:
    images = opened(1)
    images.expect(pages[:8])
    ready = [images.open(page) for page in pages[:8]]
    for page in ready:
        images.want(page, TileGrid(1, 1))
    found = [images.cut(page, TileGrid(1, 1)).pixels for page in ready]
    expected = [READER.cut(READER.open(page), TileGrid(1, 1)).pixels for page in pages[:8]]
    assert all(np.array_equal(one, other) for one, other in zip(found, expected, strict=True))


def test_a_file_that_changes_between_its_two_grids_is_not_mixed(pages: list[ImageSource], opened: Opens) -> None:
    images = opened(1)
    images.expect(pages[:8])
    page = images.open(pages[0])
    saved(Path(pages[0].root), str(pages[0].value), picture(77, 77))
    images.want(page, TileGrid(1, 1))
    with pytest.raises(ImageProblem, match="was changed while it was read"):
        images.cut(page, TileGrid(1, 1))


@pytest.mark.parametrize(("squares", "parts"), [(None, 6), (7, 6), (6, 4), (3, 2), (2, 1), (0, 1)])
def test_the_grid_that_is_made_ahead_is_the_first_that_has_room(squares: int | None, parts: int) -> None:
    page = Page(ImageSource(b""), READER.open(ImageSource(encoded(picture(200, 300)))))
    grid = READER.grid_within(page.held, squares)
    assert grid.cols * grid.rows == parts


# How many processes, and what they are


@pytest.mark.parametrize(("known", "processes"), [(0, 0), (3, 0), (4, 1), (8, 2), (30, 3)])
def test_few_images_start_no_process(known: int, processes: int, pages: list[ImageSource], opened: Opens) -> None:
    images = opened(3)
    for page in pages[:known]:  # one at a time, as from a live input
        images.expect([page])
    wait_until(lambda: len(readers_of(os.getpid())) == processes, "another number of processes")
    found = [finished(images, page)[-1] for page in pages[:known]]
    assert len(readers_of(os.getpid())) == processes
    assert found == in_this_process(pages[:known])


def test_a_process_loads_no_more_than_it_needs(
    hurt: Hurt, tmp_path: Path, pages: list[ImageSource], opened: Opens
) -> None:
    hurt(f"open({str(tmp_path / 'loaded')!r}, 'w').write(' '.join(sys.modules))")
    images = opened(1)
    images.expect(pages)
    assert all(isinstance(finished(images, page)[-1], bytes) for page in pages)
    loaded = {name.partition(".")[0] for name in (tmp_path / "loaded").read_text().split()}
    assert {"numpy", "PIL", "rerank_cli"} <= loaded
    assert not loaded & {"torch", "transformers", "pandas", "pyarrow", "tokenizers", "safetensors", "typer", "rich"}


def test_no_more_than_sixteen_images_are_ahead_of_the_one_that_is_waited_for(
    hurt: Hurt, tmp_path: Path, pages: list[ImageSource], pools: Callable[..., ImagePool]
) -> None:
    log, go = tmp_path / "log", tmp_path / "go"
    log.touch()
    hurt(
        f"open({str(log)!r}, 'a').write(name + chr(10))\n"
        f"        while name == '00.png' and not os.path.exists({str(go)!r}): time.sleep(0.01)"
    )
    pool = pools(3)
    numbers = [pool.ask(page) for page in pages]
    found: list[str | bytes] = []
    waiting = threading.Thread(target=lambda: found.extend(taken(pool, numbers)))
    waiting.start()
    # One waits behind the first image, in the hands of the same process.
    wait_until(lambda: len(log.read_text().split()) >= 15, "the others do not go on")
    time.sleep(0.3)
    assert len(log.read_text().split()) == 15
    go.touch()
    waiting.join()
    assert found == in_this_process(pages)
    assert sorted(log.read_text().split()) == sorted(str(page.value) for page in pages)


# Processes that end


def test_a_killed_process_costs_no_image(pages: list[ImageSource], pools: Callable[..., ImagePool]) -> None:
    notes: list[str] = []
    pool = pools(2, on_note=notes.append)
    numbers = [pool.ask(page) for page in pages]
    first = taken(pool, numbers[:5])
    killed = readers_of(os.getpid())
    for pid in killed:
        os.kill(pid, signal.SIGKILL)
    rest = taken(pool, numbers[5:])
    assert first + rest == in_this_process(pages)
    assert all("killed by SIGKILL (out of memory?)" in note for note in notes)
    assert not set(readers_of(os.getpid())) & set(killed)


def test_an_image_that_ends_its_process_is_found_and_only_that_one(
    hurt: Hurt, pages: list[ImageSource], pools: Callable[..., ImagePool]
) -> None:
    hurt("name in ('03.png', '20.png') and os.kill(os.getpid(), 9)")
    pool = pools(2)
    numbers = [pool.ask(page) for page in pages]
    expected = in_this_process(pages)
    expected[3] = expected[20] = "image-reader-died"
    assert taken(pool, numbers) == expected
    number = pool.ask(pages[3])
    with pytest.raises(ImageProblem) as caught:
        pool.take(number)
    assert str(caught.value) == ("the image has ended 2 processes that read it (killed by SIGKILL (out of memory?))")


def test_an_image_that_ends_its_process_is_tried_again_alone(
    hurt: Hurt, tmp_path: Path, pages: list[ImageSource], pools: Callable[..., ImagePool]
) -> None:
    mark, log = tmp_path / "mark", tmp_path / "log"
    hurt(
        f"with open({str(log)!r}, 'a') as file: file.write('+' + name + ' ')\n"
        f"        if name == '04.png' and not os.path.exists({str(mark)!r}):\n"
        f"            open({str(mark)!r}, 'w').close(); os._exit(3)\n"
        "        time.sleep(0.02)\n"
        f"        with open({str(log)!r}, 'a') as file: file.write('-' + name + ' ')"
    )
    pool = pools(3)
    assert taken(pool, [pool.ask(page) for page in pages]) == in_this_process(pages)
    told = log.read_text().split()
    again = len(told) - 1 - told[::-1].index("+04.png")
    assert told.count("+04.png") == 2
    assert told[again + 1] == "-04.png"
    before = [entry for entry in told[:again] if entry != "+04.png"]
    assert sorted(entry[1:] for entry in before if entry[0] == "+") == sorted(e[1:] for e in before if e[0] == "-")


def test_an_image_is_tried_again_by_a_new_process_not_by_one_that_may_be_lost_too(
    hurt: Hurt, tmp_path: Path, pages: list[ImageSource], pools: Callable[..., ImagePool]
) -> None:
    """Whoever kills one reader may kill them all, and the second death is heard of only after the first."""
    log, go = tmp_path / "log", tmp_path / "go"
    hurt(
        f"open({str(log)!r}, 'a').write(f'{{os.getpid()}} ')\n"
        f"        while not os.path.exists({str(go)!r}): time.sleep(0.01)"
    )
    pool = pools(2, patience=1.0)
    number = pool.ask(pages[0])
    wait_until(lambda: log.exists() and log.read_text().endswith(" "), "nobody reads the image")
    wait_until(lambda: len(readers_of(os.getpid())) == 2, "no second process")
    reads = int(log.read_text())
    (idle,) = set(readers_of(os.getpid())) - {reads}
    os.kill(idle, signal.SIGSTOP)
    go.touch()
    os.kill(reads, signal.SIGKILL)
    assert taken(pool, [number]) == in_this_process(pages[:1])


def test_an_image_that_takes_all_memory_costs_its_row(hurt: Hurt, pools: Callable[..., ImagePool]) -> None:
    hurt(
        "import resource\n"
        "        size = int(open('/proc/self/statm').read().split()[0]) * 4096 + 130 * 2**20\n"
        "        resource.setrlimit(resource.RLIMIT_AS, (size, size))"
    )
    small, large = ImageSource(encoded(picture())), ImageSource(encoded(Image.new("RGB", (6200, 6200))))
    pool = pools(1, ImageReader(tile_size=32, max_tiles=6))
    found = taken(pool, [pool.ask(source) for source in (small, large, small)])
    assert found == [*in_this_process([small]), "image-reader-died", *in_this_process([small])]


def test_an_image_that_takes_for_ever_has_a_limit(
    hurt: Hurt, pages: list[ImageSource], pools: Callable[..., ImagePool]
) -> None:
    hurt("time.sleep(1000 * (name == '03.png'))")
    pool = pools(2, patience=1.0)
    expected = in_this_process(pages)
    expected[3] = "image-reader-died"
    assert taken(pool, [pool.ask(page) for page in pages]) == expected


def test_a_process_that_somebody_stops_is_replaced(pages: list[ImageSource], pools: Callable[..., ImagePool]) -> None:
    pool = pools(1, patience=1.0)
    numbers = [pool.ask(page) for page in pages]
    first = taken(pool, numbers[:1])
    os.kill(readers_of(os.getpid())[0], signal.SIGSTOP)
    assert first + taken(pool, numbers[1:]) == in_this_process(pages)


def test_where_every_image_ends_its_process_the_run_stops(
    hurt: Hurt, pages: list[ImageSource], pools: Callable[..., ImagePool]
) -> None:
    hurt("os._exit(5)")
    pool = pools(2, deaths=5)
    with pytest.raises(EngineError, match=r"every process that reads images ends \(ended with exit code 5\)"):
        taken(pool, [pool.ask(page) for page in pages])


def test_where_no_process_starts_images_are_read_without(hurt: Hurt, pages: list[ImageSource], opened: Opens) -> None:
    hurt(at_start="os._exit(7)")
    notes: list[str] = []
    images = opened(1, notes.append)
    images.expect(pages)
    found = [finished(images, page)[-1] for page in pages]
    assert found == in_this_process(pages)
    assert notes == [
        "a process that reads images ended while it started (ended with exit code 7): images are read without"
    ]


PARENT = """
import os, sys
from tests.unit.encoding.images.test_ahead import *
images = ImagesAhead(READER).ahead(2)
images.expect([ImageSource(encoded(picture(300, 300))) for _ in range(20)])
images.open(ImageSource(encoded(picture(300, 300))))
print(*readers_of(os.getpid()), flush=True)
sys.stdin.read()
"""


def test_processes_end_with_the_one_that_started_them() -> None:
    found = left_by(PARENT)
    assert len(found) == 2
    wait_until(lambda: not alive(found), "a process outlives its parent")


def test_signals_of_the_group_are_not_for_the_processes(pages: list[ImageSource], opened: Opens) -> None:
    """Not even while they start: a traceback in the middle of a terminal tells nobody anything."""
    images = opened(2)
    images.expect(pages)
    wait_until(lambda: len(readers_of(os.getpid())) == 2, "no processes")
    for pid in readers_of(os.getpid()):
        for number in (signal.SIGINT, signal.SIGTERM):
            os.kill(pid, number)
    found = readers_of(os.getpid())
    assert [finished(images, page)[-1] for page in pages] == in_this_process(pages)
    assert readers_of(os.getpid()) == found
