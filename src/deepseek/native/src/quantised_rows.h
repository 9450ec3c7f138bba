// Activations in 8 bits: a scale and a zero point for every group of neighbouring inputs of a row.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>

#include "simd.h"

// What a group's bytes stand for: (byte - zero) * scale; and the sum of the bytes.
struct GroupRange {
    float scale, zero;
    int32_t sum;
};

// Quantise `size` neighbouring inputs, four at a time to `out`, `quad_stride` apart. Zero is always
// inside the range, so that it stays exact.
template <class T>
GroupRange quantise_group(const T* from, int64_t size, uint8_t* out, int64_t quad_stride) {
    vfloat low{}, high{};
    for_vectors(size, [&](int64_t i, auto load, auto) {
        const vfloat x = load(from + i);
        low = minimum(low, x);
        high = maximum(high, x);
    });
    const float lowest = smallest(low), range = largest(high) - lowest;
    const float scale = range > 0.0f ? range / 255.0f : 1.0f;
    const float inverse = 1.0f / scale;
    const float zero = std::nearbyint(-lowest * inverse);
    __m128i sums = _mm_setzero_si128();
    for_vectors(size, [&](int64_t i, auto load, auto) {
        const __m128i bytes = to_bytes(load(from + i) * inverse + zero);
        sums = _mm_add_epi64(sums, _mm_sad_epu8(bytes, _mm_setzero_si128()));
        uint8_t narrow[16];
        std::memcpy(narrow, &bytes, sizeof narrow);
        for (int quad = 0; quad < kWidth / 4; ++quad)
            std::memcpy(out + (i / 4 + quad) * quad_stride, narrow + quad * 4, 4);
    });
    return {scale, zero, _mm_cvtsi128_si32(sums) + _mm_extract_epi32(sums, 2)};
}

// Quantise the rows that a register tile takes at once, so that it reads one stream of memory: four
// inputs of one row are followed by the same four of the next; `values` is (quads, rows, 4), padded
// to whole groups. `row_of(r)` is where a row begins; `keep(group, r, range)` is told each range.
template <class RowOf, class Keep>
void quantise_rows(int64_t rows, int64_t width, int64_t group, uint8_t* values, RowOf row_of,
                   Keep keep) {
    for (int64_t r = 0; r < rows; ++r)
        for (int64_t g = 0; g * group < width; ++g)
            keep(g, r,
                 quantise_group(row_of(r) + g * group, std::min(group, width - g * group),
                                values + g * rows * group + r * 4, rows * 4));
}
