"""How long a card takes for pairs of known lengths, estimated from the shape of a model: no weights, torch or card.

    time = pair_time(shape, PairLengths.of(1_000_000, 200), card.speed, precision="fp16")
    time.seconds, time.low, time.high, time.limit

The model of a forward has four parts, of which the first three add up and the fourth runs beside them:

    products    2 operations a weight and token
    attention   4 * channels * tokens squared a layer
    memory      what products, norms, sums and activations read and write
    host        reading, tokenising and writing, which one process does for all of its engines

An encoder with a first-token head computes its last layer for one token of a pair; that layer is not counted.

Each constant was measured by itself; none is fitted to the speed of a whole model. Sources, all of H100s:

    products    798 TFLOP/s of 989: a product of 8,192 x 8,192 x 8,192 in bf16 (the review of the CUDA code of 28
                November 2026, whose author had it from such cards; H200s: 769 to 798). A product takes that and, as its
                beginning and end do not overlap with it, the time of its rows at the speed of memory: so narrow layers
                reach less of the peak (384 channels 390 TFLOP/s, 1,024 570, 2,048 650; the review: 350 to 440, wide
                layers 600 to 650)
    attention   282, 318 and 322 TFLOP/s at 512, 2,048 and 8,192 tokens, head size 64: FlashAttention 2, which torch's
                kernel is, in the paper of FlashAttention 3 (https://arxiv.org/abs/2407.08608); smaller heads use as
                much less of the matrix units
    memory      2.7 TB/s of 3.35, what the review takes for pointwise kernels; a plain copy reaches 3.0
    FP8         twice the operations a second of 16 bits, by the cards' sheets
    host        `benchmarks.host`, see `_HOST_SECONDS`

With these the model is within 22 % of all fifteen figures that the review computes for the device alone (MiniLM-L6 and
L12, XLM-R large, a Llama of 1 B in 16 bits and FP8, 128 to 8,192 tokens; the Llama's by the code of that day, which
wrote and rounded more), and 14 % below the one published speed that a card limits: 47.7 pairs a second of 512 tokens,
llama-nemotron-rerank-1b-v2 in fp16 on an A10G, by TensorRT. **Nobody has timed this program on a card.** So the
interval reaches from 0.8 of the time, at which products and memory would run at the peaks of the sheet, to 1.6 times:
as much slower than what is expected for its shape is the nearest relative that is published (ettin-1b, packed too, by
sentence-transformers: 928 pairs/s, of a mean length that is not told).

Peaks and bandwidths of cards are data (`machine/gpu_names.py`), and other cards are taken to reach the same shares.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

from rerank_cli.checkpoint.families import BERT_LIKE
from rerank_cli.machine.gpu_names import CardSpeed
from rerank_cli.planning.memory import ModelShape

_PRODUCT_SHARE = 798 / 989  # of the peak, in a large product
_MEMORY_SHARE = 2.7 / 3.35  # of the bandwidth, in pointwise kernels
_ATTENTION_SHARE, _ATTENTION_HALF = 322 / 989, 72  # of the peak: 0.326 * tokens / (tokens + 72)
_FULL_HEAD = 64  # channels
_FP8_PEAK = 2.0  # times the peak in 16 bits
_HOST_SECONDS = 46e-6  # a pair, all under Python's lock (20,000 pairs of 186 tokens, alone on an Intel Xeon)
_LOW, _HIGH = 0.8, 1.6
_BYTES = 2  # of an activation
_EVERY_GLOBAL = 3  # a ModernBERT's layers: one of three sees all tokens

Limit = Literal["products", "attention", "memory", "host"]

BASIS = "computed from the model's shape, the card's peaks and what H100s are known to reach; no card was timed"
"""What an interval was derived from, for people."""


@dataclass(frozen=True, slots=True)
class PairLengths:
    """How many pairs, the tokens of all of them, and the sum of the squares of each pair's tokens."""

    pairs: int
    tokens: int
    squares: int

    @classmethod
    def of(cls, pairs: int, tokens: int) -> PairLengths:
        """So many pairs of one length."""
        return cls(pairs, pairs * tokens, pairs * tokens**2)

    @classmethod
    def all_of(cls, lengths: Iterable[int], max_tokens: int) -> PairLengths:
        """Pairs of these lengths, cut at `max_tokens`."""
        cut = [min(length, max_tokens) for length in lengths]
        return cls(len(cut), sum(cut), sum(length**2 for length in cut))


@dataclass(frozen=True, slots=True)
class PairTime:
    """How long pairs take, in seconds. limit: what takes most of the time."""

    seconds: float
    limit: Limit

    @property
    def low(self) -> float:
        """Seconds at best."""
        return _LOW * self.seconds

    @property
    def high(self) -> float:
        """Seconds at worst."""
        return _HIGH * self.seconds


def why_no_time(
    shape: ModelShape | None, speed: CardSpeed | None, *, precision: str, images: bool = False
) -> str | None:
    """Why `pair_time` can give no time; None where it can. images: whether some pairs have one."""
    if speed is None:
        return "no published peak and bandwidth of the card were found"
    if shape is None or shape.forward == "padded":
        return "this model's forward is padded, and how much of a batch is padding depends on how lengths mix"
    if precision not in ("fp16", "bf16", "fp8"):
        return f"the estimate is fitted to 16 bits and fp8, not to {precision}"
    if images:
        return "images pass through a vision tower, which the estimate leaves out"
    return None


def pair_time(
    shape: ModelShape, lengths: PairLengths, speed: CardSpeed | None, *, precision: str, engines: int = 1
) -> PairTime | None:
    """The time on one card; None where the card's speed or the model's forward is not known, and in fp32.

    engines: cards that share the pairs. Images are not counted.
    """
    if speed is None or why_no_time(shape, speed, precision=precision):
        return None
    fp8 = precision == "fp8"
    peak = speed.tflops * 1e12
    matrices = 2 if shape.forward in BERT_LIKE else 3  # of the MLP: up and down, and a gate
    # Weights of a layer that multiply every token.
    weights = 2 * shape.hidden * (shape.queries + shape.keys) + matrices * shape.hidden * shape.intermediate
    products = 2.0 * weights * lengths.tokens / (peak * _PRODUCT_SHARE * (_FP8_PEAK if fp8 else 1.0))
    head = min(1.0, shape.head_size / _FULL_HEAD)
    # How many tokens each token attends to, summed over all tokens of all pairs; the mean of the layers.
    seen = float(lengths.squares)
    if shape.window is not None and lengths.pairs:
        near = lengths.tokens * min(2 * shape.window + 1, lengths.tokens / lengths.pairs)
        seen = (lengths.squares + (_EVERY_GLOBAL - 1) * min(near, lengths.squares)) / _EVERY_GLOBAL
    attention = 4.0 * shape.queries * (seen + _ATTENTION_HALF * lengths.tokens) / (peak * _ATTENTION_SHARE * head)
    traffic = _BYTES * _layer_elements(shape, fp8=fp8) * lengths.tokens
    memory = traffic / (speed.gigabytes_per_second * 1e9 * _MEMORY_SHARE)
    skipped = shape.forward in BERT_LIKE and shape.layers > 1  # the last layer
    layers = (shape.layers - skipped) / engines
    parts: dict[Limit, float] = {
        "products": layers * products,
        "attention": layers * attention,
        "memory": layers * memory,
    }
    device, host = sum(parts.values()), _HOST_SECONDS * lengths.pairs
    if host >= device:
        return PairTime(host, "host")
    return PairTime(device, max(parts, key=lambda part: parts[part]))


def _layer_elements(shape: ModelShape, *, fp8: bool) -> int:
    """Elements a token that the kernels of a layer read and write; attention's own are in its speed.

    Of each kernel in turn (`models/`); a sum reads two rows and writes one.
    """
    h, q, k, i = shape.hidden, shape.queries, shape.keys, shape.intermediate
    if shape.forward in BERT_LIKE:  # qkv, product, sum, norm; up, activation, down, sum, norm
        return 4 * h + 2 * h + 3 * h + 2 * h + (h + i) + 2 * i + (i + h) + 3 * h + 2 * h
    if shape.forward in ("modernbert", "gte"):  # norm, qkv, rotation, out, added; norm, gate, up, their product, down
        return 2 * h + 4 * h + 4 * h + 3 * h + 2 * h + 2 * (h + i) + 5 * i + (i + 2 * h)
    attention = 2 * h + (h + q + 2 * k) + 2 * (q + k) + (q + 2 * h)  # norm; q, k, v; rotation; out, added
    mlp = 2 * h + (h + 2 * i) + 3 * i + (i + 2 * h)  # norm; gate, up; their product; down, added
    # In FP8 each input of a product is read, rounded and read again, and sums are kernels of their own.
    return attention + mlp + (2 * h + q + i + 4 * h if fp8 else 0)


def time_to_json(time: PairTime) -> dict[str, Any]:
    """Seconds with their interval, and what takes most of them."""
    return {"seconds": time.seconds, "low": time.low, "high": time.high, "limit": time.limit}


def show_time(low: float, high: float) -> str:
    """`2.4 to 5.4 h`: the interval, in the unit of its end and with two digits; an estimate deserves no more."""
    units = (("days", 2 * 86400, 86400), ("h", 3600, 3600), ("min", 60, 60), ("s", 0, 1))
    unit, size = next((unit, size) for unit, least, size in units if high >= least)
    first, last = (f"{n / size:.2g}" if n / size < 99 else f"{n / size:.0f}" for n in (low, high))
    return f"{first} to {last} {unit}"
