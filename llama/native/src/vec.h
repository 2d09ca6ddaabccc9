// Eight floats at a time, and the 16-bit formats weights are stored in.
//
// GCC vector extensions, so one source serves AVX2, AVX-512 and NEON; only conversions name an
// instruction set. Loads and stores need no alignment.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#if defined(__AVX2__) || defined(__F16C__)
#include <immintrin.h>
#endif

namespace llama {

constexpr int64_t kLanes = 8;

typedef float f32x8 __attribute__((vector_size(32)));
typedef int32_t i32x8 __attribute__((vector_size(32)));
typedef uint32_t u32x8 __attribute__((vector_size(32)));
typedef uint16_t u16x8 __attribute__((vector_size(16)));
typedef int8_t i8x8 __attribute__((vector_size(8)));
typedef uint8_t u8x8 __attribute__((vector_size(8)));

// Storage only: sums are made in float.
struct bf16 {
    uint16_t bits;
};
struct f16 {
    uint16_t bits;
};

template <typename To, typename From>
inline To bit_cast(From from) {
    static_assert(sizeof(To) == sizeof(From), "bit_cast keeps the size");
    To to;
    std::memcpy(&to, &from, sizeof(to));
    return to;
}

template <typename Vector>
inline Vector load_as(const void* from) {
    Vector v;
    std::memcpy(&v, from, sizeof(v));
    return v;
}

inline f32x8 splat(float x) { return f32x8{x, x, x, x, x, x, x, x}; }

// ---- one number ----

inline float to_float(float x) { return x; }

inline float to_float(bf16 x) { return bit_cast<float>(uint32_t{x.bits} << 16); }

inline float to_float(f16 x) {
#if defined(__F16C__)
    return _cvtsh_ss(x.bits);
#elif defined(__ARM_FP16_FORMAT_IEEE)
    return static_cast<float>(bit_cast<__fp16>(x.bits));
#else
    const uint32_t sign = uint32_t{x.bits & 0x8000u} << 16;
    const uint32_t rest = x.bits & 0x7fffu;
    // Scaling by 2^112 moves the exponent's bias and makes subnormals normal.
    const float scaled = bit_cast<float>(rest << 13) * 0x1p112f;
    const uint32_t bits = rest >= 0x7c00u ? (rest << 13 | 0x7f800000u) : bit_cast<uint32_t>(scaled);
    return bit_cast<float>(bits | sign);
#endif
}

// Rounds to the nearest, ties to even; a NaN stays one.
template <typename T>
T from_float(float x);

template <>
inline float from_float<float>(float x) {
    return x;
}

template <>
inline bf16 from_float<bf16>(float x) {
    const uint32_t bits = bit_cast<uint32_t>(x);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return bf16{0x7fc0};
    return bf16{static_cast<uint16_t>((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16)};
}

template <>
inline f16 from_float<f16>(float x) {
#if defined(__F16C__)
    return f16{static_cast<uint16_t>(_cvtss_sh(x, _MM_FROUND_TO_NEAREST_INT))};
#elif defined(__ARM_FP16_FORMAT_IEEE)
    return f16{bit_cast<uint16_t>(static_cast<__fp16>(x))};
#else
    const uint32_t bits = bit_cast<uint32_t>(x);
    const uint16_t sign = static_cast<uint16_t>(bits >> 16 & 0x8000u);
    const uint32_t rest = bits & 0x7fffffffu;
    if (rest > 0x7f800000u) return f16{static_cast<uint16_t>(sign | 0x7e00u)};
    if (rest >= 0x477ff000u) return f16{static_cast<uint16_t>(sign | 0x7c00u)};  // rounds to inf
    if (rest < 0x38800000u) {  // subnormal: adding 0.5 lets the FPU round at the right bit
        const float shifted = bit_cast<float>(rest) + 0.5f;
        return f16{static_cast<uint16_t>(sign | (bit_cast<uint32_t>(shifted) - 0x3f000000u))};
    }
    const uint32_t rounded = rest - 0x38000000u + 0xfffu + (rest >> 13 & 1u);
    return f16{static_cast<uint16_t>(sign | rounded >> 13)};
#endif
}

// ---- eight numbers ----

inline f32x8 load(const float* from) { return load_as<f32x8>(from); }

inline f32x8 load(const bf16* from) {
#if defined(__AVX2__)  // GCC 12 widens by halves what one instruction does
    const __m128i narrow = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
    const u32x8 wide = reinterpret_cast<u32x8>(_mm256_cvtepu16_epi32(narrow));
#else
    const u32x8 wide = __builtin_convertvector(load_as<u16x8>(from), u32x8);
#endif
    return reinterpret_cast<f32x8>(wide << 16);
}

inline f32x8 load(const f16* from) {
#if defined(__F16C__)
    const __m128i narrow = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
    return reinterpret_cast<f32x8>(_mm256_cvtph_ps(narrow));
#else
    f32x8 v;
    for (int lane = 0; lane < kLanes; ++lane) v[lane] = to_float(from[lane]);
    return v;
#endif
}

inline f32x8 load(const int8_t* from) {
#if defined(__AVX2__)
    const __m128i narrow = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(from));
    return reinterpret_cast<f32x8>(_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(narrow)));
#else
    return __builtin_convertvector(load_as<i8x8>(from), f32x8);
#endif
}

inline void store(float* to, f32x8 v) { std::memcpy(to, &v, sizeof(v)); }

inline void store(bf16* to, f32x8 v) {
    const u32x8 bits = reinterpret_cast<u32x8>(v);
    const u32x8 rounded = (bits + 0x7fffu + (bits >> 16 & 1u)) >> 16;
    const u32x8 is_nan = reinterpret_cast<u32x8>(v != v);
    const u16x8 narrow = __builtin_convertvector((is_nan & 0x7fc0u) | (~is_nan & rounded), u16x8);
    std::memcpy(to, &narrow, sizeof(narrow));
}

inline void store(f16* to, f32x8 v) {
#if defined(__F16C__)
    const __m128i narrow = _mm256_cvtps_ph(reinterpret_cast<__m256>(v), _MM_FROUND_TO_NEAREST_INT);
    std::memcpy(to, &narrow, sizeof(narrow));
#else
    for (int lane = 0; lane < kLanes; ++lane) to[lane] = from_float<f16>(v[lane]);
#endif
}

// The sum of the eight, in a fixed order.
inline float hsum(f32x8 v) {
    typedef float f32x4 __attribute__((vector_size(16)));
    f32x4 low, high;
    std::memcpy(&low, &v, sizeof(low));
    std::memcpy(&high, reinterpret_cast<const char*>(&v) + sizeof(low), sizeof(high));
    const f32x4 four = low + high;
    return (four[0] + four[2]) + (four[1] + four[3]);
}

// A NaN in `a` or `b` may be lost.
inline f32x8 maximum(f32x8 a, f32x8 b) { return a > b ? a : b; }

inline float hmax(f32x8 v) {
    float most = v[0];
    for (int lane = 1; lane < kLanes; ++lane) most = v[lane] > most ? v[lane] : most;
    return most;
}

// For data read once: near the core, not kept in the outer caches' most recent place.
inline void prefetch(const void* address) { __builtin_prefetch(address, 0, 0); }

}  // namespace llama
