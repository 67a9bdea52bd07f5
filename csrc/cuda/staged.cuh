// Weights on their way from the sweep to the lists, each warp for itself. They wait as mere indices until they keep all lanes
// busy; those that pass the list threshold stay, now with their bin, until they fill a chunk.
#pragma once

#include <cstdint>

#include "bins.cuh"
#include "block_scan.cuh"
#include "group.cuh"
#include "launch.cuh"
#include "layer_state.cuh"
#include "lists.cuh"
#include "threshold.cuh"

namespace dstee::cuda {

constexpr int kWarps = kThreads / 32;
constexpr uint32_t kRun = 2 * kGroup;         // neighbouring weights of a lane
constexpr uint32_t kWarpWeights = 32 * kRun;  // that a warp goes through at a time; all of them may have to wait
constexpr uint32_t kEnough = 192;             // staged weights at which a warp looks at those that wait
constexpr uint32_t kChunk = 96;               // listed weights that a warp writes by itself
constexpr uint32_t kStaged = kEnough + kWarpWeights;

enum Side { kGrow, kDrop };

struct StagedStorage {
  Threshold threshold[2];
  const Threshold* splitters[2];
  uint32_t upper[2][kBins];         // halves of the splitters' keys
  uint32_t histogram[2][kBins];     // of what is listed
  uint32_t index[kWarps][kStaged];  // the growth's from the front, the drop's from the back
  uint16_t mark[kWarps][kStaged];   // of the listed: upper half of their entry
  uint32_t listed[2][kWarps], start[2][kWarps];
};

// Those of one warp. All lanes have the same counts.
class StagedWeights {
 public:
  __device__ __forceinline__ explicit StagedWeights(StagedStorage& s)
      : s_(s), index_(s.index[threadIdx.x / 32]), mark_(s.mark[threadIdx.x / 32]), lane_(threadIdx.x % 32) {}

  // Adds the chosen weights of each lane's run at i.
  __device__ __forceinline__ void push(uint32_t i, uint32_t grow, uint32_t drop) {
    const uint32_t mine = static_cast<uint32_t>(__popc(grow)) | static_cast<uint32_t>(__popc(drop)) << 16;
    const uint32_t sum = warp_scan(mine), before = sum - mine, total = __shfl_sync(~0u, sum, 31);
    push_side<kGrow>(i, grow, before & 0xFFFF);
    push_side<kDrop>(i, drop, before >> 16);
    staged_[kGrow] += total & 0xFFFF;
    staged_[kDrop] += total >> 16;
    __syncwarp();
  }

  __device__ __forceinline__ bool enough() const { return staged_[kGrow] + staged_[kDrop] > kEnough; }
  __device__ __forceinline__ bool fills_chunk() const { return listed_[kGrow] + listed_[kDrop] > kChunk; }

  // Keeps those of the waiting ones that pass the list threshold. key_of(index, flags): a weight's key, and flags for its
  // entry.
  template <Side side, class KeyOf>
  __device__ __forceinline__ void keep_listed(KeyOf key_of) {
    uint32_t kept = listed_[side];
    for (uint32_t first = kept; first < staged_[side]; first += 32) {
      uint32_t i = 0, mark = 0;
      bool listed = false;
      if (first + lane_ < staged_[side]) {
        i = index_[place<side>(first + lane_)];
        const uint64_t key = key_of(i, mark);
        listed = passes(s_.threshold[side], key, i);
        if (listed) {
          const int bin = find_bin(s_.upper[side], s_.splitters[side], key, i);
          atomicAdd(&s_.histogram[side][bin], 1u);
          mark |= static_cast<uint32_t>(bin);
        }
      }
      const uint32_t lanes = __ballot_sync(~0u, listed);
      __syncwarp();  // all lanes have read: what is kept may take these places
      if (listed) {
        const uint32_t at = place<side>(kept + static_cast<uint32_t>(__popc(lanes & ((1u << lane_) - 1))));
        index_[at] = i;
        mark_[at] = static_cast<uint16_t>(mark);
      }
      kept += static_cast<uint32_t>(__popc(lanes));
    }
    listed_[side] = staged_[side] = kept;
    __syncwarp();
  }

  // Writes what is listed as a chunk of its own.
  __device__ __forceinline__ void write_chunk(const Pool& pool, LayerState& state, uint32_t layer) {
    uint32_t start = 0;
    if (lane_ == 0) start = pool.reserve(state, layer, listed_[kGrow], listed_[kDrop]);
    start = __shfl_sync(~0u, start, 0);
    if (start != Pool::kNoRoom) write(pool, start, start + listed_[kGrow]);
    listed_[kGrow] = listed_[kDrop] = staged_[kGrow] = staged_[kDrop] = 0;
    __syncwarp();
  }

  // Writes what is listed by all warps of the block as one chunk.
  __device__ __forceinline__ void write_last_chunk(const Pool& pool, LayerState& state, uint32_t layer) {
    const unsigned warp = threadIdx.x / 32;
    if (lane_ == 0) s_.listed[kGrow][warp] = listed_[kGrow], s_.listed[kDrop][warp] = listed_[kDrop];
    __syncthreads();
    if (threadIdx.x == 0) {
      uint32_t grow = 0, drop = 0;
      for (int w = 0; w < kWarps; ++w) grow += s_.listed[kGrow][w], drop += s_.listed[kDrop][w];
      uint32_t start = grow + drop ? pool.reserve(state, layer, grow, drop) : Pool::kNoRoom, drop_start = start + grow;
      for (int w = 0; w < kWarps; ++w) {
        s_.start[kGrow][w] = start;
        s_.start[kDrop][w] = drop_start;
        if (start == Pool::kNoRoom) continue;
        start += s_.listed[kGrow][w];
        drop_start += s_.listed[kDrop][w];
      }
    }
    __syncthreads();
    if (s_.start[kGrow][warp] != Pool::kNoRoom) write(pool, s_.start[kGrow][warp], s_.start[kDrop][warp]);
    __syncthreads();
  }

 private:
  template <Side side>
  __device__ __forceinline__ static uint32_t place(uint32_t e) {
    return side == kGrow ? e : kStaged - 1 - e;
  }
  template <Side side>
  __device__ __forceinline__ void push_side(uint32_t i, uint32_t lanes, uint32_t before) {
    uint32_t* at = &index_[place<side>(staged_[side] + before)];
    while (lanes) {  // from the highest down
      const auto zeros = static_cast<uint32_t>(__clz(static_cast<int>(lanes)));
      *at = i + 31 - zeros;
      at += side == kGrow ? 1 : -1;
      lanes ^= 1u << 31 >> zeros;
    }
  }
  template <Side side>
  __device__ __forceinline__ void write_side(const Pool& pool, uint32_t start) const {
    for (uint32_t e = lane_; e < listed_[side]; e += 32) {
      const uint32_t at = place<side>(e);
      store(&pool.entries[start + e], index_[at] | static_cast<Entry>(mark_[at]) << 32);
    }
  }
  __device__ __forceinline__ void write(const Pool& pool, uint32_t grow_start, uint32_t drop_start) const {
    write_side<kGrow>(pool, grow_start);
    write_side<kDrop>(pool, drop_start);
  }

  StagedStorage& s_;
  uint32_t* const index_;
  uint16_t* const mark_;
  const uint32_t lane_;
  uint32_t staged_[2] = {0, 0}, listed_[2] = {0, 0};  // the listed are the first of the staged
};

}  // namespace dstee::cuda
