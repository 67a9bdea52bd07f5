// Third launch: which weights are dropped. Reads the listed active ones; dropped ones that may grow again enter the growth's
// bins.
//
// Traffic: 8 bytes read for each listed active weight and written for each dropped one; two sectors (signal, counter) read for
// the few of them that may grow again.
#pragma once

#include <cstdint>

#include "bins.cuh"
#include "block_select.cuh"
#include "last_block.cuh"
#include "launch.cuh"
#include "layer_state.cuh"
#include "lists.cuh"
#include "options.cuh"
#include "table.cuh"
#include "threshold.cuh"
#include "weights.cuh"

namespace dstee::cuda {

struct SelectDropStorage {
  SelectStorage select;
  uint32_t finished[kThreads], finished_count;  // layers
};

// Writes the entry of a dropped weight anew. may_grow: its growth key may pass the list threshold.
__device__ __forceinline__ void mark_dropped(const Pool& pool, LayerState& state, const Weights& weights, uint32_t index,
                                             bool may_grow, uint32_t at) {
  Entry entry = kDropped | kCannotRegrow | index;
  if (weights.options.regrow && may_grow) {
    const uint64_t key = weights.grow_key(index, true);
    if (passes(state.grow.list_threshold, key, index)) {
      const int bin = find_bin(state.grow.splitters, key, index);
      atomicAdd(&state.grow.histogram[bin], 1u);
      entry = kDropped | entry_of(index, bin);
    }
  }
  store(&pool.entries[at], entry);
}

// By the block that completes the layer's chunks: the drop's undecided weights, then the growth's k-th bin.
__device__ __forceinline__ void select_undecided(SelectDropStorage& s, const Pool& pool, LayerState& state,
                                                 const Weights& weights) {
  if (state.drop.undecided_k > 0) {
    const uint32_t count = load_volatile(&state.drop.undecided_count);
    const Undecided* undecided = pool.undecided(state.drop);
    auto read = [&](uint32_t u) {
      return Undecided{load_volatile(&undecided[u].key), load_volatile(&undecided[u].index), load_volatile(&undecided[u].tag)};
    };
    const Threshold threshold = block_select(s.select, state.drop.undecided_k, false, 32, 0, [&](auto visit) {
      for (uint32_t u = threadIdx.x; u < count; u += blockDim.x) {
        const Undecided entry = read(u);
        visit(static_cast<uint32_t>(entry.key >> 32), [] { return 0u; }, entry.index);
      }
    });
    for (uint32_t u = threadIdx.x; u < count; u += blockDim.x) {
      const Undecided entry = read(u);
      if (passes(threshold, entry.key, entry.index)) mark_dropped(pool, state, weights, entry.index, true, entry.tag);
    }
  }
  if (weights.options.regrow) {
    __threadfence();
    __syncthreads();
    select_bin(s.select.scan, pool, state, state.grow, state.swaps.grow);
  }
}

__global__ void __launch_bounds__(kThreads, 4)
    select_drop_kernel(const Table table, const UpdateOptions options, LayerState* states, const Pool pool) {
  auto& s = shared<SelectDropStorage>();
  for_chunks_of_warp(pool, states, [&](const Chunk& chunk, uint32_t lane) {
    LayerState& state = states[chunk.layer];
    const Row& row = table.rows[chunk.layer];
    const Weights weights(row.layer, row, static_cast<int>(chunk.layer), options, state.gradient, state.seed);
    const int kth_bin = state.drop.kth_bin, undecided_bin = state.drop.undecided_bin();
    const uint32_t start = chunk.start + chunk.grow;
    for_entries_of_warp(pool.entries + start, chunk.drop, lane, [&](uint32_t e, Entry entry) {
      const auto index = static_cast<uint32_t>(entry);
      if (bin_of(entry) > kth_bin)
        mark_dropped(pool, state, weights, index, !(entry & kCannotRegrow), start + e);
      else if (bin_of(entry) == undecided_bin)
        pool.add_undecided(state.drop, {weights.drop_key_at(index), index, start + e});
    });
  });

  // All chunks of this block are done: report them, and decide for the layers that this completes.
  __threadfence();
  const uint32_t chunks = pool.chunk_count(), warps = blockDim.x / 32, mine = gridDim.x * warps;
  for (uint32_t turn = 0; turn / warps * mine < chunks; turn += blockDim.x) {
    if (threadIdx.x == 0) s.finished_count = 0;
    __syncthreads();  // of the first turn: all warps' chunks are done
    const uint32_t own = turn + threadIdx.x, c = own / warps * mine + blockIdx.x * warps + own % warps;
    if (c < chunks) {
      const Chunk chunk = pool.chunks[chunks - 1 - c];
      LayerState& state = states[chunk.layer];
      if (chunk.grow + chunk.drop && pool.usable(state) && atomicAdd(&state.chunks_done, 1u) + 1 == state.chunks)
        s.finished[atomicAdd(&s.finished_count, 1u)] = chunk.layer;
    }
    __syncthreads();
    __threadfence();
    for (uint32_t f = 0; f < s.finished_count; ++f) {
      const uint32_t index = s.finished[f];
      const Row& row = table.rows[index];
      LayerState& state = states[index];
      const Weights weights(row.layer, row, static_cast<int>(index), options, state.gradient, state.seed);
      select_undecided(s, pool, state, weights);
    }
    __syncthreads();
  }
}

}  // namespace dstee::cuda
