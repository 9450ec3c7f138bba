// A register tile of the nested product for AVX512-VNNI.
#pragma once

#include "nested_tile.h"
#include "vnni.h"

constexpr int kRows = 6;       // rows of a register tile, which has two sums for each of its
constexpr int kTiles = 2;      // 6 x 2 vectors
constexpr int kFewRows = 3;    // or, for few rows, of its
constexpr int kManyTiles = 4;  // 3 x 4
constexpr int kResidualRows = 4;  // three sums each

inline __m512i read(const void* from) { return _mm512_loadu_si512(from); }

inline __m512i read_sums(const int16_t* from) {
    return _mm512_cvtepi16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
}

// Upper nibbles of `high` beside lower ones of `low`.
inline __m512i merged(__m512i high, __m512i low) {
    return _mm512_ternarylogic_epi32(_mm512_set1_epi8(0x0f), high, low, 0xac);
}

inline __m512i upper_nibbles(__m512i bytes) {
    return _mm512_andnot_si512(_mm512_set1_epi8(0x0f), bytes);
}

inline __m512i lower_nibbles(__m512i bytes) {
    return _mm512_and_si512(_mm512_set1_epi8(0x0f), bytes);
}

// Adds the products of R rows and N tiles to `sums`, group by group. Products are whole numbers until
// a group ends: 16 times the high nibble, plus, in kInt8, the low one and the 8 it is stored with,
// which `shifts` take off again.
template <Mode M, int R, int N>
__attribute__((noinline)) void multiply_tile(const Activations& inputs, const NestedPlanes& weights,
                                             int64_t tile, BothAhead ahead, float* out) {
    constexpr bool kReadsLow = M != Mode::kInt4, kApart = M == Mode::kResidual;
    const int64_t octets = weights.num_inputs / kTileInputs, groups = inputs.groups;
    const int64_t octets_per_group = inputs.group / kTileInputs;
    const uint8_t* a = inputs.values;
    const uint8_t* high = weights.high + tile * octets * 64;
    const uint8_t* low = kReadsLow ? weights.low + tile * octets * 64 : nullptr;
    vfloat sums[R][N];
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
        for (int n = 0; n < N; ++n) sums[r][n] = vfloat{};
    for (int64_t g = 0; g < groups; ++g) {
        __m512i products[R][N], rests[R][N];
#pragma GCC unroll 4
        for (int n = 0; n < N; ++n) {
            const int64_t at = ((tile + n) * groups + g) * kTile;
            __m512i total = _mm512_slli_epi32(read_sums(weights.high_sums + at), 4);
            __m512i rest{};
            if constexpr (kReadsLow) rest = read_sums(weights.low_sums + at);
            if constexpr (M == Mode::kInt8) total = _mm512_add_epi32(total, rest);
#pragma GCC unroll 8
            for (int r = 0; r < R; ++r) {
                const __m512i zero = _mm512_set1_epi32(inputs.zeros[g * R + r]);
                const __m512i shift = _mm512_set1_epi32(inputs.shifts[g * R + r]);
                products[r][n] = M == Mode::kInt8 ? shift : _mm512_setzero_si512();
                add_short_products(products[r][n], total, zero);
                if constexpr (kApart) {
                    rests[r][n] = shift;
                    add_short_products(rests[r][n], rest, zero);
                }
            }
        }
        for (int64_t k = 0; k < octets_per_group; ++k, high += 64, low += 64, a += R * kTileInputs) {
            ahead.high.fetch();
            if constexpr (kReadsLow) ahead.low.fetch();
#pragma GCC unroll 2
            for (int half = 0; half < 2; ++half) {
                __m512i b[N], c[N];
#pragma GCC unroll 4
                for (int n = 0; n < N; ++n) {
                    __m512i h = read(high + n * octets * 64);
                    if (half == 1) h = _mm512_slli_epi16(h, 4);
                    if constexpr (kReadsLow) {
                        __m512i l = read(low + n * octets * 64);
                        if (half == 1) l = _mm512_srli_epi16(l, 4);
                        if constexpr (kApart) {
                            b[n] = upper_nibbles(h);
                            c[n] = lower_nibbles(l);
                        } else {
                            b[n] = merged(h, l);
                        }
                    } else {
                        b[n] = upper_nibbles(h);
                    }
                }
#pragma GCC unroll 8
                for (int r = 0; r < R; ++r) {
                    int32_t quad;
                    std::memcpy(&quad, a + (half * R + r) * 4, 4);
                    const __m512i x = _mm512_set1_epi32(quad);
#pragma GCC unroll 4
                    for (int n = 0; n < N; ++n) {
                        add_products(products[r][n], x, b[n]);
                        if constexpr (kApart) add_products(rests[r][n], x, c[n]);
                    }
                }
            }
        }
#pragma GCC unroll 4
        for (int n = 0; n < N; ++n) {
            const int64_t at = ((tile + n) * groups + g) * kTile;
            const vfloat scale = load_scales(weights.scales + at) * 0.0625f;
            vfloat low_scale{};
            if constexpr (kApart) low_scale = load_scales(weights.low_scales + at);
#pragma GCC unroll 8
            for (int r = 0; r < R; ++r) {
                const float row_scale = inputs.scales[g * R + r];
                sums[r][n] += (vfloat)_mm512_cvtepi32_ps(products[r][n]) * (scale * row_scale);
                if constexpr (kApart)
                    sums[r][n] += (vfloat)_mm512_cvtepi32_ps(rests[r][n]) * (low_scale * row_scale);
            }
        }
    }
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
        for (int n = 0; n < N; ++n) store(out + (r * N + n) * kTile, sums[r][n]);
}
