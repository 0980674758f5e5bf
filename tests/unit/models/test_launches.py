"""What a forward asks of a device, seen on torch's `meta` device: nothing can be read from it, as nothing should be
read from a GPU before a batch is done; and every operator that would be a kernel can be counted.

The models take the branches of a GPU there: plain linear layers, the varlen kernel, means and first tokens at once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from rerank_cli.checkpoint import Checkpoint, read_checkpoint
from rerank_cli.models import class_of, encoder, llama
from rerank_cli.models.elementwise import Rotation, Unfused
from rerank_cli.planning.memory.pieces import BATCH_TILES
from rerank_cli.records import EncodedPair, ImageBlock, Tiles

PARITY = Path(__file__).parents[2] / "parity"
META = torch.device("meta")
GOLDENS = [
    "bert-ce-open", "xlmr-ce-open", "modernbert-ce-open", "llama-rerank-open", "automodel-ce-open",
    "qwen3-reranker-open", "mxbai-v2-open", "bge-gemma-open", "nemotron-vl-rerank-open", "nemotron-vl-embed-open",
]  # fmt: skip

# The built-in model's shape with six layers, and llama-nemotron-rerank-1b-v2's: those whose launches are reckoned with
# in `rerank_cli/engine/local.py`. Others for their families.
MINILM = {
    "architectures": ["BertForSequenceClassification"], "hidden_size": 384, "intermediate_size": 1536,
    "num_hidden_layers": 6, "num_attention_heads": 12, "vocab_size": 30522, "max_position_embeddings": 512,
    "type_vocab_size": 2,
}  # fmt: skip
XLMR = {
    **MINILM, "architectures": ["XLMRobertaForSequenceClassification"], "type_vocab_size": 1, "pad_token_id": 1,
}  # fmt: skip
MODERNBERT = {
    "architectures": ["ModernBertForSequenceClassification"], "hidden_size": 768, "intermediate_size": 1152,
    "num_hidden_layers": 7, "num_attention_heads": 12, "vocab_size": 50368,
}  # fmt: skip
ONE_B = {
    "architectures": ["LlamaBidirectionalForSequenceClassification"], "hidden_size": 2048, "intermediate_size": 8192,
    "num_hidden_layers": 16, "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 64, "vocab_size": 128256,
    "pooling": "avg",
}  # fmt: skip
SHAPES = {
    "minilm": MINILM,
    "xlmr": XLMR,
    "modernbert": MODERNBERT,
    "modernbert-mean": {**MODERNBERT, "classifier_pooling": "mean"},
    "one-b": ONE_B,
    "one-b-last": {**ONE_B, "pooling": "last"},
    "one-b-cls": {**ONE_B, "pooling": "cls"},
}

# What gives memory out or another view of it, and runs nothing.
_NO_KERNEL = {
    "aten::empty", "aten::empty_like", "aten::empty_strided", "aten::new_empty", "aten::new_empty_strided",
    "aten::lift_fresh", "aten::_unsafe_view", "aten::_reshape_alias", "aten::detach", "aten::alias",
}  # fmt: skip


class Watch(TorchDispatchMode):
    """Notes each operator that would be a kernel, and each that touches a tensor of the host."""

    def __init__(self) -> None:
        super().__init__()
        self.kernels: list[str] = []
        self.on_host: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        if func._schema.name in ("aten::index", "aten::index_put_", "aten::index_put"):
            chosen = [leaf for leaf in tree_leaves(args[1]) if isinstance(leaf, torch.Tensor)]
            assert not any(leaf.dtype == torch.bool for leaf in chosen), "only the device knows how many"
        result = func(*args, **(kwargs or {}))
        made = [leaf for leaf in tree_leaves(result) if isinstance(leaf, torch.Tensor)]
        name = func._schema.name
        if any(tensor.device.type == "cpu" for tensor in (*tensors, *made)):
            self.on_host.append(name)
        is_view = any(one.alias_info is not None and not one.alias_info.is_write for one in func._schema.returns)
        if not is_view and name not in _NO_KERNEL:
            self.kernels.append(name)
        return result


def watched(work: Callable[[], object]) -> Watch:
    # Not inference_mode: in it operators that are made of others reach the mode whole.
    with torch.no_grad(), Watch() as watch:
        work()
    return watch


def blank(config: dict[str, Any]) -> Checkpoint:
    return Checkpoint(Path("nowhere"), "made up", {**config, "id2label": {"0": "x"}}, {}, {}, blank=True)


def loaded(checkpoint: Checkpoint, attention: str = "varlen") -> Any:
    return class_of(checkpoint.architecture)(checkpoint, device=META, dtype=torch.bfloat16, attention=attention)


def pairs_of(lengths: Sequence[int]) -> list[EncodedPair]:
    return [EncodedPair(np.arange(n, dtype=np.int32) % 50 + 3, 3, n) for n in sorted(lengths, reverse=True)]


def forward(model: Any, pairs: list[EncodedPair]) -> torch.Tensor:
    return model.forward(pairs)


@pytest.mark.parametrize("attention", ["runs", "varlen"])
@pytest.mark.parametrize("name", GOLDENS)
def test_a_forward_reads_nothing_from_the_device_and_copies_to_it_once(name, attention):
    model = loaded(read_checkpoint(PARITY / name / "checkpoint"), attention)
    if hasattr(model, "see"):
        model.see([])
    made = []
    watch = watched(lambda: made.append(forward(model, pairs_of([90, 41, 40, 40, 7, 1]))))
    assert made[0].device == META
    assert made[0].shape[0] == 6
    assert watch.on_host == ["aten::lift_fresh", "aten::_to_copy"], "one buffer from numpy, and its copy"


@pytest.mark.parametrize("read", [lambda x: x.sum().item(), lambda x: x.cpu(), lambda x: x[x > 0], torch.nonzero])
def test_what_would_wait_for_the_device_is_noticed(read):
    with pytest.raises((RuntimeError, NotImplementedError, AssertionError)):
        watched(lambda: read(torch.ones(3, device=META)))


@pytest.mark.parametrize("name", ["nemotron-vl-rerank-open", "nemotron-vl-embed-open"])
def test_images_are_copied_once_a_batch_of_tiles(name):
    checkpoint = read_checkpoint(PARITY / name / "checkpoint")
    model = loaded(checkpoint)
    size = checkpoint.config["force_image_size"]
    tokens = (size // checkpoint.config["vision_config"]["patch_size"]) ** 2 // 4
    images = [Tiles(np.zeros((3, size, size, 3), dtype=np.uint8)) for _ in range(4)]
    ids = np.full(3 * tokens + 5, 3, dtype=np.int32)
    pairs = [EncodedPair(ids, 2, len(ids), ImageBlock(2, 3 * tokens, 3, 3, image)) for image in images]
    seen = watched(lambda: model.see(pairs))
    assert seen.on_host == ["aten::lift_fresh", "aten::_to_copy"] * -(-12 // BATCH_TILES)
    assert watched(lambda: forward(model, pairs)).on_host == ["aten::lift_fresh", "aten::_to_copy"]


@pytest.mark.parametrize("name", SHAPES)
def test_with_the_varlen_kernel_the_number_of_launches_does_not_depend_on_the_pairs(name):
    model = loaded(blank(SHAPES[name]))
    counted = [
        len(watched(lambda: forward(model, pairs_of(lengths))).kernels)  # noqa: B023 (called at once)
        for lengths in ([40, 30], [20] * 64, list(range(1, 60)))
    ]
    assert counted[0] == counted[1] == counted[2]


@pytest.mark.parametrize("name", ["minilm", "one-b"])
def test_run_by_run_there_are_more_for_every_length(name):
    model = loaded(blank(SHAPES[name]), "runs")
    few, many = (len(watched(lambda: forward(model, pairs_of(n))).kernels) for n in ([30] * 9, range(1, 31)))  # noqa: B023
    assert many > few + 29, "or the test above would see nothing"


class OneKernelEach(Unfused):
    """What lies between the products, as many launches as the fused kernels are."""

    name = "fused"
    normalises_sums = True

    def normalise_sum_(
        self, x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, epsilon: float
    ) -> torch.Tensor:
        return x.add_(residual)

    def rms_norm(self, x: torch.Tensor, weight: torch.Tensor, epsilon: float) -> torch.Tensor:
        return torch.ones_like(x)

    def rotate_(self, x: torch.Tensor, rotation: Rotation) -> None:
        x.zero_()

    def has_gate(self, activation: str) -> bool:
        return True

    def gate_(self, gate: torch.Tensor, up: torch.Tensor, activation: str) -> torch.Tensor:
        return gate.mul_(up)


@pytest.mark.parametrize(
    ("name", "lengths", "launches"),
    [("minilm", [128] * 8, 68), ("minilm", [512] * 128, 68), ("one-b", [128] * 8, 189), ("one-b", [512] * 128, 651)],
)
def test_launches_are_as_few_as_the_engine_reckons(monkeypatch, name, lengths, launches):
    for module in (encoder, llama):
        monkeypatch.setattr(module, "elementwise_for", lambda device, dtype: (OneKernelEach(), "fused"))
    model = loaded(blank(SHAPES[name]))
    assert len(watched(lambda: forward(model, pairs_of(lengths))).kernels) <= launches
