"""What a request asks of its own long pairs, in every encoder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from rerank_cli.checkpoint import read_checkpoint
from rerank_cli.encoding.encoder import EncodingProblem, open_encoder
from rerank_cli.job.image_parts import encode_parts
from rerank_cli.records import CandidateList, EncodedPair, ImagePassage, ImageSource, Limits, Window
from tests.unit.images import encoded, picture

PARITY = Path(__file__).parents[2] / "parity"
CHECKPOINTS = {
    name: read_checkpoint(PARITY / f"{name}-open" / "checkpoint")
    for name in ("bert-ce", "llama-rerank", "qwen3-reranker", "nemotron-vl-rerank", "nemotron-vl-embed")
}
MODES = ("end", "error", "chunk", "reference")
LONG = " ".join(f"word{number}" for number in range(400))
WHOLE = Limits(whole=True)


def encode(name: str, passage: Any, limits: Limits, *, max_tokens: int = 256, **options: Any) -> Any:
    encoder: Any = open_encoder(CHECKPOINTS[name], max_tokens=max_tokens, **options)
    (entry,) = encoder.encode([("a query", passage)], limits)
    return entry


@pytest.mark.parametrize("name", CHECKPOINTS)
@pytest.mark.parametrize("mode", MODES)
def test_a_pair_that_must_stay_whole_is_a_problem_whatever_the_mode(name: str, mode: str) -> None:
    entry = encode(name, LONG, WHOLE, truncate=mode)
    assert isinstance(entry, EncodingProblem)
    assert entry.code == "too-long"
    assert entry.message.endswith("tokens, the limit is 256")
    (pair,) = encode(name, "short", WHOLE, truncate=mode)
    assert not pair.truncated


@pytest.mark.parametrize("name", CHECKPOINTS)
@pytest.mark.parametrize("mode", MODES)
def test_a_passage_is_cut_to_as_many_tokens_as_the_request_allows(name: str, mode: str) -> None:
    def only(passage: str, limits: Limits) -> EncodedPair:
        (pair,) = encode(name, passage, limits, max_tokens=512, truncate=mode)
        assert isinstance(pair, EncodedPair)
        return pair

    some = " ".join(f"word{number}" for number in range(30))
    whole, empty = only(some, Limits()), only("", Limits())
    ids, room = whole.input_ids.tolist(), len(whole.input_ids) - len(empty.input_ids)
    for most in (1, 10, room - 2):
        pair = only(some, Limits(passage_tokens=most))
        left = pair.input_ids.tolist()
        assert abs(len(left) - len(empty.input_ids) - most) <= 1  # a token may hold a letter of text and of template
        assert (pair.tokens, pair.truncated) == (whole.tokens, True)
        # What is left is the whole without the end of the passage.
        assert any(left == ids[: len(left) - after] + ids[len(ids) - after :] for after in range(len(left)))
    assert only(some, Limits(passage_tokens=room + 5)).input_ids.tolist() == ids


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_a_passage_that_is_cut_to_fit_need_not_be_cut_again(name: str) -> None:
    (pair,) = encode(name, LONG, Limits(whole=True, passage_tokens=20))
    assert pair.truncated
    assert len(pair.input_ids) <= 256


def test_an_image_that_must_stay_whole_is_not_cut_in_fewer_tiles() -> None:
    passage = ImagePassage("", ImageSource(encoded(picture(1000, 1000))))
    (pair,) = encode("nemotron-vl-rerank", passage, Limits(), max_tokens=600)
    assert pair.block.full_tiles > pair.block.tiles
    entry = encode("nemotron-vl-rerank", passage, WHOLE, max_tokens=600)
    assert isinstance(entry, EncodingProblem)
    assert entry.code == "too-long"


def test_the_same_pair_of_requests_with_other_limits_is_another_pair() -> None:
    lists = [
        CandidateList("a query", (LONG, "short"), (), limits=limits) for limits in (WHOLE, Limits(), WHOLE, Limits())
    ]
    encoder = open_encoder(CHECKPOINTS["bert-ce"], max_tokens=128)
    (part,) = encode_parts(Window(0, tuple(lists), (), 4, 0), encoder)
    assert part.places == [0, 1, 2, 3, 0, 1, 2, 3]
    first, _, third, _ = part.encoded
    assert isinstance(first, EncodingProblem)
    assert isinstance(third, tuple)
    assert third[0].truncated
