"""Grids: NVIDIA's own function computed the table of sizes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rerank_cli.encoding.images import TileGrid, closest_grid

TABLE = Path(__file__).parents[3] / "parity" / "tiling-open" / "tiles.jsonl"


def test_every_size_of_the_published_table_has_its_grid() -> None:
    rows = [json.loads(line) for line in TABLE.read_text().splitlines()]
    assert len(rows) == 3369
    for row in rows:
        grid = closest_grid(row["width"], row["height"], max_tiles=row["max_input_tiles"], tile_size=512)
        assert (grid.cols, grid.rows, grid.tiles) == (row["cols"], row["rows"], row["n_tiles"]), row


@given(
    width=st.integers(1, 20_000), height=st.integers(1, 20_000), max_tiles=st.integers(1, 12), size=st.integers(16, 600)
)
def test_a_grid_has_no_more_tiles_than_allowed_and_a_thumbnail_where_there_are_several(
    width: int, height: int, max_tiles: int, size: int
) -> None:
    grid = closest_grid(width, height, max_tiles=max_tiles, tile_size=size)
    parts = grid.cols * grid.rows
    assert 1 <= parts <= max_tiles
    assert grid.tiles == (parts + 1 if parts > 1 else 1)
    assert closest_grid(width, height, max_tiles=max_tiles, tile_size=size, thumbnail=False).tiles == parts


@pytest.mark.parametrize(
    ("width", "height", "grid"),
    [(512, 512, (1, 1)), (640, 420, (3, 2)), (850, 1100, (2, 3)), (20_000, 1, (6, 1)), (1, 20_000, (1, 6))],
)
def test_some_sizes_that_people_have(width: int, height: int, grid: tuple[int, int]) -> None:
    assert closest_grid(width, height, max_tiles=6, tile_size=512) == TileGrid(*grid)
