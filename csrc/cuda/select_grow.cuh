// Last launch, one block a layer: the growth's undecided weights, or the fallback.
//
// Traffic: 16 bytes for each undecided weight, and the commit of the selected ones. A layer that falls back is read about ten
// times over.
#pragma once

#include <cstdint>

#include "block_select.cuh"
#include "commit.cuh"
#include "fallback.cuh"
#include "launch.cuh"
#include "layer_state.cuh"
#include "lists.cuh"
#include "options.cuh"
#include "table.cuh"
#include "threshold.cuh"
#include "weights.cuh"

namespace dstee::cuda {

__device__ __forceinline__ void grow_undecided(SelectStorage& s, const Pool& pool, LayerState& state, const Weights& weights) {
  const uint32_t count = state.grow.undecided_count;
  const Undecided* undecided = pool.undecided(state.grow);
  const Threshold threshold =
      block_select(s, state.grow.undecided_k, static_cast<bool>(weights.options.bonus), 32, 0, [&](auto visit) {
        for (uint32_t u = threadIdx.x; u < count; u += blockDim.x) {
          const Undecided entry = load(&undecided[u]);
          visit(static_cast<uint32_t>(entry.key >> 32), [&] { return static_cast<uint32_t>(entry.key); }, entry.index);
        }
      });
  for (uint32_t u = threadIdx.x; u < count; u += blockDim.x) {
    const Undecided entry = load(&undecided[u]);
    const bool grows = passes(threshold, entry.key, entry.index);
    if (entry.tag)
      commit_dropped(weights, state, entry.index, grows);
    else if (grows)
      weights.flip(entry.index, state.end_flips);
  }
}

__global__ void __launch_bounds__(2 * kThreads)
    select_grow_kernel(const Table table, const UpdateOptions options, LayerState* states, const Pool pool) {
  auto& s = shared<SelectStorage>();
  const Row& row = table.rows[blockIdx.x];
  if (row.layer.n <= kSmallLayer) return;
  LayerState& state = states[blockIdx.x];
  if (!state.swaps.any()) return;
  const Weights weights(row.layer, row, static_cast<int>(blockIdx.x), options, state.gradient, state.seed);
  if (state.needs_fallback) {
    update_by_scans(s, weights, state.swaps);
    return;
  }
  if (state.grow.undecided_k) grow_undecided(s, pool, state, weights);
  __syncthreads();
  if (threadIdx.x == 0) weights.flip_ends(state.end_flips);
}

}  // namespace dstee::cuda
