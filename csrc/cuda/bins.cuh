// Bins of listed weights, between splitters from the sample.
#pragma once

#include <cstdint>

#include "block_scan.cuh"
#include "last_block.cuh"
#include "layer_state.cuh"
#include "lists.cuh"
#include "table.cuh"
#include "threshold.cuh"

namespace dstee::cuda {

// How many splitters stand at the weight's place or behind it. Whatever the splitters hold, a weight that comes first never
// gets the lower bin: each step is one threshold. So they need not be good for the result to be right.
__device__ __forceinline__ int find_bin(const Cut* splitters, uint64_t key, uint32_t index) {
  int bin = 0;
#pragma unroll
  for (int step = kBins / 2; step > 0; step /= 2)
    if (takes(splitters[bin + step - 1], key, index)) bin += step;
  return bin;
}

// Finds the bin that holds the k-th of the listed weights. One block of kBins threads.
__device__ __forceinline__ void resolve_bins(ScanStorage& s, const Pool& pool, State& state, Side& side, uint32_t k) {
  static_assert(kBins == kThreads);
  const int bin = kBins - 1 - static_cast<int>(threadIdx.x);
  const uint32_t count = fresh(&side.bins[bin]);
  uint32_t total;
  const uint32_t before = block_scan(s, count, &total);
  if (total < k) {
    if (threadIdx.x == 0) atomicOr(&state.flagged, 1u);
  } else if (before < k && k <= before + count) {
    const uint32_t left = k - before;
    side.bin = left == count ? bin - 1 : bin;
    side.left = left == count ? 0 : left;
    if (left < count) side.finalists = pool.reserve_finalists(state, count);
  }
}

}  // namespace dstee::cuda
