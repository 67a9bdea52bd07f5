// A small layer: one block updates it from the step to the commit, with its keys in shared memory.
//
// Traffic per weight: what the update must move, the signal and counter of ties twice.
#pragma once

#include <cstdint>

#include "../rules.h"
#include "block_select.cuh"
#include "group.cuh"
#include "layer_state.cuh"
#include "masked_sgd.cuh"
#include "threshold.cuh"
#include "weights.cuh"

namespace dstee::cuda {

struct SmallLayerStorage {
  uint32_t nnz;
  uint8_t active[kSmallLayer / kGroup], dropped[kSmallLayer / kGroup];
};

// upper: the upper half of each weight's key, an active one's for the drop, any other's for the growth.
__device__ __forceinline__ void update_small_layer(SelectStorage& select, SmallLayerStorage& s, uint32_t* upper,
                                                   const Weights& weights, const Swaps& wanted, const void* gradient,
                                                   bool with_step, const SgdRule& rule) {
  const auto n = static_cast<uint32_t>(weights.layer.n);
  const bool ranked = wanted.any();
  if (threadIdx.x == 0) s.nnz = 0;
  __syncthreads();
  for (uint32_t i = threadIdx.x * kGroup; i < n; i += blockDim.x * kGroup) {
    const int count = group_size(n, i);
    const uint32_t active = active_lanes(weights.layer, i, count);
    if (active && with_step) {
      float g[kGroup];
      load_group(gradient, weights.layer.dtype, i, count, g);
      step_group(weights.layer, i, count, active, g, rule);
    }
    if (!ranked) continue;
    s.active[i / kGroup] = static_cast<uint8_t>(active);
    if (active) atomicAdd(&s.nnz, static_cast<uint32_t>(__popc(active)));
    uint64_t drop[kGroup], grow[kGroup];
    weights.drop_keys(i, count, active, drop);
    weights.grow_keys(i, count, active, ~active & ((1u << count) - 1), grow);
#pragma unroll
    for (int j = 0; j < kGroup; ++j)
      if (j < count) upper[i + j] = static_cast<uint32_t>((active >> j & 1 ? drop[j] : grow[j]) >> 32);
  }
  if (!ranked) return;
  __syncthreads();
  const Swaps swaps = clipped(wanted, s.nnz, n, weights.options);
  if (!swaps.any()) return;

  const int index_bits = 32 - __clz(static_cast<int>(n - 1));
  Threshold drop = kPassNone, grow = kPassNone;
  auto each_active = [&](auto visit) {
    for (uint32_t i = threadIdx.x; i < n; i += blockDim.x)
      if (s.active[i / kGroup] >> i % kGroup & 1) visit(upper[i], [] { return 0u; }, i);
  };
  if (swaps.drop > 0) drop = block_select(select, swaps.drop, false, index_bits, 0, each_active);
  for (uint32_t i = threadIdx.x * kGroup; i < n; i += blockDim.x * kGroup) {
    const uint32_t active = s.active[i / kGroup];
    uint32_t dropped = 0;
    for (int j = 0; j < kGroup; ++j)
      if (active >> j & 1 && passes(drop, static_cast<uint64_t>(upper[i + j]) << 32, i + j)) {
        dropped |= 1u << j;
        if (weights.options.regrow) upper[i + j] = static_cast<uint32_t>(weights.grow_key(i + j, true) >> 32);
      }
    s.dropped[i / kGroup] = static_cast<uint8_t>(dropped);
  }
  __syncthreads();

  auto is_candidate = [&](uint32_t i) {
    const uint32_t lane = i % kGroup, active = s.active[i / kGroup], dropped = s.dropped[i / kGroup];
    return ((~active | (weights.options.regrow ? dropped : 0)) >> lane & 1) != 0;
  };
  auto lower = [&](uint32_t i) { return static_cast<uint32_t>(weights.grow_key(i, s.active[i / kGroup] >> i % kGroup & 1)); };
  const bool has_lower = static_cast<bool>(weights.options.bonus);
  auto each_candidate = [&](auto visit) {
    for (uint32_t i = threadIdx.x; i < n; i += blockDim.x)
      if (is_candidate(i)) visit(upper[i], [&] { return lower(i); }, i);
  };
  if (swaps.grow > 0) grow = block_select(select, swaps.grow, has_lower, index_bits, 0, each_candidate);
  for (uint32_t i = threadIdx.x * kGroup; i < n; i += blockDim.x * kGroup) {
    const int count = group_size(n, i);
    uint32_t grown = 0;
    for (int j = 0; j < count; ++j) {
      if (!is_candidate(i + j)) continue;
      uint64_t key = static_cast<uint64_t>(upper[i + j]) << 32;
      if (has_lower && key >> 32 == grow.key >> 32) key |= lower(i + j);
      grown |= static_cast<uint32_t>(passes(grow, key, i + j)) << j;
    }
    weights.commit_group(i, count, s.active[i / kGroup], s.dropped[i / kGroup], grown);
  }
}

}  // namespace dstee::cuda
