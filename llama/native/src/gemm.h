// A product with many rows of x, blocked for the caches.
//
// After Goto and van de Geijn, "Anatomy of High-Performance Matrix Multiplication" (2008), with the
// weight in the part of their A: x is packed once, blocks of the weight are widened to float while
// they are copied into the cache.
#pragma once

#include <algorithm>

#include "product.h"
#include "scratch.h"
#include "vec.h"

#if defined(_OPENMP)
#include <omp.h>
#endif

namespace llama {

constexpr int64_t kPanel = 2 * kLanes;  // rows of x that a tile works on
constexpr int64_t kTileRows = 6;        // rows of the weight that it works on
constexpr int64_t kDepth = 256;         // part of K: a panel of it stays in the L1 cache
constexpr int64_t kBlockRows = 96;      // a block of the weight stays in the L2 cache
constexpr int64_t kChunk = 512;         // rows of x, so that their sums do too
// Sixteen more, lest rows fall into the same sets of the cache.
constexpr int64_t kBlockStride = kDepth + 16;
constexpr int64_t kSumStride = kChunk + 16;
constexpr int64_t kBlockFloats = kBlockRows * kBlockStride;
constexpr int64_t kSumFloats = kBlockRows * kSumStride;
static_assert(kBlockRows % kTileRows == 0, "a block is made of whole tiles");

// sums (kTileRows, kPanel) += weight (kTileRows, depth) times panel (depth, kPanel).
void panel_tile(const float* weight, const float* panel, int64_t depth, float* sums, bool first) {
    f32x8 acc[kTileRows][2];
    for (int r = 0; r < kTileRows; ++r)
        for (int v = 0; v < 2; ++v)
            acc[r][v] = first ? f32x8{} : load(sums + r * kSumStride + v * kLanes);
    for (int64_t at = 0; at < depth; ++at) {
        const f32x8 left = load(panel + at * kPanel);
        const f32x8 right = load(panel + at * kPanel + kLanes);
        for (int r = 0; r < kTileRows; ++r) {
            const f32x8 one = splat(weight[r * kBlockStride + at]);
            acc[r][0] += one * left;
            acc[r][1] += one * right;
        }
    }
    for (int r = 0; r < kTileRows; ++r)
        for (int v = 0; v < 2; ++v) store(sums + r * kSumStride + v * kLanes, acc[r][v]);
}

// Panel (depth, kPanel) of x from row `from` and column `at`; rows beyond the last are zero.
template <typename X>
void pack_panel(float* panel, const X* x, Shape shape, int64_t from, int64_t at, int64_t depth) {
    const int64_t rows = std::min(kPanel, shape.n - from);
    const X* begin = x + from * shape.k + at;
    for (int64_t d = 0; d < depth; ++d) {
        for (int64_t row = 0; row < rows; ++row)
            panel[d * kPanel + row] = to_float(begin[row * shape.k + d]);
        for (int64_t row = rows; row < kPanel; ++row) panel[d * kPanel + row] = 0.0f;
    }
}

// Block (rows, depth) of the weight, widened; rows up to a whole tile are zero.
template <typename W>
void pack_block(float* block, const W* weight, int64_t k, int64_t rows, int64_t depth) {
    for (int64_t row = 0; row < rows; ++row) {
        const W* from = weight + row * k;
        float* to = block + row * kBlockStride;
        int64_t at = 0;
        for (; at + kLanes <= depth; at += kLanes) store(to + at, load(from + at));
        for (; at < depth; ++at) to[at] = to_float(from[at]);
    }
    for (int64_t row = rows; row % kTileRows != 0; ++row)
        std::fill_n(block + row * kBlockStride, depth, 0.0f);
}

template <typename W>
void prefetch_rows(const W* weight, int64_t k, int64_t rows, int64_t depth) {
    for (int64_t row = 0; row < rows; ++row)
        for (int64_t at = 0; at < depth; at += int64_t{64 / sizeof(W)})
            __builtin_prefetch(weight + row * k + at, 0, 2);
}

// out (N, M) at (from_n, from_m) = sums (rows, columns) transposed, and the bias.
template <typename W, typename X>
void write_sums(X* out, const float* sums, const W* bias, Shape shape, int64_t from_n,
                int64_t columns, int64_t from_m, int64_t rows) {
    float add[kBlockRows] = {};
    if (bias)
        for (int64_t row = 0; row < rows; ++row) add[row] = to_float(bias[from_m + row]);
    for (int64_t n = 0; n < columns; ++n) {
        X* to = out + (from_n + n) * shape.m + from_m;
        for (int64_t row = 0; row < rows; ++row)
            to[row] = from_float<X>(sums[row * kSumStride + n] + add[row]);
    }
}

// The product of rows [from_m, from_m + rows) of the weight with one chunk of x's panels.
template <typename W>
void multiply_block(float* sums, float* block, const float* packed, const W* weight, Shape shape,
                    int64_t all_panels, int64_t first_panel, int64_t panels, int64_t rows) {
    const int64_t tiles = (rows + kTileRows - 1) / kTileRows;
    for (int64_t at = 0; at < shape.k; at += kDepth) {
        const int64_t depth = std::min(kDepth, shape.k - at);
        const int64_t next_depth = std::min(kDepth, shape.k - at - depth);
        pack_block(block, weight + at, shape.k, rows, depth);
        const float* panel = packed + (at / kDepth * all_panels + first_panel) * kDepth * kPanel;
        for (int64_t p = 0; p < panels; ++p, panel += kDepth * kPanel) {
            for (int64_t tile = 0; tile < tiles; ++tile) {
                const int64_t row = tile * kTileRows;
                if (tile * panels / tiles == p)  // spread over the panels
                    prefetch_rows(weight + row * shape.k + at + depth, shape.k,
                                  std::min(kTileRows, rows - row), next_depth);
                panel_tile(block + row * kBlockStride, panel, depth,
                           sums + row * kSumStride + p * kPanel, at == 0);
            }
        }
    }
}

inline int thread_number() {
#if defined(_OPENMP)
    return omp_get_thread_num();
#else
    return 0;
#endif
}

// out (n, m) = x times the weight transposed, plus bias (m,) or null. False without memory.
template <typename W, typename X>
bool blocked_product(X* out, const X* x, const W* weight, const W* bias, Shape shape, int threads,
                     Scratch& scratch) {
    const int64_t panels = (shape.n + kPanel - 1) / kPanel;
    const int64_t depths = (shape.k + kDepth - 1) / kDepth;
    const int64_t blocks = (shape.m + kBlockRows - 1) / kBlockRows;
    int64_t chunk = kChunk / kPanel;
    while (chunk > 4 && blocks * ((panels + chunk - 1) / chunk) < 4 * threads) chunk /= 2;
    const int64_t chunks = (panels + chunk - 1) / chunk;
    const int64_t packed_floats = panels * depths * kDepth * kPanel;
    float* packed = scratch.floats(packed_floats + threads * (kBlockFloats + kSumFloats));
    if (!packed) return false;
#pragma omp parallel num_threads(threads)
    {
        float* block = packed + packed_floats + thread_number() * (kBlockFloats + kSumFloats);
        float* sums = block + kBlockFloats;
#pragma omp for schedule(static)
        for (int64_t i = 0; i < panels * depths; ++i) {
            const int64_t at = i / panels * kDepth;
            pack_panel(packed + i * kDepth * kPanel, x, shape, i % panels * kPanel, at,
                       std::min(kDepth, shape.k - at));
        }
#pragma omp for schedule(dynamic)
        for (int64_t i = 0; i < blocks * chunks; ++i) {
            const int64_t from_m = i / chunks * kBlockRows;
            const int64_t rows = std::min(kBlockRows, shape.m - from_m);
            const int64_t first = i % chunks * chunk;
            const int64_t count = std::min(chunk, panels - first);
            multiply_block(sums, block, packed, weight + from_m * shape.k, shape, panels, first,
                           count, rows);
            write_sums(out, sums, bias, shape, first * kPanel,
                       std::min(count * kPanel, shape.n - first * kPanel), from_m, rows);
        }
    }
    return true;
}

}  // namespace llama
