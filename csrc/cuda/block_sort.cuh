// Sorting within one block.
#pragma once

#include "launch.cuh"
#include "threshold.cuh"

namespace dstee::cuda {

// Sorts lists that lie one behind the other, each of a power of two of thresholds, so that a later one is passed by fewer
// weights. All threads of the block call it; `lists * size / 2` of them, whole warps, sort a pair at a time.
template <int lists, int size>
__device__ __forceinline__ void block_sort(Threshold* x) {
  for (unsigned run = 2; run <= size; run *= 2)  // bitonic
    for (unsigned step = run / 2; step > 0; step /= 2) {
      if (step >= 32 || run == 2)
        __syncthreads();
      else
        __syncwarp();  // a warp's 32 pairs are the 64 neighbours of the step before
      if (threadIdx.x >= lists * size / 2) continue;
      const unsigned low = 2 * threadIdx.x - (threadIdx.x & (step - 1)), high = low + step;
      const bool ascending = (low % size & run) == 0;
      const Threshold a = x[low], b = x[high];
      if (passes(b, a.key, a.index) == ascending) x[low] = b, x[high] = a;
    }
  __syncthreads();
}

}  // namespace dstee::cuda
