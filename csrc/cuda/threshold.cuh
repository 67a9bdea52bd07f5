// The order of the weights in a drop or a growth, and thresholds in it.
#pragma once

#include <cstdint>

#include "../rules.h"
#include "launch.cuh"

namespace dstee::cuda {

// Winners come first: larger keys, among equal ones smaller indices. A growth key is score rank << 32 | signal rank, a drop key
// (kMaxRank - rank) << 32. No two weights share a place, so that nothing below has to treat ties.
struct Cut {
  uint64_t key;
  uint32_t index;
};

// The weight stands at the cut or before it.
DSTEE_HD bool takes(const Cut& cut, uint64_t key, uint32_t index) {
  return key > cut.key || (key == cut.key && index <= cut.index);
}
constexpr Cut kNobody{~uint64_t{0}, 0}, kEverybody{0, ~uint32_t{0}};

__device__ __forceinline__ uint64_t wide_drop_key(float x) { return static_cast<uint64_t>(drop_key(x)) << 32; }

}  // namespace dstee::cuda
