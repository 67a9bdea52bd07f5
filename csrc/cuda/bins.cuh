// The bins of listed weights between splitters from the sample.
#pragma once

#include <cstdint>

#include "block_scan.cuh"
#include "last_block.cuh"
#include "layer_state.cuh"
#include "lists.cuh"
#include "table.cuh"
#include "threshold.cuh"

namespace dstee::cuda {

// The number of splitters that the weight passes. Each step is one threshold, so that whatever the splitters hold, the earlier
// of two weights never gets the lower bin: a poor sample makes bins uneven, never a result wrong.
__device__ __forceinline__ int find_bin(const Threshold* splitters, uint64_t key, uint32_t index) {
  int bin = 0;
#pragma unroll
  for (int step = kBins / 2; step > 0; step /= 2)
    if (passes(splitters[bin + step - 1], key, index)) bin += step;
  return bin;
}

// The same by the upper halves of the keys, which nearly always tell. `upper`: those of the splitters.
__device__ __forceinline__ int find_bin(const uint32_t* upper, const Threshold* splitters, uint64_t key, uint32_t index) {
  const auto own = static_cast<uint32_t>(key >> 32);
  int bin = 0;
#pragma unroll
  for (int step = kBins / 2; step > 0; step /= 2)
    if (own > upper[bin + step - 1]) bin += step;
  return own == upper[bin] ? find_bin(splitters, key, index) : bin;
}

// Finds the bin of the k-th of the listed weights. One block of kBins threads.
__device__ __forceinline__ void select_bin(ScanStorage& s, const Pool& pool, LayerState& state, SideState& side, uint32_t k) {
  static_assert(kBins == kThreads);
  const int bin = kBins - 1 - static_cast<int>(threadIdx.x);
  const uint32_t count = load_volatile(&side.histogram[bin]);
  uint32_t total;
  const uint32_t before = block_scan(s, count, &total);
  if (total < k) {
    if (threadIdx.x == 0) atomicOr(&state.needs_fallback, 1u);
  } else if (before < k && k <= before + count) {
    const uint32_t left = k - before;  // to be selected in this bin; all of it: then the bin below is the first that is not
    side.kth_bin = left == count ? bin - 1 : bin;
    side.undecided_k = left == count ? 0 : left;
    if (left < count) side.undecided_start = pool.reserve_undecided(state, count);
  }
}

}  // namespace dstee::cuda
