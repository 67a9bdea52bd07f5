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

// The rank in the sample, best first, that the k-th weight of the layer almost surely does not fall behind; `expected` of the
// sampled weights are among the first k on average. A loose rank costs some room in a list, a missed one a second look at the
// layer. Selected weights may come in runs as long as a sampled group of 8, which makes the spread sqrt(8) times that of single
// draws. The CPU's law (csrc/cpu) is tighter: all its threads share the second look, here one block has it alone. kernels/
// repeats this one.
template <class F>
DSTEE_HD F sample_rank(F expected) {
  return F(1.25) * expected + F(10) * std::sqrt(expected) + F(16);
}

}  // namespace dstee::cuda
