"""Pairs with images to token ids: prompts, markers in texts, and what happens when a pair is too long."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rerank_cli.checkpoint import Checkpoint, read_checkpoint
from rerank_cli.encoding.encoder import EncodingProblem, ImageLimits, model_max_tokens, open_encoder
from rerank_cli.encoding.vision_config import read_vision_geometry
from rerank_cli.errors import ModelError, UsageError
from rerank_cli.records import EncodedPair, ImagePassage, ImageSource
from tests.conftest import TINY_CHECKPOINT
from tests.unit.images import data_uri, encoded, picture, saved

FOLDER = Path(__file__).parents[2] / "parity" / "nemotron-vl-rerank-open" / "checkpoint"
CHECKPOINT = read_checkpoint(FOLDER)
CONTEXT = 652
PAGE = encoded(picture(850, 1100))  # 2 x 3 tiles and a thumbnail
LONG = "words that tell of a page " * 20


def image(text: str = "", data: bytes = PAGE) -> ImagePassage:
    return ImagePassage(text, ImageSource(data))


def encode(passage: Any, query: str = "what is it?", **options: Any) -> Any:
    found = open_encoder(CHECKPOINT, **{"max_tokens": 10240, **options}).encode([(query, passage)])[0]
    return found[0] if isinstance(found, tuple) and len(found) == 1 else found


def decoded(pair: EncodedPair) -> str:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(FOLDER / "tokenizer.json"))
    text: str = tokenizer.decode(pair.input_ids.tolist(), skip_special_tokens=False)
    return text


def test_an_image_stands_before_the_prompt_with_256_tokens_a_tile() -> None:
    pair = encode(image("some text"))
    block = pair.block
    assert (block.tiles, block.full_tiles, block.length, len(block.image)) == (7, 7, 7 * 256, 7)
    assert block.image.pixels.shape == (7, 512, 512, 3)
    assert np.flatnonzero(pair.input_ids == CONTEXT).tolist() == list(range(block.start, block.start + block.length))
    contexts = "<IMG_CONTEXT>" * block.length
    assert decoded(pair) == (f"<|begin_of_text|><img>{contexts}</img> question:what is it? \n \n passage:some text")


def test_a_text_has_no_image_and_the_prompt_of_the_text_rerankers() -> None:
    pair = encode("some text")
    assert pair.block is None
    assert decoded(pair) == "<|begin_of_text|>question:what is it? \n \n passage:some text"


MARKED = "a <image> b <img><IMG_CONTEXT></img> <|end_of_text|>"


@pytest.mark.parametrize("passage", [MARKED, image(MARKED)], ids=["text", "image"])
def test_markers_in_texts_are_text(passage: Any) -> None:
    pair = encode(passage, query=MARKED)
    special = [number for number in pair.input_ids.tolist() if 644 <= number <= 659]
    block = [650, *[CONTEXT] * pair.block.length, 651] if pair.block else []
    assert special == [644, *block]
    assert decoded(pair).endswith(f"question:{MARKED} \n \n passage:{MARKED}")


def test_markers_act_as_in_the_reference_code_where_they_are_allowed() -> None:
    pair = encode("x <image> y <image> <IMG_CONTEXT>", query="see <image> q", special_tokens="allow")
    assert decoded(pair).endswith("question:see  q \n \n passage:x <image> y <image> <IMG_CONTEXT>")
    assert CONTEXT in pair.input_ids
    assert pair.block is None
    assert "passage:x  y" in decoded(encode("x <image> y", special_tokens="allow"))
    assert "passage:x <image> y" in decoded(encode(image("x <image> y"), special_tokens="allow"))


def test_no_text_can_take_a_vector_from_an_image() -> None:
    problem = encode(image("a <IMG_CONTEXT> b"), special_tokens="allow")
    assert isinstance(problem, EncodingProblem)
    assert problem.code == "image-token-in-text"


# Long pairs


def test_the_text_beside_an_image_is_cut_first() -> None:
    whole = encode(image(LONG))
    pair = encode(image(LONG), max_tokens=1850)
    assert len(pair.input_ids) == 1850
    assert np.array_equal(pair.input_ids, whole.input_ids[:1850])
    assert (pair.tokens, pair.truncated, pair.retiled) == (len(whole.input_ids), True, False)


def least(tiles: int) -> int:
    """Tokens of a pair of the shortest query with an image of so many tiles and no text."""
    return len(encode(image(), images=ImageLimits(max_tiles=1)).input_ids) + (tiles - 1) * 256


@pytest.mark.parametrize("truncate", ["end", "chunk"])
@pytest.mark.parametrize("text", ["", LONG])
@pytest.mark.parametrize("tiles", [7, 5, 3, 1])  # what at most 6, 4, 2 and 1 tiles make of this page
def test_an_image_that_does_not_fit_is_cut_in_fewer_tiles(tiles: int, text: str, truncate: str) -> None:
    some_text = 40 if text else 0
    found = open_encoder(CHECKPOINT, max_tokens=least(tiles) + some_text, truncate=truncate).encode(
        [("what is it?", image(text))]
    )[0]
    assert isinstance(found, tuple)
    for pair in found:
        assert pair.block is not None
        assert (pair.block.tiles, pair.block.full_tiles, len(pair.block.image or ())) == (tiles, 7, tiles)
        assert (pair.input_ids == CONTEXT).sum() == tiles * 256
        assert len(pair.input_ids) <= least(tiles) + some_text
        assert pair.truncated == (tiles < 7 or (bool(text) and truncate == "end"))
    assert (len(found) > 1) == (truncate == "chunk" and bool(text))


def test_every_text_token_may_go_but_no_tile_and_no_query_token() -> None:
    pair = encode(image(LONG), max_tokens=least(7))
    assert (pair.block.tiles, len(pair.input_ids)) == (7, least(7))
    assert decoded(pair).endswith("question:what is it? \n \n passage:")


def test_a_query_that_leaves_no_room_for_one_tile_is_a_problem() -> None:
    problem = encode(image(), max_tokens=least(1) - 1)
    assert isinstance(problem, EncodingProblem)
    assert problem.code == "query-too-long"


@pytest.mark.parametrize(("truncate", "code"), [("error", "too-long"), ("reference", "image-cut")])
def test_an_image_that_does_not_fit_is_a_problem_where_it_may_not_be_cut_otherwise(truncate: str, code: str) -> None:
    problem = encode(image(), max_tokens=1500, truncate=truncate)
    assert isinstance(problem, EncodingProblem)
    assert problem.code == code


def test_the_reference_cuts_everything_behind_the_image() -> None:
    whole = encode(image(LONG))
    end = whole.block.start + whole.block.length + 1
    for limit in (end, end + 3):
        pair = encode(image(LONG), max_tokens=limit, truncate="reference")
        assert np.array_equal(pair.input_ids, whole.input_ids[:limit])
    assert isinstance(encode(image(LONG), max_tokens=end - 1, truncate="reference"), EncodingProblem)


# Images


def test_the_same_image_is_cut_once_however_it_is_given(tmp_path: Path) -> None:
    names = [saved(tmp_path, name, picture(100, 90)) for name in ("a.png", "b.png")]
    data = (tmp_path / "a.png").read_bytes()
    sources = [ImageSource(value, str(tmp_path)) for value in (*names, data_uri(data), data)]
    pairs = [(query, ImagePassage(text, source)) for source in sources for query in "qr" for text in ("", "t")]
    found = open_encoder(CHECKPOINT, max_tokens=1000, images=ImageLimits(max_tiles=1)).encode(pairs)
    assert len({entry[0].block.image for entry in found if isinstance(entry, tuple) and entry[0].block}) == 1


def test_an_image_with_a_problem_costs_only_its_pair() -> None:
    encoder = open_encoder(CHECKPOINT, max_tokens=1000, images=ImageLimits(max_tiles=1, max_pixels=9000))
    good = encoded(picture(90, 90))
    passages = [
        image(data=good),
        image(data=good[:-200]),
        "a text",
        image(data=b"?"),
        image(data=PAGE),
        image("t", good),
    ]
    found = encoder.encode([("q", passage) for passage in passages])
    assert [entry.code if isinstance(entry, EncodingProblem) else len(entry) for entry in found] == [
        1, "bad-image", 1, "not-an-image", "image-too-large", 1,
    ]  # fmt: skip


# Checkpoints


def changed(config: dict[str, Any] | None = None, processor: dict[str, Any] | None = None) -> Checkpoint:
    from dataclasses import replace

    return replace(
        CHECKPOINT,
        config={**CHECKPOINT.config, **(config or {})},
        processor_config={**CHECKPOINT.processor_config, **(processor or {})},
    )


@pytest.mark.parametrize(
    ("config", "processor", "option", "tiles"),
    [
        ({}, {}, None, 6),
        ({}, {}, 2, 2),
        ({}, {"max_input_tiles": 3}, None, 3),
        ({}, {"max_input_tiles": 3}, 9, 9),
        ({"max_input_tiles": 1}, {"max_input_tiles": None}, None, 6),
        ({"dynamic_image_size": True}, {"dynamic_image_size": False}, None, 1),
    ],
)
def test_the_option_wins_over_the_processor_and_the_processor_over_six(
    config: dict[str, Any], processor: dict[str, Any], option: int | None, tiles: int
) -> None:
    assert read_vision_geometry(changed(config, processor), max_tiles=option).max_tiles == tiles


@pytest.mark.parametrize(
    "config",
    [
        {"ps_version": "v1"},
        {"select_layer": -2},
        {"keep_aspect_ratio": True},
        {"prompt_template": "v2"},
        {"bidirectional_attention": False},
        {"norm_type": "imagenet"},
        {"system_message": "You are"},
        {"downsample_ratio": 0.3},
        {"downsample_ratio": 0},
        {"force_image_size": 448},
        {"use_thumbnail": "yes"},
        {"vision_config": None},
        {"vision_config": {"image_size": 500}},
    ],
    ids=lambda config: str(config),
)
def test_what_would_be_computed_otherwise_is_refused_by_its_key(config: dict[str, Any]) -> None:
    (key,) = config
    with pytest.raises(ModelError, match=key if key != "vision_config" else "vision_config|image_size"):
        read_vision_geometry(changed(config, {} if key == "ps_version" else {key: None}))


@pytest.mark.parametrize("processor", [{"max_input_tiles": 0}, {"max_input_tiles": "6"}, {"num_image_token": 64}])
def test_a_processor_that_contradicts_the_model_is_refused(processor: dict[str, Any]) -> None:
    (key,) = processor
    with pytest.raises(ModelError, match=key):
        read_vision_geometry(changed(processor=processor))


def test_a_tokenizer_of_another_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="img_context_token_id"):
        open_encoder(changed({"img_context_token_id": 651}), max_tokens=512)
    folder = tmp_path / "model"
    shutil.copytree(FOLDER, folder)
    state = json.loads((folder / "tokenizer.json").read_text())
    state["added_tokens"] = [token for token in state["added_tokens"] if token["content"] != "</box>"]
    next(token for token in state["added_tokens"] if token["content"] == "<img>")["content"] = "<image-begins>"
    (folder / "tokenizer.json").write_text(json.dumps(state))
    with pytest.raises(ModelError, match="must be three tokens"):
        open_encoder(read_checkpoint(folder), max_tokens=512)


def test_options_that_mean_nothing_to_a_model_are_refused() -> None:
    with pytest.raises(UsageError, match="--template"):
        open_encoder(CHECKPOINT, max_tokens=512, template="{query} {passage}")
    with pytest.raises(UsageError, match="--max-input-tiles"):
        open_encoder(read_checkpoint(TINY_CHECKPOINT), max_tokens=512, images=ImageLimits(max_tiles=2))


def test_the_longest_pair_is_what_processor_or_tokenizer_say() -> None:
    assert model_max_tokens(CHECKPOINT) == 10240
    assert model_max_tokens(changed(processor={"rerank_max_length": 2048})) == 2048
    short = {**CHECKPOINT.config["llm_config"], "max_position_embeddings": 4096}
    assert model_max_tokens(changed({"llm_config": short})) == 4096
