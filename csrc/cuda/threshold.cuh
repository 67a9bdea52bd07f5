// The order in which a drop or a growth selects weights, and thresholds in it.
#pragma once

#include <cstdint>

#include "../rules.h"
#include "launch.cuh"

namespace dstee::cuda {

// Larger keys first, among equal ones smaller indices. A growth key is score rank << 32 | signal rank, a drop key
// drop_key(x) << 32. The order is total, so that no code below has to treat ties.
struct Threshold {
  uint64_t key;
  uint32_t index;
};

// The weight comes before the threshold or is the one that it names.
DSTEE_HD bool passes(const Threshold& threshold, uint64_t key, uint32_t index) {
  return key > threshold.key || (key == threshold.key && index <= threshold.index);
}
constexpr Threshold kPassNone{~uint64_t{0}, 0}, kPassAll{0, ~uint32_t{0}};

__device__ __forceinline__ uint64_t wide_drop_key(float x) { return static_cast<uint64_t>(drop_key(x)) << 32; }

}  // namespace dstee::cuda
