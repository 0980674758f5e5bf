"""Tensors of a checkpoint, converted as they are read, each asked for exactly once.

`WeightReader` memory-maps the safetensors files; a tensor becomes memory of our own only by a conversion (another
dtype, another device, prepacking). A family takes what it needs by name; `finish` then refuses a checkpoint that holds
weights nobody asked for, because an ignored weight means another model than the one that was trained.

8-bit tensors: an int8 or uint8 tensor `X` with companions `X.scale` (float32) and, where the zero point is not 0,
`X.zero` stands for `(X - zero) * scale`; scale and zero have one element, or one for each row of `X` (per-channel).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Self

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from rerank_cli.checkpoint import Checkpoint, TensorInfo
from rerank_cli.errors import ModelError

_HARMLESS = re.compile(
    r"(^|\.)(position_ids|token_type_ids|rotary_emb\.inv_freq|num_batches_tracked)$"  # buffers that are computed anew
)


class WeightReader:
    """The weights of one checkpoint, by name, in one dtype on one device. A context manager: closes the files."""

    def __init__(self, checkpoint: Checkpoint, *, dtype: torch.dtype, device: torch.device) -> None:
        self._checkpoint = checkpoint
        self._dtype = dtype
        self._device = device
        self._taken: set[str] = set()
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
        """The checkpoint holds a tensor of this name."""
        return name in self._checkpoint.tensors

    def take(self, name: str, shape: Sequence[int], *, dtype: torch.dtype | None = None) -> Tensor:
        """The tensor `name` in the reader's dtype (or `dtype`); its shape must be `shape`.

        Names of old checkpoints are understood: `LayerNorm.gamma/beta` for `LayerNorm.weight/bias`.
        """
        stored = self._stored_name(name)
        info = self._checkpoint.tensors[stored]
        if info.shape != tuple(shape):
            raise ModelError(
                f"{info.file}: `{stored}` has shape {list(info.shape)}, config.json asks for {list(shape)}"
            )
        tensor = self._read(stored, info)
        if info.dtype in ("I8", "U8"):
            tensor = self._dequantise(stored, tensor)
        elif not tensor.is_floating_point():
            raise ModelError(f"{info.file}: `{stored}` holds {info.dtype}, not weights")
        return tensor.to(device=self._device, dtype=dtype or self._dtype)

    def ignore(self, pattern: str) -> None:
        """Weights that the checkpoint may carry and this family rightly does not use (regular expression)."""
        self._taken.update(name for name in self._checkpoint.tensors if re.search(pattern, name))

    def finish(self) -> None:
        """Refuse weights that nobody took."""
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

    def _stored_name(self, name: str) -> str:
        old = name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")
        for candidate in (name, old):
            if self.has(candidate):
                return candidate
        raise ModelError(f"{self._checkpoint.path}: weight `{name}` is missing")

    def _read(self, name: str, info: TensorInfo) -> Tensor:
        self._taken.add(name)
        tensor: Tensor = self._files[info.file].get_tensor(name)
        return tensor

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
