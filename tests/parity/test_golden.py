"""Every golden case through the command line: the logits that the authors' own code gives for these texts."""

from __future__ import annotations

import hashlib
import json
import random
from pathlib import Path
from typing import Any

import pytest

from rerank_cli.checkpoint import read_checkpoint
from rerank_cli.checkpoint.max_tokens import model_max_tokens
from rerank_cli.cli import main
from rerank_cli.encoding.encoder import open_encoder
from tests.parity import table
from tests.parity.conftest import pixels_sha256

# As the reference code reads texts: cut like it, `[SEP]` in a text acts as it does there.
AS_REFERENCE = ("--precision", "fp32", "--truncate", "reference", "--special-tokens", "allow")


def scored(golden, group, folder: Path, *options: str) -> dict[str, dict[str, Any]]:
    """The rows that `score` gives for the cases of a group, by id."""
    source, target = folder / "cases.jsonl", folder / "scored.jsonl"
    source.write_text("".join(json.dumps(case) + "\n" for case in group.cases))
    arguments = ["score", str(source), "-o", str(target), "--overwrite", "--quiet", "--model", str(golden.checkpoint)]
    assert main([*arguments, *group.options, *AS_REFERENCE, *options]) == 0
    rows = [json.loads(line) for line in target.read_text().splitlines()]
    assert [row["id"] for row in rows] == [case["id"] for case in group.cases]
    return {row["id"]: row for row in rows}


def differences(golden, rows: dict[str, dict[str, Any]]) -> dict[str, float]:
    """How far each logit is from the expected one."""
    return {name: abs(row["logit"] - golden.expected[name]["logit"]) for name, row in rows.items()}


def too_far(golden, rows: dict[str, dict[str, Any]]) -> dict[str, float]:
    """How far each logit is from the expected one, for those that are out of the tolerance, or farther than before."""
    allowed = table.limit(golden.name, golden.tolerance)
    return {name: difference for name, difference in differences(golden, rows).items() if not difference <= allowed}


def test_the_goldens_are_there(goldens):
    assert {"bert-ce-open", "xlmr-ce-open", "modernbert-ce-open", "deberta-ce-open"} <= set(goldens)
    assert all(len(golden.cases) == len(golden.expected) >= 14 for golden in goldens.values())
    assert all(sum(len(group.cases) for group in golden.groups) == len(golden.cases) for golden in goldens.values())


def test_each_pair_alone_has_the_reference_logit(golden, tmp_path):
    for group in golden.groups:
        assert too_far(golden, scored(golden, group, tmp_path, "--token-budget", "1")) == {}


def test_all_pairs_in_one_shuffled_batch_have_the_reference_logit(golden, tmp_path):
    for group in golden.groups:
        random.Random(group.max_tokens or 0).shuffle(group.cases)
        assert too_far(golden, scored(golden, group, tmp_path, "--token-budget", "1000000")) == {}


def test_a_row_tells_its_truncation_as_the_reference_counted_it(golden, tmp_path):
    if not any(row.get("truncated") for row in golden.expected.values()):
        pytest.skip("its authors' code does not tell what it cut")
    for group in golden.groups:
        for name, row in scored(golden, group, tmp_path).items():
            expected = golden.expected[name]
            told = (row.get("truncated", False), row.get("tokens"), row.get("kept_tokens"))
            cut = (True, expected["n_tokens_untruncated"], expected["n_tokens"])
            assert told == (cut if expected["truncated"] else (False, None, None)), name


def test_token_ids_token_types_and_pixels_are_the_reference_ones(golden):
    checkpoint = read_checkpoint(golden.checkpoint)
    for group in golden.groups:
        encoder = open_encoder(
            checkpoint,
            max_tokens=group.max_tokens or model_max_tokens(checkpoint),
            instruction=group.instruction,
            images=group.images,
            truncate="reference",
            special_tokens="allow",
        )
        for case, encoded in zip(group.cases, encoder.encode(group.pairs), strict=True):
            assert isinstance(encoded, tuple)
            (pair,) = encoded
            expected = golden.expected[case["id"]]
            ids = ",".join(map(str, pair.input_ids.tolist()))
            assert hashlib.sha256(ids.encode()).hexdigest() == expected["input_ids_sha256"], case["id"]
            assert len(pair.input_ids) == expected["n_tokens"]
            if "truncated" in expected:
                assert pair.truncated == expected["truncated"]
            if expected.get("token_type_ids_sum") is not None:
                assert len(pair.input_ids) - pair.second_start == expected["token_type_ids_sum"], case["id"]
            # Decoders of JPEG differ in the last bit: there the logit alone is compared.
            if not str(case.get("image")).endswith(".jpg"):
                assert pixels_sha256(pair) == expected.get("pixel_values_sha256"), case["id"]


def test_a_query_that_fills_the_limit_is_a_bad_row_where_the_query_is_never_cut(goldens, tmp_path, capsys):
    golden = goldens["bert-ce-open"]
    (group,) = (group for group in golden.groups if group.max_tokens == 64)
    source = tmp_path / "case.jsonl"
    source.write_text(json.dumps(group.cases[0]) + "\n")
    assert main(["score", str(source), "--model", str(golden.checkpoint), "--max-tokens", "64"]) == 10
    out, err = capsys.readouterr()
    assert out == ""
    assert "query-too-long" in err


def test_a_family_without_a_packed_model_talks_no_more_than_the_others(goldens, tmp_path, capfd):
    # transformers likes to draw a bar while it loads weights
    golden = goldens["deberta-ce-open"]
    scored(golden, golden.groups[0], tmp_path)
    assert capfd.readouterr() == ("", "")
