// The block that is the last to finish a layer, and how it reads what the others wrote.
#pragma once

#include <cstdint>

#include "launch.cuh"

namespace dstee::cuda {

// A value that another block of this launch wrote, past the first-level cache.
template <class T>
__device__ __forceinline__ T load_volatile(const T* p) {
  return *static_cast<const volatile T*>(p);
}

// True in every thread of the block that completes the count to `all`: what the other blocks wrote before is there.
__device__ __forceinline__ bool is_last_block(uint32_t* counter, uint32_t share, uint32_t all, bool& flag) {
  __threadfence();
  __syncthreads();
  if (threadIdx.x == 0) flag = atomicAdd(counter, share) + share == all;
  __syncthreads();
  __threadfence();
  return flag;
}

}  // namespace dstee::cuda
