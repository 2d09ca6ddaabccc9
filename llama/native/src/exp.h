// e^x of eight floats, for softmax and SiLU.
#pragma once

#include "vec.h"

namespace llama {

// Within 2 units in the last place, 0 below -87.3, inf above 88.7; a NaN stays one. Cody and Waite:
// x = n ln 2 + r with r in two steps, then the Taylor sum of e^r and n into the exponent.
inline f32x8 exp(f32x8 x) {
    const f32x8 most = splat(88.72284f), least = splat(-87.33655f);
    const f32x8 clamped = x > most ? most : (x < least ? least : x);
    const f32x8 magic = splat(0x1.8p23f);  // adding it rounds to an integer
    const f32x8 n = (clamped * 1.44269504f + magic) - magic;
    const f32x8 r = (clamped - n * 0.693359375f) + n * 2.12194440e-4f;
    f32x8 sum = splat(1.0f / 5040);
    sum = sum * r + 1.0f / 720;
    sum = sum * r + 1.0f / 120;
    sum = sum * r + 1.0f / 24;
    sum = sum * r + 1.0f / 6;
    sum = sum * r + 0.5f;
    sum = sum * r * r + r + 1.0f;
    // two factors, since 2^128 is no float
    const i32x8 power = __builtin_convertvector(n == n ? n : splat(0), i32x8);
    const i32x8 half = power >> 1;
    const f32x8 low = reinterpret_cast<f32x8>((half + 127) << 23);
    const f32x8 high = reinterpret_cast<f32x8>((power - half + 127) << 23);
    const f32x8 value = sum * low * high;
    const f32x8 is_over = x > most ? splat(__builtin_inff()) : value;
    return x < least ? splat(0) : is_over;
}

}  // namespace llama
