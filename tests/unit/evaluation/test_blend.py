from __future__ import annotations

import numpy as np
import pytest
import scipy.stats

from rerank_cli.evaluation.blend import Blend, blended, order_by_score, parse_blend

SCORES = np.array([[0.1, 3.0, 2.0, 2.0, -1.0]])


def test_no_weight_is_the_model_and_all_weight_the_given_order() -> None:
    model = np.argsort(-SCORES, axis=1, kind="stable")
    for kind in ("rrf", "z"):
        assert (order_by_score(SCORES, blend=Blend(kind, 0.0)) == model).all()
        assert order_by_score(SCORES, blend=Blend(kind, 1.0)).tolist() == [[0, 1, 2, 3, 4]]


def test_reciprocal_ranks_are_added() -> None:
    ranks, places = [4, 1, 2, 3, 5], [1, 2, 3, 4, 5]
    wanted = [0.7 / (60 + rank) + 0.3 / (60 + place) for rank, place in zip(ranks, places, strict=True)]
    assert blended(SCORES, Blend("rrf", 0.3))[0].tolist() == pytest.approx(wanted)


def test_z_scores_are_scipys() -> None:
    wanted = 0.6 * scipy.stats.zscore(SCORES[0]) + 0.4 * scipy.stats.zscore(-np.log(np.arange(1, 6)))
    assert blended(SCORES, Blend("z", 0.4))[0].tolist() == pytest.approx(wanted.tolist())
    equal = blended(np.ones((1, 3)), Blend("z", 0.5))
    assert np.isfinite(equal).all()


@pytest.mark.parametrize("blend", [None, Blend("rrf", 0.5), Blend("z", 0.5)])
def test_candidates_below_the_depth_keep_their_place(blend: Blend | None) -> None:
    order = order_by_score(SCORES, depth=3, blend=blend)
    assert order[0, 3:].tolist() == [3, 4]
    assert (order[:, :3] == order_by_score(SCORES[:, :3], blend=blend)).all()


@pytest.mark.parametrize("blend", [Blend("rrf", 0.5), Blend("z", 0.5)])
def test_a_shorter_list_beside_a_longer_one_is_blended_as_if_alone(blend: Blend) -> None:
    padded = np.array([[1.0, 2.0, 0.5, -np.inf, -np.inf], SCORES[0]])
    alone = order_by_score(padded[:1, :3], blend=blend)[0]
    assert order_by_score(padded, blend=blend)[0, :3].tolist() == alone.tolist()


@pytest.mark.parametrize("text", ["rrf", "rrf:2", "z:-1", "z:nan", "mean:0.5", "rrf:0.5x", "rrf:"])
def test_what_is_no_blend_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="not a blend"):
        parse_blend(text)


def test_a_blend_is_written_as_it_is_read() -> None:
    assert [str(parse_blend(text)) for text in ("rrf:0.5", "z:.30", "rrf:1")] == ["rrf:0.5", "z:0.3", "rrf:1"]
