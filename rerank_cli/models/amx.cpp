/* The layers of a BERT-like encoder in bfloat16, on a CPU with tiles (Intel AMX). Loaded by amx.py.

What a layer computes, for a row x of each token (post-norm, as BERT's):

    q, k, v = x Wqkv + b         context = softmax(q k' / sqrt(head)) v, within a pair
    x = norm(x + context Wout + b)
    x = norm(x + gelu(x Wexpand + b) Wcontract + b)

Numbers between the steps are bfloat16; sums, biases, softmax, GELU and norms are float32.

Why it is here: torch runs the same steps one after another, each over the whole batch. A core of a Xeon with AMX
multiplies 3 Tflop/s where the operands lie in L1, a third of that where they come from L3, and torch's own attention
and copies take more time than the products. Here a thread takes some whole pairs (how many: amx_groups in
planning/memory/peak.py) through all layers by itself, in blocks of BLOCK_ROWS rows, so that what lies between two
products never leaves its L2.

A logit does not depend on the batch. Every number of a row is a sum over k in ascending order of products of that row
alone (or of the rows of its pair), whatever stands beside it; threads share nothing but the weights.

Layouts. A tile register holds 16 rows of 64 bytes: of the left operand 16 rows x 32 channels, of the right one 16
channel pairs x 16 outputs, of the sums 16 x 16 float32. The unit of all loops is two by two tiles of sums, SIDE x SIDE.

    weights   for 32 outputs after another: for 32 inputs after another: two right tiles (see amx_pack)
    x, inner  for 16 rows after another: for 32 channels after another: one left tile, 1 KiB in one piece
    qkv       by rows; the context of a head is written over its queries

Sizes: hidden and inner are multiples of 32, a head has a multiple of 32 channels; amx.py sees to that.

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
#include <utility>
#include <vector>

namespace {

using bf16 = std::uint16_t;

constexpr int TILE_ROWS = 16;    // of a tile
constexpr int STEP = 32;         // channels that one product of tiles sums up
constexpr int TILE = 512;        // bfloat16 numbers of a tile
constexpr int SIDE = 32;         // rows and outputs of two by two tiles
constexpr int BLOCK_ROWS = 256;  // rows that go through the products together: 64 to 512 measured, 256 is the fastest
constexpr long LINE = 64;        // bytes of a cache line, to which all buffers are aligned
constexpr long HUGE = 2 << 20;   // bytes of a huge page

}  // namespace

/* One layer as amx.py gives it: packed weights, and biases and norms in float32. */
struct Layer {
    const bf16 *qkv;
    const float *qkv_bias;
    const bf16 *out;
    const float *out_bias, *attention_norm, *attention_shift;
    const bf16 *expand;
    const float *expand_bias;
    const bf16 *contract;
    const float *contract_bias, *out_norm, *out_shift;
};

struct Sizes {
    int layers, hidden, inner, heads;
    float epsilon;

    int head() const { return hidden / heads; }
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
        for (int tile = 0; tile < 8; tile++) ours.bytes[tile] = 64, ours.rows[tile] = TILE_ROWS;
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

/* A left operand: rows by rows, or tile after tile. bytes: from a row to the next; step: numbers to the next 32
channels; tile: numbers to the next 16 rows. */
struct Left {
    const bf16 *at;
    long bytes, step, tile;

    static Left by_rows(const bf16 *at, long width) { return {at, 2 * width, STEP, TILE_ROWS * width}; }
    static Left by_tiles(const bf16 *at, long width) { return {at, 2 * STEP, TILE, TILE_ROWS * width}; }
    Left from_row(long row) const { return {at + row / TILE_ROWS * tile, bytes, step, tile}; }  // row: of a tile's first
};

/* Tiles 0 to 3 = 32 rows of `left` (16 if not `both`) times 32 outputs of `right`, over `steps` times 32 channels.

STREAMED: the left operand comes from L2 and is read once, so it shall not push `right` out of L1 (1.2 times as fast).
ahead: lines to fetch into L2 on each step: the weights of the next outputs, which lie in L3 (1.2 times as fast). */
template <bool STREAMED>
inline void multiply(Left left, bool both, const bf16 *right, int steps, const bf16 *next = nullptr, int ahead = 0) {
    const bf16 *upper = left.at, *lower = left.at + left.tile;
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    for (int k = 0; k < steps; k++, upper += left.step, lower += left.step, right += 2 * TILE) {
        for (int line = 0; line < ahead; line++, next += STEP) _mm_prefetch((const char *)next, _MM_HINT_T1);
        _tile_loadd(6, right, 64);
        if (STREAMED) _tile_stream_loadd(4, upper, left.bytes);
        else _tile_loadd(4, upper, left.bytes);
        _tile_dpbf16ps(0, 4, 6);
        _tile_loadd(7, right + TILE, 64);
        _tile_dpbf16ps(1, 4, 7);
        if (!both) continue;
        if (STREAMED) _tile_stream_loadd(5, lower, left.bytes);
        else _tile_loadd(5, lower, left.bytes);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
    }
}

inline void store(float *to, long width, bool both) {
    _tile_stored(0, to, 4 * width);
    _tile_stored(1, to + 16, 4 * width);
    if (!both) return;
    _tile_stored(2, to + 16 * width, 4 * width);
    _tile_stored(3, to + 16 * width + 16, 4 * width);
}

/* left [rows, inputs] times packed weights. put(row, rows, output, to, width) says where 32 x 32 sums go and is told
when they are there. */
template <class Place, class Done>
inline void product(Left left, int rows, const bf16 *weights, int inputs, int outputs, Place place, Done done) {
    const long panel = (long)SIDE * inputs;  // of 32 outputs
    const int steps = inputs / STEP, ahead = SIDE / (int)(rounded(rows, SIDE) / SIDE);
    written();
    for (int n = 0; n < outputs; n += SIDE, weights += panel) {
        const bf16 *next = weights + panel;  // the last one's next is the next matrix of the layer: harmless, or useful
        for (int m = 0; m < rows; m += SIDE, next += (long)steps * ahead * STEP) {
            const bool both = rows - m > TILE_ROWS;
            multiply<true>(left.from_row(m), both, weights, steps, next, ahead);
            auto [to, width] = place(m, n);
            store(to, width, both);
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
inline void store(bf16 *to, Vector x) { _mm256_storeu_si256((__m256i *)to, (__m256i)_mm512_cvtneps_pbh(x)); }
inline void store(bf16 *to, Vector x, Vector y) { _mm512_storeu_si512(to, (__m512i)_mm512_cvtne2ps_pbh(y, x)); }

/* x times the normal distribution function: (1 + erf(x / sqrt 2)) / 2 = 1/2 + x P(2 x^2 / END^2 - 1) up to END, where
it is 1 to five digits. P is fitted (weighted least squares, Chebyshev, made a minimax by reweighting): the result is
off by at most 1.1e-6 within +-END and 1.1e-5 of x beyond, while bfloat16 has steps of 4e-3. */
inline Vector gelu(Vector x) {
    constexpr float END = 4.25f;
    constexpr float P[] = {0.16593655943870544f,   -0.08078712224960327f,  0.055660564452409744f, -0.03896027058362961f,
                           0.025767385959625244f,  -0.015694107860326767f, 0.008507166989147663f, -0.004056687466800213f,
                           0.002076417673379183f,  -0.0011490245815366507f, 0.00034369988134130836f};
    const __mmask16 some = _mm512_cmp_ps_mask(x, all(-END), _CMP_NLE_UQ);  // a NaN too
    const Vector y = _mm512_max_ps(_mm512_min_ps(x, all(END)), all(-END));
    const Vector u = _mm512_fmadd_ps(_mm512_mul_ps(y, y), all(2 / (END * END)), all(-1)), squared = _mm512_mul_ps(u, u);
    Vector even = all(P[10]), odd = all(P[9]);
    for (int i = 8; i >= 0; i -= 2) even = _mm512_fmadd_ps(even, squared, all(P[i]));
    for (int i = 7; i >= 1; i -= 2) odd = _mm512_fmadd_ps(odd, squared, all(P[i]));
    return _mm512_maskz_mul_ps(some, x, _mm512_fmadd_ps(y, _mm512_fmadd_ps(odd, u, even), all(0.5f)));
}

/* 2 to the x, to five digits. */
inline Vector exp2(Vector x) {
    const Vector rest = _mm512_reduce_ps(x, 0);  // to the nearest whole number, +-1/2
    Vector p = all(0.009670762f);
    p = _mm512_fmadd_ps(p, rest, all(0.05550411f));
    p = _mm512_fmadd_ps(p, rest, all(0.24022651f));
    p = _mm512_fmadd_ps(p, rest, all(0.69314718f));
    p = _mm512_fmadd_ps(p, rest, all(1));
    return _mm512_scalef_ps(p, _mm512_sub_ps(x, rest));
}

/* 16 rows of 32 numbers of bfloat16 -> a right tile: 16 pairs of channels, in each 16 rows. */
inline void turn(const bf16 *from, long width, bf16 *to) {
    __m512i a[16], b[16];
    for (int i = 0; i < 16; i++) a[i] = _mm512_loadu_si512(from + i * width);
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
        _mm512_storeu_si512(to + (place + odd) * 32, _mm512_shuffle_i32x4(b[i], b[i + 8], 0x88));
        _mm512_storeu_si512(to + (place + odd + 8) * 32, _mm512_shuffle_i32x4(b[i], b[i + 8], 0xdd));
    }
}

/* Where 32 channels of a row lie, tile after tile. */
inline long place_by_tiles(long row, long channel, long width) {
    return row / TILE_ROWS * TILE_ROWS * width + channel / STEP * TILE + row % TILE_ROWS * STEP;
}

/* ---- room ----------------------------------------------------------------------------------------------------- */

/* What one thread writes. The memory model of the plan has the same sum (planning/memory/peak.py, amx_workspace). */
struct Room {
    bf16 *x, *qkv, *keys, *values, *shares, *inner;
    float *scores, *sums;

    /* rows: of the largest group; longest: tokens of the longest pair. Returns the bytes; base may be null. */
    long lay(char *base, const Sizes &s, long rows, long longest) {
        long taken = 0;
        auto take = [&](auto *&what, long count) {
            what = (std::remove_reference_t<decltype(what)>)(base + taken);
            taken += rounded(count * (long)sizeof(*what), LINE);
        };
        rows = rounded(rows, SIDE), longest = rounded(longest, SIDE);
        const long block = std::min(rows, (long)BLOCK_ROWS);
        take(x, rows * s.hidden);
        take(qkv, (rows + SIDE) * 3 * s.hidden);  // the last pair's keys are read in whole tiles
        take(keys, longest * s.head());
        take(values, longest * s.head());
        take(shares, SIDE * longest);
        take(scores, SIDE * longest);
        take(inner, block * s.inner);
        take(sums, block * s.hidden);
        return taken;
    }
};

/* ---- steps of a layer ------------------------------------------------------------------------------------------- */

/* A row of scores -> shares of the softmax, not yet divided by their sum, of which the inverse is returned. What lies
behind the pair's end gets no share. The largest score is taken off, so nothing overflows. */
inline float softmax(const float *scores, int length, int padded, float factor, bf16 *shares) {
    const int whole = length / 16 * 16;
    const __mmask16 rest = (__mmask16)((1u << (length - whole)) - 1);
    Vector most = _mm512_mask_loadu_ps(all(-INFINITY), rest, scores + whole), sum = all(0);
    for (int j = 0; j < whole; j += 16) most = _mm512_max_ps(most, load(scores + j));
    const Vector by = all(factor), off = all(_mm512_reduce_max_ps(most) * factor);
    for (int j = 0; j < padded; j += 16) {
        Vector share = exp2(_mm512_fmsub_ps(load(scores + j), by, off));
        if (j >= whole) share = _mm512_maskz_mov_ps(j == whole ? rest : 0, share);
        sum = _mm512_add_ps(sum, share);
        store(shares + j, share);
    }
    return 1 / _mm512_reduce_add_ps(sum);
}

/* Keys and values of a head as right operands: scores sum over channels, contexts over keys.

keys: for 32 keys after another the steps of 32 channels; values: for 32 channels after another the steps of 32 keys.
Values behind the pair's end are 0: their share is 0 too, but 0 times a NaN is not. */
inline void turn_keys_and_values(const bf16 *k, const bf16 *v, long width, int head, int length, const Room &room) {
    const int padded = (int)rounded(length, SIDE);
    for (int j = 0; j < padded; j += 16)
        for (int c = 0; c < head; c += STEP)
            turn(k + j * width + c, width, room.keys + j / SIDE * SIDE * head + c / STEP * 2 * TILE + j % SIDE / 16 * TILE);
    alignas(LINE) static const std::uint16_t ORDER[32] = {0, 16, 1, 17, 2,  18, 3,  19, 4,  20, 5,  21, 6,  22, 7,  23,
                                                          8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
    const __m512i order = _mm512_load_si512(ORDER);
    for (int c = 0; c < head; c += SIDE)
        for (int j = 0; j < padded; j += 2) {
            const bf16 *from = v + j * width + c;
            bf16 *to = room.values + (long)c * padded + j / STEP * 2 * TILE + j % STEP / 2 * 32;
            const __m512i a = j < length ? _mm512_loadu_si512(from) : _mm512_setzero_si512();
            const __m512i b = j + 1 < length ? _mm512_loadu_si512(from + width) : _mm512_setzero_si512();
            const __m512i left = _mm512_shuffle_i64x2(a, b, 0x44), right = _mm512_shuffle_i64x2(a, b, 0xee);
            _mm512_storeu_si512(to, _mm512_permutexvar_epi16(order, left));
            _mm512_storeu_si512(to + TILE, _mm512_permutexvar_epi16(order, right));
        }
}

/* The contexts of one pair, over its queries. qkv: [length, 3 * hidden], by rows. */
void attend(const Sizes &s, int length, bf16 *qkv, const Room &room) {
    const int head = s.head(), padded = (int)rounded(length, SIDE);
    const long width = 3L * s.hidden;
    const float factor = 1.4426950408889634f / std::sqrt((float)head);  // log2(e): exp2 is the cheaper
    alignas(LINE) float context[SIDE * SIDE], inverse[SIDE];
    for (int h = 0; h < s.heads; h++) {
        bf16 *q = qkv + h * head;
        turn_keys_and_values(q + s.hidden, q + 2 * s.hidden, width, head, length, room);
        for (int m = 0; m < length; m += SIDE) {
            const int rows = std::min(length - m, SIDE);
            const bool both = rows > TILE_ROWS;
            written();
            for (int j = 0; j < padded; j += SIDE) {
                multiply<false>(Left::by_rows(q + m * width, width), both, room.keys + (long)j * head, head / STEP);
                store(room.scores + j, padded, both);
            }
            for (int r = 0; r < rows; r++)
                inverse[r] = softmax(room.scores + r * padded, length, padded, factor, room.shares + r * padded);
            written();
            for (int c = 0; c < head; c += SIDE) {
                const bf16 *values = room.values + (long)c * padded;
                multiply<false>(Left::by_rows(room.shares, padded), both, values, padded / STEP);
                store(context, SIDE, both);
                for (int r = 0; r < rows; r++) {
                    const Vector by = all(inverse[r]);
                    const float *sums = context + r * SIDE;
                    store(q + (m + r) * width + c, _mm512_mul_ps(load(sums), by), _mm512_mul_ps(load(sums + 16), by));
                }
            }
        }
    }
}

/* x = norm(x + sums + bias), row by row. x: by tiles. */
void add_and_norm(bf16 *x, float *sums, int rows, int width, const float *bias, const float *weight, const float *shift,
                  float epsilon) {
    for (int r = 0; r < rows; r++, sums += width) {
        Vector sum = all(0), squares = all(0);
        auto row = [&](int c) { return x + place_by_tiles(r, c, width) + c % STEP; };
        for (int c = 0; c < width; c += 16) {
            const Vector y = _mm512_add_ps(_mm512_add_ps(load(sums + c), load(bias + c)), load(row(c)));
            _mm512_storeu_ps(sums + c, y);
            sum = _mm512_add_ps(sum, y);
        }
        const Vector mean = all(_mm512_reduce_add_ps(sum) / (float)width);
        for (int c = 0; c < width; c += 16) {
            const Vector y = _mm512_sub_ps(load(sums + c), mean);
            squares = _mm512_fmadd_ps(y, y, squares);
        }
        const Vector scale = all(1 / std::sqrt(_mm512_reduce_add_ps(squares) / (float)width + epsilon));
        for (int c = 0; c < width; c += 16) {
            const Vector y = _mm512_mul_ps(_mm512_sub_ps(load(sums + c), mean), scale);
            store(row(c), _mm512_fmadd_ps(y, load(weight + c), load(shift + c)));
        }
    }
}

/* One layer over a block of rows, attention done. x: by tiles; context: by rows of 3 * hidden. */
void finish_layer(const Sizes &s, const Layer &layer, int rows, bf16 *x, const bf16 *context, const Room &room) {
    const int hidden = s.hidden, inner = s.inner;
    auto in_sums = [&](int m, int n) { return std::pair(room.sums + (long)m * hidden + n, (long)hidden); };
    auto nothing = [](int, int, int) {};
    product(Left::by_rows(context, 3L * hidden), rows, layer.out, hidden, hidden, in_sums, nothing);
    add_and_norm(x, room.sums, rows, hidden, layer.out_bias, layer.attention_norm, layer.attention_shift, s.epsilon);
    alignas(LINE) float sums[SIDE * SIDE];
    auto aside = [&](int, int) { return std::pair(sums + 0, (long)SIDE); };
    product(Left::by_tiles(x, hidden), rows, layer.expand, hidden, inner, aside, [&](int m, int count, int n) {
        const Vector left = load(layer.expand_bias + n), right = load(layer.expand_bias + n + 16);
        bf16 *to = room.inner + place_by_tiles(m, n, inner);
        for (int r = 0; r < count; r++) {
            if (r == TILE_ROWS) to = room.inner + place_by_tiles(m + r, n, inner) - TILE_ROWS * STEP;
            const float *row = sums + r * SIDE;
            store(to + r * STEP, gelu(_mm512_add_ps(load(row), left)), gelu(_mm512_add_ps(load(row + 16), right)));
        }
    });
    product(Left::by_tiles(room.inner, inner), rows, layer.contract, inner, hidden, in_sums, nothing);
    add_and_norm(x, room.sums, rows, hidden, layer.contract_bias, layer.out_norm, layer.out_shift, s.epsilon);
}

/* All layers over some pairs. x: [rows, hidden] by rows, in place; starts: [pairs + 1]. */
void run_group(const Sizes &s, const Layer *layers, bf16 *x, const std::int32_t *starts, int pairs, const Room &room) {
    const int rows = starts[pairs] - starts[0], hidden = s.hidden;
    for (int r = 0; r < rows; r++)
        for (int c = 0; c < hidden; c += STEP)
            _mm512_storeu_si512(room.x + place_by_tiles(r, c, hidden), _mm512_loadu_si512(x + (long)r * hidden + c));
    alignas(LINE) float sums[SIDE * SIDE];
    auto aside = [&](int, int) { return std::pair(sums + 0, (long)SIDE); };
    for (const Layer *layer = layers; layer < layers + s.layers; layer++) {
        for (int m = 0; m < rows; m += BLOCK_ROWS) {
            const Left block = Left::by_tiles(room.x, hidden).from_row(m);
            const int count = std::min(rows - m, BLOCK_ROWS);
            product(block, count, layer->qkv, hidden, 3 * hidden, aside, [&](int first, int some, int n) {
                const Vector left = load(layer->qkv_bias + n), right = load(layer->qkv_bias + n + 16);
                bf16 *to = room.qkv + (long)(m + first) * 3 * hidden + n;
                for (int r = 0; r < some; r++, to += 3 * hidden) {
                    const float *row = sums + r * SIDE;
                    store(to, _mm512_add_ps(load(row), left), _mm512_add_ps(load(row + 16), right));
                }
            });
        }
        for (int pair = 0; pair < pairs; pair++)
            attend(s, starts[pair + 1] - starts[pair], room.qkv + (long)(starts[pair] - starts[0]) * 3 * hidden, room);
        for (int m = 0; m < rows; m += BLOCK_ROWS)
            finish_layer(s, *layer, std::min(rows - m, BLOCK_ROWS), room.x + (long)m * hidden,
                         room.qkv + (long)m * 3 * hidden, room);
    }
    for (int r = 0; r < rows; r++)
        for (int c = 0; c < hidden; c += STEP)
            _mm512_storeu_si512(x + (long)r * hidden + c, _mm512_loadu_si512(room.x + place_by_tiles(r, c, hidden)));
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

/* A weight [outputs, inputs] as right tiles. */
SEEN void amx_pack(const bf16 *weight, bf16 *to, int outputs, int inputs) {
    for (int n = 0; n < outputs; n += SIDE)
        for (int k = 0; k < inputs; k += STEP)
            for (int half = 0; half < 2; half++, to += TILE) turn(weight + (long)(n + half * 16) * inputs + k, inputs, to);
}

/* Bytes that a thread writes, for groups of `rows` rows and pairs of `longest` tokens. */
SEEN long amx_room(const Sizes *sizes, long rows, long longest) { return Room{}.lay(nullptr, *sizes, rows, longest); }

/* All layers over all pairs. x: [tokens, hidden], in place; starts: [pairs + 1]; room: `threads` times amx_room of
`rows`, the most that a group may have where no pair is longer; aligned to 64 bytes. */
SEEN void amx_run(const Sizes *sizes, const Layer *layers, bf16 *x, const std::int32_t *starts, int pairs, char *room,
                    long rows, long longest, int threads) {
    const std::vector<int> groups = groups_of(starts, pairs, (int)rows);
    const long each = amx_room(sizes, rows, longest);
    std::atomic<int> next{0};
    auto work = [&](int place) {
        const TilesInUse tiles;
        Room own{};
        own.lay(room + place * each, *sizes, rows, longest);
        for (int group; (group = next++) + 1 < (int)groups.size();) {
            const int first = groups[group];
            run_group(*sizes, layers, x + (long)starts[first] * sizes->hidden, starts + first, groups[group + 1] - first, own);
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
