"""How a pair becomes a logit: the forward pass of each family.

`checkpoint/families.py` says whose forward an architecture has; `class_of` gives the class that computes it. Every
`*ForSequenceClassification` that is not in that table and that transformers itself knows runs through
`padded.PaddedCrossEncoder`, which is slower; its `kernels` says so. To add a family: one file here, one row there, one
parity test.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from rerank_cli.checkpoint import Checkpoint
from rerank_cli.checkpoint.families import BERT_LIKE, FAMILIES, Forward, family_of
from rerank_cli.checkpoint.labels import check_labels
from rerank_cli.errors import DoesNotFitError, ModelError
from rerank_cli.models.attention import varlen_runs
from rerank_cli.models.causal import CausalReranker
from rerank_cli.models.embedder import NemotronEmbedder
from rerank_cli.models.encoder import EncoderCrossEncoder
from rerank_cli.models.gte import GteCrossEncoder
from rerank_cli.models.int8_calibration import check_int8
from rerank_cli.models.int8_encoder import Int8Encoder
from rerank_cli.models.int8_modernbert import Int8ModernBert
from rerank_cli.models.llama import LlamaCrossEncoder
from rerank_cli.models.modernbert import ModernBertCrossEncoder
from rerank_cli.models.nemotron_vl import LlamaNemotronVLCrossEncoder
from rerank_cli.models.transfer import current
from rerank_cli.records import EncodedPair


class RerankModel(Protocol):
    """A loaded model on one device.

    kernels: which implementations run, in words. The report shows them, so that nobody misses a slow one.
    """

    kernels: str

    def forward(self, pairs: Sequence[EncodedPair]) -> Tensor:
        """Logits of a batch, float32 [len(pairs)], on the model's device; does not wait for the device."""


@runtime_checkable
class Embeds(Protocol):
    """An embedding model: a `RerankModel` whose `forward` gives vectors of texts, float32 [len(texts), dimensions]."""

    dimensions: int


@runtime_checkable
class SeesImages(Protocol):
    """A `RerankModel` in two stages: images first, then pairs."""

    def see(self, pairs: Sequence[EncodedPair]) -> None:
        """Make ready what `forward` needs of the images of `pairs`, and forget all others."""


@runtime_checkable
class Calibrates(Protocol):
    """A `RerankModel` that must see some pairs before it scores any, as the rounding of its weights depends on them."""

    calibrated: bool

    def calibrate(self, batches: Sequence[Sequence[EncodedPair]]) -> dict[str, Any]:
        """Round the weights by these pairs. Returns a state for a JSON file."""

    def use(self, state: Mapping[str, Any]) -> None:
        """Round the weights as the call of `calibrate` did that returned `state`, bit for bit."""


_CLASSES: dict[Forward, Callable[..., RerankModel]] = {
    **dict.fromkeys(BERT_LIKE, EncoderCrossEncoder),
    "modernbert": ModernBertCrossEncoder,
    "gte": GteCrossEncoder,
    "llama": LlamaCrossEncoder,
    "vl": LlamaNemotronVLCrossEncoder,
}
_INT8_CLASSES: dict[Forward, Callable[..., RerankModel]] = {
    **dict.fromkeys(BERT_LIKE, Int8Encoder),
    "modernbert": Int8ModernBert,
}

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16, "fp8": torch.bfloat16}
"""By precision, the dtype of what is between the products. All families run in all but fp8, on devices that have it."""


def class_of(architecture: str) -> Callable[..., Any]:
    """What computes a model of this architecture: called with (checkpoint, device=, dtype=, attention=)."""
    family = family_of(architecture)
    if family.embeds:
        return NemotronEmbedder
    if family.decoder:
        return CausalReranker
    if family.forward != "padded":
        return _CLASSES[family.forward]
    # Imported here: transformers costs seconds that the native families need not pay.
    from rerank_cli.models.padded import PaddedCrossEncoder

    return PaddedCrossEncoder


def load_model(checkpoint: Checkpoint, *, device: str, precision: str, attention: str) -> RerankModel:
    """Load a checkpoint's weights onto `device` in `precision`.

    attention: `runs`, `products`, `amx` or `varlen` (see `attention.py`); the padded fallback ignores it. Raises
    `ModelError` where the checkpoint is not a reranker that this program can score rightly.
    """
    architecture = checkpoint.architecture
    if architecture not in FAMILIES and not architecture.endswith("ForSequenceClassification"):
        raise ModelError(
            f"{checkpoint.path / 'config.json'}: architecture `{architecture}` is not a reranker that is known",
            hint=f"known are {', '.join(sorted(FAMILIES))} and the sequence classifiers of transformers",
        )
    if not family_of(architecture).embeds:
        check_labels(checkpoint)
    if precision == "int8":
        check_int8(checkpoint, device=device)
        rounded = _INT8_CLASSES[family_of(architecture).forward]
        return rounded(checkpoint, **_placement(device, "fp32", attention))
    placed = _placement(device, precision, attention)
    if precision == "fp8":
        if not family_of(architecture).fp8:
            raise DoesNotFitError(f"--precision fp8: {architecture} has no products in FP8")
        placed["fp8"] = True
    with current(placed["device"]):
        model: RerankModel = class_of(architecture)(checkpoint, **placed)
        return model


def _placement(device: str, precision: str, attention: str) -> dict[str, Any]:
    """Device, dtype and kind of attention, as the class of a model takes them."""
    where, dtype = torch.device(device), DTYPES[precision]
    if where.type == "cuda" and not torch.cuda.is_available():
        raise DoesNotFitError(f"--device {device}: torch {torch.__version__} sees no CUDA device")
    if where.type == "cuda":
        # torch asks cuDNN first on Hopper and later, and cuDNN makes a plan for every new shape of a batch, 0.4 s each
        # (modelscope/FunASR#3704). Here nearly every batch has a shape of its own.
        torch.backends.cuda.enable_cudnn_sdp(False)
    if attention == "varlen" and not varlen_runs(where, dtype):
        attention = "runs"
    return {"device": where, "dtype": dtype, "attention": attention}
