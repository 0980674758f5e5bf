"""An embedder beside which sentence-transformers' files lie: its pooling, prompts, limit and similarity are obeyed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from rerank_cli.cli import main

GOLDEN = Path(__file__).parents[1] / "parity" / "nemotron-vl-embed-open" / "checkpoint"
KINDS = "sentence_transformers.models."


def declared(
    tmp_path: Path,
    *,
    pooling: dict[str, Any] | None = None,
    normalize: bool = False,
    shared: dict[str, Any],
    **more: Any,
) -> Path:
    model = Path(shutil.copytree(GOLDEN, tmp_path / "model"))
    names = ["Transformer", "Pooling", *["Normalize"] * normalize]
    paths = ["", "1_Pooling", "2_Normalize"]
    modules = [
        {"idx": number, "name": str(number), "path": paths[number], "type": KINDS + name}
        for number, name in enumerate(names)
    ]
    (model / "modules.json").write_text(json.dumps(modules))
    (model / "1_Pooling").mkdir()
    (model / "1_Pooling" / "config.json").write_text(
        json.dumps(pooling or {"word_embedding_dimension": 64, "pooling_mode_mean_tokens": True})
    )
    (model / "config_sentence_transformers.json").write_text(json.dumps(shared))
    (model / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 512, **more}))
    return model


def scored(tmp_path: Path, model: Path) -> tuple[dict[str, Any], dict[str, np.ndarray[Any, Any]]]:
    """The row of a pair, and the vectors of its two texts."""
    rows, out, kept = tmp_path / "rows.jsonl", tmp_path / "out.jsonl", tmp_path / "vectors.parquet"
    rows.write_text('{"query": "Where do bees go?", "passage": "Bees find their way home."}\n')
    arguments = ["-o", str(out), "--embeddings", str(kept), "--overwrite", "--quiet", "--precision", "fp32"]
    assert main(["score", str(rows), "--model", str(model), *arguments]) == 0
    table = pq.read_table(kept).to_pylist()
    return json.loads(out.read_text()), {row["kind"]: np.array(row["vector"]) for row in table}


ROLES = {"prompts": {"query": "query: ", "document": "passage: "}}


def test_metadata_that_says_what_the_model_does_changes_nothing(tmp_path):
    plain = scored(tmp_path, GOLDEN)
    row, vectors = scored(tmp_path, declared(tmp_path, shared={**ROLES, "similarity_fn_name": "cosine"}))
    assert row == plain[0]
    assert all((vectors[kind] == plain[1][kind]).all() for kind in vectors)


def test_a_dot_is_called_one_and_normalised_vectors_have_length_one(tmp_path):
    _, vectors = scored(tmp_path, GOLDEN)
    first, second = vectors.values()
    row, _ = scored(tmp_path, declared(tmp_path, shared={**ROLES, "similarity_fn_name": "dot"}))
    assert "cosine" not in row
    assert row["dot"] == pytest.approx(float(first @ second), rel=1e-5)
    shutil.rmtree(tmp_path / "model")
    row, vectors = scored(tmp_path, declared(tmp_path, normalize=True, shared={**ROLES, "similarity_fn_name": "dot"}))
    assert [np.linalg.norm(vector) for vector in vectors.values()] == pytest.approx([1, 1], abs=1e-6)
    cosine = float(first @ second / np.linalg.norm(first) / np.linalg.norm(second))
    assert row["dot"] == pytest.approx(cosine, abs=1e-6)


def test_prompts_of_the_roles_and_the_pooling_are_obeyed(tmp_path):
    plain, _ = scored(tmp_path, GOLDEN)
    other, _ = scored(tmp_path, declared(tmp_path, shared={"prompts": {"query": "Q: ", "passage": "P: "}}))
    assert abs(other["cosine"] - plain["cosine"]) > 1e-4
    shutil.rmtree(tmp_path / "model")
    last = {"embedding_dimension": 64, "pooling_mode": "lasttoken"}
    other, _ = scored(tmp_path, declared(tmp_path, pooling=last, shared=ROLES))
    assert abs(other["cosine"] - plain["cosine"]) > 1e-4


def test_the_limit_of_sentence_transformers_holds_for_each_text(tmp_path):
    row, _ = scored(tmp_path, declared(tmp_path, shared=ROLES))
    assert "truncated" not in row
    shutil.rmtree(tmp_path / "model")
    row, _ = scored(tmp_path, declared(tmp_path, shared=ROLES, max_seq_length=17))
    assert row["truncated"] is True


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"shared": {**ROLES, "similarity_fn_name": "euclidean"}}, "`similarity_fn_name` is 'euclidean'"),
        ({"shared": ROLES, "pooling": {"embedding_dimension": 64, "pooling_mode": "max"}}, "`pooling_mode` max"),
        ({"shared": ROLES, "query_length": 32}, "`query_length` is 32"),
    ],
)
def test_what_is_not_computed_is_refused_by_its_key(changes, said, tmp_path, capsys):
    model = declared(tmp_path, **changes)
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"query": "a", "passage": "b"}\n')
    assert main(["score", str(rows), "-o", str(tmp_path / "out.jsonl"), "--model", str(model)]) == 5
    assert said in capsys.readouterr().err
