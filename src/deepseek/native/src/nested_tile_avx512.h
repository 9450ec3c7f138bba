// A register tile of the nested product for AVX512-VNNI.
#pragma once

#include <cstring>

#include "nested_tile.h"
#include "vnni.h"

constexpr int kRows = 8;          // rows of a register tile, which has whole-number sums for its
constexpr int kTiles = 2;         // 8 x 2 vectors; those of floats are needed once a group
constexpr int kFewRows = 3;       // or, for few rows, of its
constexpr int kManyTiles = 4;     // 3 x 4
constexpr int kResidualRows = 4;  // of which kResidual has two each

#define INLINE inline __attribute__((always_inline))

INLINE __m512i read(const void* from) { return _mm512_loadu_si512(from); }

INLINE __m512i read_sums(const int16_t* from) {
    return _mm512_cvtepi16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
}

// Bits of `a` where the mask is set, of `b` elsewhere.
INLINE __m512i select(__m512i a, __m512i mask, __m512i b) {
    return _mm512_ternarylogic_epi32(a, mask, b, 0xe2);
}

// Whole-number sums of R rows and N tiles: 16 times the high nibbles, in kInt8 plus the low ones and
// the 8 that each is stored with; in kResidual those are apart, in `lows`.
template <Mode M, int R, int N>
struct Products {
    __m512i sums[R][N], lows[R][N];

    // Begin a group with what takes zero points and eights off again.
    INLINE void begin(const Activations& inputs, const NestedPlanes& weights, int64_t tile,
                      int64_t g) {
#pragma GCC unroll 4
        for (int n = 0; n < N; ++n) {
            const int64_t at = ((tile + n) * inputs.groups + g) * kTile;
            const int16_t* own = M == Mode::kInt8 ? weights.low_sums : weights.high_sums;
            const __m512i total = read_sums(own + at);
            __m512i low{};
            if constexpr (M == Mode::kResidual) low = read_sums(weights.low_sums + at);
#pragma GCC unroll 8
            for (int r = 0; r < R; ++r) {
                const __m512i zero = _mm512_set1_epi32(inputs.zeros[g * R + r]);
                const __m512i shift = _mm512_set1_epi32(inputs.shifts[g * R + r]);
                sums[r][n] = M == Mode::kInt8 ? shift : _mm512_setzero_si512();
                add_short_products(sums[r][n], total, zero);
                if constexpr (M == Mode::kResidual) {
                    lows[r][n] = shift;
                    add_short_products(lows[r][n], low, zero);
                }
            }
        }
    }

    // Eight inputs: `a` are those of the rows, (2, R, 4); tiles lie `stride` bytes apart.
    INLINE void add(const uint8_t* a, const uint8_t* high, const uint8_t* low, int64_t stride) {
        const __m512i upper = _mm512_set1_epi8(static_cast<char>(0xf0));
        const __m512i lower = _mm512_set1_epi8(0x0f);
        __m512i b[2][N], c[2][N];
#pragma GCC unroll 4
        for (int n = 0; n < N; ++n) {
            const __m512i h = read(high + n * stride);
            if constexpr (M == Mode::kInt8) {
                const __m512i l = read(low + n * stride);
                b[0][n] = select(h, upper, l);
                b[1][n] = _mm512_rol_epi32(select(l, upper, h), 4);
            } else {
                b[0][n] = _mm512_and_si512(upper, h);
                b[1][n] = _mm512_slli_epi32(_mm512_and_si512(lower, h), 4);
            }
            if constexpr (M == Mode::kResidual) {
                const __m512i l = read(low + n * stride);
                c[0][n] = _mm512_and_si512(lower, l);
                c[1][n] = _mm512_rol_epi32(_mm512_and_si512(upper, l), 4);
            }
        }
#pragma GCC unroll 2
        for (int half = 0; half < 2; ++half)
#pragma GCC unroll 8
            for (int r = 0; r < R; ++r) {
                int32_t quad;
                std::memcpy(&quad, a + (half * R + r) * 4, 4);
                const __m512i x = _mm512_set1_epi32(quad);
#pragma GCC unroll 4
                for (int n = 0; n < N; ++n) {
                    add_products(sums[r][n], x, b[half][n]);
                    if constexpr (M == Mode::kResidual) add_products(lows[r][n], x, c[half][n]);
                }
            }
    }

    // Add a finished group to what it is a part of.
    INLINE void end(const Activations& inputs, const NestedPlanes& weights, int64_t tile, int64_t g,
                    vfloat (&to)[R][N]) const {
#pragma GCC unroll 4
        for (int n = 0; n < N; ++n) {
            const int64_t at = ((tile + n) * inputs.groups + g) * kTile;
            const vfloat scale = load_scales(weights.scales + at) * kHighUnit;
            vfloat low_scale{};
            if constexpr (M == Mode::kResidual) low_scale = load_scales(weights.low_scales + at);
#pragma GCC unroll 8
            for (int r = 0; r < R; ++r) {
                const float row_scale = inputs.scales[g * R + r];
                to[r][n] += (vfloat)_mm512_cvtepi32_ps(sums[r][n]) * (scale * row_scale);
                if constexpr (M == Mode::kResidual)
                    to[r][n] += (vfloat)_mm512_cvtepi32_ps(lows[r][n]) * (low_scale * row_scale);
            }
        }
    }
};

// The product of R rows and N tiles from `tile`: (R, N, 16) to `out`.
template <Mode M, int R, int N>
__attribute__((noinline)) void multiply_tile(const Activations& inputs, const NestedPlanes& weights,
                                             int64_t tile, BothAhead ahead, float* out) {
    const int64_t octets_per_group = inputs.group / kTileInputs;
    const int64_t stride = weights.num_inputs / kTileInputs * 64;
    const uint8_t* a = inputs.values;
    const uint8_t* high = weights.high + tile * stride;
    const uint8_t* low = M == Mode::kInt4 ? nullptr : weights.low + tile * stride;
    vfloat sums[R][N];
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
        for (int n = 0; n < N; ++n) sums[r][n] = vfloat{};
    for (int64_t g = 0; g < inputs.groups; ++g) {
        Products<M, R, N> products;
        products.begin(inputs, weights, tile, g);
        for (int64_t k = 0; k < octets_per_group; ++k) {
            ahead.high.fetch();
            if constexpr (M != Mode::kInt4) ahead.low.fetch();
            products.add(a, high, low, stride);
            a += R * kTileInputs;
            high += 64;
            if constexpr (M != Mode::kInt4) low += 64;
        }
        products.end(inputs, weights, tile, g, sums);
    }
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
        for (int n = 0; n < N; ++n) store(out + (r * N + n) * kTile, sums[r][n]);
}
