// The keys by which a drop or a growth selects weights, and thresholds among them.
#pragma once

#include <cstdint>

#include "../rules.h"
#include "../threshold.h"
#include "launch.cuh"

namespace dstee::cuda {

// A growth key is score rank << 32 | signal rank, a drop key drop_key(x) << 32. The order is total, so that no code below has
// to treat ties.
using Threshold = dstee::Threshold<uint64_t, uint32_t>;
constexpr Threshold kPassNone{~uint64_t{0}, 0}, kPassAll{0, ~uint32_t{0}};

__device__ __forceinline__ uint64_t wide_drop_key(float x) { return static_cast<uint64_t>(drop_key(x)) << 32; }

}  // namespace dstee::cuda
