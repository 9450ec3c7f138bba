// Vectors of floats at the width of the machine, and the few operations the kernels are made of.
//
// The kernels are written once over GCC's vector extension; what it cannot say is spelled out here
// for AVX-512 and AVX2.
#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstring>

#if defined(__AVX512F__)
constexpr int kWidth = 16;
constexpr int kRegisters = 32;
#elif defined(__AVX2__)
constexpr int kWidth = 8;
constexpr int kRegisters = 16;
#else
#error "the kernels need AVX2"
#endif

typedef float vfloat __attribute__((vector_size(kWidth * 4)));
typedef int32_t vint __attribute__((vector_size(kWidth * 4)));
typedef uint32_t vuint __attribute__((vector_size(kWidth * 4)));
typedef uint16_t vhalf __attribute__((vector_size(kWidth * 2)));

struct bf16 {
    uint16_t bits;
};

inline vfloat broadcast(float value) { return value - vfloat{}; }

inline vfloat load(const float* from) {
    vfloat value;
    std::memcpy(&value, from, sizeof value);
    return value;
}

inline vfloat load(const bf16* from) {
    vhalf bits;
    std::memcpy(&bits, from, sizeof bits);
    return (vfloat)(__builtin_convertvector(bits, vuint) << 16);
}

inline void store(float* to, vfloat value) { std::memcpy(to, &value, sizeof value); }

inline void store(bf16* to, vfloat value) {
#if defined(__AVX512BF16__)
    const __m256bh bits = _mm512_cvtneps_pbh((__m512)value);
    std::memcpy(to, &bits, sizeof bits);
#else
    const vuint whole = (vuint)value;
    const vuint rounded = (whole + 0x7fff + ((whole >> 16) & 1)) >> 16;  // to nearest, ties to even
    const vuint quiet_nan = (whole >> 16) | 0x40;
    const vhalf bits = __builtin_convertvector(value == value ? rounded : quiet_nan, vhalf);
    std::memcpy(to, &bits, sizeof bits);
#endif
}

// The first `count` elements, zeros behind them.
template <class T>
inline vfloat load_part(const T* from, int64_t count) {
    T part[kWidth] = {};
    for (int64_t i = 0; i < count; ++i) part[i] = from[i];
    return load(part);
}

template <class T>
inline void store_part(T* to, vfloat value, int64_t count) {
    T part[kWidth];
    store(part, value);
    for (int64_t i = 0; i < count; ++i) to[i] = part[i];
}

// Calls `body(index, load, store)` for every vector of `size` elements, the last maybe partial.
template <class Body>
inline void for_vectors(int64_t size, Body body) {
    int64_t i = 0;
    for (; i + kWidth <= size; i += kWidth)
        body(
            i, [](const auto* from) { return load(from); },
            [](auto* to, vfloat value) { store(to, value); });
    if (i < size) {
        const int64_t rest = size - i;
        body(
            i, [rest](const auto* from) { return load_part(from, rest); },
            [rest](auto* to, vfloat value) { store_part(to, value, rest); });
    }
}

#if defined(__AVX512F__)
inline vfloat maximum(vfloat a, vfloat b) { return (vfloat)_mm512_max_ps((__m512)a, (__m512)b); }
inline vfloat minimum(vfloat a, vfloat b) { return (vfloat)_mm512_min_ps((__m512)a, (__m512)b); }
inline float sum(vfloat a) { return _mm512_reduce_add_ps((__m512)a); }
inline float largest(vfloat a) { return _mm512_reduce_max_ps((__m512)a); }
inline float smallest(vfloat a) { return _mm512_reduce_min_ps((__m512)a); }
inline __m256 folded(vfloat a) {
    return _mm256_add_ps(_mm512_castps512_ps256((__m512)a), _mm512_extractf32x8_ps((__m512)a, 1));
}
#else
inline vfloat maximum(vfloat a, vfloat b) { return (vfloat)_mm256_max_ps((__m256)a, (__m256)b); }
inline vfloat minimum(vfloat a, vfloat b) { return (vfloat)_mm256_min_ps((__m256)a, (__m256)b); }
template <class Combine>
inline float reduce(vfloat a, Combine combine) {
    const __m256 whole = (__m256)a;
    __m128 x = combine(_mm256_castps256_ps128(whole), _mm256_extractf128_ps(whole, 1));
    x = combine(x, _mm_movehl_ps(x, x));
    return _mm_cvtss_f32(combine(x, _mm_movehdup_ps(x)));
}
inline float sum(vfloat a) {
    return reduce(a, [](__m128 x, __m128 y) { return _mm_add_ps(x, y); });
}
inline float largest(vfloat a) {
    return reduce(a, [](__m128 x, __m128 y) { return _mm_max_ps(x, y); });
}
inline float smallest(vfloat a) {
    return reduce(a, [](__m128 x, __m128 y) { return _mm_min_ps(x, y); });
}
inline __m256 folded(vfloat a) { return (__m256)a; }
#endif

// Whole numbers from 0 to 255, rounded to the nearest even; as many as there are lanes, zeros behind.
inline __m128i to_bytes(vfloat value) {
#if defined(__AVX512F__)
    const __m512i whole = _mm512_cvtps_epi32((__m512)value);
    return _mm512_cvtusepi32_epi8(_mm512_max_epi32(whole, _mm512_setzero_si512()));
#else
    const __m256i whole = _mm256_cvtps_epi32((__m256)value);
    const __m128i halves = _mm_packs_epi32(_mm256_castsi256_si128(whole),
                                           _mm256_extracti128_si256(whole, 1));
    return _mm_packus_epi16(halves, _mm_setzero_si128());
#endif
}

// Four horizontal sums at once: a third of the instructions of four single ones.
inline void store_sums(float* to, vfloat a, vfloat b, vfloat c, vfloat d) {
    const __m256 ab = _mm256_hadd_ps(folded(a), folded(b));
    const __m256 cd = _mm256_hadd_ps(folded(c), folded(d));
    const __m256 all = _mm256_hadd_ps(ab, cd);
    _mm_storeu_ps(to, _mm_add_ps(_mm256_castps256_ps128(all), _mm256_extractf128_ps(all, 1)));
}

#if defined(__AVX512F__)
inline vfloat interleave_low(vfloat a, vfloat b) {
    return __builtin_shuffle(a, b, vint{0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23});
}
inline vfloat interleave_high(vfloat a, vfloat b) {
    return __builtin_shuffle(a, b, vint{8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31});
}
#else
inline vfloat interleave_low(vfloat a, vfloat b) {
    return __builtin_shuffle(a, b, vint{0, 8, 1, 9, 2, 10, 3, 11});
}
inline vfloat interleave_high(vfloat a, vfloat b) {
    return __builtin_shuffle(a, b, vint{4, 12, 5, 13, 6, 14, 7, 15});
}
#endif

// Transpose a square in registers: log2(width) perfect shuffles.
inline void transpose(vfloat (&rows)[kWidth]) {
    for (int step = 1; step < kWidth; step *= 2) {
        vfloat shuffled[kWidth];
#pragma GCC unroll 16
        for (int i = 0; i < kWidth / 2; ++i) {
            shuffled[2 * i] = interleave_low(rows[i], rows[i + kWidth / 2]);
            shuffled[2 * i + 1] = interleave_high(rows[i], rows[i + kWidth / 2]);
        }
#pragma GCC unroll 16
        for (int i = 0; i < kWidth; ++i) rows[i] = shuffled[i];
    }
}

// e^x to 2 ulp (Cephes' expf); 0 below -87, held at e^88 above.
inline vfloat exponential(vfloat x) {
    const vfloat clamped = minimum(maximum(x, broadcast(-87.0f)), broadcast(88.0f));
    const vfloat magic = broadcast(12582912.0f);  // 1.5 * 2^23: adding it rounds to an integer
    const vfloat shifted = clamped * 1.44269504f + magic;
    const vfloat n = shifted - magic;
    const vfloat r = clamped - n * 0.693359375f + n * 2.12194440e-4f;
    vfloat p = r * 1.9875691500e-4f + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    const vfloat scaled = (vfloat)((vint)p + ((vint)shifted << 23));
    return x < -87.0f ? vfloat{} : scaled;
}

inline vfloat silu(vfloat x) { return x / (1.0f + exponential(-x)); }
