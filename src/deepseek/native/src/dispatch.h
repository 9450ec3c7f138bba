// From run-time types and sizes to template arguments.
#pragma once

#include <type_traits>

#include "abi.h"
#include "simd.h"

// Calls `body` with a value of the element type.
template <class Body>
inline void with_type(int64_t type, Body body) {
    if (type == kFloat32)
        body(float{});
    else
        body(bf16{});
}

template <class Body>
inline void with_types(int64_t first, int64_t second, Body body) {
    with_type(first, [&](auto a) { with_type(second, [&](auto b) { body(a, b); }); });
}

// Calls `body` with std::integral_constant<int, count>, for 1 <= count <= Max.
template <int Max, class Body>
inline void with_count(int64_t count, Body body) {
    if constexpr (Max > 1) {
        if (count < Max) return with_count<Max - 1>(count, body);
    }
    body(std::integral_constant<int, Max>{});
}
