// What happens to hidden states between products: RMS norm, rotary positions, SwiGLU's gate.
//
// Rows are shared out to threads only where there is work for them: a decode step's few are done
// before others have woken up. Where a plain computation would round to 16 bits, so do these.

#include <cmath>

#include "exp.h"
#include "vec.h"

namespace llama {
namespace {

constexpr int64_t kWorthThreads = 1 << 15;  // elements

inline f32x8 rounded(f32x8 v, const float*) { return v; }

template <typename T>
f32x8 rounded(f32x8 v, const T*) {
    T narrow[kLanes];
    store(narrow, v);
    return load(narrow);
}

// Eight elements, or the `n` that are left of a row.
template <typename T>
f32x8 load_some(const T* from, int64_t n) {
    if (n >= kLanes) return load(from);
    f32x8 v = splat(0);
    for (int64_t lane = 0; lane < n; ++lane) v[lane] = to_float(from[lane]);
    return v;
}

template <typename T>
void store_some(T* to, f32x8 v, int64_t n) {
    if (n >= kLanes) return store(to, v);
    for (int64_t lane = 0; lane < n; ++lane) to[lane] = from_float<T>(v[lane]);
}

template <typename T>
void rms_norm(const void* x, const void* weight, void* out, int64_t n_rows, int64_t dim, float eps) {
    const T* scale = static_cast<const T*>(weight);
#pragma omp parallel for if (n_rows > 1 && n_rows * dim > kWorthThreads)
    for (int64_t row = 0; row < n_rows; ++row) {
        const T* from = static_cast<const T*>(x) + row * dim;
        T* to = static_cast<T*>(out) + row * dim;
        f32x8 squares[4] = {};
        int64_t i = 0;
        for (; i + 4 * kLanes <= dim; i += 4 * kLanes)
            for (int64_t part = 0; part < 4; ++part) {
                const f32x8 v = load(from + i + part * kLanes);
                squares[part] += v * v;
            }
        for (; i < dim; i += kLanes) {
            const f32x8 v = load_some(from + i, dim - i);
            squares[0] += v * v;
        }
        const float sum = hsum((squares[0] + squares[1]) + (squares[2] + squares[3]));
        const float factor = 1.0f / std::sqrt(sum / static_cast<float>(dim) + eps);
        for (i = 0; i < dim; i += kLanes) {
            const f32x8 normed = rounded(load_some(from + i, dim - i) * factor, from);
            store_some(to + i, normed * load_some(scale + i, dim - i), dim - i);
        }
    }
}

template <typename T>
void swiglu(const void* x, void* out, int64_t n_rows, int64_t width) {
#pragma omp parallel for if (n_rows > 1 && n_rows * width > kWorthThreads)
    for (int64_t row = 0; row < n_rows; ++row) {
        const T* gate = static_cast<const T*>(x) + row * 2 * width;
        const T* up = gate + width;
        T* to = static_cast<T*>(out) + row * width;
        for (int64_t i = 0; i < width; i += kLanes) {
            const f32x8 v = load_some(gate + i, width - i);
            const f32x8 silu = rounded(v / (1.0f + exp(-v)), gate);
            store_some(to + i, silu * load_some(up + i, width - i), width - i);
        }
    }
}

template <typename T>
void turn(T* first, T* second, int64_t step, const float* cos, const float* sin, int64_t n_pairs) {
    for (int64_t i = 0; i < n_pairs; ++i) {
        const float a = to_float(first[i * step]), b = to_float(second[i * step]);
        first[i * step] = from_float<T>(a * cos[i] - b * sin[i]);
        second[i * step] = from_float<T>(b * cos[i] + a * sin[i]);
    }
}

template <typename T>
void rope(void* x, int64_t stride, int64_t n_rows, int64_t n_heads, int64_t head_dim,
          const float* cos, const float* sin, bool is_interleaved) {
    const int64_t n_pairs = head_dim / 2;
#pragma omp parallel for if (n_rows > 1 && n_rows * n_heads * head_dim > kWorthThreads)
    for (int64_t row = 0; row < n_rows; ++row)
        for (int64_t head = 0; head < n_heads; ++head) {
            T* at = static_cast<T*>(x) + row * stride + head * head_dim;
            if (is_interleaved)
                turn(at, at + 1, 2, cos + row * n_pairs, sin + row * n_pairs, n_pairs);
            else
                turn(at, at + n_pairs, 1, cos + row * n_pairs, sin + row * n_pairs, n_pairs);
        }
}

}  // namespace
}  // namespace llama

// dtype: 0 fp32, 1 bf16, 2 fp16, of all tensors but cos and sin, which are fp32.

// x and out (n_rows, dim), weight (dim,), all dense.
extern "C" void llama_rms_norm(int64_t dtype, const void* x, const void* weight, void* out,
                               int64_t n_rows, int64_t dim, float eps) {
    using namespace llama;
    const auto call = dtype == 0 ? rms_norm<float> : dtype == 1 ? rms_norm<bf16> : rms_norm<f16>;
    call(x, weight, out, n_rows, dim, eps);
}

// x (n_rows, 2 width): gate and up side by side; out (n_rows, width).
extern "C" void llama_swiglu(int64_t dtype, const void* x, void* out, int64_t n_rows, int64_t width) {
    using namespace llama;
    const auto call = dtype == 0 ? swiglu<float> : dtype == 1 ? swiglu<bf16> : swiglu<f16>;
    call(x, out, n_rows, width);
}

// In place. x (n_rows, n_heads, head_dim) of rows `stride` elements apart; cos and sin
// (n_rows, head_dim / 2).
extern "C" void llama_rope(int64_t dtype, void* x, int64_t stride, int64_t n_rows, int64_t n_heads,
                           int64_t head_dim, const float* cos, const float* sin,
                           int64_t is_interleaved) {
    using namespace llama;
    const auto call = dtype == 0 ? rope<float> : dtype == 1 ? rope<bf16> : rope<f16>;
    call(x, stride, n_rows, n_heads, head_dim, cos, sin, is_interleaved != 0);
}
