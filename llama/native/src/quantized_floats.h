// The product of float x and a quantised weight, which is widened in registers.
#pragma once

#include "quantized_format.h"

#if defined(__AVX2__)
#include <immintrin.h>
#endif

namespace llama {
namespace quantized {

inline f32x8 first_lane(float value) { return f32x8{value, 0, 0, 0, 0, 0, 0, 0}; }

inline i32x8 load_bytes(const uint8_t* from) {
#if defined(__AVX2__)  // GCC 12 converts one by one
    const auto* bytes = reinterpret_cast<const __m128i*>(from);
    return reinterpret_cast<i32x8>(_mm256_cvtepu8_epi32(_mm_loadl_epi64(bytes)));
#else
    return __builtin_convertvector(load_as<u8x8>(from), i32x8);
#endif
}

// The weights of columns `at` to `at + 7`, those of 4 bits 8 too large.
template <int Bits>
inline f32x8 eight_weights(const uint8_t* from, int64_t at) {
    if constexpr (Bits == 8) {
        return load(reinterpret_cast<const int8_t*>(from) + at);
    } else {
        const i32x8 pairs = load_bytes(from + (at >> 5) * 16 + (at & 8));
        return __builtin_convertvector(at & 16 ? pairs >> 4 : pairs & 15, f32x8);
    }
}

template <int Bits>
inline float excess(float scale) {
    return Bits == 4 ? 8.0f * scale : 0.0f;
}

// One row of each. `offsets` (spans) is minus the sum of x over a span, times what weights are too
// large by.
template <int Bits, int Span>
float float_row(const uint8_t* w, const float* scales, const float* x, const float* offsets,
                int64_t spans) {
    f32x8 acc[2] = {};
    for (int64_t s = 0; s < spans; ++s) {
        const uint8_t* from = w + s * (Span * Bits / 8);
        fetch_ahead<1>(w, s, Span * Bits / 8, 0);
        f32x8 parts[2] = {first_lane(offsets[s]), {}};
#pragma GCC unroll 8
        for (int64_t at = 0; at < Span; at += kLanes) {
            parts[at >> 3 & 1] += eight_weights<Bits>(from, at) * load(x + s * Span + at);
        }
        for (int i = 0; i < 2; ++i) acc[i] += parts[i] * scales[s];
    }
    return hsum(acc[0] + acc[1]);
}

// R rows of the weight with N rows of x.
template <int Bits, int Span, int R, int N>
void float_tile(const uint8_t* w, int64_t row_bytes, const float* scales, const float* x,
                const Shape& shape, float (&sums)[R][N]) {
    const int64_t spans = shape.spans();
    f32x8 acc[R][N] = {};
    for (int64_t s = 0; s < spans; ++s) {
        const uint8_t* from = w + s * (Span * Bits / 8);
        fetch_ahead<R>(w, s, Span * Bits / 8, row_bytes);
#pragma GCC unroll 8
        for (int64_t at = 0; at < Span; at += kLanes) {
            f32x8 weights[R];
            for (int r = 0; r < R; ++r) {
                const float scale = scales[r * spans + s];
                weights[r] = eight_weights<Bits>(from + r * row_bytes, at) * scale;
                weights[r] -= excess<Bits>(scale);
            }
            for (int n = 0; n < N; ++n) {
                const f32x8 right = load(x + n * shape.k + s * Span + at);
                for (int r = 0; r < R; ++r) acc[r][n] += weights[r] * right;
            }
        }
    }
    for (int r = 0; r < R; ++r)
        for (int n = 0; n < N; ++n) sums[r][n] = hsum(acc[r][n]);
}

template <int Bits>
void widen_row(const uint8_t* from, const float* scales, const Shape& shape, float* to) {
    for (int64_t s = 0; s < shape.spans(); ++s) {
        const int64_t column = s * shape.span();
        for (int64_t at = 0; at < shape.span(); at += kLanes) {
            const f32x8 weights = eight_weights<Bits>(from + column * Bits / 8, at) * scales[s];
            store(to + column + at, weights - excess<Bits>(scales[s]));
        }
    }
}

}  // namespace quantized
}  // namespace llama
