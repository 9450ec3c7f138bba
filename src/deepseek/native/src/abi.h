// The library's C interface; `library.py` mirrors it. Pointers are to CPU memory, strides count
// elements, the last dimension of every tensor is contiguous unless a stride is named for it.
#pragma once

#include <cstdint>

enum Type : int32_t { kFloat32 = 0, kBFloat16 = 1 };

struct Batch {
    const int64_t* positions;
    const int64_t* kv_rows;
    const int32_t* query_starts;
    const int32_t* context_lens;
    const int32_t* block_tables;
    int64_t table_stride;
    int64_t num_rows;
    int64_t num_sequences;
};

struct PagedKV {
    void* keys;
    void* values;
    int64_t key_block_stride, key_head_stride, key_token_stride;
    int64_t value_block_stride, value_head_stride, value_token_stride;
    int64_t block_tokens, num_heads, key_dim, value_dim;
    int64_t type;
};

struct Int8Weights {
    const int8_t* tiles;   // (tiles of 16 outputs, inputs / 4, 16, 4), zeros where padded
    const float* scales;   // (outputs, padded to whole tiles)
    const int16_t* sums;   // (tiles, inputs / 64, 16): sums of each output's weights, 64 by 64
    const float* bias;     // (outputs, padded) or null
    int64_t num_outputs, num_inputs;
};

// Nibbles in the tiles of docs/nested-weights.md; scales are bfloat16.
struct NestedPlanes {
    const uint8_t* high;         // (tiles of 16 outputs, inputs / 8, 16, 4)
    const uint8_t* low;          // the same; null where INT4 alone is at hand
    const uint16_t* scales;      // (tiles, groups, 16), of the high plane
    const uint16_t* low_scales;  // the same, or null: scales / 16
    const int16_t* high_sums;    // (tiles, groups, 16): 16 times the sums of each output's nibbles
    const int16_t* low_sums;     // the same of the low plane: once, and without scales of its own
                                 // with those of the high plane added; null where `low` is
    const float* bias;           // (outputs, padded to whole tiles) or null
    int64_t num_outputs, num_inputs, group;
};

struct Bf16Weights {
    const void* tiles;  // (tiles of 16 outputs, pairs of inputs, 16, 2) bfloat16, zeros where padded
    const float* bias;  // (outputs, padded to whole tiles) or null
    int64_t num_outputs, num_inputs;
};

#define API extern "C" __attribute__((visibility("default")))
