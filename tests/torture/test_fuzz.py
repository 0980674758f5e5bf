"""Files that were good once: whatever happened to their bytes, they are read or refused, and nothing else."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rerank_cli.checkpoint import read_checkpoint
from rerank_cli.encoding import open_encoder
from rerank_cli.errors import ModelError
from rerank_cli.formats.jsonl import dump_row, error_row, parse_row
from rerank_cli.images.decode import open_image
from rerank_cli.images.source import ImageProblem
from rerank_cli.max_tokens import model_max_tokens
from rerank_cli.records import RowError
from tests.conftest import TINY_CHECKPOINT
from tests.unit.images import encoded, picture

ROW = (
    '{"id": 12, "query": "wo führt der Weg hin?", "passages": ["a \\u00e9", {"text": "b", "more": [1.50, null, true]}]}'
)
IMAGES = [
    encoded(picture(), "PNG"),
    encoded(picture(), "JPEG"),
    encoded(picture(), "WEBP"),
    encoded(picture(mode="P"), "GIF"),
]
CONFIG = (TINY_CHECKPOINT / "config.json").read_bytes()
KEYS = sorted(json.loads(CONFIG))
VALUES = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.lists(st.integers())
# Bytes put over others, and a length that is kept.
CHANGES = st.tuples(
    st.lists(st.tuples(st.floats(0, 1), st.binary(max_size=4)), max_size=4), st.floats(0, 1) | st.just(1)
)


def changed(data: bytes, changes: Any) -> bytes:
    patches, kept = changes
    out = bytearray(data)
    for where, patch in patches:
        place = int(where * len(out))
        out[place : place + len(patch)] = patch
    return bytes(out[: int(kept * len(out))])


@given(CHANGES)
def test_a_row_is_read_or_refused(changes: Any) -> None:
    raw = changed(ROW.encode(), changes).replace(b"\n", b" ")
    found = parse_row(raw, file="in.jsonl", number=1)
    if isinstance(found, RowError):
        assert json.loads(error_row(found))["row"] == 1
    else:
        # What passes can be written and read again.
        assert json.loads(dump_row(dict(found.fields))) == json.loads(raw)


@given(st.sampled_from(range(len(IMAGES))), CHANGES)
def test_an_image_is_decoded_or_refused(which: int, changes: Any) -> None:
    try:
        image = open_image(changed(IMAGES[which], changes), max_pixels=10_000)
        assert image.decode().size == (image.width, image.height)
    except ImageProblem as problem:
        assert str(problem)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fuzz") / "model"
    shutil.copytree(TINY_CHECKPOINT, folder)
    return folder


def opened(model: Path, config: bytes) -> None:
    """The checkpoint with this config.json is opened as a run opens it before weights are loaded."""
    (model / "config.json").write_bytes(config)
    try:
        checkpoint = read_checkpoint(model)
        open_encoder(checkpoint, max_tokens=min(64, model_max_tokens(checkpoint)))
    except ModelError as error:
        assert error.message


@given(CHANGES)
def test_a_configuration_of_any_bytes_is_read_or_refused(model: Path, changes: Any) -> None:
    opened(model, changed(CONFIG, changes))


@given(st.dictionaries(st.sampled_from(KEYS), VALUES, max_size=3))
def test_a_configuration_of_any_values_is_read_or_refused(model: Path, values: dict[str, Any]) -> None:
    opened(model, json.dumps({**json.loads(CONFIG), **values}).encode())
