// Third launch: who is dropped. Looks at the listed active weights; those that may grow again enter the growth's bins.
//
// Traffic: 8 bytes read for each listed active weight and written for each dropped one; two sectors (signal, counter) read for
// the few of them that may grow again.
#pragma once

#include "sweep.cuh"

namespace dstee::cuda {

struct ResolveStorage {
  SelectStorage select;
  Cut splitters[kBins];
  bool last;
};

// Writes the entry of a dropped weight anew.
__device__ __forceinline__ void mark_dropped(const ResolveStorage& s, const Pool& pool, State& state, const Weights& x,
                                             uint32_t index, bool may_grow, uint32_t at) {
  Entry entry = kDropped | kBeyondGrowth | index;
  if (x.pass.regrow && may_grow) {
    const uint64_t key = x.grow_key(index, true);
    if (takes(state.grow.low, key, index)) {
      const int bin = find_bin(s.splitters, key, index);
      atomicAdd(&state.grow.bins[bin], 1u);
      entry = kDropped | entry_of(index, bin);
    }
  }
  store(&pool.entries[at], entry);
}

__global__ void __launch_bounds__(kThreads, 4)
    resolve_kernel(const Table table, const Pass pass, State* states, const Pool pool) {
  auto& s = shared<ResolveStorage>();
  const uint32_t chunks = pool.chunk_count();
  for (uint32_t c = blockIdx.x; c < chunks; c += gridDim.x) {
    const Chunk chunk = load(&pool.chunks[chunks - 1 - c]);  // the latest first: it may still be in the cache
    State& state = states[chunk.layer];
    if (chunk.grow + chunk.drop == 0 || state.k == 0 || fresh(&state.flagged)) continue;
    const Row& row = table.rows[chunk.layer];
    const Weights x(row.layer, pass, state.gradient, state.seed);
    if (pass.regrow) s.splitters[threadIdx.x] = state.grow.splitters[threadIdx.x];
    __syncthreads();
    for (uint32_t e = threadIdx.x; e < chunk.drop; e += blockDim.x) {
      const uint32_t at = chunk.start + chunk.grow + e;
      const Entry entry = load(&pool.entries[at]);
      const auto index = static_cast<uint32_t>(entry);
      if (bin_of(entry) > state.drop.bin)
        mark_dropped(s, pool, state, x, index, !(entry & kBeyondGrowth), at);
      else if (state.drop.left > 0 && bin_of(entry) == state.drop.bin)
        pool.add_finalist(state.drop, {x.drop_key_at(index), index, at});
    }
    if (!is_last(&state.chunks_done, 1, state.chunks, s.last)) continue;

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
        if (takes(cut, finalist.key, finalist.index)) mark_dropped(s, pool, state, x, finalist.index, true, finalist.tag);
      }
    }
    if (pass.regrow) {
      __threadfence();
      __syncthreads();
      resolve_bins(s.select.scan, pool, state, state.grow, state.k);
    }
    __syncthreads();
  }
}

}  // namespace dstee::cuda
