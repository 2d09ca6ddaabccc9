// The best token of a row of logits, and a random one, without sorting the vocabulary.
//
// A draw is by weight e^((logit - highest) / temperature), in descending order, equal ones by id.
// Tokens fall into buckets by weight, in that order; only a bucket that decides something is sorted.

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "exp.h"
#include "vec.h"

namespace llama {
namespace {

constexpr int kBuckets = 1024;
constexpr float kBucketsPerNat = 16;

float highest_of(const float* logits, int64_t n, bool* is_finite) {
    f32x8 most = splat(-std::numeric_limits<float>::infinity()), poison = splat(0);
    int64_t i = 0;
    for (; i + kLanes <= n; i += kLanes) {
        const f32x8 v = load(logits + i);
        most = maximum(v, most);
        poison += v * 0.0f;  // NaN for all that is not finite
    }
    float highest = hmax(most), rest = hsum(poison);
    for (; i < n; ++i) {
        highest = std::max(highest, logits[i]);
        rest += logits[i] * 0.0f;
    }
    *is_finite = rest == 0;
    return highest;
}

struct Place {
    int64_t token;
    double upto;  // weight of all tokens up to and with this one
};

// One row's tokens by weight.
class Row {
   public:
    Row(const float* logits, int64_t n, float temperature)
        : logits_(logits), n_(n), weights_(n), buckets_(n), mass_(kBuckets), count_(kBuckets) {
        bool is_finite;
        const float highest = highest_of(logits, n, &is_finite);
        for (int64_t i = 0; i < n; i += kLanes) {
            const int64_t count = std::min(kLanes, n - i);
            f32x8 v = splat(highest);
            std::memcpy(&v, logits + i, count * sizeof(float));
            v = (v - highest) / temperature;
            const f32x8 weight = exp(v);
            std::memcpy(&weights_[i], &weight, count * sizeof(float));
            for (int64_t lane = 0; lane < count; ++lane) {
                const float depth = -v[lane] * kBucketsPerNat;
                const int bucket = depth < kBuckets - 1 ? static_cast<int>(depth) : kBuckets - 1;
                buckets_[i + lane] = static_cast<uint16_t>(bucket);
                mass_[bucket] += weight[lane];
                ++count_[bucket];
            }
        }
    }

    // The weight of all tokens, or of the `k` best.
    double mass(int64_t k) {
        double upto = 0;
        int bucket = 0;
        for (; bucket < kBuckets && count_[bucket] <= k; ++bucket) {
            upto += mass_[bucket];
            k -= count_[bucket];
        }
        if (bucket == kBuckets || k == 0) return upto;
        sort(bucket);
        for (int64_t i = 0; i < k; ++i) upto += weights_[order_[i]];
        return upto;
    }

    // The first token with which all up to it weigh more than `target`, which is less than all do.
    Place find(double target) {
        double upto = 0, before = 0;
        int last = 0;
        for (int bucket = 0; bucket < kBuckets && upto <= target; ++bucket)
            if (mass_[bucket] > 0) {
                last = bucket;
                before = upto;
                upto += mass_[bucket];
            }
        sort(last);
        upto = before;
        int64_t token = order_[0];
        for (const int64_t id : order_) {
            if (weights_[id] == 0) break;
            token = id;
            upto += weights_[id];
            if (upto > target) break;
        }
        return {token, upto};
    }

   private:
    void sort(int bucket) {
        order_.clear();
        for (int64_t i = 0; i < n_; ++i)
            if (buckets_[i] == bucket) order_.push_back(i);
        std::stable_sort(order_.begin(), order_.end(),
                         [&](int64_t a, int64_t b) { return logits_[a] > logits_[b]; });
    }

    const float* logits_;
    const int64_t n_;
    std::vector<float> weights_;
    std::vector<uint16_t> buckets_;
    std::vector<double> mass_;
    std::vector<int64_t> count_, order_;
};

int64_t draw(const float* logits, int64_t n, double temperature, double top_p, int64_t top_k,
             double uniform) {
    Row row(logits, n, std::max(static_cast<float>(temperature), std::numeric_limits<float>::min()));
    double mass = row.mass(top_k > 0 ? top_k : n);
    if (top_p < 1) mass = std::min(mass, row.find(top_p * mass).upto);
    return row.find(uniform * mass).token;
}

}  // namespace
}  // namespace llama

// The best token of each row of n floats, lowest id of equals, and whether all of a row is finite.
extern "C" void llama_best_token(const float* logits, int64_t stride, int64_t n_rows, int64_t n,
                                 int64_t* tokens, uint8_t* is_finite) {
#pragma omp parallel for if (n_rows > 1)
    for (int64_t row = 0; row < n_rows; ++row) {
        const float* own = logits + row * stride;
        bool all_finite;
        const float highest = llama::highest_of(own, n, &all_finite);
        const int64_t at = std::find(own, own + n, highest) - own;
        tokens[row] = at < n ? at : 0;
        is_finite[row] = all_finite;
    }
}

// A random token of each row of finite logits; a top_k of 0 and a top_p of 1 keep all tokens.
extern "C" void llama_draw(const float* logits, int64_t stride, int64_t n_rows, int64_t n,
                           const double* temperature, const double* top_p, const int64_t* top_k,
                           const double* uniform, int64_t* tokens) {
#pragma omp parallel for if (n_rows > 1)
    for (int64_t row = 0; row < n_rows; ++row)
        tokens[row] = llama::draw(logits + row * stride, n, temperature[row], top_p[row], top_k[row],
                                  uniform[row]);
}
