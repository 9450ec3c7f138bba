// Operations on rows: norms, gate, rotation, stores.
#include <cmath>

#include "abi.h"
#include "dispatch.h"
#include "parallel.h"
#include "simd.h"

namespace {

template <class T>
float inverse_rms(const T* row, int64_t width, float eps) {
    vfloat total{};
    for_vectors(width, [&](int64_t i, auto load, auto) {
        const vfloat x = load(row + i);
        total += x * x;
    });
    return 1.0f / std::sqrt(sum(total) / width + eps);
}

template <class T, class W>
void scale_row(const T* row, const W* weight, float factor, T* out, int64_t width) {
    for_vectors(width, [&](int64_t i, auto load, auto store) {
        store(out + i, load(row + i) * factor * load(weight + i));
    });
}

template <class T>
void add_row(const T* row, T* to, int64_t width) {
    for_vectors(width, [&](int64_t i, auto load, auto store) {
        store(to + i, load(to + i) + load(row + i));
    });
}

template <class T, class U>
void copy_row(const T* from, U* to, int64_t width) {
    for_vectors(width, [&](int64_t i, auto load, auto store) { store(to + i, load(from + i)); });
}

// Rotate the pair (first half, second half) of one head, after the norm where there is one.
template <class T, class U, class W>
void rotate_head(const T* head, const float* rotary, const W* norm, float eps, U* out, int64_t dim) {
    const int64_t half = dim / 2;
    const float factor = norm == nullptr ? 1.0f : inverse_rms(head, dim, eps);
    for_vectors(half, [&](int64_t i, auto load, auto store) {
        vfloat first = load(head + i), second = load(head + half + i);
        if (norm != nullptr) {
            first *= factor * load(norm + i);
            second *= factor * load(norm + half + i);
        }
        const vfloat cos = load(rotary + i), sin = load(rotary + half + i);
        store(out + i, first * cos - second * sin);
        store(out + half + i, second * cos + first * sin);
    });
}

template <class T>
T* key_row(const PagedKV& kv, int64_t row, int64_t head) {
    return static_cast<T*>(kv.keys) + row / kv.block_tokens * kv.key_block_stride +
           head * kv.key_head_stride + row % kv.block_tokens * kv.key_token_stride;
}

template <class T>
T* value_row(const PagedKV& kv, int64_t row, int64_t head) {
    return static_cast<T*>(kv.values) + row / kv.block_tokens * kv.value_block_stride +
           head * kv.value_head_stride + row % kv.block_tokens * kv.value_token_stride;
}

}  // namespace

API void ds_rms_norm(const void* states, int64_t stride, const void* weight, void* out,
                     int64_t rows, int64_t width, float eps, int type, int weight_type,
                     int threads) {
    with_type(type, [&](auto t) {
        with_type(weight_type, [&](auto w) {
            using T = decltype(t);
            const auto* typed_weight = static_cast<const decltype(w)*>(weight);
            parallel_ranges(rows, rows * width / kWidth * 2, threads, [&](int64_t r, int64_t end) {
                for (; r < end; ++r) {
                    const T* row = static_cast<const T*>(states) + r * stride;
                    const float factor = inverse_rms(row, width, eps);
                    scale_row(row, typed_weight, factor, static_cast<T*>(out) + r * width, width);
                }
            });
        });
    });
}

API void ds_add_rms_norm(const void* states, int64_t stride, void* residual,
                         int64_t residual_stride, const void* weight, void* out, int64_t rows,
                         int64_t width, float eps, int type, int weight_type, int threads) {
    with_type(type, [&](auto t) {
        with_type(weight_type, [&](auto w) {
            using T = decltype(t);
            const auto* typed_weight = static_cast<const decltype(w)*>(weight);
            parallel_ranges(rows, rows * width / kWidth * 3, threads, [&](int64_t r, int64_t end) {
                for (; r < end; ++r) {
                    T* sum = static_cast<T*>(residual) + r * residual_stride;
                    add_row(static_cast<const T*>(states) + r * stride, sum, width);
                    const float factor = inverse_rms(sum, width, eps);
                    scale_row(sum, typed_weight, factor, static_cast<T*>(out) + r * width, width);
                }
            });
        });
    });
}

API void ds_gated_silu(const void* gate_up, int64_t stride, void* out, int64_t rows, int64_t width,
                       int type, int threads) {
    with_type(type, [&](auto t) {
        using T = decltype(t);
        parallel_ranges(rows, rows * width / kWidth * 20, threads, [&](int64_t r, int64_t end) {
            for (; r < end; ++r) {
                const T* gate = static_cast<const T*>(gate_up) + r * stride;
                T* row = static_cast<T*>(out) + r * width;
                for_vectors(width, [&](int64_t i, auto load, auto store) {
                    store(row + i, silu(load(gate + i)) * load(gate + width + i));
                });
            }
        });
    });
}

API void ds_rotate_and_store(const void* qkv, int64_t stride, const float* rotary,
                             int64_t rotary_stride, const Batch* batch, const PagedKV* kv,
                             int64_t num_heads, const void* query_norm, const void* key_norm,
                             float eps, void* out, int type, int norm_type, int threads) {
    const int64_t dim = kv->key_dim, kv_heads = kv->num_heads, rows = batch->num_rows;
    const int64_t work = rows * (num_heads + 2 * kv_heads) * dim / kWidth * 3;
    with_types(type, kv->type, [&](auto t, auto k) {
        with_type(norm_type, [&](auto w) {
            using T = decltype(t);
            using K = decltype(k);
            const auto* queries_norm = static_cast<const decltype(w)*>(query_norm);
            const auto* keys_norm = static_cast<const decltype(w)*>(key_norm);
            parallel_ranges(rows, work, threads, [&](int64_t r, int64_t end) {
                for (; r < end; ++r) {
                    const T* head = static_cast<const T*>(qkv) + r * stride;
                    const float* angles = rotary + batch->positions[r] * rotary_stride;
                    T* query = static_cast<T*>(out) + r * num_heads * dim;
                    for (int64_t h = 0; h < num_heads; ++h, head += dim, query += dim)
                        rotate_head(head, angles, queries_norm, eps, query, dim);
                    const int64_t row = batch->kv_rows[r];
                    if (row < 0) continue;
                    for (int64_t h = 0; h < kv_heads; ++h, head += dim)
                        rotate_head(head, angles, keys_norm, eps, key_row<K>(*kv, row, h), dim);
                    for (int64_t h = 0; h < kv_heads; ++h, head += dim)
                        copy_row(head, value_row<K>(*kv, row, h), dim);
                }
            });
        });
    });
}

API void ds_store(const void* keys, int64_t key_stride, int64_t key_head_stride, const void* values,
                  int64_t value_stride, int64_t value_head_stride, const Batch* batch,
                  const PagedKV* kv, int type, int threads) {
    const int64_t rows = batch->num_rows;
    const int64_t work = rows * kv->num_heads * (kv->key_dim + kv->value_dim) / kWidth;
    with_types(type, kv->type, [&](auto t, auto k) {
        using T = decltype(t);
        using K = decltype(k);
        parallel_ranges(rows, work, threads, [&](int64_t r, int64_t end) {
            for (; r < end; ++r) {
                const int64_t row = batch->kv_rows[r];
                if (row < 0) continue;
                for (int64_t h = 0; h < kv->num_heads; ++h) {
                    copy_row(static_cast<const T*>(keys) + r * key_stride + h * key_head_stride,
                             key_row<K>(*kv, row, h), kv->key_dim);
                    if (values == nullptr) continue;
                    copy_row(
                        static_cast<const T*>(values) + r * value_stride + h * value_head_stride,
                        value_row<K>(*kv, row, h), kv->value_dim);
                }
            }
        });
    });
}
