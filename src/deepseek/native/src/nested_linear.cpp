// y = x W^T + b with weights in two planes of nibbles: a row asks for INT8, which reads both, or for
// INT4, which reads the high plane alone. Activations are 8 bits either way, a scale and a zero
// point for every group of inputs that shares a weight scale (docs/nested-weights.md).
//
// Rows are sorted by what they ask for. What a thread computes is a range of weight tiles, which meet
// the INT8 rows first and the INT4 rows while the high plane is still in the cache. A row's sums are
// made in one order whatever stands beside it.
#include "abi.h"
#include "dispatch.h"
#include "parallel.h"
#include "quantised_rows.h"
#include "simd.h"
#include "tiles.h"

#if defined(__AVX512VNNI__) && defined(__AVX512F__)
#include "nested_tile_avx512.h"
#else
#include "nested_tile_avx2.h"
#endif

namespace {

// Rows of both kinds, INT8 first.
struct BothParts {
    Parts int8, int4;

    int64_t count() const { return int8.count() + int4.count(); }
    bool is_int8(int64_t part) const { return part < int8.count(); }
    int64_t size(int64_t part) const {
        return is_int8(part) ? int8.size(part) : int4.size(part - int8.count());
    }
    int64_t first_row(int64_t part) const {
        return is_int8(part) ? int8.first_row(part)
                             : int8.num_rows + int4.first_row(part - int8.count());
    }
};

// Quantised rows, in the order that `order` gives them.
struct Quantised {
    BothParts parts;
    int64_t groups, group;
    uint8_t* values;  // of each part, as `Activations` has them
    float* scales;
    int32_t* zeros;
    int32_t* shifts;
    int32_t* order;

    Activations part(int64_t index) const {
        const int64_t at = parts.first_row(index) * groups;
        return {groups, group, values + at * group, scales + at, zeros + at, shifts + at};
    }
};

// INT8 rows first, each kind in the order it came in; returns how many are INT8.
int64_t sort_rows(const uint8_t* int8_rows, int64_t rows, bool all_int8, int32_t* order) {
    int64_t count = 0;
    for (int64_t row = 0; row < rows; ++row)
        if (int8_rows == nullptr ? all_int8 : int8_rows[row]) order[count++] = row;
    const int64_t num_int8 = count;
    for (int64_t row = 0; row < rows; ++row)
        if (int8_rows == nullptr ? !all_int8 : !int8_rows[row]) order[count++] = row;
    return num_int8;
}

template <class T>
void quantise_part(const T* from, int64_t stride, int64_t width, int64_t part,
                   const Quantised& to) {
    const int64_t first = to.parts.first_row(part), rows = to.parts.size(part);
    quantise_rows(
        rows, width, to.group, to.values + first * width,
        [&](int64_t r) { return from + to.order[first + r] * stride; },
        [&](int64_t g, int64_t r, GroupRange range) {
            const int64_t at = first * to.groups + g * rows + r;
            to.scales[at] = range.scale;
            to.zeros[at] = -static_cast<int32_t>(range.zero) & 0xffff;
            to.shifts[at] = -8 * range.sum;
        });
}

// Writes (rows, tiles * kTile) sums where they belong.
template <class T>
void write_sums(const float* sums, const int32_t* rows, int64_t num_rows, int64_t first_tile,
                int64_t tiles, const NestedPlanes& weights, T* out) {
    for (int64_t r = 0; r < num_rows; ++r)
        for (int64_t tile = first_tile; tile < first_tile + tiles; ++tile, sums += kTile) {
            const int64_t column = tile * kTile;
            T* to = out + rows[r] * weights.num_outputs + column;
            const int64_t size = std::min<int64_t>(kTile, weights.num_outputs - column);
            for (int64_t i = 0; i < size; i += kWidth) {
                const vfloat bias =
                    weights.bias == nullptr ? vfloat{} : load(weights.bias + column + i);
                if (size - i >= kWidth)
                    store(to + i, load(sums + i) + bias);
                else
                    store_part(to + i, load(sums + i) + bias, size - i);
            }
        }
}

template <Mode M, int MaxRows, int R, int N, class T>
void multiply_part(const Quantised& inputs, int64_t part, const NestedPlanes& weights, int64_t tile,
                   BothAhead ahead, T* out) {
    if constexpr (R <= MaxRows) {
        alignas(64) float sums[R * N * kTile];
        multiply_tile<M, R, N>(inputs.part(part), weights, tile, ahead, sums);
        write_sums(sums, inputs.order + inputs.parts.first_row(part), R, tile, N, weights, out);
    }
}

template <int MaxRows, int MaxTiles, class T>
void multiply_tiles(const Quantised& inputs, const NestedPlanes& weights, int64_t begin, int64_t end,
                    T* out) {
    const int64_t turns = weights.num_inputs / kTileInputs;
    const Plane high{weights.high, turns, end}, low{weights.low, turns, end};
    for_tiles<MaxRows, MaxTiles>(
        inputs.parts, high, begin,
        [&](int64_t part, int64_t tile, Ahead high_ahead, auto r, auto n) {
            constexpr int R = r(), N = n();
            if (!inputs.parts.is_int8(part))
                return multiply_part<Mode::kInt4, MaxRows, R, N>(inputs, part, weights, tile,
                                                                 {high_ahead, {}}, out);
            const BothAhead ahead{high_ahead,
                                  low.after(tile + N, N, part, inputs.parts.int8.count())};
            if (weights.low_scales == nullptr)
                multiply_part<Mode::kInt8, MaxRows, R, N>(inputs, part, weights, tile, ahead, out);
            else if constexpr (N <= kTiles)
                multiply_part<Mode::kResidual, kResidualRows, R, N>(inputs, part, weights, tile,
                                                                    ahead, out);
        });
}

Quantised reserve(Scratch& scratch, int64_t rows, const NestedPlanes& weights) {
    Quantised to{};
    to.group = weights.group;
    to.groups = weights.num_inputs / to.group;
    const int64_t ranges = rows * to.groups;
    const int64_t bytes = rows * weights.num_inputs + ranges * 3 * 4 + rows * 4;
    to.values = static_cast<uint8_t*>(scratch.reserve(bytes));
    to.scales = reinterpret_cast<float*>(to.values + rows * weights.num_inputs);
    to.zeros = reinterpret_cast<int32_t*>(to.scales + ranges);
    to.shifts = to.zeros + ranges;
    to.order = to.shifts + ranges;
    return to;
}

}  // namespace

API void ds_nested_linear(const void* inputs, int64_t stride, const NestedPlanes* weights, void* out,
                          int64_t rows, const uint8_t* int8_rows, int all_int8, int type,
                          int threads) {
    static thread_local Scratch scratch;
    Quantised quantised = reserve(scratch, rows, *weights);
    const int64_t num_int8 = sort_rows(int8_rows, rows, all_int8, quantised.order);
    const bool residual = weights->low_scales != nullptr && num_int8 > 0;
    const bool few = rows <= kFewRows && !residual;
    quantised.parts = {{num_int8, few ? kFewRows : residual ? kResidualRows : kRows},
                       {rows - num_int8, few ? kFewRows : kRows}};
    const int64_t tiles = num_tiles(weights->num_outputs);
    with_type(type, [&](auto t) {
        using T = decltype(t);
        const T* typed_inputs = static_cast<const T*>(inputs);
        T* typed_out = static_cast<T*>(out);
        const int64_t work = rows * weights->num_inputs / kWidth * 6;
        parallel_ranges(quantised.parts.count(), work, threads, [&](int64_t part, int64_t end) {
            for (; part < end; ++part)
                quantise_part(typed_inputs, stride, weights->num_inputs, part, quantised);
        });
        const int64_t products = tiles * rows * weights->num_inputs / 4;
        parallel_ranges(tiles, products, threads, [&](int64_t begin, int64_t end) {
            if (few)
                multiply_tiles<kFewRows, kManyTiles>(quantised, *weights, begin, end, typed_out);
            else
                multiply_tiles<kRows, kTiles>(quantised, *weights, begin, end, typed_out);
        });
    });
}
