// Attention with online softmax (arXiv:2205.14135), over paged state and over packed sequences.
//
// A task is a tile of query rows (consecutive tokens times the query heads of one kv head) and a
// range of keys, walked in steps of 64. Whatever the memory looks like, a step first collects
// pointers to its rows of keys and values; nothing below knows of blocks or strides.
#include <algorithm>
#include <cmath>

#include "abi.h"
#include "dispatch.h"
#include "parallel.h"
#include "simd.h"

namespace {

constexpr int kKeys = 64;                           // keys of one step
constexpr int kRows = kRegisters == 32 ? 6 : 3;     // rows of a register tile
constexpr int kVectors = 4;                         // vectors of a register tile
constexpr int kTileRows = 96;                       // query rows of a task
constexpr int kTileFloats = 24576;                  // its sums at most, about 96 KiB of L2
constexpr int kSplitKeys = 256;                     // keys of a task at least, where one is split

// out[r] = out[r] * keep[r] + sum over j < count of a[r][j] * rows[j][column...]; keep null: `out` is
// not read.
template <int R, int V, class T>
__attribute__((noinline)) void multiply(const float* a, int64_t a_stride, int64_t count,
                                        const T* const* rows, int64_t column, float* out,
                                        int64_t out_stride, const float* keep) {
    vfloat sums[R][V];
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
        for (int v = 0; v < V; ++v)
            sums[r][v] = keep == nullptr ? vfloat{}
                                         : load(out + r * out_stride + v * kWidth) * keep[r];
    for (int64_t j = 0; j < count; ++j) {
        const T* row = rows[j] + column;
        vfloat b[V];
#pragma GCC unroll 4
        for (int v = 0; v < V; ++v) b[v] = load(row + v * kWidth);
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r) {
            const vfloat factor = broadcast(a[r * a_stride + j]);
#pragma GCC unroll 4
            for (int v = 0; v < V; ++v) sums[r][v] += factor * b[v];
        }
    }
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
        for (int v = 0; v < V; ++v) store(out + r * out_stride + v * kWidth, sums[r][v]);
}

// The same for any number of rows of `a` and `width` columns, which are whole vectors.
template <class T>
void multiply_all(const float* a, int64_t a_stride, int64_t num_rows, int64_t count,
                  const T* const* rows, float* out, int64_t width, int64_t out_stride,
                  const float* keep) {
    const int64_t parts = (num_rows + kRows - 1) / kRows;
    for (int64_t column = 0; column < width; column += kVectors * kWidth) {
        const int64_t vectors = std::min<int64_t>(kVectors, (width - column) / kWidth);
        for (int64_t part = 0; part < parts; ++part) {
            const int64_t first = num_rows * part / parts, end = num_rows * (part + 1) / parts;
            with_count<kVectors>(vectors, [&](auto v) {
                with_count<kRows>(end - first, [&](auto r) {
                    multiply<r(), v()>(a + first * a_stride, a_stride, count, rows, column,
                                       out + first * out_stride + column, out_stride,
                                       keep == nullptr ? nullptr : keep + first);
                });
            });
        }
    }
}

// What a tile of queries has seen so far.
struct Sums {
    float* maxima;    // (rows,) largest score
    float* totals;    // (rows,) sum of e^(score - maximum)
    float* weighted;  // (rows, width) sum of e^(score - maximum) * value
};

// A number of floats that fills cache lines.
inline int64_t whole_lines(int64_t floats) { return (floats + 15) / 16 * 16; }

struct Shape {
    int64_t key_dim, value_dim;
    int64_t width;  // value_dim in whole vectors

    Shape(int64_t key_dim_, int64_t value_dim_)
        : key_dim(key_dim_),
          value_dim(value_dim_),
          width((value_dim_ + kWidth - 1) / kWidth * kWidth) {}

    bool whole_vectors() const { return key_dim % kWidth == 0 && value_dim % kWidth == 0; }
    int64_t sums_floats(int64_t rows) const { return whole_lines(2 * rows) + rows * width; }
    Sums sums(float* memory, int64_t rows) const {
        return {memory, memory + rows, memory + whole_lines(2 * rows)};
    }
    int64_t tile_rows(int64_t groups) const {
        const int64_t rows = std::min<int64_t>(kTileRows, kTileFloats / std::max(key_dim, width));
        return std::max<int64_t>(1, rows / groups);
    }
};

// Pointers to the rows of one step.
template <class T>
struct Step {
    const T* keys[kKeys];
    const T* values[kKeys];
    int64_t count;
};

template <class T>
inline void prefetch(const T* row, int64_t size) {
    for (int64_t i = 0; i < size; i += 64 / static_cast<int64_t>(sizeof(T)))
        _mm_prefetch(reinterpret_cast<const char*>(row + i), _MM_HINT_T0);
}

// scores[r][j] = queries[r] . keys[j], by horizontal sums: for few queries. `dim` is whole vectors.
// Meanwhile it fetches the `next` step: blocks lie anywhere, which no hardware foresees.
template <int R, class T>
__attribute__((noinline)) void score_few(const float* queries, const Shape& shape,
                                         const Step<T>& step, const Step<T>& next, float* scores) {
    const int64_t dim = shape.key_dim;
    for (int64_t j = 0; j < step.count; j += 4) {
        for (int64_t i = j; i < std::min(j + 4, next.count); ++i) {
            prefetch(next.keys[i], dim);
            prefetch(next.values[i], shape.value_dim);
        }
        const T* keys[4];
        for (int64_t i = 0; i < 4; ++i) keys[i] = step.keys[std::min(j + i, step.count - 1)];
        vfloat sums[R][4] = {};
        for (int64_t d = 0; d < dim; d += kWidth) {
            vfloat key[4];
#pragma GCC unroll 4
            for (int i = 0; i < 4; ++i) key[i] = load(keys[i] + d);
#pragma GCC unroll 8
            for (int r = 0; r < R; ++r) {
                const vfloat query = load(queries + r * dim + d);
#pragma GCC unroll 4
                for (int i = 0; i < 4; ++i) sums[r][i] += query * key[i];
            }
        }
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r)
            store_sums(scores + r * kKeys + j, sums[r][0], sums[r][1], sums[r][2], sums[r][3]);
    }
}

// Write the step's keys as columns, (dim, kKeys) floats; columns past the last key, up to a whole
// vector, are zeros.
template <class T>
void transpose_keys(const Step<T>& step, int64_t dim, float* columns) {
    for (int64_t j = 0; j < step.count; j += kWidth)
        for (int64_t d = 0; d < dim; d += kWidth) {
            const int64_t size = std::min<int64_t>(kWidth, dim - d);
            vfloat square[kWidth];
#pragma GCC unroll 16
            for (int i = 0; i < kWidth; ++i) {
                const int64_t key = j + i;
                if (key >= step.count)
                    square[i] = vfloat{};
                else if (size == kWidth)
                    square[i] = load(step.keys[key] + d);
                else
                    square[i] = load_part(step.keys[key] + d, size);
            }
            transpose(square);
#pragma GCC unroll 16
            for (int i = 0; i < kWidth; ++i)
                if (i < size) store(columns + (d + i) * kKeys + j, square[i]);
        }
}

// Copy the step's values to (kKeys, width) floats, zeros past `dim`.
template <class T>
void widen_values(const Step<T>& step, int64_t dim, int64_t width, float* values) {
    for (int64_t j = 0; j < step.count; ++j)
        for_vectors(dim, [&](int64_t i, auto load, auto) {
            store(values + j * width + i, load(step.values[j] + i));
        });
}

// Turn one row of scores into weights under the new maximum; returns what the old sums shrink by.
inline float weigh(float* scores, int64_t seen, int64_t count, float* maximum_, float* total) {
    const int64_t padded = (count + kWidth - 1) / kWidth * kWidth;
    vint lane;
    for (int i = 0; i < kWidth; ++i) lane[i] = i;
    const vfloat never = broadcast(-INFINITY);
    vfloat high = broadcast(*maximum_);
    for (int64_t j = 0; j < padded; j += kWidth) {
        vfloat x = load(scores + j);
        if (j + kWidth > seen) {
            x = lane < static_cast<int32_t>(seen - j) ? x : never;
            store(scores + j, x);
        }
        high = maximum(high, x);
    }
    const float new_maximum = largest(high);
    vfloat added{};
    for (int64_t j = 0; j < padded; j += kWidth) {
        const vfloat weight = exponential(load(scores + j) - new_maximum);
        store(scores + j, weight);
        added += weight;
    }
    const float shrink = *maximum_ == -INFINITY ? 0.0f : std::exp(*maximum_ - new_maximum);
    *total = *total * shrink + sum(added);
    *maximum_ = new_maximum;
    return shrink;
}

// The working memory of one task.
struct Workspace {
    float* queries;             // (rows, key_dim)
    float* scores;              // (rows, kKeys)
    float* keep;                // (rows,)
    float* columns;             // (key_dim, kKeys), the keys of a step
    float* values;              // (kKeys, width), the values of a step
    float* sums;
    const float** column_rows;  // pointers to the rows of `columns`
    const float** value_rows;   // and of `values`

    Workspace(const Shape& shape, int64_t rows) {
        static thread_local Scratch scratch;
        const int64_t sizes[] = {
            rows * shape.key_dim,  rows * kKeys,        rows,
            kKeys * shape.key_dim, kKeys * shape.width, shape.sums_floats(rows)};
        float** parts[] = {&queries, &scores, &keep, &columns, &values, &sums};
        int64_t floats = 0;
        for (int64_t size : sizes) floats += whole_lines(size);
        const int64_t pointers = shape.key_dim + kKeys;
        auto* memory = static_cast<float*>(
            scratch.reserve(floats * sizeof(float) + pointers * sizeof(float*)));
        for (int i = 0; i < 6; ++i) {
            *parts[i] = memory;
            memory += whole_lines(sizes[i]);
        }
        column_rows = reinterpret_cast<const float**>(memory);
        value_rows = column_rows + shape.key_dim;
        for (int64_t i = 0; i < shape.key_dim; ++i) column_rows[i] = columns + i * kKeys;
        for (int64_t i = 0; i < kKeys; ++i) value_rows[i] = values + i * shape.width;
    }
};

// Attend `rows` queries (scaled, in `space.queries`) to keys `first` to `end`; row r sees keys
// before `limit(r)`. `collect(first, step)` fills the step's pointers.
template <class T, class Collect, class Limit>
void attend_tile(const Shape& shape, int64_t rows, int64_t first, int64_t end, Collect collect,
                 Limit limit, const Workspace& space, Sums sums) {
    std::fill(sums.maxima, sums.maxima + rows, -INFINITY);
    std::fill(sums.totals, sums.totals + rows, 0.0f);
    std::fill(sums.weighted, sums.weighted + rows * shape.width, 0.0f);
    const bool few = rows <= kRows && shape.whole_vectors();
    Step<T> steps[2];
    const auto take = [&](int64_t key, Step<T>& step) {
        step.count = std::clamp<int64_t>(end - key, 0, kKeys);
        collect(key, step);
    };
    take(first, steps[0]);
    for (int turn = 0; first < end; first += kKeys, turn ^= 1) {
        const Step<T>&step = steps[turn], &next = steps[turn ^ 1];
        take(first + kKeys, steps[turn ^ 1]);
        if (few) {
            with_count<kRows>(rows, [&](auto r) {
                score_few<r()>(space.queries, shape, step, next, space.scores);
            });
        } else {
            transpose_keys(step, shape.key_dim, space.columns);
            multiply_all(space.queries, shape.key_dim, rows, shape.key_dim, space.column_rows,
                         space.scores, (step.count + kWidth - 1) / kWidth * kWidth, kKeys, nullptr);
        }
        for (int64_t r = 0; r < rows; ++r) {
            const int64_t seen = std::min(step.count, limit(r) - first);
            float* scores = space.scores + r * kKeys;
            if (seen > 0) {
                space.keep[r] =
                    weigh(scores, seen, step.count, sums.maxima + r, sums.totals + r);
            } else {
                std::fill(scores, scores + step.count, 0.0f);
                space.keep[r] = 1.0f;
            }
        }
        if (few || (shape.whole_vectors() && sizeof(T) == sizeof(float))) {
            multiply_all(space.scores, kKeys, rows, step.count, step.values, sums.weighted,
                         shape.width, shape.width, space.keep);
        } else {
            widen_values(step, shape.value_dim, shape.width, space.values);
            multiply_all(space.scores, kKeys, rows, step.count, space.value_rows, sums.weighted,
                         shape.width, shape.width, space.keep);
        }
    }
}

template <class T>
void write_row(const float* weighted, float total, T* out, int64_t dim) {
    const float factor = total > 0.0f ? 1.0f / total : 0.0f;
    for_vectors(dim, [&](int64_t i, auto, auto store) {
        store(out + i, load(weighted + i) * factor);  // rows of sums are whole vectors
    });
}

template <class T>
void scale_query(const T* query, float scale, float* out, int64_t dim) {
    for_vectors(dim, [&](int64_t i, auto load, auto store) {
        store(out + i, load(query + i) * scale);
    });
}

struct Task {
    int64_t sequence, head;
    int64_t first_row, num_rows;    // tokens
    int64_t first_key, end_key;
    int64_t first_context;          // keys that the first row sees
    int64_t part;                   // index into the partial sums; -1: the task is whole
};

// A list that keeps its memory from call to call.
class TaskList {
public:
    void clear() { size_ = 0; }
    int64_t size() const { return size_; }
    const Task& operator[](int64_t index) const { return tasks_[index]; }
    void add(const Task& task) {
        if (size_ == capacity_) grow();
        tasks_[size_++] = task;
    }

private:
    void grow() {
        const int64_t capacity = std::max<int64_t>(64, 2 * capacity_);
        Task* tasks = static_cast<Task*>(scratch_[current_ ^ 1].reserve(capacity * sizeof(Task)));
        std::copy(tasks_, tasks_ + size_, tasks);
        tasks_ = tasks;
        capacity_ = capacity;
        current_ ^= 1;
    }

    Scratch scratch_[2];
    int current_ = 0;
    Task* tasks_ = nullptr;
    int64_t size_ = 0, capacity_ = 0;
};

struct Queries {
    const void* data;
    int64_t row_stride, head_stride;
    int64_t num_heads;
    float scale;
};

template <class T, class K>
void run_paged(const Task& task, const Queries& queries, const Batch& batch, const PagedKV& kv,
               const Shape& shape, int64_t groups, float* partial, T* out) {
    const int64_t rows = task.num_rows * groups;
    const Workspace space(shape, rows);
    for (int64_t r = 0; r < rows; ++r) {
        const T* query = static_cast<const T*>(queries.data) +
                         (task.first_row + r / groups) * queries.row_stride +
                         (task.head * groups + r % groups) * queries.head_stride;
        scale_query(query, queries.scale, space.queries + r * shape.key_dim, shape.key_dim);
    }
    const int32_t* table = batch.block_tables + task.sequence * batch.table_stride;
    const auto collect = [&](int64_t first, Step<K>& step) {
        int64_t block = first / kv.block_tokens, offset = first % kv.block_tokens;
        for (int64_t j = 0; j < step.count; ++block, offset = 0) {
            const K* keys = static_cast<const K*>(kv.keys) + table[block] * kv.key_block_stride +
                            task.head * kv.key_head_stride;
            const K* values = static_cast<const K*>(kv.values) +
                              table[block] * kv.value_block_stride +
                              task.head * kv.value_head_stride;
            for (; offset < kv.block_tokens && j < step.count; ++offset, ++j) {
                step.keys[j] = keys + offset * kv.key_token_stride;
                step.values[j] = values + offset * kv.value_token_stride;
            }
        }
    };
    const auto limit = [&](int64_t r) { return task.first_context + r / groups; };
    const Sums sums = shape.sums(task.part < 0 ? space.sums : partial, rows);
    attend_tile<K>(shape, rows, task.first_key, task.end_key, collect, limit, space, sums);
    if (task.part >= 0) return;
    for (int64_t r = 0; r < rows; ++r) {
        const int64_t head = task.head * groups + r % groups;
        write_row(sums.weighted + r * shape.width, sums.totals[r],
                  out + ((task.first_row + r / groups) * queries.num_heads + head) * shape.value_dim,
                  shape.value_dim);
    }
}

// Join the partial sums of one tile, which lie one after another, into the first.
template <class T>
void join_parts(const Task& task, int64_t parts, float* partials, int64_t part_floats,
                const Shape& shape, int64_t groups, int64_t num_heads, T* out) {
    const int64_t rows = task.num_rows * groups;
    const Sums first = shape.sums(partials + task.part * part_floats, rows);
    for (int64_t r = 0; r < rows; ++r) {
        float* weighted = first.weighted + r * shape.width;
        for (int64_t part = 1; part < parts; ++part) {
            const Sums next = shape.sums(partials + (task.part + part) * part_floats, rows);
            if (next.totals[r] == 0.0f) continue;  // a part that lies after all the row may see
            const float high = std::max(first.maxima[r], next.maxima[r]);
            const float keep = std::exp(first.maxima[r] - high);
            const float add = std::exp(next.maxima[r] - high);
            first.maxima[r] = high;
            first.totals[r] = first.totals[r] * keep + next.totals[r] * add;
            for (int64_t i = 0; i < shape.width; i += kWidth)
                store(weighted + i, load(weighted + i) * keep +
                                        load(next.weighted + r * shape.width + i) * add);
        }
        const int64_t head = task.head * groups + r % groups;
        write_row(weighted, first.totals[r],
                  out + ((task.first_row + r / groups) * num_heads + head) * shape.value_dim,
                  shape.value_dim);
    }
}

// List the tiles of a step, from the last sequence: prompt chunks, whose tasks are longest, first.
int64_t list_tiles(const Batch& batch, const PagedKV& kv, const Shape& shape, int64_t groups,
                   TaskList& tasks) {
    int64_t work = 0;
    const int64_t tile = shape.tile_rows(groups);
    tasks.clear();
    for (int64_t sequence = batch.num_sequences - 1; sequence >= 0; --sequence) {
        const int64_t context = batch.context_lens[sequence];
        const int64_t first = batch.query_starts[sequence];
        const int64_t count = batch.query_starts[sequence + 1] - first;
        if (context == 0) continue;
        const int64_t parts = (count + tile - 1) / tile;
        for (int64_t part = parts - 1; part >= 0; --part) {
            const int64_t row = count * part / parts, end = count * (part + 1) / parts;
            const int64_t end_key = context - count + end;
            work += (end - row) * groups * end_key * kv.num_heads;
            for (int64_t head = 0; head < kv.num_heads; ++head)
                tasks.add({sequence, head, first + row, end - row, 0, end_key,
                           context - count + row + 1, -1});
        }
    }
    return work * (shape.key_dim + shape.width) / kWidth;
}

// Cut tiles along their keys where there are too few for the threads. Returns the number of parts.
int64_t split_tiles(const TaskList& tiles, int threads, TaskList& tasks, TaskList& split) {
    int64_t num_parts = 0;
    tasks.clear();
    split.clear();
    const int64_t wanted = (4 * threads + tiles.size() - 1) / std::max<int64_t>(1, tiles.size());
    for (int64_t i = 0; i < tiles.size(); ++i) {
        Task task = tiles[i];
        const int64_t keys = task.end_key;
        const int64_t parts = threads == 1 ? 1 : std::clamp<int64_t>(keys / kSplitKeys, 1, wanted);
        if (parts == 1) {
            tasks.add(task);
            continue;
        }
        task.part = num_parts;
        task.first_key = parts;  // of a split tile: how many parts
        split.add(task);
        for (int64_t part = 0; part < parts; ++part) {
            task.part = num_parts++;
            task.first_key = keys * part / parts;
            task.end_key = keys * (part + 1) / parts;
            tasks.add(task);
        }
    }
    return num_parts;
}

template <class T>
void clear_unattended(const Batch& batch, int64_t row_width, T* out) {
    const auto clear = [&](int64_t first, int64_t end) {
        std::memset(static_cast<void*>(out + first * row_width), 0,
                    (end - first) * row_width * sizeof(T));
    };
    const int32_t* starts = batch.query_starts;
    for (int64_t i = 0; i < batch.num_sequences; ++i)
        if (batch.context_lens[i] == 0) clear(starts[i], starts[i + 1]);
    clear(starts[batch.num_sequences], batch.num_rows);
}

}  // namespace

API void ds_attend(const void* data, int64_t row_stride, int64_t head_stride, int64_t num_heads,
                   const Batch* batch, const PagedKV* kv, float scale, void* out, int type,
                   int threads) {
    static thread_local TaskList tiles, tasks, split;
    static thread_local Scratch scratch;
    const Shape shape(kv->key_dim, kv->value_dim);
    const Queries queries{data, row_stride, head_stride, num_heads, scale};
    const int64_t groups = num_heads / kv->num_heads;
    const int64_t work = list_tiles(*batch, *kv, shape, groups, tiles);
    const int64_t parts = split_tiles(tiles, work < kWorthThreads ? 1 : threads, tasks, split);
    const int64_t part_floats = shape.sums_floats(shape.tile_rows(groups) * groups);
    auto* partials = static_cast<float*>(scratch.reserve(parts * part_floats * sizeof(float)));
    with_types(type, kv->type, [&](auto t, auto k) {
        using T = decltype(t);
        T* typed_out = static_cast<T*>(out);
        clear_unattended(*batch, num_heads * shape.value_dim, typed_out);
        // Thread-local names mean another thread's inside a region.
        const TaskList& shared = tasks;
        parallel_tasks(tasks.size(), work, threads, [&](int64_t i) {
            const Task& task = shared[i];
            run_paged<T, decltype(k)>(task, queries, *batch, *kv, shape, groups,
                                      partials + task.part * part_floats, typed_out);
        });
        for (int64_t i = 0; i < split.size(); ++i)
            join_parts(split[i], split[i].first_key, partials, part_floats, shape, groups,
                       num_heads, typed_out);
    });
}

API void ds_attend_packed(const void* qkv, int64_t stride, const int32_t* starts,
                          int64_t num_sequences, int64_t num_heads, int64_t dim, void* out,
                          int type, int threads) {
    static thread_local TaskList tasks;
    const Shape shape(dim, dim);
    const float scale = 1.0f / std::sqrt(static_cast<float>(dim));
    const int64_t tile = shape.tile_rows(1), width = num_heads * dim;
    int64_t work = 0;
    tasks.clear();
    for (int64_t sequence = 0; sequence < num_sequences; ++sequence) {
        const int64_t first = starts[sequence], length = starts[sequence + 1] - first;
        const int64_t parts = (length + tile - 1) / tile;
        work += length * length * num_heads * 2 * shape.width / kWidth;
        for (int64_t head = 0; head < num_heads; ++head)
            for (int64_t part = 0; part < parts; ++part) {
                const int64_t row = length * part / parts, end = length * (part + 1) / parts;
                tasks.add({sequence, head, first + row, end - row, first, first + length, 0, -1});
            }
    }
    with_type(type, [&](auto t) {
        using T = decltype(t);
        const TaskList& shared = tasks;
        parallel_tasks(tasks.size(), work, threads, [&](int64_t i) {
            const Task& task = shared[i];
            const T* head = static_cast<const T*>(qkv) + task.head * dim;
            const Workspace space(shape, task.num_rows);
            for (int64_t r = 0; r < task.num_rows; ++r)
                scale_query(head + (task.first_row + r) * stride, scale, space.queries + r * dim,
                            dim);
            const auto collect = [&](int64_t first, Step<T>& step) {
                for (int64_t j = 0; j < step.count; ++j) {
                    step.keys[j] = head + (first + j) * stride + width;
                    step.values[j] = step.keys[j] + width;
                }
            };
            const auto limit = [&](int64_t) { return task.end_key; };
            const Sums sums = shape.sums(space.sums, task.num_rows);
            attend_tile<T>(shape, task.num_rows, task.first_key, task.end_key, collect, limit,
                           space, sums);
            for (int64_t r = 0; r < task.num_rows; ++r)
                write_row(sums.weighted + r * shape.width, sums.totals[r],
                          static_cast<T*>(out) + (task.first_row + r) * width + task.head * dim,
                          dim);
        });
    });
}
