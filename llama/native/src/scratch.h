// Memory that a thread keeps from one call to the next.
#pragma once

#include <cstdint>
#include <cstdlib>

namespace llama {

class Scratch {
public:
    Scratch() = default;
    Scratch(const Scratch&) = delete;
    Scratch& operator=(const Scratch&) = delete;
    ~Scratch() { std::free(data_); }

    // At least `count` of them, on a cache line's edge and of any value; null without memory.
    float* floats(int64_t count) {
        if (!data_ || count > count_) {
            std::free(data_);
            const int64_t bytes = count * int64_t{sizeof(float)} / 64 * 64 + 64;
            data_ = static_cast<float*>(std::aligned_alloc(64, bytes));
            count_ = data_ ? count : 0;
        }
        return data_;
    }

private:
    float* data_ = nullptr;
    int64_t count_ = 0;
};

}  // namespace llama
