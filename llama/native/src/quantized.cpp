// x (N, K) times a weight (M, K) of 8 or 4 bits, in the format of llama/quant/groups.py.
//
// The weight comes from memory once, whatever N: some rows at a time, for every row of x. With
// `dynamic` x is int8 too; otherwise it stays float. Sums do not depend on the number of threads.
#include <algorithm>
#include <vector>

#include "quantized_floats.h"
#include "quantized_integers.h"

namespace llama {
namespace quantized {
namespace {

// What all threads read besides the weight: x in the form that the kernel takes.
struct Activations {
    const float* values;  // (N, K)
    bool is_dynamic;
    Integers integers;           // where `is_dynamic`
    std::vector<float> offsets;  // (spans), for float_row
};

template <int Bits, int Span>
void prepare(const Shape& shape, Activations* x) {
    if (x->is_dynamic) return round_x<Bits, Span>(x->values, shape, &x->integers);
    if (shape.n > 1) return;
    x->offsets.assign(shape.spans(), 0.0f);
    if (Bits == 8) return;
    for (int64_t s = 0; s < shape.spans(); ++s) {
        f32x8 sum = splat(0.0f);
        for (int at = 0; at < Span; at += kLanes) sum += load(x->values + s * Span + at);
        x->offsets[s] = -8.0f * hsum(sum);
    }
}

struct Product {
    Shape shape;
    Weight weight;
    const Activations* x;
    const float* bias;  // (M), or null
    float* out;         // (N, M)
};

template <int Bits, int Span, int R, int N>
void tile(const Product& p, int64_t row, int64_t first, const float* scales) {
    const Activations& x = *p.x;
    const int64_t row_bytes = p.weight.row_bytes;
    const uint8_t* w = p.weight.values + row * row_bytes;
    const float* values = x.values + first * p.shape.k;
    float sums[R][N];
    if (x.is_dynamic) {
        integer_tile<Bits, Span, R, N>(w, row_bytes, scales, x.integers, first, p.shape, sums);
    } else if (R == 1 && N == 1 && p.shape.n == 1) {
        sums[0][0] = float_row<Bits, Span>(w, scales, values, x.offsets.data(), p.shape.spans());
    } else {
        float_tile<Bits, Span, R, N>(w, row_bytes, scales, values, p.shape, sums);
    }
    for (int n = 0; n < N; ++n) {
        for (int r = 0; r < R; ++r) {
            const float bias = p.bias == nullptr ? 0.0f : p.bias[row + r];
            p.out[(first + n) * p.shape.m + row + r] = sums[r][n] + bias;
        }
    }
}

// R rows of the weight with every row of x. `scales` is the thread's own room.
template <int Bits, int Span, int R>
void some_rows(const Product& p, int64_t row, std::vector<float>* scales) {
    const Shape& shape = p.shape;
    scales->resize(R * shape.spans());
    for (int r = 0; r < R; ++r) {
        widen_scales(p.weight.scales + (row + r) * shape.groups(), shape,
                     scales->data() + r * shape.spans());
    }
    int64_t n = 0;
    for (; n + kTileColumns <= shape.n; n += kTileColumns) {
        tile<Bits, Span, R, kTileColumns>(p, row, n, scales->data());
    }
    switch (shape.n - n) {
        case 3: return tile<Bits, Span, R, 3>(p, row, n, scales->data());
        case 2: return tile<Bits, Span, R, 2>(p, row, n, scales->data());
        case 1: return tile<Bits, Span, R, 1>(p, row, n, scales->data());
    }
}

template <int Bits, int Span>
void multiply(Product p, const float* values, bool is_dynamic) {
    static thread_local Activations x;
    x.values = values;
    x.is_dynamic = is_dynamic;
    prepare<Bits, Span>(p.shape, &x);
    p.x = &x;
    // Few products a byte: one row at a time is read faster.
    const int64_t few = is_dynamic ? Bits / 2 : 1;
    const int64_t tile_rows = p.shape.n <= few ? 1 : kTileRows;
    const int64_t tiles = (p.shape.m + tile_rows - 1) / tile_rows;
#pragma omp parallel
    {
        static thread_local std::vector<float> scales;
#pragma omp for schedule(static)
        for (int64_t t = 0; t < tiles; ++t) {
            int64_t row = t * tile_rows;
            if (tile_rows == kTileRows && row + kTileRows <= p.shape.m) {
                some_rows<Bits, Span, kTileRows>(p, row, &scales);
                continue;
            }
            const int64_t end = std::min(row + tile_rows, p.shape.m);
            for (; row < end; ++row) some_rows<Bits, Span, 1>(p, row, &scales);
        }
    }
}

}  // namespace
}  // namespace quantized
}  // namespace llama

// x (n, k), out (n, m) and bias (m) or null are float; values (m, k * bits / 8), scales (m, groups).
extern "C" void llama_quantized_linear(const float* x, const void* values, const void* scales,
                                       const float* bias, float* out, int64_t n, int64_t m,
                                       int64_t k, int64_t bits, int64_t group, int64_t dynamic) {
    using namespace llama::quantized;
    if (n == 0 || m == 0) return;
    const Shape shape{n, m, k, static_cast<int>(group)};
    const Weight weight{static_cast<const uint8_t*>(values),
                        static_cast<const llama::bf16*>(scales), k * bits / 8};
    const Product product{shape, weight, nullptr, bias, out};
    if (bits == 8 && group == 32) return multiply<8, 32>(product, x, dynamic != 0);
    if (bits == 8) return multiply<8, 64>(product, x, dynamic != 0);
    if (group == 32) return multiply<4, 32>(product, x, dynamic != 0);
    multiply<4, 64>(product, x, dynamic != 0);
}

// to (m, k) is float.
extern "C" void llama_dequantize(const void* values, const void* scales, float* to, int64_t m,
                                 int64_t k, int64_t bits, int64_t group) {
    using namespace llama::quantized;
    const Shape shape{0, m, k, static_cast<int>(group)};
    const int64_t row_bytes = k * bits / 8;
#pragma omp parallel
    {
        static thread_local std::vector<float> wide;
        wide.resize(shape.spans());
#pragma omp for schedule(static)
        for (int64_t row = 0; row < m; ++row) {
            const uint8_t* from = static_cast<const uint8_t*>(values) + row * row_bytes;
            widen_scales(static_cast<const llama::bf16*>(scales) + row * shape.groups(), shape,
                         wide.data());
            if (bits == 8) widen_row<8>(from, wide.data(), shape, to + row * k);
            else widen_row<4>(from, wide.data(), shape, to + row * k);
        }
    }
}
