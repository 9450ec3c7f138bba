// Threads: torch's own OpenMP pool, entered only where the work repays it.
#pragma once

#include <omp.h>

#include <cstdint>
#include <cstdlib>

// A region always takes all of torch's threads: libgomp ends and starts pool threads when the
// number changes from one region to the next, which costs far more than an idle thread.

// Calls `body(begin, end)` for shares of 0..count, in one thread where `work` (about one vector
// instruction each) is less than waking the others costs.
constexpr int64_t kWorthThreads = 6000;

template <class Body>
inline void parallel_ranges(int64_t count, int64_t work, int threads, Body body) {
    if (threads <= 1 || count <= 1 || work < kWorthThreads) {
        body(int64_t{0}, count);
        return;
    }
#pragma omp parallel num_threads(threads)
    {
        const int64_t index = omp_get_thread_num(), total = omp_get_num_threads();
        const int64_t begin = count * index / total, end = count * (index + 1) / total;
        if (begin < end) body(begin, end);
    }
}

// Calls `body(index)` for 0..count, handing indices to whichever thread is free.
template <class Body>
inline void parallel_tasks(int64_t count, int64_t work, int threads, Body body) {
    if (threads <= 1 || count <= 1 || work < kWorthThreads) {
        for (int64_t i = 0; i < count; ++i) body(i);
        return;
    }
#pragma omp parallel for schedule(dynamic, 1) num_threads(threads)
    for (int64_t i = 0; i < count; ++i) body(i);
}

// Memory a thread keeps from call to call.
class Scratch {
public:
    Scratch() = default;
    Scratch(const Scratch&) = delete;
    Scratch& operator=(const Scratch&) = delete;
    ~Scratch() { std::free(data_); }

    // At least `bytes`, aligned to a cache line; what it held is lost. Null: out of memory.
    void* reserve(int64_t bytes) {
        if (bytes > size_) {
            std::free(data_);
            size_ = (bytes + 4095) / 4096 * 4096;
            data_ = std::aligned_alloc(64, size_);
            if (data_ == nullptr) std::abort();  // as torch's allocator would, but without a frame
        }
        return data_;
    }

private:
    void* data_ = nullptr;
    int64_t size_ = 0;
};
