"""How long a card takes for pairs of known lengths, estimated from the shape of a model: no weights, torch or card.

    time = pair_time(shape, PairLengths.of(1_000_000, 200), card.speed, precision="fp16")
    time.seconds, time.low, time.high, time.limit

The model of a forward has four parts, of which the first three add up and the fourth runs beside them:

    products    2 operations a weight and token, over a share of the card's peak that grows with the hidden size
    attention   4 * channels * tokens squared a layer, over a share of the peak that grows with the length
    memory      what norms, sums and activations read and write between products, over a share of the bandwidth
    host        reading, tokenising and writing, which one process does for all of its engines

An encoder with a first-token head computes its last layer for one token of a pair; that layer is not counted.

Constants (`_...` below) are fitted to the twelve figures that a review of the CUDA code gives for an H100 (28 November
2026: MiniLM-L6 and L12, XLM-R-large and a Llama of 1 B at 128 to 8,192 tokens), within 9 % of each, and to its three
for FP8. That review takes them from a matrix product of 798 TFLOP/s and a copy of 3.0 TB/s measured on such a card,
and from the speeds of FlashAttention 2 in the paper of FlashAttention 3. **Nobody has timed this program on a card**:
the interval is that of a reckoning, from 0.7 times the expected time to 1.6 times. Peaks and bandwidths of cards are
data (`machine/gpu_names.py`), and other cards are taken to reach the same shares of theirs.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

from rerank_cli.checkpoint.families import BERT_LIKE
from rerank_cli.machine.gpu_names import CardSpeed
from rerank_cli.planning.memory import ModelShape

_PRODUCT_SHARE, _PRODUCT_HALF = 0.8, 300  # of the peak: 0.8 * hidden / (hidden + 300)
_ATTENTION_SHARE, _ATTENTION_HALF = 0.36, 80  # of the peak: 0.36 * tokens / (tokens + 80), with heads of 64
_FULL_HEAD = 64  # smaller heads use as much less of the matrix units
_MEMORY_SHARE = 0.5
_FP8_TIMES = 1.8  # the speed of products in 16 bits; three roundings a layer cost half again of the memory traffic
_FP8_TRAFFIC = 1.5
_HOST_SECONDS = 80e-6  # a pair, all under Python's lock: 70 to 95 us (6,000 pairs of 186 tokens, `benchmarks.host`)
_LOW, _HIGH = 0.7, 1.6
_BYTES = 2  # of an activation
_EVERY_GLOBAL = 3  # a ModernBERT's layers: one of three sees all tokens

Limit = Literal["products", "attention", "memory", "host"]


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
        return f"the reckoning is fitted to 16 bits and fp8, not to {precision}"
    if images:
        return "images pass through a vision tower, which the reckoning leaves out"
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
    share = _PRODUCT_SHARE * shape.hidden / (shape.hidden + _PRODUCT_HALF)
    products = 2.0 * _layer_weights(shape) * lengths.tokens / (peak * share * (_FP8_TIMES if fp8 else 1.0))
    head = min(1.0, shape.head_size / _FULL_HEAD)
    seen = _attended_tokens(shape, lengths)
    attention = 4.0 * shape.queries * (seen + _ATTENTION_HALF * lengths.tokens) / (peak * _ATTENTION_SHARE * head)
    traffic = _layer_traffic(shape) * lengths.tokens * (_FP8_TRAFFIC if fp8 else 1.0)
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


def _layer_weights(shape: ModelShape) -> int:
    """Weights of a layer that multiply every token."""
    matrices = 2 if shape.forward in BERT_LIKE else 3  # of the MLP: up and down, and a gate
    attention = 2 * shape.hidden * shape.queries + 2 * shape.hidden * shape.keys
    return attention + matrices * shape.hidden * shape.intermediate


def _layer_traffic(shape: ModelShape) -> int:
    """Bytes a token that a layer reads and writes between its products."""
    if shape.forward in BERT_LIKE:  # twice: a sum, and a norm; and an activation
        return _BYTES * (10 * shape.hidden + 2 * shape.intermediate)
    return _BYTES * (10 * shape.hidden + 2 * (shape.queries + shape.keys) + 3 * shape.intermediate)


def _attended_tokens(shape: ModelShape, lengths: PairLengths) -> float:
    """How many tokens each token attends to, summed over all tokens of all pairs; the mean of the layers."""
    if shape.window is None or not lengths.pairs:
        return float(lengths.squares)
    near = lengths.tokens * min(2 * shape.window + 1, lengths.tokens / lengths.pairs)
    return (lengths.squares + (_EVERY_GLOBAL - 1) * min(near, lengths.squares)) / _EVERY_GLOBAL


def time_to_json(time: PairTime) -> dict[str, Any]:
    """Seconds with their interval, and what takes most of them."""
    return {"seconds": time.seconds, "low": time.low, "high": time.high, "limit": time.limit}


def show_time(low: float, high: float) -> str:
    """`2.4 to 5.4 h`: the interval, in the unit of its end and with two digits; an estimate deserves no more."""
    units = (("days", 2 * 86400, 86400), ("h", 3600, 3600), ("min", 60, 60), ("s", 0, 1))
    unit, size = next((unit, size) for unit, least, size in units if high >= least)
    first, last = (f"{n / size:.2g}" if n / size < 99 else f"{n / size:.0f}" for n in (low, high))
    return f"{first} to {last} {unit}"
