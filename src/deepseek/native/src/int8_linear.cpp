// y = x W^T + b with 8-bit weights (symmetric, one scale per output) and activations quantised on the
// way in: 8 bits, a scale and a zero point for every 64 inputs of a row. One scale per row would
// save a tenth of the time and cost three times the error (docs/decisions/0004).
//
// Weights lie in tiles of 16 outputs: four inputs of each output are one 32-bit lane, which
// vpdpbusd multiplies by four activations and adds to a 32-bit sum. What a thread computes is a range
// of weight tiles, so weights are read from memory once a step.
#include <algorithm>

#include "abi.h"
#include "dispatch.h"
#include "parallel.h"
#include "quantised_rows.h"
#include "simd.h"
#include "tiles.h"
#include "vnni.h"

#if defined(__AVX512VNNI__) && defined(__AVX512F__)

namespace {

constexpr int kGroup = 64;    // inputs that share a scale
constexpr int kRows = 6;      // rows of a register tile, which has two sums for each of its
constexpr int kTiles = 2;     // 6 x 2 vectors
constexpr int kFewRows = 3;   // or, for few rows, of its
constexpr int kManyTiles = 4;  // 3 x 4

// Quantised rows. Of a part of R rows four inputs of one row are followed by the same four of the
// next, so that a tile reads one stream of memory.
struct Quantised {
    Parts parts;
    int64_t groups;
    uint8_t* values;  // of each part (groups * kGroup / 4, R, 4)
    float* scales;    // of each part (groups, R)
    float* offsets;   // of each part (groups, R): zero points, scaled
};

// Quantise the rows of one part; `stride` is between rows of `from`, `width` their elements.
template <class T>
void quantise_part(const T* from, int64_t stride, int64_t width, int64_t part,
                   const Quantised& to) {
    const int64_t first = to.parts.first_row(part), rows = to.parts.size(part);
    quantise_rows(
        rows, width, kGroup, to.values + first * to.groups * kGroup,
        [&](int64_t r) { return from + (first + r) * stride; },
        [&](int64_t g, int64_t r, GroupRange range) {
            const int64_t at = first * to.groups + g * rows + r;
            to.scales[at] = range.scale;
            to.offsets[at] = range.scale * range.zero;
        });
}

template <int R, int N, class T>
__attribute__((noinline)) void multiply_tile(const Quantised& inputs, int64_t part,
                                             const Int8Weights& weights, int64_t tile, Ahead ahead,
                                             T* out) {
    const int64_t quads = (weights.num_inputs + 3) / 4, groups = inputs.groups;
    const int64_t row = inputs.parts.first_row(part);
    const uint8_t* a = inputs.values + row * groups * kGroup;
    const float* scales = inputs.scales + row * groups;
    const float* offsets = inputs.offsets + row * groups;
    const int8_t* w = weights.tiles + tile * quads * 64;
    vfloat sums[R][N] = {};
    for (int64_t g = 0; g < groups; ++g, scales += R, offsets += R) {
        __m512i products[R][N];
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
            for (int n = 0; n < N; ++n) products[r][n] = _mm512_setzero_si512();
        const int64_t count = std::min<int64_t>(kGroup / 4, quads - g * (kGroup / 4));
        for (int64_t k = 0; k < count; ++k, a += R * 4, w += 64) {
            ahead.fetch();
            __m512i b[N];
#pragma GCC unroll 4
            for (int n = 0; n < N; ++n) b[n] = _mm512_loadu_si512(w + n * quads * 64);
#pragma GCC unroll 8
            for (int r = 0; r < R; ++r) {
                int32_t quad;
                std::memcpy(&quad, a + r * 4, 4);
                const __m512i x = _mm512_set1_epi32(quad);
#pragma GCC unroll 4
                for (int n = 0; n < N; ++n) add_products(products[r][n], x, b[n]);
            }
        }
#pragma GCC unroll 4
        for (int n = 0; n < N; ++n) {
            const int16_t* group_sums = weights.sums + ((tile + n) * groups + g) * kTile;
            const vfloat total = (vfloat)_mm512_cvtepi32_ps(_mm512_cvtepi16_epi32(
                _mm256_loadu_si256(reinterpret_cast<const __m256i*>(group_sums))));
#pragma GCC unroll 8
            for (int r = 0; r < R; ++r) {
                sums[r][n] += (vfloat)_mm512_cvtepi32_ps(products[r][n]) * scales[r];
                sums[r][n] -= total * offsets[r];
            }
        }
    }
#pragma GCC unroll 4
    for (int n = 0; n < N; ++n) {
        const int64_t column = (tile + n) * kTile;
        const vfloat scale = load(weights.scales + column);
        const vfloat bias = weights.bias == nullptr ? vfloat{} : load(weights.bias + column);
        const int64_t size = std::min<int64_t>(kTile, weights.num_outputs - column);
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r) {
            const vfloat value = sums[r][n] * scale + bias;
            T* to = out + (row + r) * weights.num_outputs + column;
            if (size == kTile)
                store(to, value);
            else
                store_part(to, value, size);
        }
    }
}

template <int MaxRows, int MaxTiles, class T>
void multiply_tiles(const Quantised& inputs, const Int8Weights& weights, int64_t begin, int64_t end,
                    T* out) {
    const Plane plane{weights.tiles, (weights.num_inputs + 3) / 4, end};
    for_tiles<MaxRows, MaxTiles>(
        inputs.parts, plane, begin,
        [&](int64_t part, int64_t tile, Ahead ahead, auto r, auto n) {
            multiply_tile<r(), n()>(inputs, part, weights, tile, ahead, out);
        });
}

}  // namespace

API int ds_int8_linear_supported() { return 1; }

API void ds_int8_linear(const void* inputs, int64_t stride, const Int8Weights* weights, void* out,
                        int64_t rows, int type, int threads) {
    static thread_local Scratch scratch;
    Quantised quantised;
    quantised.parts = {rows, rows <= kFewRows ? kFewRows : kRows};
    quantised.groups = (weights->num_inputs + kGroup - 1) / kGroup;
    const int64_t size = rows * quantised.groups;
    auto* memory = static_cast<uint8_t*>(scratch.reserve(size * (kGroup + 2 * sizeof(float))));
    quantised.values = memory;
    quantised.scales = reinterpret_cast<float*>(memory + size * kGroup);
    quantised.offsets = quantised.scales + size;
    const int64_t tiles = num_tiles(weights->num_outputs);
    with_type(type, [&](auto t) {
        using T = decltype(t);
        const T* typed_inputs = static_cast<const T*>(inputs);
        T* typed_out = static_cast<T*>(out);
        const int64_t work = rows * weights->num_inputs / kWidth * 6;
        parallel_ranges(quantised.parts.count(), work, threads, [&](int64_t part, int64_t end) {
            for (; part < end; ++part)
                quantise_part(typed_inputs, stride, weights->num_inputs, part, quantised);
        });
        const int64_t products = tiles * rows * weights->num_inputs / 4;
        parallel_ranges(tiles, products, threads, [&](int64_t begin, int64_t end) {
            if (rows <= kFewRows)
                multiply_tiles<kFewRows, kManyTiles>(quantised, *weights, begin, end, typed_out);
            else
                multiply_tiles<kRows, kTiles>(quantised, *weights, begin, end, typed_out);
        });
    });
}

#else

API int ds_int8_linear_supported() { return 0; }

API void ds_int8_linear(const void*, int64_t, const Int8Weights*, void*, int64_t, int, int) {}

#endif
