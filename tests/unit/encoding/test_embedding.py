"""What an embedding model needs beside its weights: token ids of two texts, a store of vectors, an engine."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from tokenizers import Tokenizer

from rerank_cli.checkpoint import read_checkpoint
from rerank_cli.checkpoint.max_tokens import model_max_tokens
from rerank_cli.encoding.encoder import EmbeddingEncoder, EncodingProblem, ImageLimits, open_encoder, split_pair
from rerank_cli.engine.embedding import EmbeddingEngine
from rerank_cli.engine.local import LocalEngine
from rerank_cli.engine.vector_cache import VectorCache
from rerank_cli.errors import UsageError
from rerank_cli.formats.embeddings import EmbeddingsFile
from rerank_cli.records import EncodedPair, ImageBlock, ImagePassage, ImageSource, Tiles
from tests.unit.images import encoded as image_file
from tests.unit.images import picture, saved

MODEL = Path(__file__).parents[2] / "parity" / "nemotron-vl-embed-open" / "checkpoint"
CHECKPOINT = read_checkpoint(MODEL)
TOKENIZER = Tokenizer.from_file(str(MODEL / "tokenizer.json"))
LONG = "two roads diverged in a yellow wood " * 20


def encoder(max_tokens: int = 512, **options) -> EmbeddingEncoder:
    opened = open_encoder(CHECKPOINT, max_tokens=max_tokens, **options)
    assert isinstance(opened, EmbeddingEncoder)
    return opened


def texts_of(encoded) -> tuple[list[int], list[int]]:
    (pair,) = encoded
    query, passage = split_pair(pair)
    return query.input_ids.tolist(), passage.input_ids.tolist()


def ids(text: str) -> list[int]:
    return TOKENIZER.encode(text).ids


# --- token ids


def test_each_text_has_its_own_prefix_and_first_token():
    (encoded,) = encoder().encode([("which way?", " a\n road ")])
    assert texts_of(encoded) == (ids("query: which way?"), ids("passage:  a\n road "))
    assert not encoded[0].truncated


def test_the_template_names_both_prefixes():
    assert encoder().template == ("query: {query} | passage: {passage} | passage: <img><IMG_CONTEXT></img> {passage}")


def test_prefixes_come_from_the_processors_file(tmp_path):
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors"):
        (tmp_path / name).symlink_to(MODEL / name)
    (tmp_path / "processor_config.json").write_text('{"query_prefix": "Q>", "passage_prefix": ""}')
    opened = open_encoder(read_checkpoint(tmp_path), max_tokens=64)
    assert opened.template == "Q> {query} | {passage} | <img><IMG_CONTEXT></img> {passage}"


def test_a_passage_is_cut_from_the_right_to_the_limit_which_holds_for_each_text():
    (encoded,) = encoder(16).encode([("way", LONG)])
    query, passage = texts_of(encoded)
    assert query == ids("query: way")
    assert passage == ids("passage: " + LONG)[:16]
    assert encoded[0].truncated
    assert (encoded[0].tokens, len(encoded[0].input_ids)) == (
        len(ids("passage: " + LONG)) + len(query),
        16 + len(query),
    )


@pytest.mark.parametrize("truncate", ["end", "error", "chunk"])
def test_a_query_is_never_cut(truncate):
    (problem,) = encoder(16, truncate=truncate).encode([(LONG, "way")])
    assert isinstance(problem, EncodingProblem)
    assert problem.code == "query-too-long"
    assert problem.message.startswith("the query has ")


def test_a_query_is_cut_as_the_reference_code_cuts_it_where_that_is_asked_for():
    (encoded,) = encoder(16, truncate="reference").encode([(LONG, "way")])
    assert texts_of(encoded)[0] == ids("query: " + LONG)[:16]


def test_a_passage_that_is_too_long_may_be_an_error():
    (problem,) = encoder(16, truncate="error").encode([("way", LONG)])
    assert isinstance(problem, EncodingProblem)
    assert (problem.code, problem.message[:12]) == ("too-long", "the passage ")


def test_every_piece_of_a_passage_stands_beside_the_whole_query():
    (pieces,) = encoder(32, truncate="chunk", chunk_overlap=4).encode([("way", LONG)])
    assert len(pieces) > 5
    for piece in pieces:
        query, passage = split_pair(piece)
        assert query.input_ids.tolist() == ids("query: way")
        assert len(passage.input_ids) <= 32


@pytest.mark.parametrize("written", ["<|end_of_text|>", "<IMG_CONTEXT>", "<img>"])
def test_special_tokens_in_a_text_are_text_unless_they_are_allowed(written):
    number = TOKENIZER.token_to_id(written)
    for mode, acts in (("neutral", False), ("allow", True)):
        (encoded,) = encoder(special_tokens=mode).encode([(f"a {written}", f"b {written}")])
        assert [number in text for text in texts_of(encoded)] == [acts, acts]


def test_the_place_of_an_image_is_text_unless_marks_are_allowed():
    text = "a <image> b <image>"
    (neutral,) = encoder().encode([(text, text)])
    assert texts_of(neutral) == (ids(f"query: {text}"), ids(f"passage: {text}"))
    (allowed,) = encoder(special_tokens="allow").encode([(text, text)])
    assert texts_of(allowed) == (ids(f"query: {text}"), ids("passage: a  b <image>"))


PAGE = ImageSource(image_file(picture(850, 1100)))
CONTEXT = TOKENIZER.token_to_id("<IMG_CONTEXT>")


@pytest.mark.parametrize("text", ["", "two roads"])
def test_an_image_stands_between_the_prefix_and_its_text(text):
    (encoded,) = encoder(images=ImageLimits(max_tiles=1)).encode([("way", ImagePassage(text, PAGE))])
    (pair,) = encoded
    assert pair.input_ids[: pair.second_start].tolist() == ids("query: way")
    assert texts_of(encoded)[1] == ids(f"passage: <img>{'<IMG_CONTEXT>' * 256}</img> {text}")
    for one in (pair, split_pair(pair)[1]):
        assert set(one.input_ids[one.block.start : one.block.start + one.block.length]) == {CONTEXT}
        assert (one.block.length, one.block.tiles) == (256, 1)
    assert split_pair(pair)[0].block is None


def test_images_are_told_apart_by_file_and_grid_however_they_are_given(tmp_path):
    name = saved(tmp_path, "a.png", picture(850, 1100))
    pages = [PAGE, ImageSource(name, str(tmp_path)), ImageSource(image_file(picture(1100, 850)))]
    found = [
        encoder(10240, images=ImageLimits(max_tiles=tiles)).encode([("way", ImagePassage("", page))])[0][0].block.digest
        for tiles in (1, 2)
        for page in pages
    ]
    assert [found.index(digest) for digest in found] == [0, 0, 2, 3, 3, 5]


def test_a_passage_loses_its_text_and_then_tiles_and_tells_so():
    (whole,), (shorter,), (smaller,) = (
        encoder(limit).encode([("way", ImagePassage(LONG, PAGE))])[0] for limit in (10240, 1900, 1500)
    )
    assert (whole.block.tiles, whole.truncated, whole.retiled) == (7, False, False)
    assert (shorter.block.tiles, shorter.truncated, shorter.retiled) == (7, True, False)
    assert (smaller.block.tiles, smaller.block.full_tiles, smaller.retiled) == (5, 7, True)
    assert shorter.tokens == smaller.tokens == whole.tokens
    assert len(split_pair(shorter)[1].input_ids) == 1900


@pytest.mark.parametrize(("truncate", "code"), [("end", "too-long"), ("error", "too-long"), ("reference", "image-cut")])
def test_an_image_without_room_is_a_problem_of_the_passage(truncate, code):
    (problem,) = encoder(200, truncate=truncate).encode([("way", ImagePassage("", PAGE))])
    assert isinstance(problem, EncodingProblem)
    assert problem.code == code
    assert "query" not in problem.message


def test_a_text_may_have_10240_tokens():
    assert model_max_tokens(CHECKPOINT) == 10240


@pytest.mark.parametrize("option", [{"template": "{query} {passage}"}, {"template": "none"}, {"instruction": "find"}])
def test_options_of_prompts_are_refused(option):
    with pytest.raises(UsageError, match=f"--{next(iter(option))}"):
        open_encoder(CHECKPOINT, max_tokens=64, **option)


# --- the store


def rows(count: int, dimensions: int, seed: int = 0) -> dict[bytes, np.ndarray]:
    values = np.random.default_rng(seed).standard_normal((count, dimensions)).astype(np.float32)
    return {number.to_bytes(16, "little"): values[number] for number in range(count)}


def test_vectors_come_back_bit_for_bit_and_in_the_order_asked_for():
    store, vectors = VectorCache(8), rows(50, 8)
    store.put(vectors)
    keys = [*reversed(vectors), next(iter(vectors))]
    assert np.array_equal(store.get(keys), np.stack([vectors[key] for key in keys]))
    store.close()


def test_the_store_knows_what_is_missing():
    store, vectors = VectorCache(8), rows(3, 8)
    first, second, third = vectors
    store.put({second: vectors[second]})
    assert store.missing([third, second, first]) == [third, first]


def test_a_mark_is_new_once():
    store = VectorCache(8)
    assert [store.mark(key) for key in (b"a", b"b", b"a")] == [True, True, False]


def test_vectors_beyond_the_memory_allowed_are_kept_all_the_same():
    store = VectorCache(2048, cache_bytes=2**20)  # room for about 100 of the 1,000
    for seed in range(10):
        store.put({bytes([seed]) + key: vector for key, vector in rows(100, 2048, seed).items()})
    for seed in (0, 9):
        expected = rows(100, 2048, seed)
        assert np.array_equal(store.get([bytes([seed]) + key for key in expected]), np.stack(list(expected.values())))


# --- the engine


class CountingEmbedder:
    """Satisfies `Embedder`: a text's vector counts its tokens by their id modulo 4.

    texts, seen: every text that it was given, and every image.
    """

    dimensions = 4
    kernels = "counting"

    def __init__(self) -> None:
        self.texts: list[tuple[int, ...]] = []
        self.batches: list[int] = []
        self.seen: list[Tiles] = []

    def see(self, texts: Sequence[EncodedPair]) -> None:
        self.seen += [text.block.image for text in texts if text.block]

    def forward(self, texts: Sequence[EncodedPair]) -> torch.Tensor:
        self.batches.append(sum(len(text.input_ids) for text in texts))
        self.texts += [tuple(text.input_ids.tolist()) for text in texts]
        counts = [np.bincount(text.input_ids % 4, minlength=4) for text in texts]
        return torch.from_numpy(np.stack(counts)).float()


def pair(query: list[int], passage: list[int]) -> EncodedPair:
    both = np.array(query + passage, dtype=np.int32)
    return EncodedPair(input_ids=both, second_start=len(query), tokens=len(both))


def embedding_engine(*, token_budget: int, precision: str, **more: Any) -> EmbeddingEngine:
    plan: Any = SimpleNamespace(
        device="cpu", threads=torch.get_num_threads(), lanes=1, token_budget=token_budget, precision=precision
    )
    return EmbeddingEngine(CHECKPOINT, LocalEngine(plan, CHECKPOINT, **more))


@pytest.fixture
def engine():
    with_model = embedding_engine(token_budget=6, precision="fp32", model=CountingEmbedder())
    yield with_model
    with_model.close()


def test_a_score_is_the_cosine_of_the_two_vectors(engine):
    found = engine.score([pair([0, 1], [0, 1]), pair([0, 0], [1]), pair([0, 1], [0])])
    assert found.dtype == np.float32
    assert found.tolist() == pytest.approx([1.0, 0.0, 0.5**0.5])


def test_each_distinct_text_is_embedded_once_in_a_run(engine):
    engine.score([pair([0, 1], [2]), pair([0, 1], [3]), pair([2], [0, 1])])
    engine.score([pair([0, 1], [2]), pair([3], [4])])
    assert sorted(engine._model._model.texts) == [(0, 1), (2,), (3,), (4,)]
    assert (engine.texts, engine.work["tokens"]) == (4, 5)


def test_batches_hold_no_more_tokens_than_the_budget(engine):
    engine.score([pair([number, 1, 2], [number, 5]) for number in range(10)])
    assert sum(engine._model._model.batches) == 50
    assert max(engine._model._model.batches) <= 6


def test_every_pair_and_every_token_is_reported_once(engine):
    told = []
    engine.score([pair([0, 1], [2]), pair([0, 1], [3])], on_batch=lambda *batch: told.append(batch))
    assert tuple(map(sum, zip(*told, strict=True))) == (2, 4)


def with_image(query: list[int], passage: list[int], *, name: bytes) -> EncodedPair:
    """A pair whose passage has an image of two tokens behind its first; name: what tells it from others."""
    place = ImageBlock(len(query) + 1, 2, tiles=1, full_tiles=1, image=Tiles(np.zeros((1, 2, 2, 3))), digest=name)
    return dataclasses.replace(pair(query, passage), block=place)


def test_each_distinct_image_is_seen_and_embedded_once_in_a_run(engine):
    text = [1, 9, 9, 2]
    engine.score([with_image([0], text, name=b"a"), with_image([3, 3], text, name=b"a"), pair([0], text)])
    engine.score([with_image([0], text, name=b"a"), with_image([0], text, name=b"b")])
    assert len(engine._model._model.seen) == 2
    assert sorted(engine._model._model.texts) == [(0,), (1, 9, 9, 2), (1, 9, 9, 2), (1, 9, 9, 2), (3, 3)]
    assert engine.work == {"tokens": 15, "images": 2, "tiles": 2, "image_tokens": 4}


def test_the_vectors_of_a_pair_are_found_when_its_pixels_are_gone(engine):
    both = with_image([0], [1, 9, 9, 2], name=b"a")
    engine.score([both])
    gone = dataclasses.replace(both, block=dataclasses.replace(both.block, image=None))
    assert engine.cache.get(engine.keys(gone)).tolist() == [[1, 0, 0, 0], [0, 3, 1, 0]]


def test_no_pairs_have_no_scores(engine):
    assert engine.score([]).shape == (0,)


def test_a_vector_of_zeros_has_no_cosine(engine):
    engine._model._model.forward = lambda texts: torch.zeros(len(texts), 4)
    assert np.isnan(engine.score([pair([1], [2])])).all()


def test_the_vectors_of_a_pair_are_as_the_model_gave_them(engine):
    both = pair([0, 0, 1], [2])
    engine.score([both])
    assert engine.cache.get(engine.keys(both)).tolist() == [[2, 1, 0, 0], [0, 0, 1, 0]]


# --- the file


def test_the_file_has_a_row_for_each_vector():
    stream = io.BytesIO()
    file = EmbeddingsFile(stream, 2)
    file.write("query", "ä", np.array([1.5, 2.5], dtype=np.float32))
    file.write("passage", "", np.array([-1.0, 0.1], dtype=np.float32), image="a.png")
    file.close()
    table = pq.read_table(io.BytesIO(stream.getvalue()))
    assert table.schema.field("vector").type == pa.list_(pa.float32(), 2)
    assert table.to_pylist() == [
        {"kind": "query", "text": "ä", "image": None, "vector": [1.5, 2.5]},
        {"kind": "passage", "text": "", "image": "a.png", "vector": [-1.0, np.float32(0.1)]},
    ]


def test_rows_are_written_a_group_at_a_time():
    stream = io.BytesIO()
    file = EmbeddingsFile(stream, 2**20)
    for number in range(3):
        file.write("passage", str(number), np.full(2**20, number, dtype=np.float32))
    file.close()
    stored = pq.ParquetFile(io.BytesIO(stream.getvalue()))
    assert [stored.metadata.row_group(group).num_rows for group in range(stored.num_row_groups)] == [2, 1]


def test_a_file_without_vectors_has_its_columns():
    stream = io.BytesIO()
    EmbeddingsFile(stream, 3).close()
    assert pq.read_schema(io.BytesIO(stream.getvalue())).field("vector").type == pa.list_(pa.float32(), 3)
