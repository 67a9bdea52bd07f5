// A layer whose sample misled or whose lists were full, by scans of all of it.
#pragma once

#include <cstdint>

#include "block_select.cuh"
#include "group.cuh"
#include "threshold.cuh"
#include "weights.cuh"

namespace dstee::cuda {

// One block; each digit of the keys is one scan.
__device__ __forceinline__ void update_by_scans(SelectStorage& s, const Weights& weights, const Swaps& swaps) {
  const int64_t n = weights.layer.n;
  const int index_bits = 32 - __clz(static_cast<int>(static_cast<uint32_t>(n - 1)));
  Threshold drop = kPassNone, grow = kPassNone;
  auto each_active = [&](auto visit) {
    for (int64_t i = threadIdx.x * kGroup; i < n; i += blockDim.x * kGroup) {
      const int count = group_size(n, i);
      const uint32_t active = active_lanes(weights.layer, i, count);
      uint64_t keys[kGroup];
      weights.drop_keys(i, count, active, keys);
#pragma unroll
      for (int j = 0; j < kGroup; ++j)
        if (active >> j & 1) visit(static_cast<uint32_t>(keys[j] >> 32), [] { return 0u; }, static_cast<uint32_t>(i + j));
    }
  };
  if (swaps.drop > 0) drop = block_select(s, swaps.drop, false, index_bits, 0, each_active);
  auto dropped_lanes = [&](int64_t i, int count, uint32_t active) {
    uint64_t keys[kGroup];
    uint32_t dropped = 0;
    weights.drop_keys(i, count, active, keys);
#pragma unroll
    for (int j = 0; j < kGroup; ++j)
      dropped |= static_cast<uint32_t>(active >> j & 1 && passes(drop, keys[j], static_cast<uint32_t>(i + j))) << j;
    return dropped;
  };
  auto candidates = [&](int count, uint32_t active, uint32_t dropped) {
    return (~active & ((1u << count) - 1)) | (weights.options.regrow ? dropped : 0);
  };
  auto each_candidate = [&](auto visit) {
    for (int64_t i = threadIdx.x * kGroup; i < n; i += blockDim.x * kGroup) {
      const int count = group_size(n, i);
      const uint32_t active = active_lanes(weights.layer, i, count);
      const uint32_t lanes = candidates(count, active, weights.options.regrow && active ? dropped_lanes(i, count, active) : 0);
      uint64_t keys[kGroup];
      weights.grow_keys(i, count, active, lanes, keys);
#pragma unroll
      for (int j = 0; j < kGroup; ++j)
        if (lanes >> j & 1)
          visit(
              static_cast<uint32_t>(keys[j] >> 32), [&] { return static_cast<uint32_t>(keys[j]); },
              static_cast<uint32_t>(i + j));
    }
  };
  if (swaps.grow > 0)
    grow = block_select(s, swaps.grow, static_cast<bool>(weights.options.bonus), index_bits, 0, each_candidate);
  for (int64_t i = threadIdx.x * kGroup; i < n; i += blockDim.x * kGroup) {
    const int count = group_size(n, i);
    const uint32_t active = active_lanes(weights.layer, i, count);
    const uint32_t dropped = active ? dropped_lanes(i, count, active) : 0, lanes = candidates(count, active, dropped);
    uint64_t keys[kGroup];
    uint32_t grown = 0;
    weights.grow_keys(i, count, active, lanes, keys);
#pragma unroll
    for (int j = 0; j < kGroup; ++j)
      grown |= static_cast<uint32_t>(lanes >> j & 1 && passes(grow, keys[j], static_cast<uint32_t>(i + j))) << j;
    weights.commit_group(i, count, active, dropped, grown);
  }
}

}  // namespace dstee::cuda
