// What both ways to multiply share.
#pragma once

#include <cstdint>

namespace llama {

// x (n, k), weight (m, k), out (n, m); dense, rows one after the other.
struct Shape {
    int64_t n, m, k;
};

#if defined(__AVX512VL__)
constexpr int kRegisters = 32;  // of eight floats
#else
constexpr int kRegisters = 16;
#endif

}  // namespace llama
