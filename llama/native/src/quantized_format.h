// The format of llama/quant/groups.py, and in which order a weight is read.
#pragma once

#include <algorithm>
#include <cstdint>

#include "vec.h"

namespace llama {
namespace quantized {

// Rows of the weight and of x in one tile of sums: what the registers hold.
#if defined(__AVX512VL__)
constexpr int kTileRows = 4;
#else
constexpr int kTileRows = 2;
#endif
constexpr int kTileColumns = 4;
constexpr int64_t kAheadBytes = 2048;

struct Shape {
    int64_t n, m, k;
    int group;

    int64_t groups() const { return k / group; }
    // Kernels know groups of 32 and 64: one of 128 is two that share a scale.
    int64_t span() const { return std::min(group, 64); }
    int64_t spans() const { return k / span(); }
    int64_t repeats() const { return group / span(); }
};

// For use before span `s` of R rows from `w`. One row alone is read once and as one stream. Of
// several the next R are fetched, in the order they lie in, and kept: more rows of x read them.
template <int R>
inline void fetch_ahead(const uint8_t* w, int64_t s, int64_t span_bytes, int64_t row_bytes) {
    if constexpr (R == 1) {
        prefetch(w + s * span_bytes + kAheadBytes);
    } else {
        for (int r = 0; r < R; ++r) {
            __builtin_prefetch(w + R * row_bytes + (s * R + r) * span_bytes, 0, 3);
        }
    }
}

struct Weight {
    const uint8_t* values;
    const bf16* scales;
    int64_t row_bytes;
};

// One row of scales in float, one for each span.
inline void widen_scales(const bf16* scales, const Shape& shape, float* to) {
    const int64_t groups = shape.groups(), repeats = shape.repeats();
    if (repeats == 1) {
        for (int64_t g = 0; g < groups; ++g) to[g] = to_float(scales[g]);
    } else {
        for (int64_t g = 0; g < groups; ++g) to[2 * g] = to[2 * g + 1] = to_float(scales[g]);
    }
}

}  // namespace quantized
}  // namespace llama
