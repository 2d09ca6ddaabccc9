// A product with few rows of x: tiles of dot products along K, which read the weight where it lies.
//
// The weight is read from memory once, in order; how fast that goes is all that counts.
#pragma once

#include <algorithm>

#include "product.h"
#include "vec.h"

namespace llama {

constexpr int kDotGroup = kRegisters / 4;  // rows of x that meet a tile at once
constexpr int64_t kDotRows = 12;           // rows of the weight that all groups meet in turn

// Rows of the weight in a tile: it, its sums and one of x must stay in registers.
constexpr int tile_rows(int n) { return n == 1 ? 1 : std::min(4, (kRegisters - 1) / (n + 1)); }

template <typename T>
f32x8 load_part(const T* from, int64_t count) {
    T padded[kLanes] = {};
    std::memcpy(padded, from, count * sizeof(T));
    return load(padded);
}

// Floats of N rows of x, packed for dot_tile: a vector of each row in turn, the last one filled up
// with zeros. Rows a power of two apart would push each other out of the cache.
inline int64_t packed_floats(Shape shape) {
    return shape.n * ((shape.k + kLanes - 1) / kLanes * kLanes);
}

template <typename X>
void pack_rows(float* packed, const X* x, Shape shape) {
    for (int64_t from = 0; from < shape.n; from += kDotGroup) {
        const int64_t count = std::min<int64_t>(kDotGroup, shape.n - from);
        for (int64_t at = 0; at < shape.k; at += kLanes)
            for (int64_t n = 0; n < count; ++n, packed += kLanes) {
                const X* row = x + (from + n) * shape.k + at;
                const int64_t left = shape.k - at;
                store(packed, left >= kLanes ? load(row) : load_part(row, left));
            }
    }
}

// R rows of the weight from `w` with N packed rows of x, U vectors of K at a time.
//
// One row is a stream that the hardware foresees. Several are not: what follows the tile in memory
// is then asked for while the tile is worked on.
template <int R, int N, int U, typename W>
void dot_tile(const W* w, const float* x, int64_t k, float (&sums)[R][N]) {
    constexpr int64_t kStep = U * kLanes;
    constexpr int64_t kStepBytes = R * kStep * sizeof(W);
    const char* next = reinterpret_cast<const char*>(w + R * k);
    f32x8 acc[R][N][U] = {};
    int64_t at = 0;
    for (; at + kStep <= k; at += kStep, next += kStepBytes) {
        // Beyond the weight's end a prefetch does nothing.
        for (int64_t byte = 0; R > 1 && byte < kStepBytes; byte += 64)
            __builtin_prefetch(next + byte, 0, 2);
        for (int u = 0; u < U; ++u)
            for (int r = 0; r < R; ++r) {
                const f32x8 weight = load(w + r * k + at + u * kLanes);
                for (int n = 0; n < N; ++n)
                    acc[r][n][u] += weight * load(x + (at + u * kLanes) * N + n * kLanes);
            }
    }
    for (; at < k; at += kLanes)
        for (int r = 0; r < R; ++r) {
            const f32x8 weight = load_part(w + r * k + at, std::min(kLanes, k - at));
            for (int n = 0; n < N; ++n) acc[r][n][0] += weight * load(x + at * N + n * kLanes);
        }
    for (int r = 0; r < R; ++r)
        for (int n = 0; n < N; ++n) {
            for (int u = 1; u < U; ++u) acc[r][n][0] += acc[r][n][u];
            sums[r][n] = hsum(acc[r][n][0]);
        }
}

// out (N, m) at rows [from, from + R) of the weight.
template <int R, int N, typename W>
void dot_rows(float* out, const float* x, const W* weight, const W* bias, Shape shape,
              int64_t from) {
    float sums[R][N];
    dot_tile<R, N, N == 1 ? 4 : 1>(weight + from * shape.k, x, shape.k, sums);
    for (int r = 0; r < R; ++r) {
        const float add = bias ? to_float(bias[from + r]) : 0.0f;
        for (int n = 0; n < N; ++n) out[n * shape.m + from + r] = sums[r][n] + add;
    }
}

// out (N, m) at rows [from, to) of the weight.
template <int N, typename W>
void dot_range(float* out, const float* x, const W* weight, const W* bias, Shape shape,
               int64_t from, int64_t to) {
    constexpr int R = tile_rows(N);
    for (; from + R <= to; from += R) dot_rows<R, N>(out, x, weight, bias, shape, from);
    for (; from < to; ++from) dot_rows<1, N>(out, x, weight, bias, shape, from);
}

template <typename W>
using DotRange = void (*)(float*, const float*, const W*, const W*, Shape, int64_t, int64_t);

template <typename W>
DotRange<W> dot_range_for(int64_t n) {
    constexpr DotRange<W> kRanges[] = {
        dot_range<1, W>, dot_range<2, W>, dot_range<3, W>, dot_range<4, W>,
#if defined(__AVX512VL__)
        dot_range<5, W>, dot_range<6, W>, dot_range<7, W>, dot_range<8, W>,
#endif
    };
    static_assert(sizeof(kRanges) / sizeof(kRanges[0]) == kDotGroup, "one for each group's size");
    return kRanges[n - 1];
}

// out (n, m) = x, packed, times the weight transposed, plus bias (m,) or null.
template <typename W>
void dot_product(float* out, const float* x, const W* weight, const W* bias, Shape shape,
                 int threads) {
    // A single group needs no second look at its rows: then each thread has one range.
    const int64_t share = (shape.m + threads - 1) / threads;
    const int64_t rows = shape.n > kDotGroup ? kDotRows : std::max<int64_t>(share, 1);
    const int64_t blocks = (shape.m + rows - 1) / rows;
    const int64_t row_floats = packed_floats(shape) / shape.n;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t block = 0; block < blocks; ++block) {
        const int64_t from = block * rows;
        const int64_t to = std::min(from + rows, shape.m);
        for (int64_t n = 0; n < shape.n; n += kDotGroup) {
            const int64_t count = std::min<int64_t>(kDotGroup, shape.n - n);
            const float* group = x + n * row_floats;
            dot_range_for<W>(count)(out + n * shape.m, group, weight, bias, shape, from, to);
        }
    }
}

}  // namespace llama
