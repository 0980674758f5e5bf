"""The shipped profile files against the published data, and the checks of the loader against broken files.

`tests/data/nim/` holds the support matrix, the memory tables and the GPUs as they were collected from NVIDIA's pages.
"""

from __future__ import annotations

import copy
import json
import subprocess
import sys
import tomllib
from collections.abc import Callable
from datetime import date, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rerank_cli.errors import ProfileError
from rerank_cli.planning.profiles import (
    ModelProfiles,
    PublishedTable,
    find_profiles,
    load_all_profiles,
    load_profiles,
    parse_profiles,
    profiles_dir,
    same_sku,
    show_capability,
)
from tests.docs.support_matrix import render_support_matrix

DATA = Path(__file__).parents[3] / "data" / "nim"
MATRIX = json.loads((DATA / "support_matrix.json").read_text())
FOOTPRINT = json.loads((DATA / "memory_footprint.json").read_text())["rows"]
MODELS = {found.model.id: found for found in load_all_profiles()}
ONE_B, SMALL, VISION = (f"nvidia/llama-nemotron-rerank-{name}-v2" for name in ("1b", "500m", "vl-1b"))

Document = dict[str, Any]


def shipped_document(name: str = "llama-nemotron-rerank-500m-v2") -> Document:
    return tomllib.loads((profiles_dir() / f"{name}.toml").read_text())


# The shipped files.


def test_there_is_one_file_for_each_model_of_the_support_matrix() -> None:
    assert set(MODELS) == {row["model"] for row in MATRIX["models"]}
    for row in MATRIX["models"]:
        assert set(row.get("aliases", [])) <= set(MODELS[row["model"]].model.aliases)


@pytest.mark.parametrize("row", MATRIX["optimized_by_cc"], ids=lambda row: f"{row['model'][7:]} {row['cc']}")
def test_optimized_profiles_are_those_of_the_matrix_by_capability(row: dict[str, Any]) -> None:
    found = [
        profile for profile in MODELS[row["model"]].profiles
        if row["cc"] in map(show_capability, profile.compute_capabilities)
    ]  # fmt: skip
    assert sorted(profile.precision for profile in found) == row["precisions"]
    assert {profile.max_tokens for profile in found} == {row["max_tokens"]}


@pytest.mark.parametrize("row", MATRIX["optimized_by_sku"], ids=lambda row: row["sku"])
def test_optimized_profiles_are_those_of_the_matrix_by_sku(row: dict[str, Any]) -> None:
    found = [profile for profile in MODELS[row["model"]].profiles if row["sku"] in profile.skus]
    assert sorted(profile.precision for profile in found) == row["precisions"]
    assert {profile.max_tokens for profile in found} == {row["max_tokens"]}


def test_no_profile_matches_more_than_the_matrix_says() -> None:
    by_capability = {(row["model"], row["cc"]) for row in MATRIX["optimized_by_cc"]}
    by_sku = {(row["model"], row["sku"]) for row in MATRIX["optimized_by_sku"]}
    for name, found in MODELS.items():
        for profile in found.profiles:
            assert {(name, show_capability(one)) for one in profile.compute_capabilities} <= by_capability
            assert {(name, sku) for sku in profile.skus} <= by_sku


@pytest.mark.parametrize("row", MATRIX["non_optimized"][:3], ids=lambda row: row["model"][7:])
def test_the_fallback_is_that_of_the_matrix(row: dict[str, Any]) -> None:
    fallback = MODELS[row["model"]].profiles[-1]
    assert (fallback.precision, fallback.max_tokens) == (row["precision"], row["max_tokens"])
    assert fallback.min_memory_bytes == round(row["gpu_memory_gb"] * 1e9)
    assert fallback.disk_bytes == round(row["disk_gb"] * 1e9)


def published_table(row: dict[str, Any]) -> PublishedTable:
    """The one table that a row of the collected data is in."""
    sku = row["sku"]
    (table,) = (
        table for table in MODELS[row["model"]].memory
        if table.precision == row["precision"]
        and show_capability(table.compute_capability) == row["compute_capability"]
        and (same_sku(table.sku, sku) if sku else table.sku is None)
    )  # fmt: skip
    return table


@pytest.mark.parametrize("row", FOOTPRINT, ids=lambda row: "{table_group}{table_position_in_group}".format(**row))
def test_every_published_memory_value_comes_back_exactly(row: dict[str, Any]) -> None:
    table = published_table(row)
    point = (row["max_batch_size"], row["max_seq_len"])
    values = [found.gib for found in table.rows if (found.max_batch_size, found.max_sequence_length) == point]
    assert values == [row["memory_gib"]]
    assert (table.values, table.headings) == (row["value_status"], row["heading_status"])
    assert table.source.url == row["source"]


def test_nothing_but_the_88_published_values_is_in_the_memory_tables() -> None:
    counts = {name: sum(len(table.rows) for table in found.memory) for name, found in MODELS.items()}
    assert counts == {ONE_B: 10, SMALL: 68, VISION: 10}


@pytest.mark.parametrize("table", MODELS[SMALL].memory, ids=lambda table: f"{table.sku} {table.precision}")
def test_the_fit_of_a_table_is_the_least_squares_one_and_states_its_largest_miss(table: PublishedTable) -> None:
    fit = table.fit
    assert fit is not None
    points = [(row.max_batch_size or 0, row.max_sequence_length or 0, row.gib) for row in table.rows]
    linear = [batch * length / 2**20 for batch, length, _ in points]  # GiB of a KiB a token
    rest = [gib - fit.weights_gib - 2 * batch * length**2 / 2**30 for batch, length, gib in points]
    slope = sum(x * y for x, y in zip(linear, rest, strict=True)) / sum(x * x for x in linear)
    assert fit.kib_per_token == pytest.approx(slope, abs=0.006)
    misses = [abs(fit.gib(batch, length) - gib) for batch, length, gib in points]
    assert fit.worst_gib == pytest.approx(max(misses), abs=0.006)


def test_the_fit_answers_only_between_the_published_points() -> None:
    (table,) = MODELS[SMALL].published_tables(precision="fp16", compute_capability=(8, 9), sku="NVIDIA L4")
    published = table.published(8, 8192)
    assert published is not None
    assert published.gib == 9.81
    assert table.published(12, 8192) is None
    between = table.interpolated_gib(12, 8192)
    assert between is not None
    assert 9.81 < between < 18.06
    assert table.interpolated_gib(17, 8192) is None  # this table stops at 16
    assert table.interpolated_gib(16, 512) is None


def test_tables_of_a_sku_are_not_those_of_another_gpu_of_its_capability() -> None:
    tables = MODELS[SMALL].published_tables(precision="fp16", compute_capability=(8, 9), sku="NVIDIA RTX 6000 Ada")
    assert tables == ()
    (table,) = MODELS[ONE_B].published_tables(precision="fp16", compute_capability=(8, 9), sku="NVIDIA RTX 6000 Ada")
    assert table.rows[0].gib == 5.84


def test_the_shape_of_a_model_is_there_where_it_is_known_and_absent_where_it_is_not() -> None:
    language = MODELS[ONE_B].model.language
    assert language is not None
    attention = language.hidden_size * language.head_dim * 2 * (language.heads + language.kv_heads)
    layer = attention + 3 * language.hidden_size * language.intermediate_size + 2 * language.hidden_size
    body = language.layers * layer + language.hidden_size
    head = language.hidden_size
    assert body + language.vocab_size * language.hidden_size + head == 1_235_816_448  # mteb's number of parameters
    assert MODELS[SMALL].model.language is None
    assert MODELS[SMALL].model.status == "inferred"
    vision = MODELS[VISION].model.vision
    assert vision is not None
    assert (vision.image_size // vision.patch_size) ** 2 // 4 == vision.tokens_per_tile
    width = 4 * vision.hidden_size  # four patches are one token; LayerNorm, two linear layers
    assert vision.connector_parameters == 2 * width + (width + 1) * 2048 + (2048 + 1) * 2048


def test_engines_are_one_and_two_from_80_gb_on() -> None:
    for found in MODELS.values():
        engines = found.engines
        assert (engines.default, engines.performance, engines.performance_min_bytes) == (1, 2, 80_000_000_000)


def test_only_the_vision_model_is_without_automatic_selection() -> None:
    assert {name for name, found in MODELS.items() if not found.selection.automatic} == {VISION}


def test_the_support_matrix_has_a_row_for_each_profile() -> None:
    lines = render_support_matrix(MODELS.values()).splitlines()
    assert lines[0].count("|") == 7
    assert len(lines) == 2 + sum(len(found.profiles) for found in MODELS.values())
    assert all(line.count("|") == 7 for line in lines)
    row = next(line for line in lines if ONE_B in line and "`optimized-fp16`" in line)
    capabilities = "compute capability 8.0, 8.6, 8.9, 9.0, 10.0, 12.0"
    assert row == f"| `{ONE_B}` | `optimized-fp16` | {capabilities} | fp16 | 8192 | by default |"
    assert "any NVIDIA GPU with 7.3 GB" in next(line for line in lines if VISION in line and "fallback" in line)


# Finding the profiles of a model.

TEXT = "LlamaBidirectionalForSequenceClassification"


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        (ONE_B, ONE_B),
        ("nvidia/llama-3.2-nv-rerankqa-1b-v2", ONE_B),
        ("NVIDIA/Llama-Nemotron-Rerank-1B-v2", ONE_B),
        ("./checkpoints/llama-nemotron-rerank-500m-v2/", SMALL),
        ("nvidia/llama-nemotron-rerank-vl-1b-v2-fp8", VISION),
        ("nvidia/llama-nemotron-rerank-1b-v3", None),
        ("BAAI/bge-reranker-v2-m3", None),
        ("nvidia", None),
        (None, None),
    ],
)
def test_a_model_is_found_by_id_alias_or_folder(model: str | None, expected: str | None) -> None:
    found, reason = find_profiles(model)
    assert (found.model.id if found else None) == expected
    assert reason


def test_a_checkpoint_of_the_same_architecture_and_shape_is_found_under_any_name() -> None:
    found, reason = find_profiles("./ours", architecture=TEXT, layers=16, hidden_size=2048)
    assert found is not None
    assert found.model.id == ONE_B
    assert "same architecture and shape" in reason
    assert find_profiles("./ours", architecture=TEXT, layers=9, hidden_size=2048)[0] is None
    assert find_profiles("./ours", architecture="BertForSequenceClassification", layers=16, hidden_size=2048)[0] is None


def test_a_name_is_not_believed_against_the_architecture() -> None:
    found, reason = find_profiles(ONE_B, architecture="BertForSequenceClassification")
    assert found is None
    assert "BertForSequenceClassification" in reason


def test_two_files_for_one_model_are_refused(tmp_path: Path) -> None:
    text = (profiles_dir() / "llama-nemotron-rerank-1b-v2.toml").read_text()
    for name in ("a", "b"):
        (tmp_path / f"{name}.toml").write_text(text)
    with pytest.raises(ProfileError, match=r"b\.toml: model: .* is already in .*a\.toml"):
        load_all_profiles(tmp_path)


def test_a_missing_folder_is_told_apart_from_an_empty_one(tmp_path: Path) -> None:
    assert load_all_profiles(tmp_path) == ()
    with pytest.raises(ProfileError, match="no such folder"):
        load_all_profiles(tmp_path / "none")


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("NVIDIA H100 80GB HBM3", "NVIDIA-H100-80GB-HBM3", True),
        ("H100-NVL", "NVIDIA-H100-NVL", True),
        ("nvidia b200", "NVIDIA-B200", True),
        ("NVIDIA H100 80GB HBM3 MIG 3g.40gb", "NVIDIA-H100-80GB-HBM3", False),
        ("NVIDIA H100", "NVIDIA-H100-NVL", False),
        (None, None, False),
    ],
)
def test_spellings_of_a_sku(one: str | None, other: str | None, same: bool) -> None:
    assert same_sku(one, other) is same


# What the loader refuses. Each case changes a valid document and names what the message must say.


def profile_of(document: Document, name: str) -> Document:
    return next(block for block in document["profile"] if block["name"] == name)


def rows_of(document: Document) -> list[Document]:
    return document["memory"][0]["table"][0]["rows"]


def case(name: str, change: Callable[[Document], object], message: str, hint: str = "") -> Any:
    return pytest.param(change, message, hint, id=name)


FP8, FP16, FALLBACK = "optimized-fp8", "optimized-fp16", "fallback-fp16"
BROKEN = [
    case("schema missing", lambda d: d.pop("schema"), "`schema` must be 1: 'missing'"),
    case("schema of the future", lambda d: d.update(schema=2), "`schema` must be 1: 2"),
    case("schema a flag", lambda d: d.update(schema=True), "`schema` must be 1: True"),
    case("unknown block", lambda d: d.update(profiles=[]), "top level: unknown key `profiles`", "mean `profile`?"),
    case("block missing", lambda d: d.pop("engines"), "top level: key `engines` is missing"),
    case("block not a table", lambda d: d.update(model=[1]), "top level: `model` must be a table: [1]"),
    case("no profiles", lambda d: d.update(profile=[]), "`profile` must be a list of tables: []"),
    case(
        "unknown key",
        lambda d: profile_of(d, FP8).update(precison="fp8"),
        f"profile `{FP8}`: unknown key `precison`",
        "did you mean `precision`? known keys are",
    ),
    case(
        "key missing",
        lambda d: profile_of(d, FP16).pop("max_tokens"),
        f"profile `{FP16}`: key `max_tokens` is missing",
        "known keys are",
    ),
    case("name missing", lambda d: profile_of(d, FP16).pop("name"), "profile 2: key `name` is missing"),
    case(
        "text for a number",
        lambda d: profile_of(d, FP16).update(max_tokens="8192"),
        f"profile `{FP16}`: `max_tokens` must be a whole number above 0: '8192'",
    ),
    case(
        "flag for a number",
        lambda d: profile_of(d, FP16).update(max_tokens=True),
        f"profile `{FP16}`: `max_tokens` must be a whole number above 0: True",
    ),
    case("zero tokens", lambda d: profile_of(d, FP16).update(max_tokens=0), "must be a whole number above 0: 0"),
    case(
        "negative memory",
        lambda d: profile_of(d, FALLBACK).update(min_memory_gb=-3.6),
        f"profile `{FALLBACK}`: `min_memory_gb` must be a number above 0: -3.6",
    ),
    case(
        "not a number", lambda d: rows_of(d)[0].update(gib=float("nan")), "row 1: `gib` must be a number above 0: nan"
    ),
    case("endless", lambda d: rows_of(d)[0].update(gib=float("inf")), "row 1: `gib` must be a number above 0: inf"),
    case(
        "unknown precision",
        lambda d: profile_of(d, FP8).update(precision="fp4"),
        f"profile `{FP8}`: `precision` must be one of fp8, int8, fp16, bf16, fp32: 'fp4'",
    ),
    case(
        "capability as a number",
        lambda d: profile_of(d, FP8).update(compute_capability=[8.9]),
        f"profile `{FP8}`: `compute_capability` must be a list of compute capabilities, each a compute capability as "
        'text, such as "9.0": [8.9]',
    ),
    case(
        "capability open to the top",
        lambda d: profile_of(d, FP8).update(compute_capability=["8.9+"]),
        "such as \"9.0\": ['8.9+']",
    ),
    case(
        "capability twice",
        lambda d: profile_of(d, FP8).update(compute_capability=["8.9", "8.9"]),
        "none of them twice: ['8.9', '8.9']",
    ),
    case(
        "one capability without a list",
        lambda d: profile_of(d, FP8).update(compute_capability="8.9"),
        "`compute_capability` must be a list of compute capabilities: '8.9'",
    ),
    case(
        "matches nothing",
        lambda d: profile_of(d, FP8).pop("compute_capability"),
        f"profile `{FP8}`: needs `compute_capability` or `sku`, one of the two",
    ),
    case(
        "matches by both",
        lambda d: profile_of(d, FP8).update(sku=["NVIDIA-B200"]),
        f"profile `{FP8}`: needs `compute_capability` or `sku`, one of the two",
    ),
    case(
        "a file matches by both",
        lambda d: (profile_of(d, FP8).pop("compute_capability"), profile_of(d, FP8).update(sku=["NVIDIA-B200"])),
        f"profile `{FP8}`: `sku` must not decide where `compute_capability` does (`{FP16}`)",
    ),
    case(
        "fallback with a match",
        lambda d: profile_of(d, FALLBACK).update(compute_capability=["7.5"]),
        f"profile `{FALLBACK}`: a fallback matches any GPU: remove `compute_capability`",
    ),
    case(
        "fallback on request",
        lambda d: profile_of(d, FALLBACK).update(on_request=True),
        f"profile `{FALLBACK}`: a fallback cannot be `on_request`",
    ),
    case("no fallback", lambda d: d["profile"].pop(), 'exactly one profile of `kind` "fallback": found 0'),
    case(
        "two fallbacks",
        lambda d: d["profile"].append({**profile_of(d, FALLBACK), "name": "more"}),
        'exactly one profile of `kind` "fallback": found 2',
    ),
    case(
        "fallback first",
        lambda d: d["profile"].insert(0, d["profile"].pop()),
        f"profile `{FALLBACK}`: the fallback must be the last profile",
    ),
    case(
        "name twice",
        lambda d: profile_of(d, FP8).update(name=FP16),
        f"profile `{FP16}`: the name is there twice",
    ),
    case(
        "hidden by one",
        lambda d: d["profile"].insert(2, {**profile_of(d, FP16), "name": "late", "compute_capability": ["8.6"]}),
        f"profile `late`: never chosen, `{FP16}` before it match all that it does",
    ),
    case(
        "hidden by two together",
        lambda d: (
            profile_of(d, FP16).update(compute_capability=["8.0"]),
            d["profile"].insert(2, {**profile_of(d, FP16), "name": "next", "compute_capability": ["8.6"]}),
            d["profile"].insert(3, {**profile_of(d, FP16), "name": "late", "compute_capability": ["8.6", "8.0"]}),
        ),
        f"profile `late`: never chosen, `{FP16}`, `next` before it",
    ),
    case("no source", lambda d: profile_of(d, FP8).pop("source"), f"profile `{FP8}`: key `source` is missing"),
    case("no certainty", lambda d: d["engines"].pop("status"), "engines: key `status` is missing"),
    case(
        "a source that is not there",
        lambda d: d["engines"].update(source="matrx"),
        "engines: `source` names no [sources.matrx]",
        "did you mean `matrix`?",
    ),
    case(
        "a source without a day",
        lambda d: d["sources"]["matrix"].update(read_on="2026-01-31"),
        "sources.matrix: `read_on` must be a date such as 2026-01-31: '2026-01-31'",
    ),
    case(
        "a source with a time of day",
        lambda d: d["sources"]["matrix"].update(read_on=datetime(2026, 1, 31)),
        "sources.matrix: `read_on` must be a date such as 2026-01-31: datetime.datetime(2026",
    ),
    case(
        "a source that is no address",
        lambda d: d["sources"]["matrix"].update(url="NVIDIA's page"),
        "sources.matrix: `url` must be an http(s) address",
    ),
    case(
        "fewer engines for performance",
        lambda d: d["engines"].update(default=3),
        "engines: `performance` must not be below `default`: 2 < 3",
    ),
    case(
        "inferred without a confidence",
        lambda d: d["memory"][0].pop("confidence"),
        "memory 1: headings that are not certain need `confidence`",
    ),
    case(
        "too confident",
        lambda d: d["memory"][0]["confidence"].update(key=1.2),
        "memory 1: confidence: `key` must be a number above 0 and at most 1: 1.2",
    ),
    case(
        "memory falls with the batch",
        lambda d: rows_of(d)[1].update(gib=2.5),
        "memory of NVIDIA-A100-SXM4-40GB fp16: `gib` falls from 2.53 at batch size 1, length 8192 to 2.5 at batch "
        "size 8, length 8192",
    ),
    case(
        "memory falls with the length",
        lambda d: rows_of(d)[4].update(gib=5.18),
        "`gib` falls from 5.19 at batch size 30",
    ),
    case(
        "a point twice",
        lambda d: rows_of(d).append(dict(rows_of(d)[0])),
        "`rows` has batch size 1, length 8192 twice",
    ),
    case(
        "half a point",
        lambda d: rows_of(d)[0].pop("max_batch_size"),
        "memory 1, table 1, row 1: `max_batch_size` and `max_sequence_length` stand together or not at all",
    ),
    case(
        "a heading twice",
        lambda d: d["memory"][0]["table"][1].update(sku="A100-SXM4-40GB"),
        "memory of A100-SXM4-40GB fp16: the heading is there twice",
    ),
    case(
        "a fit of nothing",
        lambda d: d["memory"][0]["table"][0].update(rows=[{"gib": 2.0}]),
        "memory 1, table 1: `fit` needs rows with batch size and length",
    ),
]


@pytest.mark.parametrize(("change", "message", "hint"), BROKEN)
def test_a_broken_file_is_refused_with_file_entry_and_key(
    change: Callable[[Document], object], message: str, hint: str
) -> None:
    document = shipped_document()
    change(document)
    with pytest.raises(ProfileError) as refused:
        parse_profiles(document, file="profiles/x.toml")
    assert refused.value.message.startswith("profiles/x.toml: ")
    assert message in refused.value.message
    assert hint in (refused.value.hint or "")
    assert refused.value.exit_code == 2


def test_a_profile_that_only_a_request_hides_is_kept() -> None:
    document = shipped_document()
    late = {**profile_of(document, FP16), "name": "late", "compute_capability": ["8.9"]}
    profile_of(document, FP16)["on_request"] = True
    document["profile"].insert(2, late)
    assert [profile.name for profile in parse_profiles(document, file="x.toml").profiles][2] == "late"


def test_a_file_that_is_not_there_or_not_toml_is_refused(tmp_path: Path) -> None:
    cases: dict[str, bytes | None] = {
        "none.toml": None,
        "broken.toml": b"schema = [",
        "latin.toml": b"schema = 1 # caf\xe9",
        "deep.toml": b"a = " + b"[" * 100_000,
        "long.toml": b"schema = " + b"9" * 5000,
    }
    for name, content in cases.items():
        if content is not None:
            (tmp_path / name).write_bytes(content)
        with pytest.raises(ProfileError) as refused:
            load_profiles(tmp_path / name)
        assert refused.value.message.startswith(f"{tmp_path / name}: ")
    with pytest.raises(ProfileError):
        load_profiles(tmp_path)


def test_loaded_values_are_plain_and_cannot_be_changed() -> None:
    for found in MODELS.values():
        hash(found)  # a list left anywhere would not be hashable
        with pytest.raises(AttributeError):
            found.profiles[0].name = "other"


# Whatever stands in a file, the loader answers with profiles or with a ProfileError.

SMALL_DOCUMENT = shipped_document()
SMALL_DOCUMENT["memory"][0]["table"] = SMALL_DOCUMENT["memory"][0]["table"][:2]
VISION_DOCUMENT = shipped_document("llama-nemotron-rerank-vl-1b-v2")


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(place for key, child in inner for place in places(child, (*path, key)))]


VALUES = st.one_of(
    st.none(), st.booleans(), st.integers(), st.just(10**5000), st.floats(), st.text(max_size=5),
    st.sampled_from(["fp8", "9.0", "fallback", "certain", "matrix", date(2026, 1, 31), [], {}, [[]], [{}]]),
    st.dictionaries(st.text(max_size=3), st.integers(), max_size=2),
)  # fmt: skip


@st.composite
def mutated(draw: st.DrawFn) -> Document:
    document = copy.deepcopy(draw(st.sampled_from([SMALL_DOCUMENT, VISION_DOCUMENT])))
    for _ in range(draw(st.integers(1, 3))):
        path = draw(st.sampled_from(places(document)[1:] or [("schema",)]))
        parent = document
        for key in path[:-1]:
            parent = parent[key]
        action = draw(st.sampled_from(["replace", "remove", "double", "add"]))
        if action == "replace" or path[-1] not in (parent if isinstance(parent, dict) else range(len(parent))):
            parent[path[-1]] = draw(VALUES)
        elif action == "remove":
            del parent[path[-1]]
        elif action == "double" and isinstance(parent, list):
            parent.append(copy.deepcopy(parent[path[-1]]))
        elif isinstance(parent, dict):
            parent[draw(st.text(max_size=4))] = draw(VALUES)
    return document


@settings(max_examples=150, deadline=None)
@given(mutated())
def test_a_mutated_document_gives_profiles_or_a_profile_error(document: Document) -> None:
    try:
        found = parse_profiles(document, file="x.toml")
    except ProfileError as refused:
        assert refused.message.startswith("x.toml: ")
        assert len(refused.message) < 1000
    else:
        assert isinstance(found, ModelProfiles)
        assert found.profiles[-1].kind == "fallback"


EDITS = st.lists(st.tuples(st.integers(0, 4300), st.integers(0, 3), st.binary(max_size=3)), min_size=1, max_size=3)


@settings(max_examples=60, deadline=None)
@given(edits=EDITS)
def test_a_file_with_damaged_text_gives_profiles_or_a_profile_error(
    edits: list[tuple[int, int, bytes]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    content = bytearray((profiles_dir() / "llama-nemotron-rerank-1b-v2.toml").read_bytes())
    for place, removed, added in edits:
        content[place : place + removed] = added
    path = tmp_path_factory.getbasetemp() / "damaged.toml"
    path.write_bytes(content)
    try:
        assert isinstance(load_profiles(path), ModelProfiles)
    except ProfileError as refused:
        assert refused.message.startswith(str(path))


def test_profiles_load_without_torch_and_its_company() -> None:
    heavy = ["torch", "transformers", "numpy", "pandas", "pyarrow", "pydantic"]
    program = (
        "import sys; from rerank_cli.planning import profiles; profiles.load_all_profiles(); "
        f"print([name for name in {heavy} if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
