// y = x W^T + b with 8-bit weights (symmetric, one scale per output) and activations quantised row by
// row on the way in (8 bits, with a zero point).
//
// Weights lie in tiles of 16 outputs: four inputs of each output are one 32-bit lane, which
// vpdpbusd multiplies by four activations and adds to a 32-bit sum. A register tile is 6 rows by 64
// outputs; what a thread computes is a range of weight tiles, so weights are read once a step.
#include <algorithm>
#include <cmath>

#include "abi.h"
#include "dispatch.h"
#include "parallel.h"
#include "simd.h"

#if defined(__AVX512VNNI__) && defined(__AVX512F__)

namespace {

constexpr int kTile = 16;   // outputs of a weight tile
constexpr int kTiles = 4;   // weight tiles of a register tile
constexpr int kRows = 6;    // rows of a register tile

struct Quantised {
    uint8_t* values;  // (rows, stride)
    int64_t stride;
    float* scales;    // (rows,)
    int32_t* zeros;   // (rows,) zero points
};

// Zero is always inside the range, so that it stays exact.
template <class T>
void quantise_row(const T* row, int64_t width, uint8_t* out, float* scale, int32_t* zero) {
    vfloat low{}, high{};
    for_vectors(width, [&](int64_t i, auto load, auto) {
        const vfloat x = load(row + i);
        low = minimum(low, x);
        high = maximum(high, x);
    });
    const float lowest = smallest(low), range = largest(high) - lowest;
    *scale = range > 0.0f ? range / 255.0f : 1.0f;
    const float inverse = 1.0f / *scale;
    *zero = static_cast<int32_t>(std::lrintf(-lowest * inverse));
    const __m512i offset = _mm512_set1_epi32(*zero);
    for_vectors(width, [&](int64_t i, auto load, auto) {
        const __m512i whole = _mm512_add_epi32(_mm512_cvtps_epi32((__m512)(load(row + i) * inverse)), offset);
        const __m512i positive = _mm512_max_epi32(whole, _mm512_setzero_si512());
        _mm_storeu_si128(reinterpret_cast<__m128i*>(out + i), _mm512_cvtusepi32_epi8(positive));
    });
}

// As an instruction: GCC 12 copies the sums of the intrinsic through memory, 24 of them every turn.
inline void add_products(__m512i& sum, __m512i inputs, __m512i weights) {
    asm("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(inputs), "v"(weights));
}

// Memory to have in the cache soon: `step` bytes with every turn of a loop.
struct Ahead {
    const int8_t* next;
    int64_t step;
};

template <int R, int N, class T>
__attribute__((noinline)) void multiply_tile(const Quantised& inputs, int64_t row,
                                             const Int8Weights& weights, int64_t tile, Ahead ahead,
                                             T* out) {
    const int64_t quads = (weights.num_inputs + 3) / 4;
    const uint8_t* a = inputs.values + row * inputs.stride;
    const int8_t* w = weights.tiles + tile * quads * 64;
    __m512i sums[R][N];
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
        for (int n = 0; n < N; ++n) sums[r][n] = _mm512_setzero_si512();
    for (int64_t k = 0; k < quads; ++k) {
        for (int64_t i = 0; i < ahead.step; i += 64) _mm_prefetch(ahead.next + i, _MM_HINT_T1);
        ahead.next += ahead.step;
        __m512i b[N];
#pragma GCC unroll 4
        for (int n = 0; n < N; ++n) b[n] = _mm512_loadu_si512(w + (n * quads + k) * 64);
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r) {
            int32_t quad;
            std::memcpy(&quad, a + r * inputs.stride + k * 4, 4);
            const __m512i x = _mm512_set1_epi32(quad);
#pragma GCC unroll 4
            for (int n = 0; n < N; ++n) add_products(sums[r][n], x, b[n]);
        }
    }
#pragma GCC unroll 4
    for (int n = 0; n < N; ++n) {
        const int64_t column = (tile + n) * kTile;
        const vfloat scale = load(weights.scales + column);
        const vfloat bias = weights.bias == nullptr ? vfloat{} : load(weights.bias + column);
        const __m512i total = _mm512_loadu_si512(weights.sums + column);
        const int64_t size = std::min<int64_t>(kTile, weights.num_outputs - column);
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r) {
            const __m512i shift = _mm512_mullo_epi32(total, _mm512_set1_epi32(inputs.zeros[row + r]));
            const vfloat exact = (vfloat)_mm512_cvtepi32_ps(_mm512_sub_epi32(sums[r][n], shift));
            const vfloat value = exact * (scale * inputs.scales[row + r]) + bias;
            T* to = out + (row + r) * weights.num_outputs + column;
            if (size == kTile)
                store(to, value);
            else
                store_part(to, value, size);
        }
    }
}

// All rows times the weight tiles `begin` to `end`. While it computes with one group of tiles it
// fetches the next, spread over the rows: memory and arithmetic take about as long for 16 rows.
template <class T>
void multiply_tiles(const Quantised& inputs, int64_t rows, const Int8Weights& weights,
                    int64_t begin, int64_t end, T* out) {
    const int64_t row_parts = (rows + kRows - 1) / kRows;
    const int64_t tile_parts = (end - begin + kTiles - 1) / kTiles;
    for (int64_t i = 0; i < tile_parts; ++i) {
        const int64_t tile = begin + (end - begin) * i / tile_parts;
        const int64_t tiles = begin + (end - begin) * (i + 1) / tile_parts - tile;
        const int64_t group_bytes = tiles * kTile * 4 * ((weights.num_inputs + 3) / 4);
        const int8_t* next = weights.tiles + tile * (group_bytes / tiles) + group_bytes;
        for (int64_t j = 0; j < row_parts; ++j) {
            const int64_t step = i + 1 == tile_parts ? 0 : tiles * kTile * 4 / row_parts;
            const Ahead ahead{next + group_bytes * j / row_parts, step};
            const int64_t row = rows * j / row_parts, row_end = rows * (j + 1) / row_parts;
            with_count<kTiles>(tiles, [&](auto n) {
                with_count<kRows>(row_end - row, [&](auto r) {
                    multiply_tile<r(), n()>(inputs, row, weights, tile, ahead, out);
                });
            });
        }
    }
}

}  // namespace

API int ds_int8_linear_supported() { return 1; }

API void ds_int8_linear(const void* inputs, int64_t stride, const Int8Weights* weights, void* out,
                        int64_t rows, int type, int threads) {
    static thread_local Scratch scratch;
    Quantised quantised;
    quantised.stride = (weights->num_inputs + 63) / 64 * 64;
    const int64_t header = (rows * 8 + 63) / 64 * 64;
    auto* memory = static_cast<uint8_t*>(scratch.reserve(header + rows * quantised.stride));
    quantised.scales = reinterpret_cast<float*>(memory);
    quantised.zeros = reinterpret_cast<int32_t*>(memory + rows * 4);
    quantised.values = memory + header;
    const int64_t tiles = (weights->num_outputs + kTile - 1) / kTile;
    with_type(type, [&](auto t) {
        using T = decltype(t);
        const auto quantise = [&](int64_t row, int64_t end) {
            for (; row < end; ++row)
                quantise_row(static_cast<const T*>(inputs) + row * stride, weights->num_inputs,
                             quantised.values + row * quantised.stride, quantised.scales + row,
                             quantised.zeros + row);
        };
        const int64_t work = rows * weights->num_inputs / kWidth * 3;
        parallel_ranges(rows, work, threads, quantise);
        parallel_ranges(tiles, tiles * rows * weights->num_inputs / 4, threads,
                        [&](int64_t begin, int64_t end) {
                            multiply_tiles(quantised, rows, *weights, begin, end,
                                           static_cast<T*>(out));
                        });
    });
}

#else

API int ds_int8_linear_supported() { return 0; }

API void ds_int8_linear(const void*, int64_t, const Int8Weights*, void*, int64_t, int, int) {}

#endif
