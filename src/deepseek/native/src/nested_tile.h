// What the nested kernels of all processors share: modes, activations, and what a tile is given.
#pragma once

#include <cstdint>

#include "abi.h"
#include "tiles.h"

// How a row reads the planes. kInt8 merges both into bytes before it multiplies; kResidual, where the
// low plane has scales of its own, multiplies each.
enum class Mode { kInt4, kInt8, kResidual };

constexpr int kTileInputs = 8;  // of a tile of nibbles, which is 64 bytes of each plane

// One part of the rows, in one mode.
struct Activations {
    int64_t groups, group;
    const uint8_t* values;      // (groups * group / 4, R, 4)
    const float* scales;        // (groups, R)
    const int32_t* zeros;       // (groups, R): -zero as 16 bits, the upper ones clear
    const int32_t* shifts;      // (groups, R): -8 times the sum of the bytes
};

// Fetched ahead: both planes, the low one only where the mode reads it.
struct BothAhead {
    Ahead high, low;
};

// Products count the high nibble 16 times; its scale is that of the nibble.
constexpr float kHighUnit = 1.0f / 16.0f;

inline vfloat load_scales(const uint16_t* from) { return load(reinterpret_cast<const bf16*>(from)); }
