// How many weights of a large layer are sampled, and how far down the sample the last selected weight of the layer may stand.
#pragma once

#include <cmath>
#include <cstdint>

#include "../rules.h"

namespace dstee::cuda {

constexpr uint32_t kLeastSampled = 1 << 11, kMostSampled = 1 << 13;

DSTEE_HD uint32_t sample_size(int64_t n) {
  const auto size = static_cast<uint32_t>(n / 64);
  return size < kLeastSampled ? kLeastSampled : size > kMostSampled ? kMostSampled : size;
}

// The rank in the sample, first to last, behind which the k-th weight of the layer almost surely does not stand; `expected`:
// how many of the first k are sampled on average. A loose rank costs some room in a list, a missed one the layer's fallback.
// Neighbours may be selected together, which makes the spread sqrt(8) times that of single draws.
//
// The CPU has a tighter law (csrc/cpu/sample.cpp): there all threads share a fallback, here one block does it alone.
// kernels/_sample_size.py has this law, for a smaller sample; bench/cuda_traffic.py models it.
template <class F>
DSTEE_HD F sample_rank(F expected) {
  return F(1.25) * expected + F(10) * std::sqrt(expected) + F(16);
}

}  // namespace dstee::cuda
