// Prefix sums over the threads of a warp or of one block.
#pragma once

#include <cstdint>

#include "launch.cuh"

namespace dstee::cuda {

// The sum over the lanes up to this one.
__device__ __forceinline__ uint32_t warp_scan(uint32_t x) {
#pragma unroll
  for (unsigned step = 1; step < 32; step *= 2) {
    const uint32_t other = __shfl_up_sync(~0u, x, step);
    if (threadIdx.x % 32 >= step) x += other;
  }
  return x;
}

struct ScanStorage {
  uint32_t sums[32];
};

// The sum over the threads before this one. *total: over all.
__device__ __forceinline__ uint32_t block_scan(ScanStorage& s, uint32_t x, uint32_t* total) {
  const unsigned lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = blockDim.x / 32;
  const uint32_t sum = warp_scan(x);
  if (lane == 31) s.sums[warp] = sum;
  __syncthreads();
  uint32_t before = 0;
  *total = 0;
  for (unsigned w = 0; w < warps; ++w) {
    if (w < warp) before += s.sums[w];
    *total += s.sums[w];
  }
  __syncthreads();
  return before + sum - x;
}

}  // namespace dstee::cuda
