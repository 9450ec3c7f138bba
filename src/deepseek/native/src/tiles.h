// What the matrix products have in common: weights in tiles of 16 outputs, rows in parts, and the
// order in which they meet.
#pragma once

#include <algorithm>
#include <cstdint>

#include "dispatch.h"
#include "simd.h"

constexpr int kTile = 16;  // outputs of a weight tile

// Rows by the parts that a register tile takes at once, as even as they can be.
struct Parts {
    int64_t num_rows, max_rows;

    int64_t count() const { return (num_rows + max_rows - 1) / max_rows; }
    int64_t first_row(int64_t part) const { return num_rows * part / count(); }
    int64_t size(int64_t part) const { return first_row(part + 1) - first_row(part); }
};

inline int64_t num_tiles(int64_t outputs) { return (outputs + kTile - 1) / kTile; }

// Memory to have in the cache soon: `step` bytes with every turn of a loop.
struct Ahead {
    const char* next;
    int64_t step;

    void fetch() {
        for (int64_t i = 0; i < step; i += 64) _mm_prefetch(next + i, _MM_HINT_T1);
        next += step;
    }
};

// Weights in memory, in tiles of `turns` times 64 bytes; a thread works up to the tile `end`.
struct Plane {
    const void* tiles;
    int64_t turns, end;

    // What to fetch while `part` of `num_parts` meets the `count` tiles before `next`: its share of
    // as many behind them.
    Ahead after(int64_t next, int64_t count, int64_t part, int64_t num_parts) const {
        const int64_t tile_bytes = turns * 64;
        const char* behind = static_cast<const char*>(tiles) + next * tile_bytes;
        return {behind + count * tile_bytes * part / num_parts,
                next == end ? 0 : count * 64 / num_parts};
    }
};

// Calls `multiply(part, tile, ahead, r, n)` for all rows and the weight tiles from `begin`, r rows
// and n tiles at a time (integral constants). While some tiles are worked with the next are fetched,
// spread over the rows: memory and arithmetic take about as long for 16 rows.
template <int MaxRows, int MaxTiles, class AllParts, class Multiply>
void for_tiles(const AllParts& parts, const Plane& plane, int64_t begin, Multiply multiply) {
    const int64_t num_parts = parts.count();
    if (num_parts == 0) return;
    const int64_t num_groups = (plane.end - begin + MaxTiles - 1) / MaxTiles;
    for (int64_t i = 0; i < num_groups; ++i) {
        const int64_t tile = begin + (plane.end - begin) * i / num_groups;
        const int64_t next = begin + (plane.end - begin) * (i + 1) / num_groups;
        for (int64_t part = 0; part < num_parts; ++part) {
            const Ahead ahead = plane.after(next, next - tile, part, num_parts);
            with_count<MaxTiles>(next - tile, [&](auto n) {
                with_count<MaxRows>(parts.size(part),
                                    [&](auto r) { multiply(part, tile, ahead, r, n); });
            });
        }
    }
}
