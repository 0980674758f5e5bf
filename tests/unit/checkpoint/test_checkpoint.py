from __future__ import annotations

import hashlib
import json
import os
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rerank_cli.checkpoint import BUILTIN_MODEL, Checkpoint, locate_checkpoint, read_checkpoint, read_safetensors_header
from rerank_cli.errors import ModelError

CONFIG = {"architectures": ["BertForSequenceClassification"], "num_labels": 1}


def safetensors(header: Any, data: bytes = b"", *, length: int | None = None) -> bytes:
    """A safetensors file; header: JSON, or the bytes to write in its place; length: what the prefix claims."""
    encoded = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(encoded) if length is None else length) + encoded + data


def entry(begin: int, end: int, *, shape: Any = (2,), dtype: Any = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}


def one_tensor(name: str = "w") -> bytes:
    return safetensors({name: entry(0, 8)}, bytes(8))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A checkpoint with one tensor."""
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text(json.dumps(CONFIG))
    (model / "tokenizer.json").write_text("{}")
    (model / "tokenizer_config.json").write_text('{"model_max_length": 8}')
    (model / "model.safetensors").write_bytes(one_tensor())
    return model


def with_config(folder: Path, **more: Any) -> Checkpoint:
    (folder / "config.json").write_text(json.dumps(CONFIG | more))
    return read_checkpoint(folder)


def refused(path: Path) -> ModelError:
    with pytest.raises(ModelError) as caught:
        read_checkpoint(path)
    return caught.value


# --- what a good checkpoint says


def test_a_checkpoint_tells_its_facts_without_reading_weights(folder):
    checkpoint = read_checkpoint(folder, name="mine")
    assert checkpoint.name == "mine"
    assert checkpoint.architecture == "BertForSequenceClassification"
    assert checkpoint.tokenizer_config == {"model_max_length": 8}
    assert checkpoint.weight_files == [folder / "model.safetensors"]
    assert checkpoint.parameters == 2
    assert checkpoint.tensors["w"].shape == (2,)


def test_it_is_called_like_its_folder_where_no_name_is_given(folder):
    assert read_checkpoint(folder).name == "model"


def test_scales_and_zero_points_are_no_parameters(folder):
    header = {
        "w": entry(0, 2, dtype="I8"),
        "w.scale": entry(2, 6, shape=[1]),
        "w.zero": entry(6, 7, shape=[1], dtype="U8"),
    }
    (folder / "model.safetensors").write_bytes(safetensors(header, bytes(7)))
    checkpoint = read_checkpoint(folder)
    assert checkpoint.parameters == 2


def test_metadata_in_the_header_is_no_tensor(folder):
    (folder / "model.safetensors").write_bytes(
        safetensors({"__metadata__": {"format": "pt"}, "w": entry(0, 8)}, bytes(8))
    )
    assert list(read_checkpoint(folder).tensors) == ["w"]


def test_the_only_weight_file_may_have_another_name(folder):
    (folder / "model.safetensors").rename(folder / "weights.int8.safetensors")
    assert read_checkpoint(folder).weight_files == [folder / "weights.int8.safetensors"]


def test_the_standard_name_wins_over_other_weight_files(folder):
    (folder / "adapter.safetensors").write_bytes(one_tensor("a"))
    assert list(read_checkpoint(folder).tensors) == ["w"]


def test_special_tokens_of_an_older_checkpoint_are_in_a_file_of_their_own(folder):
    (folder / "special_tokens_map.json").write_text('{"sep_token": "</s>"}')
    assert read_checkpoint(folder).tokenizer_config == {"model_max_length": 8, "sep_token": "</s>"}
    (folder / "tokenizer_config.json").write_text('{"added_tokens_decoder": {}}')
    assert read_checkpoint(folder).tokenizer_config == {"added_tokens_decoder": {}}


def test_tokenizer_config_may_be_missing(folder):
    (folder / "tokenizer_config.json").unlink()
    checkpoint = read_checkpoint(folder)
    assert checkpoint.tokenizer_config == {}
    assert len(checkpoint.sha256) == 64


@pytest.mark.parametrize(
    "name", ["config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "model.safetensors"]
)
def test_the_digest_changes_with_every_file_that_decides_a_score(folder, name):
    (folder / "special_tokens_map.json").write_text("{}")
    before = read_checkpoint(folder).sha256
    content = (folder / name).read_bytes()
    changed = content[:-1] + b"\x01" if name == "model.safetensors" else content + b" "
    (folder / name).write_bytes(changed)
    assert read_checkpoint(folder).sha256 != before


def test_the_digest_does_not_change_with_a_read_me_or_with_the_place(folder, tmp_path):
    before = read_checkpoint(folder).sha256
    (folder / "README.md").write_text("hello")
    moved = folder.rename(tmp_path / "elsewhere")
    assert read_checkpoint(moved).sha256 == before
    lines = b"".join(
        f"{name} {hashlib.sha256((moved / name).read_bytes()).hexdigest()}\n".encode()
        for name in ("config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors")
    )
    assert hashlib.sha256(lines).hexdigest() == before


# --- values of config.json


@pytest.mark.parametrize("value", [None, "12", 1.5, True, [1]])
def test_a_size_that_is_no_whole_number_is_refused_with_its_key(folder, value):
    checkpoint = with_config(folder, hidden_size=value)
    with pytest.raises(ModelError, match=r"config\.json: `hidden_size` must be a whole number"):
        checkpoint.integer("hidden_size")


def test_a_size_that_is_missing_is_refused_or_has_its_default(folder):
    checkpoint = read_checkpoint(folder)
    assert checkpoint.integer("hidden_size", 7) == 7
    with pytest.raises(ModelError, match="`hidden_size` must be a whole number: None"):
        checkpoint.integer("hidden_size")


@pytest.mark.parametrize("value", [None, "1e-5", False, {}])
def test_a_number_that_is_none_is_refused_with_its_key(folder, value):
    with pytest.raises(ModelError, match=r"config\.json: `layer_norm_eps` must be a number"):
        with_config(folder, layer_norm_eps=value).number("layer_norm_eps", 1e-12)


def test_numbers_and_words_have_defaults(folder):
    checkpoint = with_config(folder, whole=3)
    assert (checkpoint.number("whole", 0.5), checkpoint.number("other", 0.5)) == (3.0, 0.5)
    assert checkpoint.text("hidden_act", "gelu") == "gelu"
    with pytest.raises(ModelError, match=r"config\.json: `whole` must be text: 3"):
        checkpoint.text("whole", "gelu")


@pytest.mark.parametrize("value", [None, [], ["A", "B"], "BertForSequenceClassification", [3], {}])
def test_an_architecture_that_is_not_exactly_one_name_is_refused(folder, value):
    with pytest.raises(ModelError, match=r"config\.json: `architectures` must name one class"):
        with_config(folder, architectures=value)


# --- what is missing or contradicts itself


def test_a_folder_without_config_is_refused(folder):
    (folder / "config.json").unlink()
    error = refused(folder)
    assert error.message == f"{folder}: no config.json"
    assert "safetensors" in (error.hint or "")


def test_a_folder_without_a_fast_tokenizer_is_refused_with_what_to_do(folder):
    (folder / "tokenizer.json").unlink()
    error = refused(folder)
    assert error.message == f"{folder}: no tokenizer.json"
    assert "save_pretrained" in (error.hint or "")


@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json", "special_tokens_map.json"])
@pytest.mark.parametrize(
    ("content", "why"),
    [(b"{", "not JSON"), (b"\xff\xfe\xfa", "not JSON"), (b"[" * 100_000, "not JSON"), (b"[1]", "not a JSON object")],
)
def test_a_configuration_that_is_no_json_object_is_refused(folder, name, content, why):
    (folder / name).write_bytes(content)
    assert f"{folder / name}: {why}" in refused(folder).message


def test_a_configuration_that_cannot_be_read_is_refused(folder):
    (folder / "tokenizer_config.json").unlink()
    (folder / "tokenizer_config.json").mkdir()
    assert f"{folder / 'tokenizer_config.json'}: " in refused(folder).message


def test_pickled_weights_are_not_read(folder):
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x04")
    error = refused(folder)
    assert error.message == f"{folder}: no safetensors weights, and pickle is not read: `pytorch_model.bin`"
    assert "safe_serialization" in (error.hint or "")


def test_a_folder_without_weights_is_refused(folder):
    (folder / "model.safetensors").unlink()
    assert refused(folder).message == f"{folder}: no *.safetensors weights"


def test_several_weight_files_need_an_index(folder):
    (folder / "model.safetensors").unlink()
    for number in range(7):
        (folder / f"part-{number}.safetensors").write_bytes(one_tensor(f"w{number}"))
    message = refused(folder).message
    assert f"{folder}: several safetensors files and no index: `part-0.safetensors`" in message
    assert message.endswith("`part-4.safetensors` and 2 more")


# --- shards


def sharded(
    folder: Path, weight_map: Any, files: dict[str, bytes], *, index: str = "model.safetensors.index.json"
) -> Path:
    for old in folder.glob("*.safetensors"):
        old.unlink()
    (folder / index).write_text(json.dumps({"weight_map": weight_map}))
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


def test_shards_are_read_by_their_index_alone(folder):
    files = {"a.safetensors": one_tensor("a"), "b.safetensors": one_tensor("b"), "c.safetensors": one_tensor("c")}
    checkpoint = read_checkpoint(sharded(folder, {"a": "a.safetensors", "b": "b.safetensors"}, files))
    assert sorted(checkpoint.tensors) == ["a", "b"]
    assert checkpoint.weight_files == [folder / "a.safetensors", folder / "b.safetensors"]


def test_a_missing_shard_is_named(folder):
    sharded(folder, {"a": "a.safetensors", "b": "b.safetensors"}, {"a.safetensors": one_tensor("a")})
    expected = f"{folder / 'b.safetensors'}: this shard is missing (named by model.safetensors.index.json)"
    assert refused(folder).message == expected


def test_a_tensor_that_its_shard_does_not_hold_is_named(folder):
    sharded(folder, {"a": "a.safetensors", "lost": "a.safetensors"}, {"a.safetensors": one_tensor("a")})
    assert (
        refused(folder).message == f"{folder / 'a.safetensors'}: the index promises tensors that are not in it: `lost`"
    )


def test_a_tensor_in_two_shards_is_named(folder):
    both = safetensors({"a": entry(0, 8), "b": entry(8, 16)}, bytes(16))
    sharded(
        folder, {"a": "a.safetensors", "b": "b.safetensors"}, {"a.safetensors": one_tensor("a"), "b.safetensors": both}
    )
    assert refused(folder).message == f"{folder / 'b.safetensors'}: tensors that another shard holds too: `a`"


@pytest.mark.parametrize("weight_map", [None, {}, [], "model.safetensors"])
def test_an_index_without_a_map_is_refused(folder, weight_map):
    assert (
        refused(sharded(folder, weight_map, {})).message
        == f"{folder / 'model.safetensors.index.json'}: no `weight_map`"
    )


@pytest.mark.parametrize("shard", ["../a.safetensors", "/etc/passwd", "sub/a.safetensors", 3, None, ".."])
def test_a_shard_outside_the_folder_is_refused(folder, shard):
    (folder.parent / "a.safetensors").write_bytes(one_tensor("a"))
    message = refused(sharded(folder, {"a": shard}, {})).message
    assert message.startswith(str(folder))
    assert "shard" in message


def test_the_whole_file_comes_before_the_shards_of_an_index(folder):
    files = {"a.safetensors": one_tensor("a"), "model.safetensors": one_tensor("whole")}
    checkpoint = read_checkpoint(sharded(folder, {"a": "a.safetensors"}, files))
    assert sorted(checkpoint.tensors) == ["whole"]


def test_two_indexes_are_refused(folder):
    sharded(folder, {"a": "a.safetensors"}, {})
    (folder / "fp16.safetensors.index.json").write_text("{}")
    assert f"{folder}: several weight indexes: `fp16.safetensors.index.json`" in refused(folder).message


# --- headers that lie

LYING = {
    "shorter-than-its-prefix": (b"\x01\x02", "header of 0 bytes in a file of 2"),
    "empty": (b"", "header of 0 bytes in a file of 0"),
    "length-over-the-file": (safetensors({"w": entry(0, 8)}, bytes(8), length=10**6), "header of 1000000 bytes"),
    "length-over-the-limit": (safetensors(b"{}", length=2**63), "header of 9223372036854775808 bytes"),
    "length-of-nothing": (safetensors(b"", bytes(8), length=0), "header of 0 bytes in a file of 16"),
    "not-json": (safetensors(b"{nonsense"), "not a safetensors file"),
    "not-utf-8": (safetensors(b'{"\xff": 1}'), "not a safetensors file"),
    "too-deep": (safetensors(b"[" * 200_000), "not a safetensors file"),
    "not-an-object": (safetensors([1, 2]), "the header is not an object"),
    "entry-is-no-object": (safetensors({"w": 3}), "entry of `w` is malformed"),
    "no-dtype": (safetensors({"w": {"shape": [2], "data_offsets": [0, 8]}}, bytes(8)), "entry of `w` is malformed"),
    "no-shape": (safetensors({"w": {"dtype": "F32", "data_offsets": [0, 8]}}, bytes(8)), "entry of `w` is malformed"),
    "one-offset": (safetensors({"w": entry(0, 8) | {"data_offsets": [8]}}, bytes(8)), "entry of `w` is malformed"),
    "shape-is-a-number": (safetensors({"w": entry(0, 8) | {"shape": 2}}, bytes(8)), "entry of `w` is malformed"),
    "unknown-dtype": (safetensors({"w": entry(0, 8, dtype="F7")}, bytes(8)), "`w` has an unknown type: 'F7'"),
    "dtype-is-a-list": (safetensors({"w": entry(0, 8, dtype=["F32"])}, bytes(8)), "`w` has an unknown type: ['F32']"),
    "negative-dimension": (safetensors({"w": entry(0, 8, shape=[-2])}, bytes(8)), "shape [-2] of F32"),
    "negative-offset": (safetensors({"w": entry(-8, 0)}, bytes(8)), "its bytes are -8..0"),
    "fraction": (safetensors({"w": entry(0, 8, shape=[2.0])}, bytes(8)), "shape [2.0] of F32"),
    "truth-value": (safetensors({"w": entry(0, 4, shape=[True])}, bytes(4)), "shape [True] of F32"),
    "huge-dimension": (safetensors({"w": entry(0, 8, shape=[2**70])}, bytes(8)), "its bytes are 0..8"),
    "very-many-dimensions": (safetensors({"w": entry(0, 4, shape=[1] * 1000)}, bytes(4)), "its bytes are 0..4"),
    "fewer-bytes-than-the-shape": (safetensors({"w": entry(0, 8, shape=[3])}, bytes(8)), "shape [3] of F32"),
    "overlap": (safetensors({"a": entry(0, 8), "b": entry(4, 12)}, bytes(12)), "`b` begins at byte 4 of"),
    "gap": (safetensors({"a": entry(0, 8), "b": entry(12, 20)}, bytes(20)), "`b` begins at byte 12 of"),
    "begins-late": (safetensors({"a": entry(4, 12)}, bytes(12)), "`a` begins at byte 4 of the data, not at 0"),
    "file-cut": (safetensors({"a": entry(0, 8)}, bytes(7)), "describes 8 bytes of data, the file has 7"),
    "file-too-long": (safetensors({"a": entry(0, 8)}, bytes(9)), "describes 8 bytes of data, the file has 9"),
}  # fmt: skip


@pytest.mark.parametrize("name", LYING)
def test_a_header_that_lies_is_refused_before_anything_maps_the_file(tmp_path, name):
    content, why = LYING[name]
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    with pytest.raises(ModelError) as caught:
        read_safetensors_header(path)
    assert caught.value.message.startswith(f"{path}: ")
    assert why in caught.value.message


@pytest.mark.parametrize("make", [Path.mkdir, lambda path: path.symlink_to("nowhere")])
def test_a_weight_file_that_cannot_be_opened_is_a_model_error(tmp_path, make):
    path = tmp_path / "model.safetensors"
    make(path)
    with pytest.raises(ModelError, match=r"model\.safetensors: "):
        read_safetensors_header(path)


def test_an_empty_tensor_and_a_single_number_are_fine(tmp_path):
    path = tmp_path / "a.safetensors"
    header = {"none": entry(0, 0, shape=[0, 5]), "one": entry(0, 4, shape=[]), "last": entry(4, 4, shape=[0])}
    path.write_bytes(safetensors(header, bytes(4)))
    found = read_safetensors_header(path)
    assert {name: info.shape for name, info in found.items()} == {"none": (0, 5), "one": (), "last": (0,)}


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=8,
)
NEARLY_ENTRIES = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(["F32", "I8", "BOOL"]) | JSON,
        "shape": st.lists(st.integers(-1, 5), max_size=3) | JSON,
        "data_offsets": st.lists(st.integers(-1, 40), max_size=3) | JSON,
    }
)
HEADERS = st.dictionaries(st.text(max_size=4), NEARLY_ENTRIES | JSON, max_size=3) | JSON


@pytest.fixture(scope="module")
def scratch(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("fuzz") / "model.safetensors"


def only_model_errors(path: Path, content: bytes) -> None:
    """The header is read and then describes the file exactly, or is refused by a `ModelError` that names the file."""
    path.write_bytes(content)
    try:
        found = read_safetensors_header(path)
    except ModelError as error:
        assert str(path) in error.message
    else:
        length = struct.unpack("<Q", content[:8])[0]
        assert sum(info.size_bytes for info in found.values()) == len(content) - 8 - length


@given(content=st.binary(max_size=64))
def test_any_bytes_are_read_or_refused(scratch, content):
    only_model_errors(scratch, content)


@settings(max_examples=60)
@given(header=HEADERS, data=st.binary(max_size=40))
def test_any_header_is_read_or_refused(scratch, header, data):
    only_model_errors(scratch, safetensors(header, data))


@given(place=st.integers(8, 60), byte=st.integers(0, 255))
def test_a_header_with_one_wrong_byte_is_read_or_refused(scratch, place, byte):
    content = bytearray(one_tensor("weight"))
    content[place] = byte
    only_model_errors(scratch, bytes(content))


# --- where a checkpoint is


def test_no_name_and_the_built_in_name_are_the_built_in_model():
    assert locate_checkpoint(None) == locate_checkpoint(BUILTIN_MODEL)
    assert read_checkpoint(locate_checkpoint(None)).architecture == "BertForSequenceClassification"


def test_a_directory_is_itself(folder):
    assert locate_checkpoint(str(folder)) == folder


def test_a_home_directory_may_be_written_short(folder, monkeypatch):
    monkeypatch.setenv("HOME", str(folder.parent))
    assert locate_checkpoint("~/model") == folder


def test_a_file_is_not_a_checkpoint(folder):
    with pytest.raises(ModelError, match=r"config\.json: not a directory"):
        locate_checkpoint(str(folder / "config.json"))


@pytest.mark.parametrize("name", ["./nothing", "/no/where", "~/nothing-here", "word", "a/b/c"])
def test_a_name_that_is_neither_a_folder_nor_an_id_is_refused(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelError) as caught:
        locate_checkpoint(name)
    assert caught.value.message == f"{name}: no such directory"


COMMIT = "0123456789abcdef0123456789abcdef01234567"
LOCATE = """
import sys
from rerank_cli.checkpoint import locate_checkpoint
from rerank_cli.errors import ModelError
try:
    print(locate_checkpoint("some-one/some-model", revision=sys.argv[1] or None, online=sys.argv[2] == "online"))
except ModelError as error:
    print(error.message, error.hint, sep=chr(10))
"""


def located(home: Path, *, revision: str = "", online: bool = False) -> list[str]:
    """What a process with this Hugging Face cache and a hub that does not answer finds for some-one/some-model."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    env |= {"HF_HOME": str(home), "HF_ENDPOINT": "http://127.0.0.1:9", "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", LOCATE, revision, "online" if online else "offline"]
    return subprocess.run(command, env=env, check=True, capture_output=True, text=True).stdout.splitlines()


@pytest.fixture
def hub_home(tmp_path: Path, folder: Path) -> Path:
    """A Hugging Face cache that holds the folder as some-one/some-model."""
    stored = tmp_path / "hf" / "hub" / "models--some-one--some-model"
    (stored / "snapshots").mkdir(parents=True)
    folder.rename(stored / "snapshots" / COMMIT)
    (stored / "refs").mkdir()
    (stored / "refs" / "main").write_text(COMMIT)
    return tmp_path / "hf"


@pytest.mark.parametrize("revision", ["", "main", COMMIT])
def test_an_id_is_found_in_the_local_hub_cache(hub_home, revision):
    expected = hub_home / "hub" / "models--some-one--some-model" / "snapshots" / COMMIT
    assert located(hub_home, revision=revision) == [str(expected)]


def test_an_id_that_is_not_in_the_cache_is_refused_without_a_connection(tmp_path):
    message, hint = located(tmp_path)
    assert message == "some-one/some-model: not in the local Hugging Face cache"
    assert "--online" in hint


def test_a_revision_that_is_not_in_the_cache_is_refused(hub_home):
    assert located(hub_home, revision="other")[0] == "some-one/some-model: not in the local Hugging Face cache"


def test_a_download_that_fails_says_why(tmp_path):
    message, hint = located(tmp_path, online=True)
    assert message.startswith("some-one/some-model: cannot be downloaded (")
    assert hint == "None"


def test_an_id_that_cannot_be_one_is_refused():
    with pytest.raises(ModelError, match="not in the local Hugging Face cache"):
        locate_checkpoint("what is/this?")
