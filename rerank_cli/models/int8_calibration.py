"""What all int8 models share: where they run, and how they are calibrated.

What an int8 layer needs to know is how large its inputs become. `calibrate` sees it on some pairs, in float32, and
returns it as a state for a JSON file; `use` rounds the weights by such a state. The same state makes the same model,
so a run goes on with the state that it began with.
"""

from __future__ import annotations

import base64
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from rerank_cli.checkpoint import Checkpoint
from rerank_cli.checkpoint.families import int8_refusal
from rerank_cli.errors import ModelError
from rerank_cli.models.int8_linear import Int8Linear, int8_hindrance, steps
from rerank_cli.models.packed import PackedBatch
from rerank_cli.records import EncodedPair

# Inputs to come are taken to be this much larger than those that were seen. With 4 pairs of one list to calibrate on,
# 1.15 brought the mean difference of logits from 0.09 to 0.07 (vaswani); with 55 pairs it changes nothing.
_HEADROOM = 1.1


def check_int8(checkpoint: Checkpoint, *, device: str) -> None:
    """Raise `ModelError` where the model has no int8 layers, or `device` does not run them."""
    on_cpu = torch.device(device).type == "cpu"
    if not on_cpu or (hindrance := int8_hindrance()):
        why = hindrance if on_cpu else f"not on {device}"
        raise ModelError(f"--precision int8: {why}", hint="`--precision fp32` runs anywhere")
    if refusal := int8_refusal(checkpoint.architecture, checkpoint.config):
        raise ModelError(f"--precision int8: {refusal}")


@dataclass(frozen=True, slots=True)
class RawLinear:
    """Weight and bias of a layer that is to be rounded."""

    weight: Tensor
    bias: Tensor | None
    then: str | None = None

    @property
    def bias_or_zeros(self) -> Tensor:
        """[outputs], also for a layer without a bias."""
        return torch.zeros(len(self.weight)) if self.bias is None else self.bias

    @property
    def pair(self) -> tuple[Tensor, Tensor]:
        """Weight and bias."""
        return self.weight, self.bias_or_zeros


class Seen:
    """The largest magnitudes of what goes into the products of a layer, by channel; of the last product the least too.

    input: of queries, keys and values. context: of the attention's output. attended: of the MLP. inner: of its end.
    """

    names: ClassVar[tuple[str, ...]] = ("input", "context", "attended", "inner")

    def __init__(self) -> None:
        self.most: dict[str, Tensor] = {}
        self.least = 0.0

    def note(self, name: str, x: Tensor, batch: PackedBatch) -> Tensor:
        """Note the largest values of `x`, [T, channels], without its filler rows; returns `x`."""
        low, high = x[: batch.tokens].aminmax(dim=0)  # not `abs`: no copy, which would be the peak of the calibration
        found = torch.maximum(high, -low)
        self.most[name] = torch.maximum(self.most[name], found) if name in self.most else found
        if name == "inner":
            self.least = min(self.least, float(low.min()))
        return x

    def to_json(self) -> dict[str, Any]:
        """For a state."""
        texts = {name: base64.b64encode(most.numpy().tobytes()).decode() for name, most in self.most.items()}
        return {**texts, "least": self.least}

    @classmethod
    def of_json(cls, found: Mapping[str, Any]) -> Seen:
        """From a state."""
        seen = cls()
        seen.least = found["least"]
        for name in (name for name in cls.names if name in found):
            numbers = np.frombuffer(base64.b64decode(found[name]), dtype="<f4")
            seen.most[name] = torch.from_numpy(numbers.astype(np.float32)) * _HEADROOM
        return seen


class Int8Model(ABC):
    """Calibration, for a subclass of a float32 model; satisfies `Calibrates`."""

    kernels: str
    calibrated = False
    _checkpoint: Checkpoint
    _format: ClassVar[int]
    """Of the state; another number is another version's, whose weights would be others."""
    _rounded_layers: int
    """How many layers have products in int8."""

    # These two round: a test has others in their place, to see that all else leaves the logits as they are.
    _rounded_linear: ClassVar[type[Int8Linear]] = Int8Linear
    _steps = staticmethod(steps)

    def __init__(self) -> None:
        # Of attention between the layers: bfloat16 where the CPU multiplies it in hardware.
        has_bf16 = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
        self._narrow = torch.bfloat16 if has_bf16 else torch.float32

    @abstractmethod
    def _observe(self, pairs: Sequence[EncodedPair], seen: Sequence[Seen]) -> None:
        """Run those layers in float32, and note what goes into their products."""

    @abstractmethod
    def _replace_layers(self, seen: Sequence[Seen]) -> None:
        """Have layers rounded by what was seen in place of those in float32, which are forgotten first."""

    def calibrate(self, batches: Sequence[Sequence[EncodedPair]]) -> dict[str, Any]:
        """See `Calibrates`."""
        seen = [Seen() for _ in range(self._rounded_layers)]
        for pairs in batches:
            self._observe(pairs, seen)
        state = {"format": self._format, "pairs": sum(map(len, batches)), "layers": [layer.to_json() for layer in seen]}
        self.use(state)
        return state

    def use(self, state: Mapping[str, Any]) -> None:
        """See `Calibrates`."""
        if state.get("format") != self._format or len(state["layers"]) != self._rounded_layers:
            raise ModelError(f"{self._checkpoint.path}: calibrated by another version, or for another model")
        self._replace_layers([Seen.of_json(layer) for layer in state["layers"]])
        self.kernels += f", calibrated on {state['pairs']} pairs"
        self.calibrated = True
