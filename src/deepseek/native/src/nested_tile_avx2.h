// A register tile of the nested product for AVX2.
//
// vpmaddubsw adds two products of an unsigned and a signed byte in 16 bits. Bytes times nibbles, eight
// quads of them, just fit: 8 * 2 * 255 * 8 < 2^15. So each plane is multiplied on its own, exactly.
#pragma once

#include <cstring>

#include "nested_tile.h"

constexpr int kRows = 4;  // rows of a register tile, for few rows and many, in every mode
constexpr int kFewRows = 4;
constexpr int kResidualRows = 4;
constexpr int kTiles = 1;
constexpr int kManyTiles = 1;

constexpr int kOctetsInShorts = 4;  // before sums of 16 bits are added to those of 32
constexpr int kHalf = 8;            // outputs of a vector

inline __m256i read(const void* from) {
    return _mm256_loadu_si256(static_cast<const __m256i*>(from));
}

// The lower nibbles of bytes, two's complement, as signed bytes.
inline __m256i signed_nibbles(__m256i bytes) {
    const __m256i values = _mm256_broadcastsi128_si256(
        _mm_setr_epi8(0, 1, 2, 3, 4, 5, 6, 7, -8, -7, -6, -5, -4, -3, -2, -1));
    return _mm256_shuffle_epi8(values, _mm256_and_si256(bytes, _mm256_set1_epi8(0x0f)));
}

// The same for nibbles that 8 was added to.
inline __m256i biased_nibbles(__m256i bytes) {
    const __m256i nibbles = _mm256_and_si256(bytes, _mm256_set1_epi8(0x0f));
    return _mm256_sub_epi8(nibbles, _mm256_set1_epi8(8));
}

// Upper nibbles of the low plane, of which a byte holds its neighbour's, moved down and home.
inline __m256i turned(__m256i bytes) {
    const __m256i homes = _mm256_broadcastsi128_si256(
        _mm_setr_epi8(3, 0, 1, 2, 7, 4, 5, 6, 11, 8, 9, 10, 15, 12, 13, 14));
    return _mm256_srli_epi16(_mm256_shuffle_epi8(bytes, homes), 4);
}

// Sums of R rows and 8 outputs: 16 bits wide for a few octets, then 32.
template <int R>
struct NibbleSums {
    __m256i wide[R], narrow[R];

    void add(const uint8_t* a, __m256i weights) {
#pragma GCC unroll 4
        for (int r = 0; r < R; ++r) {
            int32_t quad;
            std::memcpy(&quad, a + r * 4, 4);
            const __m256i products = _mm256_maddubs_epi16(_mm256_set1_epi32(quad), weights);
            narrow[r] = _mm256_add_epi16(narrow[r], products);
        }
    }

    void widen() {
#pragma GCC unroll 4
        for (int r = 0; r < R; ++r) {
            const __m256i pairs = _mm256_madd_epi16(narrow[r], _mm256_set1_epi16(1));
            wide[r] = _mm256_add_epi32(wide[r], pairs);
            narrow[r] = _mm256_setzero_si256();
        }
    }
};

// What a zero point counts for in 8 outputs.
inline __m256i zero_products(const int16_t* sums, int32_t zero) {
    const __m256i total =
        _mm256_cvtepi16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(sums)));
    return _mm256_mullo_epi32(total, _mm256_set1_epi32(static_cast<int16_t>(zero)));
}

template <Mode M, int R>
void multiply_half(const Activations& inputs, const NestedPlanes& weights, int64_t tile, int half,
                   BothAhead ahead, float* out) {
    constexpr bool kReadsLow = M != Mode::kInt4;
    const int64_t octets = weights.num_inputs / kTileInputs;
    const int64_t octets_per_group = inputs.group / kTileInputs;
    const uint8_t* a = inputs.values;
    const int64_t begin = tile * octets * 64 + half * 32;
    const uint8_t* high = weights.high + begin;
    const uint8_t* low = kReadsLow ? weights.low + begin : nullptr;
    vfloat sums[R] = {};
    for (int64_t g = 0; g < inputs.groups; ++g) {
        NibbleSums<R> highs{}, lows{};
        for (int64_t k = 0; k < octets_per_group; ++k, high += 64, low += 64, a += R * kTileInputs) {
            const uint8_t* b = a + R * 4;
            if (half == 0) ahead.high.fetch();
            const __m256i h = read(high);
            highs.add(a, signed_nibbles(_mm256_srli_epi16(h, 4)));
            highs.add(b, signed_nibbles(h));
            if constexpr (kReadsLow) {
                if (half == 0) ahead.low.fetch();
                const __m256i l = read(low);
                lows.add(a, biased_nibbles(l));
                lows.add(b, biased_nibbles(turned(l)));
            }
            if (k % kOctetsInShorts == kOctetsInShorts - 1) {
                highs.widen();
                if constexpr (kReadsLow) lows.widen();
            }
        }
        const int64_t at = (tile * inputs.groups + g) * kTile + half * kHalf;
        const vfloat scale = load_scales(weights.scales + at) * kHighUnit;
        const int32_t* zeros = inputs.zeros + g * R;
#pragma GCC unroll 4
        for (int r = 0; r < R; ++r) {
            const float row_scale = inputs.scales[g * R + r];
            const int16_t* own = M == Mode::kInt8 ? weights.low_sums : weights.high_sums;
            __m256i product = _mm256_add_epi32(_mm256_slli_epi32(highs.wide[r], 4),
                                               zero_products(own + at, zeros[r]));
            if constexpr (M == Mode::kInt8) product = _mm256_add_epi32(product, lows.wide[r]);
            sums[r] += (vfloat)_mm256_cvtepi32_ps(product) * (scale * row_scale);
            if constexpr (M == Mode::kResidual) {
                const __m256i rest = _mm256_add_epi32(lows.wide[r],
                                                      zero_products(weights.low_sums + at, zeros[r]));
                sums[r] += (vfloat)_mm256_cvtepi32_ps(rest) *
                           (load_scales(weights.low_scales + at) * row_scale);
            }
        }
    }
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) store(out + r * kTile + half * kHalf, sums[r]);
}

template <Mode M, int R, int N>
__attribute__((noinline)) void multiply_tile(const Activations& inputs, const NestedPlanes& weights,
                                             int64_t tile, BothAhead ahead, float* out) {
    static_assert(N == 1, "registers suffice for one tile");
    for (int half = 0; half < kTile / kHalf; ++half)
        multiply_half<M, R>(inputs, weights, tile, half, ahead, out);
}
