// The lists of possible winners: all layers share one pool of entries, filled chunk by chunk as blocks have something to say.
#pragma once

#include <cstdint>

#include "launch.cuh"
#include "layer_state.cuh"

namespace dstee::cuda {

// Entries of one layer that lie together, those of the growth first.
struct alignas(16) Chunk {
  uint32_t start, layer, grow, drop;
};

// An entry is index | bin << 32. That of an active weight gets kDropped and the growth's bin once its drop is decided, unless
// it stands behind all that are listed for the growth: kBeyondGrowth.
using Entry = uint64_t;
constexpr Entry kBeyondGrowth = Entry{1} << 63, kDropped = Entry{1} << 62;
__device__ __forceinline__ Entry entry_of(uint32_t index, int bin) { return index | static_cast<Entry>(bin) << 32; }
__device__ __forceinline__ int bin_of(Entry entry) { return static_cast<int>(entry >> 32 & (kBins - 1)); }

// An entry of the bin that holds the last winner.
struct alignas(16) Finalist {
  uint64_t key;
  uint32_t index, tag;
};

struct Pool {
  unsigned long long* used;  // chunks << 36 | entries
  Chunk* chunks;
  Entry* entries;
  uint32_t chunk_capacity, capacity;

  // For one thread: room for the entries of a chunk, or kNowhere, and then the layer is flagged.
  __device__ uint32_t reserve(State& state, uint32_t layer, uint32_t grow, uint32_t drop) const {
    const unsigned long long old = atomicAdd(used, 1ull << 36 | (grow + drop)), chunk = old >> 36;
    const unsigned long long start = old & kEntries;
    const bool fits = start + grow + drop <= capacity;
    if (!fits || chunk >= chunk_capacity) atomicOr(&state.flagged, 1u);
    if (chunk >= chunk_capacity) return kNowhere;
    store(&chunks[chunk], fits ? Chunk{static_cast<uint32_t>(start), layer, grow, drop} : Chunk{0, layer, 0, 0});
    if (!fits) return kNowhere;
    atomicAdd(&state.chunks, 1u);
    return static_cast<uint32_t>(start);
  }
  __device__ uint32_t reserve_finalists(State& state, uint32_t count) const {
    const unsigned long long start = atomicAdd(used, 2ull * count + 1) & kEntries, even = (start + 1) / 2 * 2;
    if (even + 2ull * count <= capacity) return static_cast<uint32_t>(even);
    atomicOr(&state.flagged, 1u);
    return kNowhere;
  }
  __device__ __forceinline__ Finalist* finalists(const Side& side) const {
    return reinterpret_cast<Finalist*>(entries + side.finalists);
  }
  __device__ __forceinline__ void add_finalist(Side& side, const Finalist& finalist) const {
    store(finalists(side) + atomicAdd(&side.finalist_count, 1u), finalist);
  }
  __device__ __forceinline__ uint32_t chunk_count() const {
    const unsigned long long count = *used >> 36;
    return count < chunk_capacity ? static_cast<uint32_t>(count) : chunk_capacity;
  }

  // The lists of the layer are of use.
  __device__ __forceinline__ static bool counts(const State& state) {
    return state.k > 0 && !*static_cast<const volatile uint32_t*>(&state.flagged);
  }

  static constexpr unsigned long long kEntries = (1ull << 36) - 1;
  static constexpr uint32_t kNowhere = ~uint32_t{0};
};
// Calls body(chunk, lane) for each chunk of the pool that is worth a look, a warp for each: the latest first, which may still
// be in the cache.
template <class Body>
__device__ __forceinline__ void for_chunks_of_warp(const Pool& pool, const State* states, Body body) {
  const uint32_t chunks = pool.chunk_count(), warps = blockDim.x / 32;
  for (uint32_t c = blockIdx.x * warps + threadIdx.x / 32; c < chunks; c += gridDim.x * warps) {
    const Chunk chunk = pool.chunks[chunks - 1 - c];
    if (chunk.grow + chunk.drop && pool.counts(states[chunk.layer])) body(chunk, threadIdx.x % 32);
  }
}

}  // namespace dstee::cuda
