// x rounded to int8, group by group, and its product with a quantised weight: exact within a group.
#pragma once

#include <vector>

#include "quantized_format.h"

#if defined(__AVX2__)
#include <immintrin.h>
#endif

namespace llama {
namespace quantized {

typedef uint8_t u8x32 __attribute__((vector_size(32)));
typedef uint8_t u8x16 __attribute__((vector_size(16)));

constexpr int64_t kUnit = 32;  // weights in a register of bytes

// What an unpacked weight is larger by. The sum of x takes it off again: see `Integers::offsets`.
template <int Bits>
constexpr int kOffset = 8;
#if defined(__AVX512VNNI__) && defined(__AVX512VL__)
#define LLAMA_VNNI 1
template <>
constexpr int kOffset<8> = 128;
#else
template <>
constexpr int kOffset<8> = 0;
#endif

// ---- x ----

struct Integers {
    std::vector<int8_t> values;  // (N, K)
    std::vector<float> scales;   // (N, spans)
    std::vector<int32_t> offsets;  // (N, spans): minus kOffset times the span's sum
};

// Unpacking 64 weights of 4 bits puts columns 32 to 47 before 16 to 31.
template <int Bits, int Span>
int64_t place(int64_t column) {
    if (Bits == 8 || Span == 32) return column;
    const int64_t quarter = column >> 4 & 3;
    const int64_t swapped = quarter == 1 ? 2 : quarter == 2 ? 1 : quarter;
    return (column & ~int64_t{48}) | swapped << 4;
}

// Rounds one group as llama.quant.product does; a group that is not finite gets a scale of NaN.
template <int Bits, int Span>
void round_group(const float* x, int64_t size, int8_t* values, float* scales, int32_t* offsets) {
    f32x8 most = splat(0.0f), probe = splat(0.0f);
    for (int64_t i = 0; i < size; i += kLanes) {
        const f32x8 v = load(x + i);
        most = maximum(most, v < 0.0f ? -v : v);
        probe += v * 0.0f;
    }
    const float greatest = hmax(most) + hsum(probe);
    const bool is_number = greatest - greatest == 0.0f;
    const float inverse = is_number && greatest >= 1e-30f ? 127.0f / greatest : 0.0f;
    for (int64_t span = 0; span < size / Span; ++span) {
        int32_t sum = 0;
        int8_t rounded[Span] = {};
        for (int i = 0; is_number && i < Span; ++i) {
            rounded[i] = static_cast<int8_t>(__builtin_rintf(x[span * Span + i] * inverse));
            sum += rounded[i];
        }
        for (int i = 0; i < Span; i += 16) {
            std::memcpy(values + span * Span + place<Bits, Span>(i), rounded + i, 16);
        }
        scales[span] = greatest / 127.0f;
        offsets[span] = -kOffset<Bits> * sum;
    }
}

template <int Bits, int Span>
void round_x(const float* x, const Shape& shape, Integers* to) {
    const int64_t spans = shape.spans(), repeats = shape.repeats();
    to->values.resize(shape.n * shape.k);
    to->scales.resize(shape.n * spans);
    to->offsets.resize(shape.n * spans);
#pragma omp parallel for if (shape.n > 1)
    for (int64_t n = 0; n < shape.n; ++n) {
        for (int64_t g = 0; g < shape.groups(); ++g) {
            const int64_t at = n * shape.k + g * shape.group, span = n * spans + g * repeats;
            round_group<Bits, Span>(x + at, shape.group, to->values.data() + at,
                                    to->scales.data() + span, to->offsets.data() + span);
        }
    }
}

// ---- products ----

// The weights of a span, a byte each, kOffset larger than they are.
template <int Span>
struct Bytes {
    u8x32 units[Span / kUnit];
};

template <int Bits, int Span>
inline Bytes<Span> unpack(const uint8_t* from) {
    Bytes<Span> to;
    if constexpr (Bits == 8) {
        for (int64_t u = 0; u < Span / kUnit; ++u) {
            to.units[u] = load_as<u8x32>(from + u * kUnit) ^ static_cast<uint8_t>(kOffset<8>);
        }
    } else if constexpr (Span == 32) {
        const u8x16 pairs = load_as<u8x16>(from);
        const u8x16 halves[2] = {pairs & 15, pairs >> 4};
        std::memcpy(&to.units[0], halves, sizeof(halves));
    } else {
        const u8x32 pairs = load_as<u8x32>(from);
        to.units[0] = pairs & 15;
        to.units[1] = pairs >> 4;
    }
    return to;
}

// For x at `x`: sums + weights * x, four neighbours to a sum.
template <int Bits>
inline i32x8 add_products(i32x8 sums, u8x32 weights, const int8_t* x) {
#if defined(LLAMA_VNNI)
    const __m256i right = load_as<__m256i>(x);
    return reinterpret_cast<i32x8>(_mm256_dpbusd_epi32(reinterpret_cast<__m256i>(sums),
                                                       reinterpret_cast<__m256i>(weights), right));
#elif defined(__AVX2__)
    __m256i left = reinterpret_cast<__m256i>(weights);
    __m256i right = load_as<__m256i>(x);
    if constexpr (Bits == 8) {  // one side must be unsigned; 2 * 127 * 127 fits 16 bits
        right = _mm256_sign_epi8(right, left);
        left = _mm256_abs_epi8(left);
    }
    const __m256i pairs = _mm256_maddubs_epi16(left, right);
    return sums + reinterpret_cast<i32x8>(_mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
#else
    for (int part = 0; part < 32; part += kLanes) {
        int8_t bytes[32];
        std::memcpy(bytes, &weights, sizeof(bytes));
        sums += __builtin_convertvector(load_as<i8x8>(bytes + part), i32x8) *
                __builtin_convertvector(load_as<i8x8>(x + part), i32x8);
    }
    return sums;
#endif
}

inline i32x8 first_lane(int32_t value) { return i32x8{value, 0, 0, 0, 0, 0, 0, 0}; }

// R rows of the weight with N rows of x. `scales` (R, spans).
template <int Bits, int Span, int R, int N>
void integer_tile(const uint8_t* w, int64_t row_bytes, const float* scales, const Integers& x,
                  int64_t first, const Shape& shape, float (&sums)[R][N]) {
    const int64_t spans = shape.spans();
    const int8_t* values = x.values.data() + first * shape.k;
    const int32_t* offsets = x.offsets.data() + first * spans;
    const float* x_scales = x.scales.data() + first * spans;
    f32x8 acc[R][N] = {};
    for (int64_t s = 0; s < spans; ++s) {
        fetch_ahead<R>(w, s, Span * Bits / 8, row_bytes);
        for (int r = 0; r < R; ++r) {
            const uint8_t* row = w + r * row_bytes + s * (Span * Bits / 8);
            const Bytes<Span> bytes = unpack<Bits, Span>(row);
            for (int n = 0; n < N; ++n) {
                i32x8 products = first_lane(offsets[n * spans + s]);
                for (int64_t u = 0; u < Span / kUnit; ++u) {
                    const int8_t* unit = values + n * shape.k + s * Span + u * kUnit;
                    products = add_products<Bits>(products, bytes.units[u], unit);
                }
                f32x8 part = __builtin_convertvector(products, f32x8);
                acc[r][n] += part * (scales[r * spans + s] * x_scales[n * spans + s]);
            }
        }
    }
    for (int r = 0; r < R; ++r)
        for (int n = 0; n < N; ++n) sums[r][n] = hsum(acc[r][n]);
}

}  // namespace quantized
}  // namespace llama
