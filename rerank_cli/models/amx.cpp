/* The layers of a BERT-like encoder in bfloat16 or int8, on a CPU with tiles (Intel AMX). Loaded by amx.py.

What a layer computes, for a row x of each token (post-norm, as BERT's):

    q, k, v = x Wqkv + b         context = softmax(q k' / sqrt(head)) v, within a pair
    x = norm(x + context Wout + b)
    x = norm(x + gelu(x Wexpand + b) Wcontract + b)

In bfloat16 all numbers between the steps are so; sums, biases, softmax, GELU and norms are float32. In int8 what a
product reads are bytes (of what, int8.py tells), x between the layers is float32, attention is as above.

Why it is here: torch runs the same steps one after another, each over the whole batch. A core of a Xeon with AMX
multiplies 3 Tflop/s where the operands lie in L1, a third of that where they come from L3, and torch's own attention
and copies take more time than the products. Here a thread takes some whole pairs (how many: amx_groups in
planning/memory/peak.py) through all layers by itself, in blocks of BLOCK_ROWS rows, so that what lies between two
products never leaves its L2.

A logit does not depend on the batch. Every number of a row is a sum over k in ascending order of products of that row
alone (or of the rows of its pair), whatever stands beside it; threads share nothing but the weights.

Layouts. A tile register holds 16 rows of 64 bytes, in either precision: of the left operand 16 rows of 64 bytes of
channels, of the right one 16 rows of 4 bytes of channels for 16 outputs each, of the sums 16 x 16 numbers of 32 bits.
The unit of all loops is two by two tiles of sums, SIDE x SIDE. Widths of operands are in bytes.

    weights   for 32 outputs after another: for 64 bytes of inputs after another: two right tiles (see amx_pack)
    operands  for 16 rows after another: for 64 bytes of channels after another: one left tile, 1 KiB in one piece
    qkv       bfloat16 by rows; the context of a head is written over its queries

Sizes: operands are whole numbers of 64 bytes, a head has a multiple of 32 channels; amx.py sees to that.

Compiled with -mavx512... and -mamx..., so nothing here may be called before amx.py has looked at the CPU. */

#include <immintrin.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <system_error>
#include <thread>
#include <type_traits>
#include <utility>
#include <vector>

namespace {

using bf16 = std::uint16_t;
using Byte = char;  // of an operand, whatever its numbers are

constexpr int TILE_ROWS = 16;    // of a tile
constexpr int STEP = 64;         // bytes of a tile's row: channels that one product of tiles sums up
constexpr int TILE = 1024;       // bytes of a tile
constexpr int SIDE = 32;         // rows and outputs of two by two tiles
constexpr int BLOCK_ROWS = 256;  // rows that go through the products together: 64 to 512 measured, 256 is the fastest
constexpr int PART = 1536;       // bytes of a long sum taken at a time: 768, 1536 and all measured
constexpr long LINE = 64;        // bytes of a cache line, to which all buffers are aligned
constexpr long HUGE = 2 << 20;   // bytes of a huge page

}  // namespace

/* A linear layer as amx.py gives it: packed weights, the bias in float32; in int8 what a sum is multiplied with. */
struct Linear {
    const Byte *weights;
    const float *scale, *bias;
};

/* One layer. In int8 besides: factors of what goes into qkv and expand before it is rounded. The first `large` units
of GELU's outputs have a grid of their own (byte = x * by + zero) and a scale of their own on the way back. */
struct Layer {
    Linear qkv, out, expand, contract;
    const float *attention_norm, *attention_shift, *out_norm, *out_shift;
    const float *input_factors, *attended_factors, *large_scale;
    float by[2], zero[2];
};

struct Sizes {
    int layers, hidden, inner, heads;
    int int8, large;  // int8: 1 or 0. large: units, of 64 bytes each
    float epsilon;

    int head() const { return hidden / heads; }
    long bytes(long channels) const { return int8 ? channels : 2 * channels; }  // of an operand's row
};

/* Tables [., hidden] of embeddings in the model's numbers, and their norm in float32; and what each token takes. */
struct Embedding {
    const void *words, *positions, *types;
    const float *norm, *shift;
    const std::int64_t *word, *position, *type;
};

namespace {

long rounded(long count, long step) { return (count + step - 1) / step * step; }

/* ---- tiles ---------------------------------------------------------------------------------------------------- */

/* GCC's loads of tiles and of their configuration do not say all that they read: what was written for them has to be
written by now. */
inline void written() { asm volatile("" ::: "memory"); }

/* All eight tiles with 16 rows of 64 bytes. What a thread had before comes back at the end: oneDNN keeps its own. */
class TilesInUse {
    struct alignas(LINE) Config {
        std::uint8_t palette, start_row, zeros[14];
        std::uint16_t bytes[16];
        std::uint8_t rows[16];
    };
    Config before_{};

  public:
    TilesInUse() {
        Config ours{};
        ours.palette = 1;
        for (int tile = 0; tile < 8; tile++) ours.bytes[tile] = STEP, ours.rows[tile] = TILE_ROWS;
        written();
        _tile_storeconfig(&before_);
        _tile_loadconfig(&ours);
        written();
    }
    ~TilesInUse() {
        if (before_.palette) _tile_loadconfig(&before_);
        else _tile_release();
    }
};

/* Where a byte of a row lies, tile after tile. width: bytes of a row. */
inline long place_by_tiles(long row, long byte, long width) {
    return row / TILE_ROWS * TILE_ROWS * width + byte / STEP * TILE + row % TILE_ROWS * STEP + byte % STEP;
}

/* A left operand: rows by rows, or tile after tile. All in bytes: row: to the next row; step: to the next channels of
a tile; tile: to the next 16 rows. */
struct Left {
    const Byte *at;
    long row, step, tile;

    static Left by_rows(const void *at, long width) { return {(const Byte *)at, width, STEP, TILE_ROWS * width}; }
    static Left by_tiles(const void *at, long width) { return {(const Byte *)at, STEP, TILE, TILE_ROWS * width}; }
    Left from(long first_row, long byte) const { return {at + first_row / TILE_ROWS * tile + byte / STEP * step, row, step, tile}; }
};

/* One product of tiles, of `sums` += `left` x `right`: their numbers, which the instruction must know. */
#define DOT(sums, left, right) \
    do { \
        if constexpr (INT8) _tile_dpbssd(sums, left, right); \
        else _tile_dpbf16ps(sums, left, right); \
    } while (0)

/* Adds to tiles 0 to 3 32 rows of `left` (16 if not `both`) times 32 outputs of `right`, over `steps` times 64 bytes.

STREAMED: the left operand comes from L2 and is read once, so it shall not push `right` out of L1 (1.2 times as fast).
ahead: lines to fetch into L2 on each step: the weights of the next outputs, which lie in L3 (1.2 times as fast). */
template <bool INT8, bool STREAMED>
inline void multiply(Left left, bool both, const Byte *right, int steps, const Byte *next = nullptr, int ahead = 0) {
    const Byte *upper = left.at, *lower = left.at + left.tile;
    for (int k = 0; k < steps; k++, upper += left.step, lower += left.step, right += 2 * TILE) {
        for (int line = 0; line < ahead; line++, next += LINE) _mm_prefetch(next, _MM_HINT_T1);
        _tile_loadd(6, right, STEP);
        if (STREAMED) _tile_stream_loadd(4, upper, left.row);
        else _tile_loadd(4, upper, left.row);
        DOT(0, 4, 6);
        _tile_loadd(7, right + TILE, STEP);
        DOT(1, 4, 7);
        if (!both) continue;
        if (STREAMED) _tile_stream_loadd(5, lower, left.row);
        else _tile_loadd(5, lower, left.row);
        DOT(2, 5, 6);
        DOT(3, 5, 7);
    }
}

inline void zero() {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
}

/* Sums from and to memory, by rows of `width` numbers. */
inline void load_sums(const float *from, long width) {
    _tile_loadd(0, from, 4 * width);
    _tile_loadd(1, from + 16, 4 * width);
    _tile_loadd(2, from + 16 * width, 4 * width);
    _tile_loadd(3, from + 16 * width + 16, 4 * width);
}

inline void store_sums(float *to, long width, bool both) {
    _tile_stored(0, to, 4 * width);
    _tile_stored(1, to + 16, 4 * width);
    if (!both) return;
    _tile_stored(2, to + 16 * width, 4 * width);
    _tile_stored(3, to + 16 * width + 16, 4 * width);
}

/* A part of the channels of an operand, in bytes; the first of a sum begins it, others add to what is there. */
struct Part {
    long from, bytes;
    bool first;
};

/* left [rows, inputs] times packed weights, over the channels of `part`. width: bytes of a whole row of inputs.

put(row, output) says where 32 x 32 sums go, and how wide rows are there; done(row, rows, output) is told when they are
there. In int8 the sums are whole numbers, in the same room. */
template <bool INT8, class Put, class Done>
inline void product(Left left, int rows, const Byte *weights, long width, Part part, int outputs, Put put, Done done) {
    const long panel = SIDE * width;  // bytes of the weights for 32 outputs
    const int steps = (int)(part.bytes / STEP), ahead = SIDE / (int)(rounded(rows, SIDE) / SIDE);
    weights += SIDE * part.from;
    written();
    for (int n = 0; n < outputs; n += SIDE, weights += panel) {
        const Byte *next = weights + panel;  // the last one's next is the next matrix of the layer: harmless, or useful
        for (int m = 0; m < rows; m += SIDE, next += (long)steps * ahead * LINE) {
            const bool both = rows - m > TILE_ROWS;
            auto [to, apart] = put(m, n);
            if (part.first) zero();
            else load_sums(to, apart);
            multiply<INT8, true>(left.from(m, part.from), both, weights, steps, next, ahead);
            store_sums(to, apart, both);
            done(m, std::min(rows - m, SIDE), n);
        }
    }
}

/* ---- vectors of 16 numbers -------------------------------------------------------------------------------------- */

using Vector = __m512;

inline Vector all(float x) { return _mm512_set1_ps(x); }
inline Vector load(const float *x) { return _mm512_loadu_ps(x); }
inline Vector load(const bf16 *x) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)x)), 16));
}
inline void store(float *to, Vector x) { _mm512_storeu_ps(to, x); }
inline void store(bf16 *to, Vector x) { _mm256_storeu_si256((__m256i *)to, (__m256i)_mm512_cvtneps_pbh(x)); }
inline void store(bf16 *to, Vector x, Vector y) { _mm512_storeu_si512(to, (__m512i)_mm512_cvtne2ps_pbh(y, x)); }
inline void store(std::int8_t *to, Vector x) {  // rounded to even and clipped
    _mm_storeu_si128((__m128i *)to, _mm512_cvtsepi32_epi8(_mm512_cvtps_epi32(x)));
}

/* Sums of a product -> its results, of 16 outputs from n. */
template <bool INT8>
struct Finish {
    Vector scale, bias;

    Finish(const Linear &linear, int n) : scale(INT8 ? load(linear.scale + n) : all(1)), bias(load(linear.bias + n)) {}
    Vector operator()(const float *sums) const {
        if constexpr (!INT8) return _mm512_add_ps(load(sums), bias);
        else return _mm512_fmadd_ps(_mm512_cvtepi32_ps(_mm512_loadu_si512(sums)), scale, bias);
    }
};

/* x times the normal distribution function: (1 + erf(x / sqrt 2)) / 2 = 1/2 + x P(2 x^2 / END^2 - 1) up to END, where
it is 1 to five digits. P is fitted (weighted least squares, Chebyshev, made a minimax by reweighting): the result is
off by at most 4.2e-5 of x, while bfloat16 has steps of 4e-3. */
inline Vector gelu(Vector x) {
    constexpr float END = 4.25f;
    constexpr float P[] = {0.16592377512032178f,   -0.08082216080025267f,  0.05613326443280618f,  -0.03874355092035064f,
                           0.023125343161191234f, -0.015569570262091425f, 0.013019289479906538f, -0.005431499714867515f};
    const __mmask16 some = _mm512_cmp_ps_mask(x, all(-END), _CMP_NLE_UQ);  // a NaN too
    const Vector y = _mm512_max_ps(_mm512_min_ps(x, all(END)), all(-END));
    const Vector u = _mm512_fmadd_ps(_mm512_mul_ps(y, y), all(2 / (END * END)), all(-1)), squared = _mm512_mul_ps(u, u);
    Vector even = all(P[6]), odd = all(P[7]);
    for (int i = 4; i >= 0; i -= 2) even = _mm512_fmadd_ps(even, squared, all(P[i]));
    for (int i = 5; i >= 1; i -= 2) odd = _mm512_fmadd_ps(odd, squared, all(P[i]));
    return _mm512_maskz_mul_ps(some, x, _mm512_fmadd_ps(y, _mm512_fmadd_ps(odd, u, even), all(0.5f)));
}

/* 2 to the x, off by at most 1e-4 of it, while bfloat16 has steps of 4e-3; 0 of minus infinity. P is fitted as above,
to what is left of x above a whole number. */
inline Vector exp2(Vector x) {
    constexpr float P[] = {0.9999252216f, 0.6958335203f, 0.2260671816f, 0.0780245181f};
    const Vector rest = _mm512_reduce_ps(x, _MM_FROUND_TO_NEG_INF);
    Vector p = all(P[3]);
    for (int i = 2; i >= 0; i--) p = _mm512_fmadd_ps(p, rest, all(P[i]));
    return _mm512_scalef_ps(p, x);  // p times 2 to the whole number below x
}

/* 16 rows of 64 bytes, `width` bytes apart -> a right tile: 16 times 4 bytes, in each 16 rows. */
inline void turn(const void *from, long width, void *to) {
    __m512i a[16], b[16];
    for (int i = 0; i < 16; i++) a[i] = _mm512_loadu_si512((const Byte *)from + i * width);
    for (int i = 0; i < 16; i += 2) {
        b[i] = _mm512_unpacklo_epi32(a[i], a[i + 1]);
        b[i + 1] = _mm512_unpackhi_epi32(a[i], a[i + 1]);
    }
    for (int i = 0; i < 16; i += 4) {
        a[i] = _mm512_unpacklo_epi64(b[i], b[i + 2]);
        a[i + 1] = _mm512_unpackhi_epi64(b[i], b[i + 2]);
        a[i + 2] = _mm512_unpacklo_epi64(b[i + 1], b[i + 3]);
        a[i + 3] = _mm512_unpackhi_epi64(b[i + 1], b[i + 3]);
    }
    for (int i = 0; i < 4; i++)
        for (int half = 0; half < 2; half++) {
            b[i + 8 * half] = _mm512_shuffle_i32x4(a[i + 8 * half], a[i + 8 * half + 4], 0x88);
            b[i + 8 * half + 4] = _mm512_shuffle_i32x4(a[i + 8 * half], a[i + 8 * half + 4], 0xdd);
        }
    for (int i = 0; i < 8; i++) {
        const int place = i & 3, odd = i & 4;
        _mm512_storeu_si512((Byte *)to + (place + odd) * STEP, _mm512_shuffle_i32x4(b[i], b[i + 8], 0x88));
        _mm512_storeu_si512((Byte *)to + (place + odd + 8) * STEP, _mm512_shuffle_i32x4(b[i], b[i + 8], 0xdd));
    }
}

/* ---- room ----------------------------------------------------------------------------------------------------- */

/* What one thread writes. The memory model of the plan has the same sum (planning/memory/peak.py, amx_workspace).

input: what the products of a layer read of x, by tiles; in bfloat16 it is x itself. residual: x in int8, float32 by
rows. large: sums of the large units. */
struct Room {
    Byte *input, *inner;
    float *residual, *scores, *sums, *large;
    bf16 *qkv, *keys, *values, *shares;

    /* rows: of the largest group; longest: tokens of the longest pair. Returns the bytes; base may be null. */
    long lay(char *base, const Sizes &s, long rows, long longest) {
        long taken = 0;
        auto take = [&](auto *&what, long count) {
            what = (std::remove_reference_t<decltype(what)>)(base + taken);
            taken += rounded(count * (long)sizeof(*what), LINE);
        };
        rows = rounded(rows, SIDE), longest = rounded(longest, SIDE);
        const long block = std::min(rows, (long)BLOCK_ROWS);
        take(input, rows * s.bytes(s.hidden));
        take(residual, s.int8 ? rows * s.hidden : 0);
        take(qkv, (rows + SIDE) * 3 * s.hidden);  // the last pair's keys are read in whole tiles
        take(keys, longest * s.head());
        take(values, longest * s.head());
        take(shares, SIDE * longest);
        take(scores, SIDE * longest);
        take(inner, block * s.bytes(s.inner));
        take(sums, block * s.hidden);
        take(large, s.large ? block * s.hidden : 0);
        return taken;
    }
};

/* A product over all channels, where each(row, output, left, right) takes 32 finished sums of a row. */
template <bool INT8, class Each>
inline void product_of_rows(Left left, int rows, const Linear &linear, long width, int outputs, Each each) {
    alignas(LINE) float sums[SIDE * SIDE];
    auto put = [&](int, int) { return std::pair(sums + 0, (long)SIDE); };
    product<INT8>(left, rows, linear.weights, width, {0, width, true}, outputs, put, [&](int m, int count, int n) {
        const Finish<INT8> first(linear, n), second(linear, n + 16);
        for (int r = 0; r < count; r++) each(m + r, n, first(sums + r * SIDE), second(sums + r * SIDE + 16));
    });
}

/* A row of x: 16 numbers from channel c, and what the products will read of them. */
template <bool INT8>
struct Row {
    using Number = std::conditional_t<INT8, float, bf16>;
    const Room &room;
    long row, hidden;

    Number *at(int c) const {
        if constexpr (INT8) return room.residual + row * hidden + c;
        else return (bf16 *)(room.input + place_by_tiles(row, 2L * c, 2 * hidden));
    }
    void write(int c, Vector x, const float *factors) const {
        store(at(c), x);
        if constexpr (INT8) store((std::int8_t *)room.input + place_by_tiles(row, c, hidden), _mm512_mul_ps(x, load(factors + c)));
    }
};

/* ---- steps of a layer ------------------------------------------------------------------------------------------- */

/* Rows of scores -> shares of the softmax, not yet divided by their sums, of which the inverses are returned. What lies
behind the pair's end gets none. The largest score of a row is taken off, so nothing overflows; it is looked for in all
rows first, as what waits for it would keep the next row waiting too (twice as fast). */
inline void softmax(float *scores, int rows, int length, int padded, float factor, bf16 *shares, float *inverse) {
    alignas(LINE) float off[SIDE];
    for (int r = 0; r < rows; r++) {
        float *row = scores + r * padded;
        for (int j = length / 16 * 16; j < padded; j += 16)
            _mm512_mask_storeu_ps(row + j, (__mmask16)(0xffff << std::max(0, length - j)), all(-INFINITY));
        Vector most = load(row);
        for (int j = 16; j < padded; j += 16) most = _mm512_max_ps(most, load(row + j));
        off[r] = _mm512_reduce_max_ps(most) * factor;
    }
    for (int r = 0; r < rows; r++, scores += padded, shares += padded) {
        Vector sum = all(0), others = all(0);
        for (int j = 0; j < padded; j += 32) {
            const Vector left = exp2(_mm512_fmsub_ps(load(scores + j), all(factor), all(off[r])));
            const Vector right = exp2(_mm512_fmsub_ps(load(scores + j + 16), all(factor), all(off[r])));
            sum = _mm512_add_ps(sum, left);
            others = _mm512_add_ps(others, right);
            store(shares + j, left, right);
        }
        inverse[r] = 1 / _mm512_reduce_add_ps(_mm512_add_ps(sum, others));
    }
}

/* Keys and values of a head as right operands: scores sum over channels, contexts over keys.

keys: for 32 keys after another the steps of 32 channels; values: for 32 channels after another the steps of 32 keys.
Values behind the pair's end are 0: their share is next to 0, but 0 times a NaN is not. */
inline void turn_keys_and_values(const bf16 *k, const bf16 *v, long width, int head, int length, const Room &room) {
    constexpr int NUMBERS = TILE / 2, CHANNELS = STEP / 2;
    const int padded = (int)rounded(length, SIDE);
    for (int j = 0; j < padded; j += 16)
        for (int c = 0; c < head; c += CHANNELS)
            turn(k + j * width + c, 2 * width,
                 room.keys + j / SIDE * SIDE * head + c / CHANNELS * 2 * NUMBERS + j % SIDE / 16 * NUMBERS);
    alignas(LINE) static const std::uint16_t ORDER[32] = {0, 16, 1, 17, 2,  18, 3,  19, 4,  20, 5,  21, 6,  22, 7,  23,
                                                          8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
    const __m512i order = _mm512_load_si512(ORDER);
    for (int c = 0; c < head; c += SIDE)
        for (int j = 0; j < padded; j += 2) {
            const bf16 *from = v + j * width + c;
            bf16 *to = room.values + (long)c * padded + j / CHANNELS * 2 * NUMBERS + j % CHANNELS / 2 * 32;
            const __m512i a = j < length ? _mm512_loadu_si512(from) : _mm512_setzero_si512();
            const __m512i b = j + 1 < length ? _mm512_loadu_si512(from + width) : _mm512_setzero_si512();
            const __m512i left = _mm512_shuffle_i64x2(a, b, 0x44), right = _mm512_shuffle_i64x2(a, b, 0xee);
            _mm512_storeu_si512(to, _mm512_permutexvar_epi16(order, left));
            _mm512_storeu_si512(to + NUMBERS, _mm512_permutexvar_epi16(order, right));
        }
}

/* The contexts of one pair, over its queries. qkv: [length, 3 * hidden], by rows. In int8 the factor of the scores is
in the queries already, that of the bytes in the values, and a context is bytes from the begin of its row. */
template <bool INT8>
void attend(const Sizes &s, int length, bf16 *qkv, const Room &room) {
    const int head = s.head(), padded = (int)rounded(length, SIDE);
    const long width = 3L * s.hidden;
    const float factor = INT8 ? 1 : 1.4426950408889634f / std::sqrt((float)head);  // log2(e): exp2 is the cheaper
    alignas(LINE) float context[SIDE * SIDE], inverse[SIDE];
    for (int h = 0; h < s.heads; h++) {
        bf16 *q = qkv + h * head;
        turn_keys_and_values(q + s.hidden, q + 2 * s.hidden, width, head, length, room);
        for (int m = 0; m < length; m += SIDE) {
            const int rows = std::min(length - m, SIDE);
            const bool both = rows > TILE_ROWS;
            written();
            for (int j = 0; j < padded; j += SIDE) {
                zero();
                multiply<false, false>(Left::by_rows(q + m * width, 2 * width), both, (Byte *)(room.keys + (long)j * head), 2 * head / STEP);
                store_sums(room.scores + j, padded, both);
            }
            softmax(room.scores, rows, length, padded, factor, room.shares, inverse);
            written();
            for (int c = 0; c < head; c += SIDE) {
                zero();
                multiply<false, false>(Left::by_rows(room.shares, 2 * padded), both, (Byte *)(room.values + (long)c * padded), 2 * padded / STEP);
                store_sums(context, SIDE, both);
                for (int r = 0; r < rows; r++) {
                    const Vector left = _mm512_mul_ps(load(context + r * SIDE), all(inverse[r]));
                    const Vector right = _mm512_mul_ps(load(context + r * SIDE + 16), all(inverse[r]));
                    bf16 *row = qkv + (m + r) * width;
                    if constexpr (INT8) {
                        std::int8_t *to = (std::int8_t *)row + h * head + c;
                        store(to, left), store(to + 16, right);
                    } else store(row + h * head + c, left, right);
                }
            }
        }
    }
}

/* Of a row of float32 numbers their norm; put(c, x) takes 16 of them. sum: of the row. */
template <class Put>
inline void norm(const float *row, int width, Vector sum, const float *weight, const float *shift, float epsilon, Put put) {
    const Vector mean = all(_mm512_reduce_add_ps(sum) / (float)width);
    Vector squares = all(0);
    for (int c = 0; c < width; c += 16) {
        const Vector y = _mm512_sub_ps(load(row + c), mean);
        squares = _mm512_fmadd_ps(y, y, squares);
    }
    const Vector scale = all(1 / std::sqrt(_mm512_reduce_add_ps(squares) / (float)width + epsilon));
    for (int c = 0; c < width; c += 16) {
        const Vector y = _mm512_mul_ps(_mm512_sub_ps(load(row + c), mean), scale);
        put(c, _mm512_fmadd_ps(y, load(weight + c), load(shift + c)));
    }
}

/* x = norm(x + sums + bias), row by row, from row `first` of the group. large: sums of the large units, or none. */
template <bool INT8>
void add_and_norm(const Sizes &s, const Room &room, long first, int rows, const Linear &linear, const float *large_scale,
                  const float *weight, const float *shift, const float *factors) {
    for (int r = 0; r < rows; r++) {
        const Row<INT8> row{room, first + r, s.hidden};
        float *sums = room.sums + (long)r * s.hidden;
        Vector sum = all(0);
        for (int c = 0; c < s.hidden; c += 16) {
            Vector y = _mm512_add_ps(Finish<INT8>(linear, c)(sums + c), load(row.at(c)));
            if (INT8 && large_scale) {
                const __m512i large = _mm512_loadu_si512(room.large + (long)r * s.hidden + c);
                y = _mm512_fmadd_ps(_mm512_cvtepi32_ps(large), load(large_scale + c), y);
            }
            store(sums + c, y);
            sum = _mm512_add_ps(sum, y);
        }
        norm(sums, s.hidden, sum, weight, shift, s.epsilon, [&](int c, Vector x) { row.write(c, x, factors); });
    }
}

/* One layer over a block of rows from row `first` of the group, attention done. next: the layer after it, or itself. */
template <bool INT8>
void finish_layer(const Sizes &s, const Layer &layer, const Layer &next, long first, int rows, const Room &room) {
    const int hidden = s.hidden, inner = s.inner;
    const long hidden_bytes = s.bytes(hidden), inner_bytes = s.bytes(inner);
    auto in = [&](float *sums) { return [=](int m, int n) { return std::pair(sums + (long)m * hidden + n, (long)hidden); }; };
    auto nothing = [](int, int, int) {};
    const Left context = Left::by_rows(room.qkv + first * 3 * hidden, 6L * hidden);
    product<INT8>(context, rows, layer.out.weights, hidden_bytes, {0, hidden_bytes, true}, hidden, in(room.sums), nothing);
    add_and_norm<INT8>(s, room, first, rows, layer.out, nullptr, layer.attention_norm, layer.attention_shift, layer.attended_factors);
    const Left x = Left::by_tiles(room.input, hidden_bytes).from(first, 0);
    product_of_rows<INT8>(x, rows, layer.expand, hidden_bytes, inner, [&](int row, int n, Vector left, Vector right) {
        Byte *to = room.inner + place_by_tiles(row, s.bytes(n), inner_bytes);
        left = gelu(left), right = gelu(right);
        if constexpr (INT8) {
            const Vector by = all(layer.by[n >= s.large]), zero = all(layer.zero[n >= s.large]);
            store((std::int8_t *)to, _mm512_fmadd_ps(left, by, zero));
            store((std::int8_t *)to + 16, _mm512_fmadd_ps(right, by, zero));
        } else store((bf16 *)to, left, right);
    });
    const Left widened = Left::by_tiles(room.inner, inner_bytes);
    if (s.large) product<INT8>(widened, rows, layer.contract.weights, inner_bytes, {0, s.large, true}, hidden, in(room.large), nothing);
    for (long from = s.large; from < inner_bytes; from += PART) {
        const Part part{from, std::min((long)PART, inner_bytes - from), from == s.large};
        product<INT8>(widened, rows, layer.contract.weights, inner_bytes, part, hidden, in(room.sums), nothing);
    }
    add_and_norm<INT8>(s, room, first, rows, layer.contract, s.large ? layer.large_scale : nullptr, layer.out_norm, layer.out_shift,
                       next.input_factors);
}

/* The first layer's input: embeddings, or x where they are made elsewhere, [rows, hidden]. first: of the group. */
template <bool INT8>
void begin(const Sizes &s, const Layer &layer, const Embedding *embedding, const typename Row<INT8>::Number *x, long first, int rows,
           const Room &room) {
    using Number = typename Row<INT8>::Number;
    for (long r = 0; r < rows; r++, x += s.hidden) {
        const Row<INT8> row{room, r, s.hidden};
        if (!embedding) {
            for (int c = 0; c < s.hidden; c += 16) row.write(c, load(x + c), layer.input_factors);
            continue;
        }
        auto of = [&](const void *table, const std::int64_t *index) { return (const Number *)table + index[first + r] * s.hidden; };
        const Number *word = of(embedding->words, embedding->word), *type = of(embedding->types, embedding->type);
        const Number *position = of(embedding->positions, embedding->position);
        Vector sum = all(0);
        for (int c = 0; c < s.hidden; c += 16) {
            const Vector y = _mm512_add_ps(_mm512_add_ps(load(word + c), load(type + c)), load(position + c));
            store(room.sums + c, y);
            sum = _mm512_add_ps(sum, y);
        }
        norm(room.sums, s.hidden, sum, embedding->norm, embedding->shift, s.epsilon,
             [&](int c, Vector y) { row.write(c, y, layer.input_factors); });
    }
}

/* All layers over some pairs. x: [rows, hidden] by rows, in place; starts: [pairs + 1]. */
template <bool INT8>
void run_group(const Sizes &s, const Layer *layers, const Embedding *embedding, typename Row<INT8>::Number *x,
               const std::int32_t *starts, int pairs, const Room &room) {
    const int rows = starts[pairs] - starts[0], hidden = s.hidden;
    const long bytes = s.bytes(hidden);
    x += (long)starts[0] * hidden;
    begin<INT8>(s, layers[0], embedding, x, starts[0], rows, room);
    for (int number = 0; number < s.layers; number++) {
        const Layer &layer = layers[number], &next = layers[std::min(number + 1, s.layers - 1)];
        for (int m = 0; m < rows; m += BLOCK_ROWS) {
            const Left block = Left::by_tiles(room.input, bytes).from(m, 0);
            product_of_rows<INT8>(block, std::min(rows - m, BLOCK_ROWS), layer.qkv, bytes, 3 * hidden,
                                  [&](int row, int n, Vector left, Vector right) {
                store(room.qkv + (long)(m + row) * 3 * hidden + n, left, right);
            });
        }
        for (int pair = 0; pair < pairs; pair++)
            attend<INT8>(s, starts[pair + 1] - starts[pair], room.qkv + (long)(starts[pair] - starts[0]) * 3 * hidden, room);
        for (int m = 0; m < rows; m += BLOCK_ROWS)
            finish_layer<INT8>(s, layer, next, m, std::min(rows - m, BLOCK_ROWS), room);
    }
    for (long r = 0; r < rows; r++, x += hidden)
        for (int c = 0; c < hidden; c += 16) store(x + c, load(Row<INT8>{room, r, hidden}.at(c)));
}

/* The pairs in groups of at most `most` rows, or one pair: the first pair of each group, and the end. */
std::vector<int> groups_of(const std::int32_t *starts, int pairs, int most) {
    std::vector<int> groups{0};
    for (int pair = 1; pair < pairs; pair++)
        if (starts[pair + 1] - starts[groups.back()] > most) groups.push_back(pair);
    groups.push_back(pairs);
    return groups;
}

}  // namespace

/* ---- what amx.py calls ---------------------------------------------------------------------------------------- */

#define SEEN __attribute__((visibility("default")))

extern "C" {

/* SHA-256 of this file when it was compiled: amx.py takes no library of another one. */
SEEN const char *amx_source() { return SOURCE; }

/* Asks Linux for the tiles, for this process and its threads; 0: there are none to be had. */
SEEN int amx_permit() {
    constexpr long ARCH_REQ_XCOMP_PERM = 0x1023, XFEATURE_XTILEDATA = 18;
    return syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0;
}

/* Asks Linux for huge pages, where it wants to be asked: with small ones the fetching ahead ends every 4 KiB. */
SEEN void amx_huge(char *from, long bytes) {
    char *first = (char *)rounded((long)from, HUGE);
    const long whole = (from + bytes - first) / HUGE * HUGE;
    if (whole > 0) madvise(first, (size_t)whole, MADV_HUGEPAGE);  // advice: it may fail
}

/* A weight [outputs, inputs] as right tiles; width: bytes of its rows. */
SEEN void amx_pack(const Byte *weight, Byte *to, int outputs, long width) {
    for (int n = 0; n < outputs; n += SIDE)
        for (long k = 0; k < width; k += STEP)
            for (int half = 0; half < 2; half++, to += TILE) turn(weight + (n + half * 16) * width + k, width, to);
}

/* Bytes that a thread writes, for groups of `rows` rows and pairs of `longest` tokens. */
SEEN long amx_room(const Sizes *sizes, long rows, long longest) { return Room{}.lay(nullptr, *sizes, rows, longest); }

/* All layers over all pairs. x: [tokens, hidden], in place, bfloat16, of int8 layers float32; what is in it at first
counts only without `embedding`. starts: [pairs + 1]; room: `threads` times amx_room of `rows`, the most that a group
may have where no pair is longer; aligned to 64 bytes. */
SEEN void amx_run(const Sizes *sizes, const Layer *layers, const Embedding *embedding, void *x, const std::int32_t *starts,
                  int pairs, char *room, long rows, long longest, int threads) {
    const std::vector<int> groups = groups_of(starts, pairs, (int)rows);
    const long each = amx_room(sizes, rows, longest);
    std::atomic<int> next{0};
    auto work = [&](int place) {
        const TilesInUse tiles;
        Room own{};
        own.lay(room + place * each, *sizes, rows, longest);
        for (int group; (group = next++) + 1 < (int)groups.size();) {
            const int first = groups[group], count = groups[group + 1] - first;
            if (sizes->int8) run_group<true>(*sizes, layers, embedding, (float *)x, starts + first, count, own);
            else run_group<false>(*sizes, layers, embedding, (bf16 *)x, starts + first, count, own);
        }
    };
    std::vector<std::thread> others;
    try {
        for (int place = 1; place < threads; place++) others.emplace_back(work, place);
    } catch (const std::system_error &) {  // no more threads to be had: those that are there do it all
    }
    work(0);
    for (std::thread &other : others) other.join();
}
}
