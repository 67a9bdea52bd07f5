// Third launch: who is dropped. Looks at the listed active weights; those that may grow again enter the growth's bins.
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

struct ResolveStorage {
  SelectStorage select;
  uint32_t finished[kThreads], finished_count;  // layers
};

// Writes the entry of a dropped weight anew.
__device__ __forceinline__ void mark_dropped(const Pool& pool, State& state, const Weights& x, uint32_t index, bool may_grow,
                                             uint32_t at) {
  Entry entry = kDropped | kBeyondGrowth | index;
  if (x.pass.regrow && may_grow) {
    const uint64_t key = x.grow_key(index, true);
    if (takes(state.grow.low, key, index)) {
      const int bin = find_bin(state.grow.splitters, key, index);
      atomicAdd(&state.grow.bins[bin], 1u);
      entry = kDropped | entry_of(index, bin);
    }
  }
  store(&pool.entries[at], entry);
}

// For the block that knows all chunks of the layer done: the finalists of the drop, and where the growth ends.
__device__ __forceinline__ void settle_drop(ResolveStorage& s, const Pool& pool, State& state, const Weights& x) {
  if (state.drop.left > 0) {
    const uint32_t count = fresh(&state.drop.finalist_count);
    const Finalist* finalists = pool.finalists(state.drop);
    auto read = [&](uint32_t f) {
      return Finalist{fresh(&finalists[f].key), fresh(&finalists[f].index), fresh(&finalists[f].tag)};
    };
    const Cut cut = block_select(s.select, state.drop.left, false, 32, 0, [&](auto visit) {
      for (uint32_t f = threadIdx.x; f < count; f += blockDim.x) {
        const Finalist finalist = read(f);
        visit(static_cast<uint32_t>(finalist.key >> 32), [] { return 0u; }, finalist.index);
      }
    });
    for (uint32_t f = threadIdx.x; f < count; f += blockDim.x) {
      const Finalist finalist = read(f);
      if (takes(cut, finalist.key, finalist.index)) mark_dropped(pool, state, x, finalist.index, true, finalist.tag);
    }
  }
  if (x.pass.regrow) {
    __threadfence();
    __syncthreads();
    resolve_bins(s.select.scan, pool, state, state.grow, state.k);
  }
  __syncthreads();
}

__global__ void __launch_bounds__(kThreads, 4)
    select_drop_kernel(const Table table, const Pass pass, State* states, const Pool pool) {
  auto& s = shared<ResolveStorage>();
  for_chunks_of_warp(pool, states, [&](const Chunk& chunk, uint32_t lane) {
    State& state = states[chunk.layer];
    const Weights x(table.rows[chunk.layer].layer, pass, state.gradient, state.seed);
    for (uint32_t e = lane; e < chunk.drop; e += 32) {
      const uint32_t at = chunk.start + chunk.grow + e;
      const Entry entry = load(&pool.entries[at]);
      const auto index = static_cast<uint32_t>(entry);
      if (bin_of(entry) > state.drop.bin)
        mark_dropped(pool, state, x, index, !(entry & kBeyondGrowth), at);
      else if (state.drop.left > 0 && bin_of(entry) == state.drop.bin)
        pool.add_finalist(state.drop, {x.drop_key_at(index), index, at});
    }
  });

  // All chunks of this block are done: report them, and settle the layers that this completes.
  __threadfence();
  __syncthreads();
  const uint32_t chunks = pool.chunk_count(), warps = blockDim.x / 32, mine = gridDim.x * warps;
  for (uint32_t turn = 0; turn / warps * mine < chunks; turn += blockDim.x) {
    if (threadIdx.x == 0) s.finished_count = 0;
    __syncthreads();
    const uint32_t own = turn + threadIdx.x, c = own / warps * mine + blockIdx.x * warps + own % warps;
    if (c < chunks) {
      const Chunk chunk = pool.chunks[chunks - 1 - c];
      State& state = states[chunk.layer];
      if (chunk.grow + chunk.drop && pool.counts(state) && atomicAdd(&state.chunks_done, 1u) + 1 == state.chunks)
        s.finished[atomicAdd(&s.finished_count, 1u)] = chunk.layer;
    }
    __syncthreads();
    __threadfence();
    for (uint32_t f = 0; f < s.finished_count; ++f) {
      State& state = states[s.finished[f]];
      settle_drop(s, pool, state, Weights(table.rows[s.finished[f]].layer, pass, state.gradient, state.seed));
    }
    __syncthreads();
  }
}

}  // namespace dstee::cuda
