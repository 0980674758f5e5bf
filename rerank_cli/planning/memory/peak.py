"""Peak memory of one forward pass of our own models, as closed forms.

A forward is a row of moments; at each some tensors are alive. `peak` is the largest of the few moments that can be it,
written as what is alive then, so each form can be read beside the code of its family in `rerank_cli/models`. What they
leave out is smaller everywhere; tests hold them against a tracker of the storages of that very code, within 2 %, and
against the allocator of a CPU, within 5 %.

All of it is linear in the rows of a batch: attention is computed for each pair without a matrix of length x length
(two exceptions, see `_attention_workspace`). T below is the number of rows, e the bytes of an element, H the hidden
size, I the MLP's, Q and K the channels of all query and of all key heads.

    BERT, RoBERTa    2H + 2I, with the activation fused 3H + I | in attention 6H
        by AMX tiles     H and what each thread writes
    ModernBERT       3H + 2I | in attention 6H | 5H and a rotation of 2,048 rows
    GTE              2H + 2I | in attention 6H | 4H and a rotation of 2,048 rows
    Llama            H + 3Q + 2K | H and an MLP of 2,048 rows, on a GPU of 8,192 (fp32 on a CPU: 2H)
    SigLIP tower     6H, of 8 tiles at a time

What a pair's own tokens cost besides: 24 bytes of ids, types and positions.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby

from rerank_cli.planning.memory.pieces import (
    BATCH_TILES,
    CHUNK,
    PRODUCT_BLOCK,
    PRODUCT_LONGEST,
    PRODUCT_STEP,
    WINDOW_BLOCK,
    mlp_rows,
    rounded_rows,
)
from rerank_cli.planning.memory.shape import ModelShape, VisionShape

_BFLOAT, _FLOAT, _INT64 = 2, 4, 8
_KEY_BLOCK = 512  # keys that a CPU's flash kernel takes at a time
_AMX_ROWS, _AMX_BLOCK, _AMX_SIDE = 512, 256, 32  # of groups, blocks and tiles (`models/amx.cpp`)
_IMAGE_CHANNELS = 3
_SHORTEST_PAIR = 8  # tokens; the least that `--max-tokens` takes


@dataclass(frozen=True, slots=True)
class BatchSize:
    """What the peak needs to know of a batch.

    rows, firsts: tokens and pairs after rounding (`models/packed.py`). run_tokens: tokens of the largest run of pairs
    of equal length. longest: tokens of the longest pair. padded_tokens: the batch as a rectangle.
    """

    pairs: int
    tokens: int
    rows: int
    firsts: int
    run_tokens: int
    longest: int
    padded_tokens: int

    @classmethod
    def of(cls, lengths: Iterable[int]) -> BatchSize:
        """Of pairs of these lengths."""
        ordered = sorted(lengths, reverse=True)
        return cls.of_runs([(len(list(group)), length) for length, group in groupby(ordered)])

    @classmethod
    def of_runs(cls, runs: Sequence[tuple[int, int]]) -> BatchSize:
        """Of runs of pairs, each (pairs, their length)."""
        pairs, tokens = sum(count for count, _ in runs), sum(count * length for count, length in runs)
        return cls(
            pairs=pairs,
            tokens=tokens,
            rows=rounded_rows(tokens),
            firsts=rounded_rows(pairs),
            run_tokens=max(count * length for count, length in runs),
            longest=max(length for _, length in runs),
            padded_tokens=pairs * max(length for _, length in runs),
        )

    @classmethod
    def within(cls, token_budget: int, max_tokens: int) -> BatchSize:
        """The hungriest batch of a token budget, whatever the lengths of its pairs."""
        tokens, pairs = max(token_budget, max_tokens), -(-token_budget // _SHORTEST_PAIR)
        return cls(
            pairs=pairs,
            tokens=tokens,
            rows=rounded_rows(tokens),
            firsts=rounded_rows(pairs),
            run_tokens=tokens,
            longest=max_tokens,
            padded_tokens=tokens,
        )


def takes_varlen(head_size: int) -> bool:
    """Whether the varlen kernel takes heads of this size.

    Source: torch's mha_varlen_fwd (aten, flash attention) takes a multiple of 8 channels, at most 256.
    """
    return head_size % 8 == 0 and head_size <= 256


@dataclass(frozen=True, slots=True)
class Execution:
    """How the forward runs, as far as memory depends on it.

    element: bytes of an activation. fused: the linear layers apply their activation in place (oneDNN on a CPU).
    repeats_heads: keys and values are repeated for grouped heads (a GPU without the flash kernel). products: attention
    by matrix products (bfloat16 on a CPU). threads: of a CPU; 0 on a GPU. fp8: the inputs of a Llama's products are
    rounded to FP8. varlen: attention of the whole batch is one kernel. amx: whole layers of a BERT-like encoder are
    one kernel in bfloat16 (`models/amx.py`). side_by_side: a Llama's products of one input are one product, and MLPs
    take more rows at a time (a GPU).
    """

    element: int = 2
    fused: bool = False
    repeats_heads: bool = False
    products: bool = False
    threads: int = 0
    fp8: bool = False
    varlen: bool = False
    amx: bool = False
    side_by_side: bool = False


@dataclass(frozen=True, slots=True)
class AmxGroups:
    """How the kernel of `models/amx.cpp` shares a batch out: the rows of a group at most, and the threads."""

    rows: int
    threads: int


def amx_groups(*, pairs: int, tokens: int, longest: int, threads: int) -> AmxGroups:
    """Whole pairs that a thread takes at a time: so few that they stay in its L2, and some for every thread."""
    threads = min(threads, pairs)
    return AmxGroups(max(longest, min(_AMX_ROWS, -(-tokens // threads))), threads)


def amx_workspace(shape: ModelShape, groups: AmxGroups, longest: int) -> int:
    """What its threads write in bfloat16; the same sum as `Room::lay` in `models/amx.cpp`, which a test compares.

    In int8 they write some more, but less than the calibration in float32 and its weights took, counted there.
    """
    h, head = shape.hidden, shape.hidden // shape.heads
    rows, longest = (-(-count // _AMX_SIDE) * _AMX_SIDE for count in (groups.rows, longest))
    block = min(rows, _AMX_BLOCK)
    between = _BFLOAT * (rows * h + (rows + _AMX_SIDE) * 3 * h)  # x; queries, keys and values
    attention = longest * (_BFLOAT * (2 * head + _AMX_SIDE) + _FLOAT * _AMX_SIDE)
    return groups.threads * (between + attention + block * (_BFLOAT * shape.intermediate + _FLOAT * h))


@dataclass(frozen=True, slots=True, order=True)
class Moment:
    """Bytes alive at one moment: tensors that the forward's code names, and what attention needs while it runs."""

    total: int
    attention_workspace: int


def peak(shape: ModelShape, batch: BatchSize, how: Execution) -> Moment:
    """The moment of a forward of `shape` over `batch` that holds the most bytes."""
    if shape.forward == "padded":
        return _padded(shape, batch, how)
    inputs = input_bytes(batch)
    workspace = _attention_workspace(shape, batch, how)
    if shape.forward in ("modernbert", "gte"):
        attending, others = _rotating_encoder(shape, batch, how)
    elif shape.forward in ("llama", "vl"):
        attending, others = _llama(shape, batch, how)
    else:
        attending, others = _bert(shape, batch, how)
    return max(Moment(inputs + attending + workspace, workspace), *(Moment(inputs + other, 0) for other in others))


def input_bytes(batch: BatchSize) -> int:
    """What a packed batch is made of before its embeddings (`models/packed.py`)."""
    return 3 * _INT64 * batch.rows + _INT64 * batch.firsts + (_INT64 + 4) * (batch.pairs + 2)


def _bert(shape: ModelShape, batch: BatchSize, how: Execution) -> tuple[int, list[int]]:
    """The bytes at the moment of attention, and at others.

    A layer keeps its input H to its end; q, k, v are gone before the MLP.
    """
    h, i, t, e = shape.hidden, shape.intermediate, batch.rows, how.element
    if how.amx:  # x is written over from layer to layer; ELECTRA's embeddings may be torch's, with what adds them up
        return e * h * t, [e * h * t * (4 if shape.forward == "electra" else 1)]
    attending = e * (5 * h * t + _attention_result_elements(h, batch, how))  # input, q, k, v, context
    expand = e * t * (2 * h + (i if how.fused else 2 * i))  # input, x; the layer's output and its activation
    contract = e * t * (3 * h + i)
    return attending, [expand, contract]


def _rotating_encoder(shape: ModelShape, batch: BatchSize, how: Execution) -> tuple[int, list[int]]:
    """ModernBERT and GTE: a layer keeps its input H to its end; q, k, v are gone before the MLP."""
    h, i, t, e = shape.hidden, shape.intermediate, batch.rows, how.element
    rotations = _FLOAT * shape.head_size * shape.rotary_kinds * t
    normed = 0 if shape.forward == "gte" else h  # what the products read, where it is not x itself
    attending = rotations + e * (5 * h * t + _attention_result_elements(h, batch, how))  # input, q, k, v, context
    rotate = rotations + e * t * (4 * h + normed) + _rotation_bytes(2 * h, t, e)
    mlp = rotations + e * t * (2 * h + normed + 2 * i)  # input, x; the gate and what it multiplies
    down = rotations + e * t * (3 * h + i)
    return attending, [mlp, down, rotate]


def _rotation_bytes(width: int, rows: int, e: int) -> int:
    """What turning `width` channels takes: two halves in float32, and the channels where they are not float32."""
    return _FLOAT * width * min(rows, CHUNK) * (1 if e == _FLOAT else 2)


def _llama(shape: ModelShape, batch: BatchSize, how: Execution) -> tuple[int, list[int]]:
    """The norms and the rotation take `CHUNK` rows at a time, the MLP as many as `mlp_rows` says.

    Products write their sums into the residual, but for those of oneDNN in fp32.
    """
    h, q, k, t, e = shape.hidden, shape.queries, shape.keys, batch.rows, how.element
    chunk = t if e == _FLOAT else min(t, CHUNK)  # of norms and rotation, which are in float32 whatever the precision
    angles = _FLOAT * shape.head_size * t  # their cosines and sines
    attending = angles + e * (t * (h + 2 * q + 2 * k) + _attention_result_elements(q, batch, how))
    mlp = angles + e * t * h * (2 if how.fused and e == _FLOAT else 1) + _chunked_mlp(shape, t, how)
    project = angles + e * t * (2 * h + q + 2 * k)  # input, normed, q, k, v
    rotate = project + _rotation_bytes(q, t, e)
    before, last = (0, q + 2 * k) if how.side_by_side else (q + k, k)
    last_projection = angles + e * t * (2 * h + before) + _product_bytes(h, last, t, how)  # input, normed
    from_context = angles + e * t * (h + q) + _product_bytes(q, h, t, how)  # input, context
    products = max(last_projection, from_context)
    norm = angles + e * t * h + _norm_bytes(h, t, chunk, e)
    if not shape.head_norms:
        return attending, [mlp, rotate, norm, products]
    head_norms = [_norm_bytes(q, t, chunk, e), e * t * q + _norm_bytes(k, t, chunk, e)]
    return attending, [mlp, rotate, norm, products, project + max(head_norms)]


def _norm_bytes(width: int, rows: int, chunk: int, e: int) -> int:
    """The result of an RMSNorm and what it takes: two more in float32, and the input as float32 where it is not."""
    return 2 * _FLOAT * width * rows if e == _FLOAT else width * (e * rows + 3 * _FLOAT * chunk)


def _product_bytes(inputs: int, outputs: int, rows: int, how: Execution) -> int:
    """What a product makes: its result; and in FP8 its input, rounded, with a scale a row.

    Before there is a result, some rows of the input are there in float32, twice.
    """
    result = how.element * rows * outputs
    if not how.fp8:
        return result
    return rows * (inputs + _FLOAT) + max(result, 2 * _FLOAT * inputs * min(rows, CHUNK))


def _chunked_mlp(shape: ModelShape, t: int, how: Execution) -> int:
    """What the MLP holds beside x for one chunk: normed rows and two of the wide ones, or what the norm takes.

    In FP8 it can be the last product, beside the wide ones: one, or both where they are one product.
    """
    e, h, i = how.element, shape.hidden, shape.intermediate
    rows = min(t, mlp_rows(how.side_by_side, e))
    gate, last = (0, 2 * i) if how.side_by_side else (i, i)
    wide = e * rows * (h + gate) + _product_bytes(h, last, rows, how)
    down = e * rows * last + _product_bytes(i, h, rows, how)
    return max(wide, down, _norm_bytes(h, rows, min(rows, CHUNK), e))


def _attention_result_elements(width: int, batch: BatchSize, how: Execution) -> int:
    """Elements of the result of a run of attention before it is copied to its place.

    The varlen kernel's result is the context itself; the result of a block of products counts as workspace.
    """
    in_place = how.varlen or (how.products and batch.longest <= PRODUCT_LONGEST)
    return 0 if in_place else width * batch.run_tokens


def _attention_workspace(shape: ModelShape, batch: BatchSize, how: Execution) -> int:
    """What the attention kernel needs beside its result.

    Flash kernels: the log-sum-exp of each row and head; on a CPU blocks of scores in each thread. By matrix products:
    the sums of the batch; of a block queries, keys, values, all scores, their sums and the result. Heads that are
    repeated: keys and values once more, as many as queries.
    """
    run, e = batch.run_tokens, how.element
    if how.amx:
        groups = amx_groups(pairs=batch.pairs, tokens=batch.tokens, longest=batch.longest, threads=how.threads)
        return amx_workspace(shape, groups, batch.longest)
    if how.products:
        # Longer pairs take less; an estimate that fell there would say that a shorter batch does not fit.
        length = -(-min(batch.longest, PRODUCT_LONGEST) // PRODUCT_STEP) * PRODUCT_STEP
        pairs = max(1, min(batch.pairs, PRODUCT_BLOCK // length))
        rows = length * (1 << (pairs.bit_length() - 1))
        block = rows * (2 * shape.queries + 2 * shape.keys + shape.heads * (length + 1))
        return _FLOAT * shape.heads * batch.rows + _BFLOAT * block  # bfloat16 beside layers in int8 too
    if how.varlen:
        return _FLOAT * shape.heads * batch.rows
    size = _FLOAT * shape.heads * run
    if shape.window is not None and batch.longest > shape.window + 1:
        size += e * WINDOW_BLOCK * (WINDOW_BLOCK + 2 * shape.window)  # who sees whom
    if how.repeats_heads and shape.kv_heads != shape.heads:
        size += 2 * e * shape.queries * run
    if how.threads:
        queries = min(batch.longest, 256 if batch.longest >= 768 else 64 if batch.longest >= 192 else 32)
        keys = min(batch.longest, _KEY_BLOCK)
        reduced = e * keys if e != _FLOAT else 0
        size += how.threads * queries * (_FLOAT * (keys + 2 + shape.head_size) + reduced)
    return size


def _padded(shape: ModelShape, batch: BatchSize, how: Execution) -> Moment:
    """A cautious bound for classifiers that transformers runs, padded; `ModelShape.padded_attention` says which.

    Each keeps 4 hidden rows and up to 3 of its MLP's, one more where the activation is not one operator. Attention:

        fused       no scores; the mask of padding, length x length, as booleans and in the precision
        scores      three matrices of length x length a head: the scores, with the mask, their softmax
        positions   six of them (DeBERTa, and all that is not known), a matrix of scores against the relative positions
                    (twice the length where there are not so many), and the tables of these, twice a pair

    `models/tracker.py` gives the exact figure at the price of loading torch, and tests hold the two together. That the
    process takes no more than its tensors is seen to by `give_back_large_blocks`, and a test measures it.
    """
    t, h, e, length = batch.padded_tokens, shape.hidden, how.element, batch.longest
    rows = e * t * max(10 * h, 4 * h + (3 + shape.wide_activation) * shape.intermediate) + 4 * _INT64 * t
    if shape.padded_attention == "fused":
        return Moment(rows + (e + 1) * t * length, (e + 1) * t * length)
    if shape.padded_attention == "scores":
        scores = 3 * e * shape.heads * t * length
        return Moment(rows + scores, scores)
    relative = shape.relative_positions or 2 * length
    scores = e * shape.heads * t * (6 * length + relative)
    tables = (2 * batch.pairs + 8) * e * relative * h
    return Moment(rows + scores + tables, scores)


def tower_peak(vision: VisionShape, tiles: int, how: Execution) -> int:
    """Peak of the vision tower over `tiles`, `BATCH_TILES` of them at a time, without its results.

    The larger of attention (input, normed, q, k, v, result: 6H of every patch) and an MLP of `mlp_rows` patches.
    """
    h, i, e = vision.hidden, vision.intermediate, how.element
    batch = min(tiles, BATCH_TILES)
    rows = batch * vision.patches
    chunk = min(rows, mlp_rows(how.side_by_side, e))
    attending = e * 6 * h * rows + _FLOAT * vision.heads * rows
    mlp = e * (2 * h * rows + chunk * (h + (i if how.fused else 2 * i)))
    contract = e * (2 * h * rows + chunk * (2 * h + i))
    # As float32, as bfloat16, and as rows of patches in the precision of the tower.
    pixels = (_FLOAT + 2 + e) * batch * _IMAGE_CHANNELS * vision.image**2
    return pixel_bytes(vision, batch) + max(attending, mlp, contract, pixels)


def pixel_bytes(vision: VisionShape, tiles: int) -> int:
    """The tiles themselves, which are bytes until their turn comes."""
    return tiles * _IMAGE_CHANNELS * vision.image**2
