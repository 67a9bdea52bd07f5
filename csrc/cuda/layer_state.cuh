// What the launches of one update know of each large layer, of which many blocks share one.
#pragma once

#include <cstdint>

#include "options.cuh"
#include "threshold.cuh"

namespace dstee::cuda {

constexpr uint32_t kSmallLayer = 1 << 14;  // up to so many weights one block updates a layer by itself
constexpr int kBins = 256;                 // of listed keys, between splitters from the sample

// One side of a layer's update, drop or growth. Bins part the listed weights, from the end of the order: bin b lies between
// splitters b - 1 and b. The weights of the k-th key's bin are undecided until they are compared with each other.
struct SideState {
  Threshold list_threshold;  // only weights that pass it are listed
  Threshold splitters[kBins];
  uint32_t histogram[kBins];  // listed weights in each bin
  int32_t kth_bin;            // bins above it are selected whole
  uint32_t undecided_k;       // how many weights of kth_bin are selected; 0: none, and no weight is undecided
  uint32_t undecided_start;   // place of the undecided in the pool
  uint32_t undecided_count;   // written so far

  __device__ __forceinline__ int undecided_bin() const { return undecided_k > 0 ? kth_bin : -1; }
};

struct alignas(16) LayerState {
  const void* gradient;
  uint64_t seed;
  Swaps swaps;
  uint32_t nnz;
  uint32_t tiles_done, chunks, chunks_done;
  uint32_t needs_fallback;  // the sample misled, or a list was full
  uint32_t end_flips[2];    // of mask bits in the words at its start and end that are not the mask's alone
  SideState drop, grow;
};
static_assert(sizeof(LayerState) % 16 == 0, "what lies behind the states moves 16 bytes at a time");

}  // namespace dstee::cuda
