// Second launch, the only one that reads a large layer from end to end: the step, both scores, and the weights that may be
// selected to the lists. A block takes spans of neighbouring tiles; its warps do not wait for each other within a span.
//
// Traffic per weight: mask 1/8, gradient 4, counter 2 bytes; in 32-byte sectors with an active weight, w read, and with a step
// w and m read and written. Per listed weight, of which both sides together have 4 to 6 k: 8 bytes written.
#pragma once

#include <cstdint>

#include "../rules.h"
#include "bins.cuh"
#include "block_scan.cuh"
#include "group.cuh"
#include "last_block.cuh"
#include "launch.cuh"
#include "layer_state.cuh"
#include "lists.cuh"
#include "masked_sgd.cuh"
#include "options.cuh"
#include "scalar.cuh"
#include "table.cuh"
#include "threshold.cuh"
#include "weights.cuh"

namespace dstee::cuda {

constexpr int kWarps = kThreads / 32;
constexpr int kWarpWeights = 32 * kGroup;    // that a warp reads before it looks whether its entries must be written out
constexpr int kStaged = kWarpWeights + 128;  // entries of a warp: growth from the front, drop from the back
constexpr int kSpans = 4;                    // that a block takes, where there are enough tiles
constexpr int sweep_blocks(bool by_gradient) { return by_gradient ? 4 : 3; }  // on a multiprocessor; registers allow no more

struct SweepStorage {
  // [0]: the growth's, [1]: the drop's.
  Threshold threshold[2], splitters[2][kBins];
  uint64_t key[kWarps][kStaged];
  uint32_t index[kWarps][kStaged];
  uint32_t histogram[2][kBins];
  uint32_t staged[2][kWarps], start[2][kWarps];
  ScanStorage scan;
  Layer layer;  // here rather than in registers, which are few
  float lr;
  uint32_t nnz;
  bool last;
};

// A warp's staged entries, to the list: those of the growth from `grow_at` on, those of the drop from `drop_at` on.
__device__ __forceinline__ void write_staged(SweepStorage& s, const Pool& pool, uint32_t grow_at, uint32_t drop_at) {
  const unsigned warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const uint32_t grow = s.staged[0][warp], drop = s.staged[1][warp];
  for (uint32_t e = lane; e < grow + drop; e += 32) {
    const bool is_drop = e >= grow;
    const uint32_t at = is_drop ? kStaged - 1 - (e - grow) : e, index = s.index[warp][at];
    const uint64_t key = s.key[warp][at];
    const int bin = find_bin(s.splitters[is_drop], key & ~kCannotRegrow, index);
    atomicAdd(&s.histogram[is_drop][bin], 1u);
    store(&pool.entries[is_drop ? drop_at + (e - grow) : grow_at + e],
          entry_of(index, bin) | (is_drop ? key & kCannotRegrow : 0));
  }
}

// Within a span, by one warp.
__device__ __forceinline__ void flush_warp(SweepStorage& s, const Pool& pool, LayerState& state, uint32_t layer) {
  const unsigned warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  uint32_t start = 0;
  if (lane == 0) start = pool.reserve(state, layer, s.staged[0][warp], s.staged[1][warp]);
  start = __shfl_sync(~0u, start, 0);
  if (start != Pool::kNoRoom) write_staged(s, pool, start, start + s.staged[0][warp]);
  __syncwarp();
  if (lane == 0) s.staged[0][warp] = s.staged[1][warp] = 0;
  __syncwarp();
}

// At the end of a span, by the whole block in one chunk.
__device__ __forceinline__ void flush_block(SweepStorage& s, const Pool& pool, LayerState& state, uint32_t layer) {
  __syncthreads();
  if (threadIdx.x == 0) {
    uint32_t grow = 0, drop = 0;
    for (int w = 0; w < kWarps; ++w) grow += s.staged[0][w], drop += s.staged[1][w];
    uint32_t start = grow + drop ? pool.reserve(state, layer, grow, drop) : Pool::kNoRoom, drop_start = start + grow;
    for (int w = 0; w < kWarps; ++w) {
      s.start[0][w] = start;
      s.start[1][w] = drop_start;
      if (start == Pool::kNoRoom) continue;
      start += s.staged[0][w];
      drop_start += s.staged[1][w];
    }
  }
  __syncthreads();
  const unsigned warp = threadIdx.x / 32;
  if (s.start[0][warp] != Pool::kNoRoom) write_staged(s, pool, s.start[0][warp], s.start[1][warp]);
  __syncthreads();
}

struct SweepArguments {
  UpdateOptions options;
  SgdStep step;
  bool with_step;
};

__device__ __forceinline__ void load_lanes(const void* p, Dtype dtype, int64_t i, int count, uint32_t lanes, float* x) {
  float values[kGroup];
  load_group(p, dtype, i, count, values);
#pragma unroll
  for (int j = 0; j < kGroup; ++j)
    if (lanes >> j & 1) x[j] = values[j];
}

// x[j], from registers.
__device__ __forceinline__ float pick(const float* x, int j) {
  float value = x[0];
#pragma unroll
  for (int q = 1; q < kGroup; ++q)
    if (q == j) value = x[q];
  return value;
}

// Which of a group's weights have a score of the growth's list threshold at least; active ones as if they were dropped.
__device__ __forceinline__ uint32_t passing_growth(const Weights& weights, const float* signals, const StoredCounts& stored,
                                                   uint32_t active, uint32_t least) {
  uint32_t lanes = 0;
#pragma unroll
  for (int j = 0; j < kGroup; ++j)
    lanes |= static_cast<uint32_t>(weights.score_rank(signals[j], stored.at(j), active >> j & 1) >= least) << j;
  return lanes;
}

// The weights first .. end of a layer, whole tiles. by_gradient: the gradient is what the growth ranks.
template <bool by_gradient>
__device__ __forceinline__ void sweep_span(SweepStorage& s, const Pool& pool, LayerState& state, uint32_t layer,
                                           const Weights& weights, const SweepArguments& sweep, uint32_t first, uint32_t end) {
  const unsigned warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const Layer& l = weights.layer;
  const bool ranked = state.k > 0;
  SgdRule rule = sweep.step.rule;  // stays among the kernel's arguments
  rule.lr = s.lr;
  rule.scaled = false;
  const auto least_grow = static_cast<uint32_t>(s.threshold[0].key >> 32),
             least_drop = static_cast<uint32_t>(s.threshold[1].key >> 32);
  uint32_t nnz = 0;
  for (uint32_t start = first + warp * kWarpWeights; start < end; start += kThreads * kGroup) {
    const uint32_t i = start + lane * kGroup;
    const int count = i >= end ? 0 : end - i < kGroup ? static_cast<int>(end - i) : kGroup;
    const uint32_t active = count ? active_lanes(l, i, count) : 0, inactive = ~active & ((1u << count) - 1);
    nnz += static_cast<uint32_t>(__popc(active));
    // The gradient first, then what is ranked: of an inactive weight its signal, of an active one its weight or drop score.
    float x[kGroup];
    StoredCounts stored{};
    const bool steps = active && sweep.with_step, grows = ranked && (inactive || (active && weights.options.regrow));
    if (steps || (grows && by_gradient)) load_group(l.g, l.dtype, i, count, x);
    if (grows && weights.options.bonus) stored = weights.load_counts(i, count);
    uint32_t can_grow = by_gradient && grows ? passing_growth(weights, x, stored, active, least_grow) : 0;
    if (steps) step_group(l, i, count, active, x, rule);
    if (!by_gradient && grows) {
      float signals[kGroup];
      weights.load_signals(i, count, signals);
      can_grow = passing_growth(weights, signals, stored, active, least_grow);
#pragma unroll
      for (int j = 0; j < kGroup; ++j)
        if (inactive >> j & 1) x[j] = signals[j];
    }
    if (active && ranked && !(steps && l.drop == l.w)) load_lanes(l.drop, l.drop_dtype, i, count, active, x);
    uint32_t listed = can_grow & inactive;
    if (active && ranked)
#pragma unroll
      for (int j = 0; j < kGroup; ++j) listed |= static_cast<uint32_t>(active >> j & 1 && drop_key(x[j]) >= least_drop) << j;
    for (; listed; listed &= listed - 1) {  // few: a lane has one, if any
      const int j = __ffs(static_cast<int>(listed)) - 1;
      const bool is_active = active >> j & 1;
      const float value = pick(x, j);
      const uint64_t key =
          is_active ? wide_drop_key(value) : weights.grow_key_of(weights.score_rank(value, stored.at(j), false), value);
      if (!passes(s.threshold[is_active], key, i + j)) continue;
      const uint32_t place = atomicAdd(&s.staged[is_active][warp], 1u), at = is_active ? kStaged - 1 - place : place;
      s.key[warp][at] = is_active && !(can_grow >> j & 1) ? key | kCannotRegrow : key;
      s.index[warp][at] = i + j;
    }
    __syncwarp();
    if (__any_sync(~0u, s.staged[0][warp] + s.staged[1][warp] > kStaged - kWarpWeights)) flush_warp(s, pool, state, layer);
  }
  if (nnz) atomicAdd(&s.nnz, nnz);
}

template <bool by_gradient>
__global__ void __launch_bounds__(kThreads, sweep_blocks(by_gradient))
    sweep_kernel(const Table table, const SweepArguments sweep, LayerState* states, const Pool pool) {
  auto& s = shared<SweepStorage>();
  if (value_of(sweep.step.found_inf) != 0) return;
  if (threadIdx.x == 0) s.lr = value_of(sweep.step.lr);
  const auto tiles = static_cast<uint32_t>(table.tiles);
  const uint32_t share = (tiles + kSpans * gridDim.x - 1) / (kSpans * gridDim.x);
  for (uint32_t part = blockIdx.x * share; part < tiles; part += gridDim.x * share) {
    const uint32_t part_end = tiles - part < share ? tiles : part + share;
    for (uint32_t tile = part; tile < part_end;) {
      const int index = layer_of_tile(table, tile);
      const Row& row = table.rows[index];
      LayerState& state = states[index];
      const auto n = static_cast<uint32_t>(row.layer.n), first_tile = static_cast<uint32_t>(row.first_tile);
      const auto layer_tiles = static_cast<uint32_t>(tiles_of(row.layer.n));
      const uint32_t span =
          layer_tiles - (tile - first_tile) < part_end - tile ? layer_tiles - (tile - first_tile) : part_end - tile;
      s.splitters[0][threadIdx.x] = state.grow.splitters[threadIdx.x];
      s.splitters[1][threadIdx.x] = state.drop.splitters[threadIdx.x];
      s.histogram[0][threadIdx.x] = s.histogram[1][threadIdx.x] = 0;
      if (threadIdx.x < kWarps) s.staged[0][threadIdx.x] = s.staged[1][threadIdx.x] = 0;
      if (threadIdx.x == 0) {
        s.threshold[0] = state.grow.list_threshold;
        s.threshold[1] = state.drop.list_threshold;
        s.layer = row.layer;
        s.layer.g = state.gradient;
        s.nnz = 0;
      }
      __syncthreads();

      constexpr auto kWeights = static_cast<uint32_t>(kTile);
      const uint32_t first = (tile - first_tile) * kWeights, length = span * kWeights;
      const Weights weights(s.layer, sweep.options, s.layer.g, state.seed);
      sweep_span<by_gradient>(s, pool, state, static_cast<uint32_t>(index), weights, sweep, first,
                              n - first < length ? n : first + length);
      flush_block(s, pool, state, static_cast<uint32_t>(index));
      const uint32_t grow = s.histogram[0][threadIdx.x], drop = s.histogram[1][threadIdx.x];
      if (drop) atomicAdd(&state.drop.histogram[threadIdx.x], drop);
      if (grow) atomicAdd(&state.grow.histogram[threadIdx.x], grow);
      if (threadIdx.x == 0) atomicAdd(&state.nnz, s.nnz);

      if (is_last_block(&state.tiles_done, span, layer_tiles, s.last)) {
        const auto k = static_cast<uint32_t>(clip_swaps(state.k, load_volatile(&state.nnz), n, sweep.options.regrow));
        __syncthreads();
        if (threadIdx.x == 0) state.k = k;
        if (k > 0) {
          select_bin(s.scan, pool, state, state.drop, k);
          if (!sweep.options.regrow) select_bin(s.scan, pool, state, state.grow, k);
        }
      }
      __syncthreads();
      tile += span;
    }
  }
}

}  // namespace dstee::cuda
