// Second launch, the only one that reads a large layer from end to end: the step, both scores, and the possible winners to the
// lists. A block takes runs of neighbouring tiles; nobody waits for anybody until a run ends.
//
// Traffic per weight: mask 1/8, gradient 4, counter 2 bytes; in 32-byte sectors with an active weight, w read, and with a step
// w and m read and written. Written: 8 bytes for each of the listed, 4 to 6 k
// of both sides together.
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
constexpr int kWarpWeights = 32 * kGroup;    // that a warp looks at before it looks at its list
constexpr int kStaged = kWarpWeights + 128;  // entries of a warp: growth from the front, drop from the back
constexpr int kRounds = 4;                   // runs that a block takes, where there are enough tiles
constexpr int sweep_blocks(bool by_gradient) { return by_gradient ? 4 : 3; }  // on a multiprocessor; registers allow no more

struct SweepStorage {
  Cut low[2], splitters[2][kBins];  // of the growth and of the drop, everywhere below
  uint64_t key[kWarps][kStaged];
  uint32_t index[kWarps][kStaged];
  uint32_t bins[2][kBins];
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
    const int bin = find_bin(s.splitters[is_drop], key & ~kBeyondGrowth, index);
    atomicAdd(&s.bins[is_drop][bin], 1u);
    store(&pool.entries[is_drop ? drop_at + (e - grow) : grow_at + e],
          entry_of(index, bin) | (is_drop ? key & kBeyondGrowth : 0));
  }
}

// In the middle of a run, one warp by itself.
__device__ __forceinline__ void flush_warp(SweepStorage& s, const Pool& pool, State& state, uint32_t layer) {
  const unsigned warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  uint32_t start = 0;
  if (lane == 0) start = pool.reserve(state, layer, s.staged[0][warp], s.staged[1][warp]);
  start = __shfl_sync(~0u, start, 0);
  if (start != Pool::kNowhere) write_staged(s, pool, start, start + s.staged[0][warp]);
  __syncwarp();
  if (lane == 0) s.staged[0][warp] = s.staged[1][warp] = 0;
  __syncwarp();
}

// At the end of a run, the whole block in one chunk.
__device__ __forceinline__ void flush_block(SweepStorage& s, const Pool& pool, State& state, uint32_t layer) {
  __syncthreads();
  if (threadIdx.x == 0) {
    uint32_t grow = 0, drop = 0;
    for (int w = 0; w < kWarps; ++w) grow += s.staged[0][w], drop += s.staged[1][w];
    uint32_t start = grow + drop ? pool.reserve(state, layer, grow, drop) : Pool::kNowhere, drop_start = start + grow;
    for (int w = 0; w < kWarps; ++w) {
      s.start[0][w] = start;
      s.start[1][w] = drop_start;
      if (start == Pool::kNowhere) continue;
      start += s.staged[0][w];
      drop_start += s.staged[1][w];
    }
  }
  __syncthreads();
  const unsigned warp = threadIdx.x / 32;
  if (s.start[0][warp] != Pool::kNowhere) write_staged(s, pool, s.start[0][warp], s.start[1][warp]);
  __syncthreads();
}

struct Sweep {
  Pass pass;
  Step step;
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

// Which of a group's weights may be listed for the growth, active ones if they are dropped.
__device__ __forceinline__ uint32_t listed_growth(const Weights& weights, const float* signals, const Counts& stored,
                                                  uint32_t active, uint32_t low) {
  uint32_t lanes = 0;
#pragma unroll
  for (int j = 0; j < kGroup; ++j)
    lanes |= static_cast<uint32_t>(weights.score_rank(signals[j], stored.at(j), active >> j & 1) >= low) << j;
  return lanes;
}

// The weights first .. end of a layer: a run of whole tiles. by_gradient: the gradient is what the growth ranks.
template <bool by_gradient>
__device__ __forceinline__ void sweep_run(SweepStorage& s, const Pool& pool, State& state, uint32_t layer,
                                          const Weights& weights, const Sweep& sweep, uint32_t first, uint32_t end) {
  const unsigned warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const Layer& l = weights.l;
  const bool ranked = state.k > 0;
  SgdRule rule = sweep.step.rule;  // stays among the kernel's arguments
  rule.lr = s.lr;
  rule.scaled = false;
  const auto grow_low = static_cast<uint32_t>(s.low[0].key >> 32), drop_low = static_cast<uint32_t>(s.low[1].key >> 32);
  uint32_t nnz = 0;
  for (uint32_t start = first + warp * kWarpWeights; start < end; start += kThreads * kGroup) {
    const uint32_t i = start + lane * kGroup;
    const int count = i >= end ? 0 : end - i < kGroup ? static_cast<int>(end - i) : kGroup;
    const uint32_t active = count ? active_lanes(l, i, count) : 0, inactive = ~active & ((1u << count) - 1);
    nnz += static_cast<uint32_t>(__popc(active));
    // The gradient first, then what is ranked: of an inactive weight its signal, of an active one what stands for it.
    float x[kGroup];
    Counts stored{};
    const bool steps = active && sweep.with_step, grows = ranked && (inactive || (active && weights.pass.regrow));
    if (steps || (grows && by_gradient)) load_group(l.g, l.dtype, i, count, x);
    if (grows && weights.pass.bonus) stored = weights.load_counts(i, count);
    uint32_t growing = by_gradient && grows ? listed_growth(weights, x, stored, active, grow_low) : 0;
    if (steps) step_group(l, i, count, active, x, rule);
    if (!by_gradient && grows) {
      float signals[kGroup];
      weights.load_signals(i, count, signals);
      growing = listed_growth(weights, signals, stored, active, grow_low);
#pragma unroll
      for (int j = 0; j < kGroup; ++j)
        if (inactive >> j & 1) x[j] = signals[j];
    }
    if (active && ranked && !(steps && l.drop == l.w)) load_lanes(l.drop, l.drop_dtype, i, count, active, x);
    uint32_t listed = growing & inactive;
    if (active && ranked)
#pragma unroll
      for (int j = 0; j < kGroup; ++j) listed |= static_cast<uint32_t>(active >> j & 1 && drop_key(x[j]) >= drop_low) << j;
    for (; listed; listed &= listed - 1) {  // few: a lane has one, if any
      const int j = __ffs(static_cast<int>(listed)) - 1;
      const bool is_active = active >> j & 1;
      const float value = pick(x, j);
      const uint64_t key =
          is_active ? wide_drop_key(value) : weights.with_signal(weights.score_rank(value, stored.at(j), false), value);
      if (!takes(s.low[is_active], key, i + j)) continue;
      const uint32_t place = atomicAdd(&s.staged[is_active][warp], 1u), at = is_active ? kStaged - 1 - place : place;
      s.key[warp][at] = is_active && !(growing >> j & 1) ? key | kBeyondGrowth : key;
      s.index[warp][at] = i + j;
    }
    __syncwarp();
    if (__any_sync(~0u, s.staged[0][warp] + s.staged[1][warp] > kStaged - kWarpWeights)) flush_warp(s, pool, state, layer);
  }
  if (nnz) atomicAdd(&s.nnz, nnz);
}

template <bool by_gradient>
__global__ void __launch_bounds__(kThreads, sweep_blocks(by_gradient))
    sweep_kernel(const Table table, const Sweep sweep, State* states, const Pool pool) {
  auto& s = shared<SweepStorage>();
  if (value_of(sweep.step.found_inf) != 0) return;
  if (threadIdx.x == 0) s.lr = value_of(sweep.step.lr);
  const auto tiles = static_cast<uint32_t>(table.tiles);
  const uint32_t share = (tiles + kRounds * gridDim.x - 1) / (kRounds * gridDim.x);
  for (uint32_t part = blockIdx.x * share; part < tiles; part += gridDim.x * share) {
    const uint32_t part_end = tiles - part < share ? tiles : part + share;
    for (uint32_t tile = part; tile < part_end;) {
      const int index = layer_of_tile(table, tile);
      const Row& row = table.rows[index];
      State& state = states[index];
      const auto n = static_cast<uint32_t>(row.layer.n), first_tile = static_cast<uint32_t>(row.first_tile);
      const auto layer_tiles = static_cast<uint32_t>(tiles_of(row.layer.n));
      const uint32_t run =
          layer_tiles - (tile - first_tile) < part_end - tile ? layer_tiles - (tile - first_tile) : part_end - tile;
      s.splitters[0][threadIdx.x] = state.grow.splitters[threadIdx.x];
      s.splitters[1][threadIdx.x] = state.drop.splitters[threadIdx.x];
      s.bins[0][threadIdx.x] = s.bins[1][threadIdx.x] = 0;
      if (threadIdx.x < kWarps) s.staged[0][threadIdx.x] = s.staged[1][threadIdx.x] = 0;
      if (threadIdx.x == 0) {
        s.low[0] = state.grow.low;
        s.low[1] = state.drop.low;
        s.layer = row.layer;
        s.layer.g = state.gradient;
        s.nnz = 0;
      }
      __syncthreads();

      constexpr auto kWeights = static_cast<uint32_t>(kTile);
      const uint32_t first = (tile - first_tile) * kWeights, length = run * kWeights;
      const Weights weights(s.layer, sweep.pass, s.layer.g, state.seed);
      sweep_run<by_gradient>(s, pool, state, static_cast<uint32_t>(index), weights, sweep, first,
                             n - first < length ? n : first + length);
      flush_block(s, pool, state, static_cast<uint32_t>(index));
      const uint32_t grow = s.bins[0][threadIdx.x], drop = s.bins[1][threadIdx.x];
      if (drop) atomicAdd(&state.drop.bins[threadIdx.x], drop);
      if (grow) atomicAdd(&state.grow.bins[threadIdx.x], grow);
      if (threadIdx.x == 0) atomicAdd(&state.nnz, s.nnz);

      if (is_last(&state.tiles_done, run, layer_tiles, s.last)) {
        const auto k = static_cast<uint32_t>(clip_swaps(state.k, fresh(&state.nnz), n, sweep.pass.regrow));
        __syncthreads();
        if (threadIdx.x == 0) state.k = k;
        if (k > 0) {
          resolve_bins(s.scan, pool, state, state.drop, k);
          if (!sweep.pass.regrow) resolve_bins(s.scan, pool, state, state.grow, k);
        }
      }
      __syncthreads();
      tile += run;
    }
  }
}

}  // namespace dstee::cuda
