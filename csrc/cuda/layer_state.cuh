// What the launches of one update hand on to each other: the state of each layer that many blocks share.
#pragma once

#include <cstdint>

#include "threshold.cuh"

namespace dstee::cuda {

constexpr uint32_t kSmallLayer = 1 << 14;  // up to so many weights one block updates a layer by itself
constexpr int kBins = 256;                 // of listed keys, between keys of the sample

// One side, drop or growth, of a layer that many blocks share.
struct Side {
  Cut low;                  // whoever stands behind it is not listed
  Cut splitters[kBins];     // from the last to the first: bin b lies between splitters b - 1 and b
  uint32_t bins[kBins];     // listed weights
  int32_t bin;              // bins above it win as a whole
  uint32_t left;            // winners still sought in it, the finalists
  uint32_t finalists;       // their place in the pool
  uint32_t finalist_count;  // written so far
};

struct alignas(16) State {
  const void* gradient;
  uint64_t seed;
  uint32_t k, nnz;
  uint32_t tiles_done, chunks, chunks_done;
  uint32_t flagged;  // the sample misled, or a list was full: the last launch does the whole layer
  Side drop, grow;
};
static_assert(sizeof(State) % 16 == 0, "what lies behind the states moves 16 bytes at a time");

}  // namespace dstee::cuda
