// What the compiled kernels share: vectors, exp, tensors by token, workspaces, threads.

#pragma once

#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <memory>
#include <new>
#include <thread>
#include <type_traits>
#include <utility>
#include <vector>


#if defined(__AVX512F__)
constexpr int W = 16;
#elif defined(__AVX__)
constexpr int W = 8;
#else
constexpr int W = 4;
#endif
typedef float Vec __attribute__((vector_size(W * sizeof(float)), may_alias));

inline Vec& at(float* p) { return *reinterpret_cast<Vec*>(p); }
inline const Vec& at(const float* p) { return *reinterpret_cast<const Vec*>(p); }

// exp of numbers up to 0, to 2 units in the last place; 0 below the smallest normal number.
inline Vec exp_of(Vec x) {
    typedef int32_t Int __attribute__((vector_size(sizeof(Vec))));
    const Vec lowest = -87.33f + Vec{}, clamped = x < lowest ? lowest : x;
    const Vec shifted = clamped * 1.44269504f + 12582912.0f;  // rounds to an integer in low bits
    const Vec n = shifted - 12582912.0f;
    const Vec r = (clamped - n * 0.693359375f) + n * 2.12194440e-4f;
    Vec y = 1.9875691500e-4f * r + 1.3981999507e-3f;
    y = y * r + 8.3334519073e-3f;
    y = y * r + 4.1665795894e-2f;
    y = y * r + 1.6666665459e-1f;
    y = y * r + 5.0000001201e-1f;
    y = y * (r * r) + r + 1.0f;
    Int bits, power = __builtin_convertvector(n, Int);
    std::memcpy(&bits, &y, sizeof bits);
    bits += power << 23;
    std::memcpy(&y, &bits, sizeof y);
    return x < lowest ? Vec{} : y;
}

enum Type : int64_t { FLOAT32, BFLOAT16 };

inline float widen(uint16_t x) {
    const uint32_t bits = uint32_t(x) << 16;
    float y;
    std::memcpy(&y, &bits, 4);
    return y;
}
inline uint16_t narrow(float x) {  // to nearest, ties to even; NaN stays NaN
    uint32_t bits;
    std::memcpy(&bits, &x, 4);
    if ((bits & 0x7fffffff) > 0x7f800000) return uint16_t((bits >> 16) | 0x40);
    return uint16_t((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

inline int padded(int n) { return (n + W - 1) / W * W; }

struct Array {  // (B, T, H, D): strides in elements, of D one
    void* data;
    int64_t batch, token, head, type;
};


// Copies the channels of some tokens of a sequence and head to float32 rows, and back.
inline void load_rows(const Array& from, int64_t row, int64_t head, int64_t first, int tokens,
                      int width, float* to, int stride) {
    for (int t = 0; t < tokens; t++) {
        const int64_t offset = row * from.batch + (first + t) * from.token + head * from.head;
        float* target = to + t * stride;
        if (from.type == FLOAT32) {
            std::memcpy(target, static_cast<const float*>(from.data) + offset, width * 4);
        } else {
            const auto* source = static_cast<const uint16_t*>(from.data) + offset;
            for (int i = 0; i < width; i++) target[i] = widen(source[i]);
        }
    }
}
inline void save_rows(const float* from, int stride, const Array& to, int64_t row, int64_t head,
                      int64_t first, int tokens, int width) {
    for (int t = 0; t < tokens; t++) {
        const int64_t offset = row * to.batch + (first + t) * to.token + head * to.head;
        const float* source = from + t * stride;
        if (to.type == FLOAT32) {
            std::memcpy(static_cast<float*>(to.data) + offset, source, width * 4);
        } else {
            auto* target = static_cast<uint16_t*>(to.data) + offset;
            for (int i = 0; i < width; i++) target[i] = narrow(source[i]);
        }
    }
}

struct Workspace {  // zeros, in pieces that begin at a cache line
    std::vector<float> memory;
    float* next;
    explicit Workspace(size_t floats) : memory(floats + 16 * 32) {
        const auto address = reinterpret_cast<uintptr_t>(memory.data());
        next = memory.data() + ((64 - address % 64) % 64) / sizeof(float);
    }
    float* take(size_t floats) {
        float* result = next;
        next += (floats + 15) / 16 * 16;
        return result;
    }
};

// Runs `work(job, flag)` for all jobs on some threads. 0; 1 where memory ends; 2 where a job set
// the flag.
template <class F> int run_jobs(int64_t jobs, int64_t threads, F work) {
    std::atomic<int64_t> next{0};
    std::atomic<int> result{0};
    auto worker = [&] {
        bool flag = false;
        try {
            for (int64_t i = next++; i < jobs && !result; i = next++) work(i, flag);
        } catch (...) {
            result = 1;
        }
        if (flag && !result) result = 2;
    };
    std::vector<std::thread> others;
    try {
        for (int64_t i = 1; i < threads && i < jobs; i++) others.emplace_back(worker);
    } catch (...) {  // no more threads to be had: those that are there do the work
    }
    worker();
    for (auto& thread : others) thread.join();
    return result;
}
