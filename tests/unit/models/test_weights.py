from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor

from rerank_cli.checkpoint import Checkpoint, read_checkpoint
from rerank_cli.errors import ModelError
from rerank_cli.models.weights import WeightReader

CPU = torch.device("cpu")


def checkpoint_of(folder: Path, tensors: dict[str, Tensor]) -> Checkpoint:
    """A checkpoint that holds `tensors`."""
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"architectures": ["BertForSequenceClassification"]}))
    (folder / "tokenizer.json").write_text("{}")
    save_file(tensors, folder / "model.safetensors")
    return read_checkpoint(folder)


def reader(folder: Path, tensors: dict[str, Tensor], *, dtype: torch.dtype = torch.float32) -> WeightReader:
    return WeightReader(checkpoint_of(folder, tensors), dtype=dtype, device=CPU)


def refusal(call: Any, *arguments: Any) -> str:
    with pytest.raises(ModelError) as caught:
        call(*arguments)
    return caught.value.message


# --- plain tensors


@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("wanted", [torch.float32, torch.bfloat16, torch.float16])
def test_a_weight_comes_in_the_readers_dtype_whatever_it_is_stored_in(tmp_path, stored, wanted):
    values = torch.tensor([[1.5, -2.25], [0.125, 3.0]])  # exact in every format
    with reader(tmp_path, {"w": values.to(stored)}, dtype=wanted) as weights:
        weight = weights.take("w", (2, 2))
    assert weight.dtype == wanted
    assert torch.equal(weight.float(), values)


def test_a_weight_may_be_asked_for_in_another_dtype(tmp_path):
    with reader(tmp_path, {"w": torch.ones(2)}, dtype=torch.bfloat16) as weights:
        assert weights.take("w", (2,), dtype=torch.float32).dtype == torch.float32


def test_a_missing_weight_is_named_with_its_checkpoint(tmp_path):
    with reader(tmp_path, {"w": torch.ones(2)}) as weights:
        assert (
            refusal(weights.take, "classifier.weight", (1, 2)) == f"{tmp_path}: weight `classifier.weight` is missing"
        )


def test_a_weight_of_another_shape_is_refused_with_both_shapes(tmp_path):
    with reader(tmp_path, {"w": torch.ones(2, 3)}) as weights:
        message = refusal(weights.take, "w", (3, 2))
    assert message == f"{tmp_path / 'model.safetensors'}: `w` has shape [2, 3], config.json asks for [3, 2]"


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.bool])
def test_whole_numbers_are_no_weights(tmp_path, dtype):
    with reader(tmp_path, {"w": torch.ones(2, dtype=dtype)}) as weights:
        message = refusal(weights.take, "w", (2,))
    assert message.startswith(f"{tmp_path / 'model.safetensors'}: `w` holds ")
    assert message.endswith(", not weights")


def test_old_names_of_layer_norm_are_understood_and_count_as_taken(tmp_path):
    old = {"a.LayerNorm.gamma": torch.tensor([1.0, 2.0]), "a.LayerNorm.beta": torch.tensor([3.0, 4.0])}
    with reader(tmp_path, old) as weights:
        assert weights.take("a.LayerNorm.weight", (2,)).tolist() == [1.0, 2.0]
        assert weights.take("a.LayerNorm.bias", (2,)).tolist() == [3.0, 4.0]
        weights.finish()


def test_files_that_the_library_refuses_are_a_model_error(tmp_path):
    checkpoint = checkpoint_of(tmp_path, {"w": torch.ones(2)})
    (tmp_path / "model.safetensors").write_bytes(b"damaged since its header was read")
    with pytest.raises(ModelError, match="weights cannot be opened"):
        WeightReader(checkpoint, dtype=torch.float32, device=CPU)


# --- nothing may be left over


def test_a_weight_that_nobody_took_is_refused_by_name(tmp_path):
    with reader(tmp_path, {"w": torch.ones(2), "lora.a": torch.ones(2), "lora.b": torch.ones(2)}) as weights:
        weights.take("w", (2,))
        message = refusal(weights.finish)
    assert message == f"{tmp_path}: weights that BertForSequenceClassification does not have: `lora.a`, `lora.b`"


def test_many_left_weights_are_counted(tmp_path):
    with reader(tmp_path, {f"w{number}": torch.ones(1) for number in range(8)}) as weights:
        assert refusal(weights.finish).endswith("`w4` and 3 more")


@pytest.mark.parametrize(
    "name",
    [
        "bert.embeddings.position_ids",
        "embeddings.token_type_ids",
        "layers.0.rotary_emb.inv_freq",
        "n.num_batches_tracked",
    ],
)
def test_buffers_that_are_computed_anew_may_be_left(tmp_path, name):
    with reader(tmp_path, {name: torch.ones(2)}) as weights:
        weights.finish()


@pytest.mark.parametrize("name", ["position_ids.weight", "my_position_ids", "inv_freq"])
def test_a_name_that_only_looks_like_such_a_buffer_may_not(tmp_path, name):
    with reader(tmp_path, {name: torch.ones(2)}) as weights:
        assert f"`{name}`" in refusal(weights.finish)


def test_a_family_may_name_weights_that_it_rightly_does_not_use(tmp_path):
    with reader(tmp_path, {"roberta.pooler.dense.weight": torch.ones(2), "pooler": torch.ones(2)}) as weights:
        weights.ignore(r"^roberta\.pooler\.")
        assert refusal(weights.finish).endswith("does not have: `pooler`")


# --- 8 bits

ROWS = torch.tensor([[-128, 0, 127], [5, -6, 7]], dtype=torch.int8)


def dequantised(folder: Path, tensors: dict[str, Tensor], shape: tuple[int, ...] = (2, 3)) -> Tensor:
    with reader(folder, tensors) as weights:
        weight = weights.take("w", shape)
        weights.finish()  # scale and zero count as taken
    return weight


def test_one_scale_for_the_whole_tensor(tmp_path):
    weight = dequantised(tmp_path, {"w": ROWS, "w.scale": torch.tensor([0.5])})
    assert torch.equal(weight, ROWS.float() * 0.5)


def test_a_scale_without_dimensions(tmp_path):
    assert torch.equal(dequantised(tmp_path, {"w": ROWS, "w.scale": torch.tensor(0.5)}), ROWS.float() * 0.5)


def test_a_scale_for_each_row(tmp_path):
    weight = dequantised(tmp_path, {"w": ROWS, "w.scale": torch.tensor([0.5, 4.0])})
    assert weight.tolist() == [[-64.0, 0.0, 63.5], [20.0, -24.0, 28.0]]


def test_a_zero_point_is_taken_off_before_scaling(tmp_path):
    tensors = {"w": ROWS, "w.scale": torch.tensor([0.5]), "w.zero": torch.tensor([-3], dtype=torch.int16)}
    assert torch.equal(dequantised(tmp_path, tensors), (ROWS.float() + 3) * 0.5)


def test_a_zero_point_for_each_row(tmp_path):
    zero = torch.tensor([[100], [3]], dtype=torch.uint8)
    tensors = {"w": (ROWS.int() + 128).to(torch.uint8), "w.scale": torch.tensor([1.0, 2.0]), "w.zero": zero}
    assert torch.equal(dequantised(tmp_path, tensors), (ROWS.float() + 128 - zero) * torch.tensor([[1.0], [2.0]]))


def test_a_bias_in_8_bits_has_a_scale_for_each_element(tmp_path):
    tensors = {"w": ROWS[1], "w.scale": torch.tensor([1.0, 2.0, 3.0])}
    assert dequantised(tmp_path, tensors, shape=(3,)).tolist() == [5.0, -12.0, 21.0]


def test_8_bits_without_a_scale_are_refused(tmp_path):
    with reader(tmp_path, {"w": ROWS, "w.zero": torch.tensor([1], dtype=torch.int8)}) as weights:
        assert refusal(weights.take, "w", (2, 3)) == f"{tmp_path}: 8-bit weight `w` has no `w.scale`"


@pytest.mark.parametrize("companion", ["w.scale", "w.zero"])
@pytest.mark.parametrize("count", [0, 3, 6])
def test_a_wrong_number_of_scales_or_zero_points_is_refused(tmp_path, companion, count):
    tensors = {"w": ROWS, "w.scale": torch.ones(2)} | {companion: torch.ones(count)}
    with reader(tmp_path, tensors) as weights:
        message = refusal(weights.take, "w", (2, 3))
    expected = f"{tmp_path / 'model.safetensors'}: `{companion}` has {count} elements for [2, 3] weights"
    assert message == expected


def test_a_scale_of_a_weight_that_is_not_in_8_bits_is_left_over(tmp_path):
    with reader(tmp_path, {"w": torch.ones(2), "w.scale": torch.ones(1)}) as weights:
        weights.take("w", (2,))
        assert "`w.scale`" in refusal(weights.finish)


@given(
    rows=st.lists(st.lists(st.integers(0, 255), min_size=4, max_size=4), min_size=1, max_size=3),
    scale=st.sampled_from([0.25, 1.0, 2.0]),
    zero=st.integers(-128, 255),
)
def test_quantising_what_was_read_gives_the_stored_bytes_again(tmp_path_factory, rows, scale, zero):
    stored = torch.tensor(rows, dtype=torch.uint8)
    tensors = {"w": stored, "w.scale": torch.tensor([scale]), "w.zero": torch.tensor([zero], dtype=torch.int16)}
    weight = dequantised(tmp_path_factory.mktemp("model"), tensors, shape=tuple(stored.shape))
    assert torch.equal((weight / scale + zero).to(torch.uint8), stored)
