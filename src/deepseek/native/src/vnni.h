// Products of bytes, four inputs of 16 outputs an instruction.
//
// As instructions: GCC 12 copies the sums of the intrinsics through memory, 24 of them every turn.
#pragma once

#include <immintrin.h>

#if defined(__AVX512VNNI__) && defined(__AVX512F__)

// Unsigned inputs by signed weights, four a lane.
inline void add_products(__m512i& sum, __m512i inputs, __m512i weights) {
    asm("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(inputs), "v"(weights));
}

// Signed numbers of 16 bits, two a lane.
inline void add_short_products(__m512i& sum, __m512i a, __m512i b) {
    asm("vpdpwssd %2, %1, %0" : "+v"(sum) : "v"(a), "v"(b));
}

#endif
