// x (n, k) times a weight (m, k) transposed. The weight is row-major, as it was loaded, and read in
// place, in float, bf16 or fp16; sums are float. Their order depends on n, never on the threads.

#include <algorithm>
#include <type_traits>

#include "dot.h"
#include "gemm.h"
#include "product.h"
#include "scratch.h"
#include "vec.h"

namespace llama {
namespace {

constexpr int64_t kFew = 32;                // rows of x up to which dot products are faster
constexpr int64_t kSlab = 1024;             // rows of x packed at once: a bound of the memory
constexpr int64_t kWorthThreads = 1 << 15;  // multiplications that pay for waking a thread

thread_local Scratch scratch;

template <typename W, typename X>
bool few_rows(X* out, const X* x, const W* weight, const W* bias, Shape shape, int threads) {
    constexpr bool kIsNarrow = !std::is_same_v<X, float>;
    const int64_t sums = kIsNarrow ? shape.n * shape.m : 0;
    float* packed = scratch.floats(packed_floats(shape) + sums);
    if (!packed) return false;
    pack_rows(packed, x, shape);
    if constexpr (kIsNarrow) {
        float* wide = packed + packed_floats(shape);
        dot_product(wide, packed, weight, bias, shape, threads);
        for (int64_t i = 0; i < sums; ++i) out[i] = from_float<X>(wide[i]);
    } else {
        dot_product(out, packed, weight, bias, shape, threads);
    }
    return true;
}

template <typename W, typename X>
bool many_rows(X* out, const X* x, const W* weight, const W* bias, Shape shape, int threads) {
    for (int64_t from = 0; from < shape.n; from += kSlab) {
        const Shape slab{std::min(kSlab, shape.n - from), shape.m, shape.k};
        if (!blocked_product(out + from * shape.m, x + from * shape.k, weight, bias, slab, threads,
                             scratch))
            return false;
    }
    return true;
}

template <typename W, typename X>
bool product(void* out, const void* x, const void* weight, const void* bias, Shape shape,
             int threads) {
    X* to = static_cast<X*>(out);
    const X* from = static_cast<const X*>(x);
    const W* w = static_cast<const W*>(weight);
    const W* b = static_cast<const W*>(bias);
    return shape.n <= kFew || shape.k == 0
               ? few_rows(to, from, w, b, shape, threads)
               : many_rows(to, from, w, b, shape, threads);
}

using Product = bool (*)(void*, const void*, const void*, const void*, Shape, int);

// [dtype of the weight][dtype of x]
constexpr Product kProducts[3][3] = {
    {product<float, float>, product<float, bf16>, product<float, f16>},
    {product<bf16, float>, product<bf16, bf16>, product<bf16, f16>},
    {product<f16, float>, product<f16, bf16>, product<f16, f16>},
};

}  // namespace
}  // namespace llama

// out (n, m) = x (n, k) times weight (m, k) transposed, plus bias (m,) unless null, all dense. out
// has x's dtype, bias the weight's: 0 float, 1 bf16, 2 fp16. Returns 1 without memory to work in.
extern "C" int64_t llama_linear(void* out, const void* x, const void* weight, const void* bias,
                                int64_t n, int64_t m, int64_t k, int64_t x_dtype,
                                int64_t weight_dtype, int64_t threads) {
    using namespace llama;
    if (n < 1 || m < 1) return 0;
    const int64_t worth = n * m * k / kWorthThreads + 1;
    const int used = static_cast<int>(std::min(threads, worth));
    return kProducts[weight_dtype][x_dtype](out, x, weight, bias, {n, m, k}, used) ? 0 : 1;
}
