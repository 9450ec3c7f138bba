// y = x W^T + b in bfloat16 with sums in float32, two inputs of 16 outputs an instruction.
//
// Every output is summed in one order whatever the batch, so a row's result does not depend on the
// rows beside it. What a thread computes is a range of weight tiles, so weights are read from
// memory once a step. vdpbf16ps takes subnormal numbers for zeros, as oneDNN's products do.
#include "abi.h"
#include "dispatch.h"
#include "parallel.h"
#include "simd.h"
#include "tiles.h"

#if defined(__AVX512BF16__) && defined(__AVX512F__)

namespace {

constexpr int kRows = 8;       // rows of a register tile, which has a sum for each of its
constexpr int kTiles = 3;      // 8 x 3 vectors
constexpr int kFewRows = 3;    // or, for few rows, of its
constexpr int kManyTiles = 4;  // 3 x 4

// Rows as a register tile reads them, one stream of memory: of each part (pairs of inputs, rows, 2),
// a zero behind an odd number of inputs.
struct Rows {
    Parts parts;
    int64_t pairs;
    uint32_t* values;

    uint32_t* part(int64_t index) const { return values + parts.first_row(index) * pairs; }
};

template <int R>
void lay_out(const bf16* from, int64_t stride, int64_t width, uint32_t* to) {
    for (int64_t k = 0; k < width / 2; ++k, to += R)
        for (int r = 0; r < R; ++r) std::memcpy(to + r, from + r * stride + 2 * k, 4);
    if (width % 2)
        for (int r = 0; r < R; ++r) to[r] = from[r * stride + width - 1].bits;
}

// As an instruction: GCC 12 copies the sums of the intrinsic through memory.
inline void add_products(vfloat& sum, __m512i inputs, __m512i weights) {
    asm("vdpbf16ps %2, %1, %0" : "+v"(sum) : "v"(inputs), "v"(weights));
}

// Writes (rows, tiles * kTile) sums where they belong. Apart from the products: what indexes
// the sums at run time would keep them out of registers.
void write_sums(const float* sums, int64_t num_rows, int64_t first_tile, int64_t tiles,
                const Bf16Weights& weights, bf16* out) {
    for (int64_t r = 0; r < num_rows; ++r)
        for (int64_t tile = first_tile; tile < first_tile + tiles; ++tile, sums += kTile) {
            const int64_t column = tile * kTile;
            const int64_t size = std::min<int64_t>(kTile, weights.num_outputs - column);
            const vfloat bias = weights.bias == nullptr ? vfloat{} : load(weights.bias + column);
            bf16* to = out + r * weights.num_outputs + column;
            if (size == kTile)
                store(to, load(sums) + bias);
            else
                store_part(to, load(sums) + bias, size);
        }
}

template <int R, int N>
__attribute__((noinline)) void multiply_tile(const Rows& inputs, int64_t part,
                                             const Bf16Weights& weights, int64_t tile, Ahead ahead,
                                             bf16* out) {
    const int64_t pairs = inputs.pairs;
    const uint32_t* x = inputs.part(part);
    const uint32_t* w = static_cast<const uint32_t*>(weights.tiles) + tile * pairs * kTile;
    vfloat sums[R][N];
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
        for (int n = 0; n < N; ++n) sums[r][n] = vfloat{};
    for (int64_t k = 0; k < pairs; ++k, x += R, w += kTile) {
        ahead.fetch();
        __m512i b[N];
#pragma GCC unroll 4
        for (int n = 0; n < N; ++n) b[n] = _mm512_loadu_si512(w + n * pairs * kTile);
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r) {
            const __m512i pair = _mm512_set1_epi32(static_cast<int32_t>(x[r]));
#pragma GCC unroll 4
            for (int n = 0; n < N; ++n) add_products(sums[r][n], pair, b[n]);
        }
    }
    float done[R][N * kTile];
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
        for (int n = 0; n < N; ++n) store(done[r] + n * kTile, sums[r][n]);
    write_sums(done[0], R, tile, N, weights,
               out + inputs.parts.first_row(part) * weights.num_outputs);
}

template <int MaxRows, int MaxTiles>
void multiply_tiles(const Rows& inputs, const Bf16Weights& weights, int64_t begin, int64_t end,
                    bf16* out) {
    const Plane plane{weights.tiles, inputs.pairs, end};
    for_tiles<MaxRows, MaxTiles>(
        inputs.parts, plane, begin,
        [&](int64_t part, int64_t tile, Ahead ahead, auto r, auto n) {
            multiply_tile<r(), n()>(inputs, part, weights, tile, ahead, out);
        });
}

}  // namespace

API int ds_bf16_linear_supported() { return 1; }

API void ds_bf16_linear(const void* inputs, int64_t stride, const Bf16Weights* weights, void* out,
                        int64_t num_rows, int threads) {
    static thread_local Scratch scratch;
    const bool few = num_rows <= kFewRows;
    const int64_t width = weights->num_inputs, pairs = (width + 1) / 2;
    const Parts parts{num_rows, few ? kFewRows : kRows};
    auto* memory = scratch.reserve(num_rows * pairs * sizeof(uint32_t));
    const Rows rows{parts, pairs, static_cast<uint32_t*>(memory)};
    const auto* from = static_cast<const bf16*>(inputs);
    auto* to = static_cast<bf16*>(out);
    parallel_ranges(parts.count(), num_rows * pairs, threads, [&](int64_t part, int64_t end) {
        for (; part < end; ++part)
            with_count<kRows>(parts.size(part), [&](auto r) {
                lay_out<r()>(from + parts.first_row(part) * stride, stride, width, rows.part(part));
            });
    });
    const int64_t tiles = num_tiles(weights->num_outputs);
    parallel_ranges(tiles, tiles * num_rows * pairs, threads, [&](int64_t begin, int64_t end) {
        if (few)
            multiply_tiles<kFewRows, kManyTiles>(rows, *weights, begin, end, to);
        else
            multiply_tiles<kRows, kTiles>(rows, *weights, begin, end, to);
    });
}

#else

API int ds_bf16_linear_supported() { return 0; }

API void ds_bf16_linear(const void*, int64_t, const Bf16Weights*, void*, int64_t, int) {}

#endif
