// Fourth launch: applies the lists, but for the finalists of the growth.
//
// Traffic: 8 bytes read for each listed weight; for each winner a sector of mask and one of counters read and written, for each
// weight that goes one of w and one of m.
#pragma once

#include <cstdint>

#include "launch.cuh"
#include "layer_state.cuh"
#include "lists.cuh"
#include "options.cuh"
#include "table.cuh"
#include "weights.cuh"

namespace dstee::cuda {

// An active weight that was dropped, at the moment when it is known whether it grows again.
__device__ __forceinline__ void finish_dropped(const Weights& x, uint32_t index, bool regrown) {
  if (!regrown) x.swap(index);
  if (!regrown || x.pass.reset_regrown) x.clear(index);
}

__global__ void __launch_bounds__(kThreads, 4)
    commit_kernel(const Table table, const Pass pass, State* states, const Pool pool) {
  for_chunks_of_warp(pool, states, [&](const Chunk& chunk, uint32_t lane) {
    State& state = states[chunk.layer];
    const Weights x(table.rows[chunk.layer].layer, pass, state.gradient, state.seed);
    for (uint32_t e = lane; e < chunk.grow + chunk.drop; e += 32) {
      const Entry entry = load(&pool.entries[chunk.start + e]);
      const auto index = static_cast<uint32_t>(entry);
      const bool is_drop = e >= chunk.grow;
      if (is_drop && !(entry & kDropped)) continue;
      if (entry & kBeyondGrowth) {
        finish_dropped(x, index, false);
      } else if (state.grow.left > 0 && bin_of(entry) == state.grow.bin) {
        pool.add_finalist(state.grow, {x.grow_key(index, is_drop), index, is_drop});
      } else if (is_drop) {
        finish_dropped(x, index, bin_of(entry) > state.grow.bin);
      } else if (bin_of(entry) > state.grow.bin) {
        x.swap(index);
      }
    }
  });
}

}  // namespace dstee::cuda
