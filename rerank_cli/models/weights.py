"""Tensors of a checkpoint, converted as they are read, each once; a tensor that no layer asks for is refused.

`WeightReader` memory-maps the safetensors files; a tensor becomes memory of our own only by a conversion (another
dtype, another device, prepacking). What is converted is read apart from the mapping, a tensor at a time, so that two
copies of a model are never resident. A family takes what it needs by name; `finish` then refuses a checkpoint with
weights that nobody asked for, because a model without them is not the one that was trained.

8-bit tensors: an int8 or uint8 tensor `X` with companions `X.scale` (float32) and, where the zero point is not 0,
`X.zero` stands for `(X - zero) * scale`; scale and zero have one element, or one for each row of `X` (per-channel).

FP8 tensors (`quantisation.py`): `take` dequantises them, `take_fp8` gives them as they are, with their scales.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from rerank_cli.checkpoint import Checkpoint, TensorInfo
from rerank_cli.checkpoint.quantisation import read_quantisation
from rerank_cli.errors import ModelError

_FLOATS = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_INTEGERS = {"I8": torch.int8, "U8": torch.uint8}
_FP8 = "F8_E4M3"
_DTYPES = {**_FLOATS, **_INTEGERS, _FP8: torch.float8_e4m3fn, "I16": torch.int16, "I32": torch.int32}
_CACHE_SCALE = re.compile(r"\.(k_scale|v_scale)$")  # of a key/value cache, which an encoder does not have
_HARMLESS = re.compile(
    r"(^|\.)(position_ids|token_type_ids|rotary_emb\.inv_freq|num_batches_tracked)$"  # buffers that are computed anew
)


@dataclass(frozen=True, slots=True)
class Fp8Weight:
    """A weight in float8_e4m3fn with its scales, each float32 with one element, on the reader's device.

    The weight is `values * scale`; inputs are divided by `input_scale` before they are rounded to float8 themselves.
    """

    values: Tensor
    scale: Tensor
    input_scale: Tensor


class WeightReader:
    """The weights of one checkpoint, by name, in one dtype on one device. A context manager: closes the files.

    quantised: the checkpoint says that it is quantised, in a way that is known.
    """

    def __init__(self, checkpoint: Checkpoint, *, dtype: torch.dtype, device: torch.device) -> None:
        self._checkpoint = checkpoint
        self._dtype = dtype
        self._device = device
        self._taken: set[str] = set()
        self.quantised = read_quantisation(checkpoint) is not None
        try:
            self._files: dict[Any, Any] = {
                path: safe_open(path, framework="pt", device="cpu") for path in checkpoint.weight_files
            }
        except (SafetensorError, OSError) as error:
            raise ModelError(f"{checkpoint.path}: weights cannot be opened: {error}") from error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._files.clear()

    def has(self, name: str) -> bool:
        """Whether the checkpoint holds a tensor of this name."""
        return name in self._checkpoint.tensors

    def take(self, name: str, shape: Sequence[int], *, dtype: torch.dtype | None = None) -> Tensor:
        """The tensor `name` in the reader's dtype (or `dtype`); its shape must be `shape`.

        Names of old checkpoints are understood: `LayerNorm.gamma/beta` for `LayerNorm.weight/bias`.
        """
        stored, info = self._find(name, shape)
        if info.dtype == _FP8:
            fp8 = self._read_fp8(stored, info)
            tensor = fp8.values.to(torch.float32).mul_(fp8.scale)
        elif info.dtype in _INTEGERS:
            tensor = self._dequantise(stored, self._read(stored, info))
        elif info.dtype not in _FLOATS:
            raise ModelError(f"{info.file}: `{stored}` holds {info.dtype}, not weights")
        elif _FLOATS[info.dtype] == (dtype or self._dtype) and self._device.type == "cpu":
            self._taken.add(stored)  # as it lies in the mapped file: nothing is to be converted
            tensor = self._files[info.file].get_tensor(info.stored_name or stored)
        else:
            tensor = self._read(stored, info)
        return tensor.to(device=self._device, dtype=dtype or self._dtype)

    def is_fp8(self, name: str) -> bool:
        """Whether the tensor `name` is there and in float8_e4m3fn."""
        info = self._checkpoint.tensors.get(name)
        return info is not None and info.dtype == _FP8

    def take_fp8(self, name: str, shape: Sequence[int]) -> Fp8Weight:
        """The tensor `name` as it is stored, with its scales; its shape must be `shape`."""
        stored, info = self._find(name, shape)
        fp8 = self._read_fp8(stored, info)
        return Fp8Weight(*(part.to(self._device) for part in (fp8.values, fp8.scale, fp8.input_scale)))

    def ignore(self, pattern: str) -> None:
        """Let the checkpoint have weights that its family does not use. pattern: finds their names."""
        self._taken.update(name for name in self._checkpoint.tensors if re.search(pattern, name))

    def finish(self) -> None:
        """Refuse weights that nobody took."""
        if self.quantised:
            self.ignore(_CACHE_SCALE.pattern)
        left = sorted(
            name for name in self._checkpoint.tensors if name not in self._taken and not _HARMLESS.search(name)
        )
        if left:
            shown = ", ".join(f"`{name}`" for name in left[:5]) + (
                f" and {len(left) - 5} more" if len(left) > 5 else ""
            )
            raise ModelError(
                f"{self._checkpoint.path}: weights that {self._checkpoint.architecture} does not have: {shown}",
                hint="config.json and weights are of different models",
            )

    def _find(self, name: str, shape: Sequence[int]) -> tuple[str, TensorInfo]:
        """The name that `name` is stored under, and what the header says of it."""
        old = name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")
        stored = name if self.has(name) else old
        info = self._checkpoint.tensors.get(stored)
        if info is None:
            raise ModelError(f"{self._checkpoint.path}: weight `{name}` is missing")
        if info.shape != tuple(shape):
            raise ModelError(
                f"{info.file}: `{stored}` has shape {list(info.shape)}, config.json asks for {list(shape)}"
            )
        return stored, info

    def _read(self, name: str, info: TensorInfo) -> Tensor:
        """The tensor, read into memory of its own: pages of the mapping would stay resident beside it once touched."""
        if info.dtype not in _DTYPES:
            raise ModelError(f"{info.file}: `{name}` holds {info.dtype}, not weights")
        self._taken.add(name)
        try:
            data = np.fromfile(info.file, dtype=np.uint8, count=info.size_bytes, offset=info.offset)
        except OSError as error:
            raise ModelError(f"{info.file}: {error.strerror or error}") from error
        if data.size != info.size_bytes:
            raise ModelError(f"{info.file}: `{name}` ends before its last byte: the file has changed")
        if not data.size:
            return torch.empty(info.shape, dtype=_DTYPES[info.dtype])
        return torch.from_numpy(data).view(_DTYPES[info.dtype]).reshape(info.shape)

    def _read_fp8(self, name: str, info: TensorInfo) -> Fp8Weight:
        if not self.quantised:
            raise ModelError(
                f"{info.file}: `{name}` holds {_FP8}, and no file says how it was quantised",
                hint="hf_quant_config.json, or `quantization_config` in config.json, belongs to the checkpoint",
            )
        scales = []
        for companion in (f"{name}_scale", f"{name.removesuffix('weight')}input_scale"):
            beside = self._checkpoint.tensors.get(companion)
            if beside is None:
                raise ModelError(f"{self._checkpoint.path}: FP8 weights without `{companion}`")
            scale = self._read(companion, beside).to(torch.float32).flatten()
            if scale.numel() != 1 or not bool((scale > 0).all() and scale.isfinite().all()):
                raise ModelError(f"{beside.file}: `{companion}` must be one number above 0: {scale[:5].tolist()}")
            scales.append(scale.reshape(()))
        return Fp8Weight(self._read(name, info), *scales)

    def _dequantise(self, name: str, quantised: Tensor) -> Tensor:
        scale = self._companion(f"{name}.scale", quantised)
        if scale is None:
            raise ModelError(f"{self._checkpoint.path}: 8-bit weight `{name}` has no `{name}.scale`")
        zero = self._companion(f"{name}.zero", quantised)
        weight = quantised.to(torch.float32)
        return (weight if zero is None else weight.sub_(zero)).mul_(scale)

    def _companion(self, name: str, quantised: Tensor) -> Tensor | None:
        """Scale or zero point as float32, shaped to broadcast over the rows of the tensor it belongs to."""
        info = self._checkpoint.tensors.get(name)
        if info is None:
            return None
        values = self._read(name, info).to(torch.float32).flatten()
        if values.numel() not in (1, quantised.shape[0]):
            raise ModelError(f"{info.file}: `{name}` has {values.numel()} elements for {list(quantised.shape)} weights")
        return values.reshape(-1, *[1] * (quantised.dim() - 1)) if values.numel() > 1 else values


class BlankReader(WeightReader):
    """Zeros in place of the weights of a checkpoint without files, to measure what a model needs, never to score."""

    def take(self, name: str, shape: Sequence[int], *, dtype: torch.dtype | None = None) -> Tensor:
        """Zeros of this shape, whatever the name."""
        return torch.zeros(tuple(shape), dtype=dtype or self._dtype, device=self._device)

    def finish(self) -> None:
        """Nothing: there are no files."""


def open_weights(checkpoint: Checkpoint, *, dtype: torch.dtype, device: torch.device) -> WeightReader:
    """The reader of a checkpoint's weights."""
    reader = BlankReader if checkpoint.blank else WeightReader
    return reader(checkpoint, dtype=dtype, device=device)
