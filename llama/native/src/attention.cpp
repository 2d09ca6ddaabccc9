// Attention of sequences with one new token each over the paged cache, read where it lies.
//
// One task per sequence and KV head: it keeps the new K and V, then goes over what the token sees
// in chunks, with the running softmax of Milakov and Gimelshein (arXiv:1805.02867). All query heads
// of the group share each row of K and V that is read. Heads are a multiple of eight wide.

#include <algorithm>
#include <type_traits>
#include <vector>

#include "exp.h"
#include "vec.h"

namespace llama {
namespace {

constexpr int64_t kChunk = 64;              // tokens between two looks at the running maximum
constexpr int64_t kTogether = 4;            // tokens whose rows are in registers' reach together
constexpr int64_t kWorthThreads = 1 << 16;  // products below which one thread does it all

// One row a sequence of the table that the caller makes.
struct Sequence {
    int64_t row;         // of q, k and v
    int64_t write_slot;  // where k and v are kept; -1 when they are there already
    int64_t start;       // positions start .. stop - 1 are seen
    int64_t stop;
    int64_t table;  // where its blocks begin in `blocks`
};

struct Step {
    const Sequence* sequences;
    const int64_t* blocks;
    int64_t n_heads, n_kv_heads, head_dim, block_size, ring_blocks;
    int64_t q_stride, k_stride, v_stride;  // elements from a token to the next
    float scale;
};

template <typename T>
struct Tensors {
    const T *q, *k, *v;
    T *k_cache, *v_cache, *out;
};

// `from` itself, or a copy of it in float.
inline const float* widen(const float* from, float*, int64_t) { return from; }

template <typename T>
const float* widen(const T* from, float* to, int64_t n) {
    for (int64_t i = 0; i < n; i += kLanes) store(to + i, load(from + i));
    return to;
}

// Lanes of a (0 to 7) and b (8 to 15): GCC before 12 has only the one, clang only the other.
#if defined(__clang__)
#define LLAMA_LANES(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define LLAMA_LANES(a, b, ...) __builtin_shuffle(a, b, i32x8{__VA_ARGS__})
#endif

// Neighbours among the lanes of a and b, added up.
inline f32x8 add_neighbours(f32x8 a, f32x8 b) {
    return LLAMA_LANES(a, b, 0, 8, 2, 10, 4, 12, 6, 14) +
           LLAMA_LANES(a, b, 1, 9, 3, 11, 5, 13, 7, 15);
}

// The sums of four vectors' lanes, into four floats.
inline void hsum4(const f32x8* v, float* to) {
    const f32x8 ab = add_neighbours(v[0], v[1]), cd = add_neighbours(v[2], v[3]);
    const f32x8 abcd = LLAMA_LANES(ab, cd, 0, 1, 8, 9, 4, 5, 12, 13) +
                       LLAMA_LANES(ab, cd, 2, 3, 10, 11, 6, 7, 14, 15);
    typedef float f32x4 __attribute__((vector_size(16)));
    f32x4 half[2];
    std::memcpy(half, &abcd, sizeof(half));
    half[0] += half[1];
    std::memcpy(to, half, sizeof(half[0]));
}

// The scores of a query with ROWS rows, n floats each.
template <int ROWS>
void dots(const float* q, const float* const* rows, int64_t n, float* scores) {
    f32x8 sums[ROWS] = {};
#pragma GCC unroll 4
    for (int64_t i = 0; i < n; i += kLanes) {
        const f32x8 own = load(q + i);
        for (int row = 0; row < ROWS; ++row) sums[row] += own * load(rows[row] + i);
    }
    if constexpr (ROWS == 4)
        hsum4(sums, scores);
    else
        for (int row = 0; row < ROWS; ++row) scores[row] = hsum(sums[row]);
}

// out += the rows, weighted.
template <int ROWS>
void add_rows(const float* weights, const float* const* rows, int64_t n, float* out) {
    f32x8 scales[ROWS];
    for (int row = 0; row < ROWS; ++row) scales[row] = splat(weights[row]);
    for (int64_t i = 0; i < n; i += kLanes) {
        f32x8 sum = load(out + i);
        for (int row = 0; row < ROWS; ++row) sum += scales[row] * load(rows[row] + i);
        store(out + i, sum);
    }
}

// The running softmax of one query head. `scores` (n,) become weights; `out` is scaled to match.
void fold(float* scores, int64_t n, float* highest, float* total, float* out, int64_t head_dim) {
    float most = *highest;
    for (int64_t i = 0; i < n; ++i) most = std::max(most, scores[i]);
    if (most > *highest) {
        const float shrink = exp(splat(*highest - most))[0];
        for (int64_t i = 0; i < head_dim; ++i) out[i] *= shrink;
        *total *= shrink;
        *highest = most;
    }
    const int64_t padded = (n + kLanes - 1) / kLanes * kLanes;
    for (int64_t i = n; i < padded; ++i) scores[i] = -__builtin_inff();
    f32x8 sum = splat(0);
    for (int64_t i = 0; i < padded; i += kLanes) {
        const f32x8 weights = exp(load(scores + i) - most);
        store(scores + i, weights);
        sum += weights;
    }
    *total += hsum(sum);
}

template <typename T, int HEAD_DIM>
class Task {
   public:
    Task(const Step& step, const Tensors<T>& tensors, int64_t index)
        : step_(step),
          tensors_(tensors),
          index_(index / step.n_kv_heads),
          sequence_(step.sequences[index_]),
          kv_head_(index % step.n_kv_heads),
          group_(step.n_heads / step.n_kv_heads),
          head_dim_(HEAD_DIM ? HEAD_DIM : step.head_dim) {}

    void run() {
        if (sequence_.write_slot >= 0) keep();
        const int64_t wide = group_ * head_dim_;
        static thread_local std::vector<float> memory;
        memory.resize(2 * wide + group_ * (kChunk + 2) + kTogether * head_dim_);
        queries_ = memory.data();
        sums_ = queries_ + wide;
        scores_ = sums_ + wide;
        highest_ = scores_ + group_ * kChunk;
        totals_ = highest_ + group_;
        widened_ = totals_ + group_;
        prepare();
        int64_t places[2][kChunk];
        int64_t n = find(sequence_.start, places[0]);
        for (int64_t at = sequence_.start, turn = 0; at < sequence_.stop; turn ^= 1) {
            const int64_t n_next = find(at + n, places[turn ^ 1]);
            chunk(places[turn], n, places[turn ^ 1], n_next);
            at += n;
            n = n_next;
        }
        T* out = tensors_.out + (index_ * step_.n_heads + kv_head_ * group_) * head_dim_;
        for (int64_t i = 0; i < wide; ++i) out[i] = from_float<T>(sums_[i] / totals_[i / head_dim_]);
    }

   private:
    void keep() {
        const int64_t to = (sequence_.write_slot * step_.n_kv_heads + kv_head_) * head_dim_;
        const int64_t head = kv_head_ * head_dim_;
        std::copy_n(tensors_.k + sequence_.row * step_.k_stride + head, head_dim_, tensors_.k_cache + to);
        std::copy_n(tensors_.v + sequence_.row * step_.v_stride + head, head_dim_, tensors_.v_cache + to);
    }

    void prepare() {
        const int64_t wide = group_ * head_dim_;
        const T* q = tensors_.q + sequence_.row * step_.q_stride + kv_head_ * wide;
        for (int64_t i = 0; i < wide; ++i) queries_[i] = to_float(q[i]) * step_.scale;
        std::fill_n(sums_, wide, 0.0f);
        std::fill_n(highest_, group_, -__builtin_inff());
        std::fill_n(totals_, group_, 0.0f);
    }

    // Where the rows of the chunk from position `first` begin; how many there are.
    int64_t find(int64_t first, int64_t* places) const {
        const int64_t n = std::min(kChunk, sequence_.stop - first);
        int64_t block = first / step_.block_size, offset = first % step_.block_size;
        for (int64_t i = 0; i < n; ++block, offset = 0) {
            const int64_t number = step_.blocks[sequence_.table + block % step_.ring_blocks];
            for (; offset < step_.block_size && i < n; ++offset, ++i) {
                const int64_t slot = number * step_.block_size + offset;
                places[i] = (slot * step_.n_kv_heads + kv_head_) * head_dim_;
            }
        }
        return n;
    }

    // While keys are read the values are fetched, and meanwhile the next chunk's keys.
    void chunk(const int64_t* places, int64_t n, const int64_t* next, int64_t n_next) {
        by_rows(tensors_.k_cache, places, n, tensors_.v_cache, places, n,
                [&](const float* const* rows, int64_t head, int64_t at, auto count) {
                    dots<count>(queries_ + head * head_dim_, rows, head_dim_,
                                scores_ + head * kChunk + at);
                });
        for (int64_t head = 0; head < group_; ++head)
            fold(scores_ + head * kChunk, n, highest_ + head, totals_ + head,
                 sums_ + head * head_dim_, head_dim_);
        by_rows(tensors_.v_cache, places, n, tensors_.k_cache, next, n_next,
                [&](const float* const* rows, int64_t head, int64_t at, auto count) {
                    add_rows<count>(scores_ + head * kChunk + at, rows, head_dim_,
                                    sums_ + head * head_dim_);
                });
    }

    // use(rows in float, head, first token, how many) for all of a
    // chunk, while the rows of `ahead` at `later` are fetched.
    template <typename Use>
    void by_rows(const T* from, const int64_t* places, int64_t n, const T* ahead,
                 const int64_t* later, int64_t n_later, Use use) {
        const float* rows[kTogether];
        for (int64_t at = 0; at < n;) {
            const int64_t count = n - at < kTogether ? 1 : kTogether;
            for (int64_t i = 0; i < count; ++i) {
                if (at + i < n_later) fetch(ahead + later[at + i]);
                rows[i] = widen(from + places[at + i], widened_ + i * head_dim_, head_dim_);
            }
            for (int64_t head = 0; head < group_; ++head)
                if (count == 1)
                    use(rows, head, at, std::integral_constant<int, 1>());
                else
                    use(rows, head, at, std::integral_constant<int, kTogether>());
            at += count;
        }
    }

    void fetch(const T* row) const {
        const char* bytes = reinterpret_cast<const char*>(row);
        for (size_t at = 0; at < head_dim_ * sizeof(T); at += 64) __builtin_prefetch(bytes + at);
    }

    const Step& step_;
    const Tensors<T>& tensors_;
    const int64_t index_;
    const Sequence& sequence_;
    const int64_t kv_head_, group_, head_dim_;
    float *queries_, *sums_, *scores_, *highest_, *totals_, *widened_;
};

template <typename T, int HEAD_DIM>
void attend(const Step& step, const Tensors<T>& tensors, int64_t n_sequences) {
    int64_t products = 0;
    for (int64_t i = 0; i < n_sequences; ++i)
        products += (step.sequences[i].stop - step.sequences[i].start) * step.n_heads * step.head_dim;
#pragma omp parallel for schedule(dynamic) if (products > kWorthThreads)
    for (int64_t task = 0; task < n_sequences * step.n_kv_heads; ++task)
        Task<T, HEAD_DIM>(step, tensors, task).run();
}

template <typename T>
void attend(const Step& step, const void* q, const void* k, const void* v, void* k_cache,
            void* v_cache, void* out, int64_t n_sequences) {
    const Tensors<T> tensors{static_cast<const T*>(q), static_cast<const T*>(k),
                             static_cast<const T*>(v), static_cast<T*>(k_cache),
                             static_cast<T*>(v_cache), static_cast<T*>(out)};
    if (step.head_dim == 64) return attend<T, 64>(step, tensors, n_sequences);
    if (step.head_dim == 128) return attend<T, 128>(step, tensors, n_sequences);
    attend<T, 0>(step, tensors, n_sequences);
}

}  // namespace
}  // namespace llama

// q (rows, n_heads, head_dim), k and v (rows, n_kv_heads, head_dim), whose rows are so many elements
// apart; the caches (slots, n_kv_heads, head_dim) and out (n_sequences, n_heads, head_dim) are dense.
// dtype: 0 fp32, 1 bf16, 2 fp16. Every sequence sees at least one token; head_dim is a multiple of 8.
extern "C" void llama_attend_decode(int64_t dtype, const void* q, const void* k, const void* v,
                                    void* k_cache, void* v_cache, void* out,
                                    const int64_t* sequences, int64_t n_sequences,
                                    const int64_t* blocks, int64_t block_size, int64_t ring_blocks,
                                    int64_t n_heads, int64_t n_kv_heads, int64_t head_dim,
                                    int64_t q_stride, int64_t k_stride, int64_t v_stride,
                                    float scale) {
    using namespace llama;
    const Step step{reinterpret_cast<const Sequence*>(sequences), blocks, n_heads, n_kv_heads,
                    head_dim, block_size, ring_blocks, q_stride, k_stride, v_stride, scale};
    const auto call = dtype == 0 ? attend<float> : dtype == 1 ? attend<bf16> : attend<f16>;
    call(step, q, k, v, k_cache, v_cache, out, n_sequences);
}
