// The lists of weights that may be selected: all layers share one pool of entries, which blocks fill chunk by chunk.
#pragma once

#include <cstdint>

#include "launch.cuh"
#include "layer_state.cuh"

namespace dstee::cuda {

// Entries of one layer that lie together, those of the growth first.
struct alignas(16) Chunk {
  uint32_t start, layer, grow, drop;
};

// An entry is index | bin << 32. That of an active weight is written anew once its drop is decided: with kDropped and the
// growth's bin, or kCannotRegrow if it does not pass the growth's list threshold.
using Entry = uint64_t;
constexpr uint32_t kCannotRegrowMark = 1 << 15;  // in the upper half of an entry
constexpr Entry kCannotRegrow = static_cast<Entry>(kCannotRegrowMark) << 32, kDropped = Entry{1} << 46;
__device__ __forceinline__ Entry entry_of(uint32_t index, int bin) { return index | static_cast<Entry>(bin) << 32; }
__device__ __forceinline__ int bin_of(Entry entry) { return static_cast<int>(entry >> 32 & (kBins - 1)); }

// A weight of the k-th key's bin. tag: of a drop, the place of its list entry; of a growth, whether it was dropped.
struct alignas(16) Undecided {
  uint64_t key;
  uint32_t index, tag;
};

struct Pool {
  unsigned long long* used;  // chunks << 36 | entries
  Chunk* chunks;
  Entry* entries;
  uint32_t chunk_capacity, capacity;

  // For one thread: room for the entries of a chunk, or kNoRoom, and then the layer needs its fallback.
  __device__ uint32_t reserve(LayerState& state, uint32_t layer, uint32_t grow, uint32_t drop) const {
    const unsigned long long old = atomicAdd(used, 1ull << 36 | (grow + drop)), chunk = old >> 36;
    const unsigned long long start = old & kEntries;
    const bool fits = start + grow + drop <= capacity;
    if (!fits || chunk >= chunk_capacity) atomicOr(&state.needs_fallback, 1u);
    if (chunk >= chunk_capacity) return kNoRoom;
    store(&chunks[chunk], fits ? Chunk{static_cast<uint32_t>(start), layer, grow, drop} : Chunk{0, layer, 0, 0});
    if (!fits) return kNoRoom;
    atomicAdd(&state.chunks, 1u);
    return static_cast<uint32_t>(start);
  }
  __device__ uint32_t reserve_undecided(LayerState& state, uint32_t count) const {
    const unsigned long long start = atomicAdd(used, 2ull * count + 1) & kEntries, even = (start + 1) / 2 * 2;
    if (even + 2ull * count <= capacity) return static_cast<uint32_t>(even);
    atomicOr(&state.needs_fallback, 1u);
    return kNoRoom;
  }
  __device__ __forceinline__ Undecided* undecided(const SideState& side) const {
    return reinterpret_cast<Undecided*>(entries + side.undecided_start);
  }
  __device__ __forceinline__ void add_undecided(SideState& side, const Undecided& entry) const {
    store(undecided(side) + atomicAdd(&side.undecided_count, 1u), entry);
  }
  __device__ __forceinline__ uint32_t chunk_count() const {
    const unsigned long long count = *used >> 36;
    return count < chunk_capacity ? static_cast<uint32_t>(count) : chunk_capacity;
  }

  // The layer swaps something, and its lists hold all of it so far.
  __device__ __forceinline__ static bool usable(const LayerState& state) {
    return state.swaps.any() && !*static_cast<const volatile uint32_t*>(&state.needs_fallback);
  }

  static constexpr unsigned long long kEntries = (1ull << 36) - 1;
  static constexpr uint32_t kNoRoom = ~uint32_t{0};
};

// Calls body(chunk, lane) for each chunk of usable lists, a warp for each: the latest first, which may still be in the cache.
template <class Body>
__device__ __forceinline__ void for_chunks_of_warp(const Pool& pool, const LayerState* states, Body body) {
  const uint32_t chunks = pool.chunk_count(), warps = blockDim.x / 32;
  for (uint32_t c = blockIdx.x * warps + threadIdx.x / 32; c < chunks; c += gridDim.x * warps) {
    const Chunk chunk = pool.chunks[chunks - 1 - c];
    if (chunk.grow + chunk.drop && pool.usable(states[chunk.layer])) body(chunk, threadIdx.x % 32);
  }
}

// Calls body(place, entry) for each of the entries, 32 at a time by one warp. The next ones are on their way meanwhile.
template <class Body>
__device__ __forceinline__ void for_entries_of_warp(const Entry* entries, uint32_t count, uint32_t lane, Body body) {
  Entry next = lane < count ? load(entries + lane) : 0;
  for (uint32_t e = lane; e < count; e += 32) {
    const Entry entry = next;
    if (e + 32 < count) next = load(entries + e + 32);
    body(e, entry);
  }
}

}  // namespace dstee::cuda
