// Second launch, the only one that reads a large layer from end to end. Each warp goes through mask and signals and picks the
// weights that need a closer look: active ones, and those whose signal is large enough for the growth whatever their counter
// says. Once it has enough of them, all lanes are busy with the step, the keys and the lists.
//
// A block takes spans of neighbouring tiles; its warps do not wait for each other within a span.
//
// Traffic per weight: mask 1/8 and gradient 4 bytes; in sectors with an active weight w, with a step also m, read, and with a
// step both written; in sectors with a picked one counters. Per listed weight, of which both sides together have 4 to 6 k:
// 8 bytes written.
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
#include "staged.cuh"
#include "table.cuh"
#include "threshold.cuh"
#include "weights.cuh"

namespace dstee::cuda {

constexpr int kSpans = 4;        // that a block takes, where there are enough tiles
constexpr int kSweepBlocks = 4;  // on a multiprocessor

struct SweepStorage {
  StagedStorage staged;
  ScanStorage scan;
  Layer layer;  // here rather than in registers, which are few
  uint32_t largest_bonus[kWarps], nnz;
  float lr;
  bool last;
};
static_assert(sizeof(SweepStorage) <= 48 << 10, "more static shared memory than a block may have");

struct SweepArguments {
  UpdateOptions options;
  SgdStep step;
  bool with_step;
};

// The largest of the bonus table as bits, where NaN and whatever is negative come last.
__device__ __forceinline__ uint32_t largest_bonus(SweepStorage& s, const BonusTable& bonus, int layer) {
  uint32_t largest = 0;
  for (uint32_t N = threadIdx.x; bonus && N < bonus.size; N += kThreads) {
    const uint32_t bits = bits_of(bonus.at(layer, N));
    largest = bits > largest ? bits : largest;
  }
  largest = __reduce_max_sync(~0u, largest);
  if (threadIdx.x % 32 == 0) s.largest_bonus[threadIdx.x / 32] = largest;
  __syncthreads();
  for (int w = 0; w < kWarps; ++w) largest = s.largest_bonus[w] > largest ? s.largest_bonus[w] : largest;
  return largest;
}

// Which of a group's signals have no smaller bits than `least`, up to 1 << 31.
__device__ __forceinline__ uint32_t large_lanes(const float* signals, uint32_t least) {
  uint32_t smaller = 0;
#pragma unroll
  for (int j = kGroup - 1; j >= 0; --j)  // shifts the sign of the difference in
    smaller = __funnelshift_l((bits_of(signals[j]) & 0x7FFFFFFFu) - least, smaller, 1);
  return ~smaller & 0xFF;
}

// The same of a run of aligned signals.
template <class T>
__device__ __forceinline__ uint32_t large_lanes_of_run(const void* signals, uint32_t i, uint32_t least) {
  float x[kRun];
#pragma unroll
  for (uint32_t part = 0; part < kRun; part += kGroup) load_aligned_group(static_cast<const T*>(signals) + i + part, x + part);
  return large_lanes(x, least) | large_lanes(x + kGroup, least) << kGroup;
}

// The weights first .. end of a layer, whole tiles.
__device__ __forceinline__ void sweep_span(SweepStorage& s, const Pool& pool, LayerState& state, uint32_t layer,
                                           const Weights& weights, const SweepArguments& sweep, uint32_t first, uint32_t end) {
  const unsigned warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const Layer& l = weights.layer;
  SgdRule rule = sweep.step.rule;  // stays among the kernel's arguments
  rule.lr = s.lr;
  rule.scaled = false;
  const auto least_grow = static_cast<uint32_t>(s.staged.threshold[kGrow].key >> 32);
  const uint32_t least = weights.least_signal(least_grow, largest_bonus(s, sweep.options.bonus, weights.index));
  const uint8_t* const bits = l.bits;
  const bool aligned = !sweep.options.random && reinterpret_cast<uintptr_t>(weights.signal) % 16 == 0;

  StagedWeights staged(s.staged);
  uint32_t nnz = 0;
  for (uint32_t start = first + warp * kWarpWeights;; start += kThreads * kRun) {
    const bool over = start >= end;
    if (!over) {
      const uint32_t i = start + lane * kRun;
      uint32_t active = 0, large = 0;
      if (end - start >= kWarpWeights && aligned) {
        active = load(&bits[i / 8]) | static_cast<uint32_t>(load(&bits[i / 8 + 1])) << 8;
        if (least < kNoSignal)
          large = weights.signal_dtype == kF32    ? large_lanes_of_run<float>(weights.signal, i, least)
                  : weights.signal_dtype == kBF16 ? large_lanes_of_run<bf16>(weights.signal, i, least)
                                                  : large_lanes_of_run<f16>(weights.signal, i, least);
      } else {
        for (uint32_t part = 0; part < kRun && i + part < end; part += kGroup) {
          const int count = group_size(end, i + part);
          float signals[kGroup];
          active |= active_lanes(l, i + part, count) << part;
          if (least == kNoSignal) continue;
          weights.load_signals(i + part, count, signals);
          large |= (large_lanes(signals, least) & ((1u << count) - 1)) << part;
        }
      }
      nnz += static_cast<uint32_t>(__popc(active));
      staged.push(i, large & ~active, active);
      if (!staged.enough()) continue;
    }
    staged.keep_listed<kGrow>([&](uint32_t i, uint32_t&) { return weights.grow_key(i, false); });
    staged.keep_listed<kDrop>([&](uint32_t i, uint32_t& mark) {
      float x = 0;
      if (sweep.with_step) x = weights.step(i, rule);
      if (sweep.options.regrow && weights.score_rank_at(i, weights.signal_at(i), true) < least_grow) mark = kCannotRegrowMark;
      return sweep.with_step && l.drop == l.w ? wide_drop_key(x) : weights.drop_key_at(i);
    });
    if (over) break;
    if (staged.fills_chunk()) staged.write_chunk(pool, state, layer);
  }
  staged.write_last_chunk(pool, state, layer);
  if (nnz) atomicAdd(&s.nnz, nnz);
  __syncthreads();
}

__global__ void __launch_bounds__(kThreads, kSweepBlocks)
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
      if (!state.swaps.any() && !sweep.with_step) {
        tile += span;
        continue;
      }
      s.staged.upper[kGrow][threadIdx.x] = static_cast<uint32_t>(state.grow.splitters[threadIdx.x].key >> 32);
      s.staged.upper[kDrop][threadIdx.x] = static_cast<uint32_t>(state.drop.splitters[threadIdx.x].key >> 32);
      s.staged.histogram[kGrow][threadIdx.x] = s.staged.histogram[kDrop][threadIdx.x] = 0;
      if (threadIdx.x == 0) {
        s.staged.threshold[kGrow] = state.grow.list_threshold;
        s.staged.threshold[kDrop] = state.drop.list_threshold;
        s.staged.splitters[kGrow] = state.grow.splitters;
        s.staged.splitters[kDrop] = state.drop.splitters;
        s.layer = row.layer;
        s.layer.g = state.gradient;
        s.nnz = 0;
      }
      __syncthreads();

      constexpr auto kWeights = static_cast<uint32_t>(kTile);
      const uint32_t first = (tile - first_tile) * kWeights, length = span * kWeights;
      const Weights weights(s.layer, row, index, sweep.options, s.layer.g, state.seed);
      sweep_span(s, pool, state, static_cast<uint32_t>(index), weights, sweep, first, n - first < length ? n : first + length);
      const uint32_t grow = s.staged.histogram[kGrow][threadIdx.x], drop = s.staged.histogram[kDrop][threadIdx.x];
      if (drop) atomicAdd(&state.drop.histogram[threadIdx.x], drop);
      if (grow) atomicAdd(&state.grow.histogram[threadIdx.x], grow);
      if (threadIdx.x == 0) atomicAdd(&state.nnz, s.nnz);

      if (is_last_block(&state.tiles_done, span, layer_tiles, s.last)) {
        const Swaps swaps = clipped(state.swaps, load_volatile(&state.nnz), n, sweep.options);
        __syncthreads();
        if (threadIdx.x == 0) {
          state.swaps = swaps;
          // Without a chunk, nobody would complete the layer's.
          if (swaps.any() && load_volatile(&state.chunks) == 0) atomicOr(&state.needs_fallback, 1u);
        }
        if (swaps.drop > 0) select_bin(s.scan, pool, state, state.drop, swaps.drop);
        if (swaps.grow > 0 && !sweep.options.regrow) select_bin(s.scan, pool, state, state.grow, swaps.grow);
      }
      __syncthreads();
      tile += span;
    }
  }
}

}  // namespace dstee::cuda
