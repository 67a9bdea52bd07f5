// Fourth launch: commits the drop, and the growth but for its undecided weights, which it collects.
//
// Traffic: 8 bytes read for each listed weight; for each selected weight a sector of mask and one of counters read and
// written, for each that becomes inactive one of w and one of m.
#pragma once

#include <cstdint>

#include "launch.cuh"
#include "layer_state.cuh"
#include "lists.cuh"
#include "options.cuh"
#include "table.cuh"
#include "weights.cuh"

namespace dstee::cuda {

// A dropped weight, once it is known whether it grows again.
__device__ __forceinline__ void commit_dropped(const Weights& weights, LayerState& state, uint32_t index, bool regrown) {
  if (!regrown) weights.flip(index, state.end_flips);
  if (!regrown || weights.options.reset_regrown) weights.set_zero(index);
}

__global__ void __launch_bounds__(kThreads, 6)
    commit_kernel(const Table table, const UpdateOptions options, LayerState* states, const Pool pool) {
  for_chunks_of_warp(pool, states, [&](const Chunk& chunk, uint32_t lane) {
    LayerState& state = states[chunk.layer];
    const Row& row = table.rows[chunk.layer];
    const Weights weights(row.layer, row, static_cast<int>(chunk.layer), options, state.gradient, state.seed);
    const int kth_bin = state.grow.kth_bin, undecided_bin = state.grow.undecided_bin();
    for_entries_of_warp(pool.entries + chunk.start, chunk.grow + chunk.drop, lane, [&](uint32_t e, Entry entry) {
      const auto index = static_cast<uint32_t>(entry);
      const bool is_drop = e >= chunk.grow;
      if (is_drop && !(entry & kDropped)) return;
      if (entry & kCannotRegrow) {
        commit_dropped(weights, state, index, false);
      } else if (bin_of(entry) == undecided_bin) {
        pool.add_undecided(state.grow, {weights.grow_key(index, is_drop), index, is_drop});
      } else if (is_drop) {
        commit_dropped(weights, state, index, bin_of(entry) > kth_bin);
      } else if (bin_of(entry) > kth_bin) {
        weights.flip(index, state.end_flips);
      }
    });
  });
}

}  // namespace dstee::cuda
