// First launch, one block a layer. Of a large layer a sample is taken, and from it a threshold for each side that all selected
// weights almost surely pass; a small layer is updated whole (small_layer.cuh).
//
// Traffic: up to 200 KB a large layer.
#pragma once

#include <cstdint>

#include "../rules.h"
#include "block_select.cuh"
#include "block_sort.cuh"
#include "group.cuh"
#include "launch.cuh"
#include "layer_state.cuh"
#include "lists.cuh"
#include "masked_sgd.cuh"
#include "options.cuh"
#include "sample_size.cuh"
#include "scalar.cuh"
#include "small_layer.cuh"
#include "table.cuh"
#include "threshold.cuh"
#include "weights.cuh"

namespace dstee::cuda {

struct SampleStorage {
  // [0]: of the growth, [1]: of the drop.
  Threshold picked[2][kBins];          // for splitters
  uint32_t picked_count[2], count[2];  // picked and sampled weights
};

// One group of neighbours per stratum, at a hashed place in it: regular steps would alias with the rows of a matrix whose
// gradients are scaled by row or column.
struct Sample {
  uint32_t groups, stratum, salt;

  __device__ Sample(int64_t n, int32_t round, uint32_t layer) {
    groups = sample_size(n) / kGroup;
    stratum = static_cast<uint32_t>(n / groups);
    salt = mix(static_cast<uint32_t>(round) * 977u + layer);
  }
  __device__ __forceinline__ uint32_t first(uint32_t group) const {
    return (group * stratum + mix(group ^ salt) % (stratum - 2 * kGroup) + kGroup - 1) / kGroup * kGroup;
  }
  __device__ __forceinline__ uint32_t index_of(uint32_t sampled) const { return first(sampled / kGroup) + sampled % kGroup; }
};

constexpr uint64_t kDropKey = uint64_t{1} << 63;  // marks the drop keys among the sampled keys

__device__ __forceinline__ void take_sample(SampleStorage& s, uint64_t* keys, const Sample& sample, const Weights& weights,
                                            const void* gradient, bool with_step, const SgdRule& rule) {
  for (uint32_t group = threadIdx.x; group < sample.groups; group += blockDim.x) {
    const int64_t i = sample.first(group);
    const uint32_t active = active_lanes(weights.layer, i, kGroup);
    uint64_t drop[kGroup], grow[kGroup];
    weights.grow_keys(i, kGroup, active, ~active & 0xFF, grow);
    weights.drop_keys(i, kGroup, active, drop);
    if (active && with_step && weights.layer.drop == weights.layer.w) {  // as they will be after the step
      float w[kGroup], g[kGroup], m[kGroup] = {};
      load_group(weights.layer.w, weights.layer.dtype, i, kGroup, w);
      load_group(gradient, weights.layer.dtype, i, kGroup, g);
      if (rule.has_momentum) load_group(weights.layer.m, weights.layer.dtype, i, kGroup, m);
#pragma unroll
      for (int j = 0; j < kGroup; ++j) {
        sgd(w[j], g[j], m[j], rule);
        drop[j] = wide_drop_key(rounded(w[j], weights.layer.dtype));
      }
    }
#pragma unroll
    for (int j = 0; j < kGroup; ++j) keys[group * kGroup + j] = active >> j & 1 ? drop[j] | kDropKey : grow[j];
    if (active) atomicAdd(&s.count[1], static_cast<uint32_t>(__popc(active)));
    if (active != 0xFF) atomicAdd(&s.count[0], static_cast<uint32_t>(kGroup - __popc(active)));
  }
}

// From the sample to the list threshold of one side, of which the layer selects k weights. Up to kBins - 1 of the sampled
// weights that pass it are picked.
__device__ __forceinline__ void set_list_threshold(SelectStorage& select, SampleStorage& s, const uint64_t* keys,
                                                   const Sample& sample, const Weights& weights, SideState& side, bool is_drop,
                                                   uint32_t k) {
  const uint32_t size = sample.groups * kGroup, count = s.count[is_drop];
  const uint64_t tag = is_drop ? kDropKey : 0;
  const float expected = static_cast<float>(k) * static_cast<float>(size) / static_cast<float>(weights.layer.n);
  auto rank = static_cast<uint32_t>(sample_rank(expected));
  if (weights.options.tight_bounds) rank = 1;
  Threshold threshold = kPassAll;
  if (rank < count) {
    const int bits = 32 - __clz(static_cast<int>(size - 1));
    threshold =
        block_select(select, rank, !is_drop && static_cast<bool>(weights.options.bonus), bits, rank / 8, [&](auto visit) {
          for (uint32_t p = threadIdx.x; p < size; p += blockDim.x) {
            const uint64_t key = keys[p];
            if ((key & kDropKey) == tag)
              visit(static_cast<uint32_t>((key & ~kDropKey) >> 32), [&] { return static_cast<uint32_t>(key); }, p);
          }
        });
  } else {
    rank = count;
  }
  if (threadIdx.x == 0) {
    const bool any_index = threshold.index >= size - 1;
    store(&side.list_threshold, Threshold{threshold.key, any_index ? ~uint32_t{0} : sample.index_of(threshold.index)});
  }
  for (uint32_t p = threadIdx.x; p < size; p += blockDim.x) {
    const uint64_t key = keys[p];
    if ((key & kDropKey) != tag || !passes(threshold, key & ~kDropKey, p)) continue;
    if (rank > kBins * 3 / 4 && __umulhi(mix(p ^ sample.salt), rank) >= kBins * 3 / 4) continue;
    const uint32_t at = atomicAdd(&s.picked_count[is_drop], 1u);
    if (at < kBins - 1) s.picked[is_drop][at] = {key & ~kDropKey, sample.index_of(p)};
  }
}

// --- the launch ----------------------------------------------------------------------------------------------------------

// What comes with a call, for so many layers.
template <int layers>
struct PerCallInputs {
  const void* gradient[layers];
  int64_t seed[layers];
  uint32_t drop[layers], grow[layers];
};

struct FirstLaunchStorage {
  SelectStorage select;
  SmallLayerStorage small;
  SampleStorage sample;
};

// From a tensor, which may hold anything, or from the call.
__device__ __forceinline__ uint32_t wanted_of(const int64_t* on_device, int layer, uint32_t given, int64_t n) {
  if (!on_device) return given;
  const int64_t wanted = on_device[layer];
  return static_cast<uint32_t>(wanted < 0 ? 0 : wanted < n ? wanted : n);
}

template <int layers>
__global__ void __launch_bounds__(2 * kThreads)
    sample_kernel(const Table table, const __grid_constant__ PerCallInputs<layers> inputs, int first,
                  const int64_t* k_on_device, const int64_t* k_grow_on_device, const UpdateOptions options, const SgdStep step,
                  bool with_step, LayerState* states, const Pool pool) {
  auto& storage = shared<FirstLaunchStorage>();
  const int index = first + static_cast<int>(blockIdx.x);
  const Row& row = table.rows[index];
  if (index == 0 && threadIdx.x == 0) store(pool.used, 0ull);
  const int64_t n = row.layer.n;
  if (n == 0) return;
  const void* gradient = inputs.gradient[blockIdx.x];
  const bool skip = value_of(step.found_inf) != 0;
  const Swaps wanted{wanted_of(k_on_device, index, inputs.drop[blockIdx.x], n),
                     wanted_of(k_grow_on_device, index, inputs.grow[blockIdx.x], n)};
  const Weights weights(row.layer, row, index, options, gradient, static_cast<uint64_t>(inputs.seed[blockIdx.x]));
  const SgdRule rule = rule_on_device(step);
  if (n <= kSmallLayer) {
    if (!skip)
      update_small_layer(storage.select, storage.small, reinterpret_cast<uint32_t*>(dynamic_shared()), weights, wanted,
                         gradient, with_step, rule);
    return;
  }

  LayerState& state = states[index];
  const Swaps swaps = skip ? Swaps{} : wanted;
  for (unsigned b = threadIdx.x; b < kBins; b += blockDim.x)
    for (SideState* side : {&state.drop, &state.grow}) store(&side->histogram[b], 0u);
  if (threadIdx.x == 0) {
    state.gradient = gradient;
    state.seed = weights.seed;
    state.swaps = swaps;
    state.nnz = state.tiles_done = state.chunks = state.chunks_done = state.needs_fallback = 0;
    state.end_flips[0] = state.end_flips[1] = 0;
    for (SideState* side : {&state.drop, &state.grow}) {
      side->list_threshold = kPassNone;
      side->kth_bin = kBins;
      side->undecided_k = side->undecided_start = side->undecided_count = 0;
    }
  }
  if (!swaps.any()) return;
  SampleStorage& s = storage.sample;
  for (unsigned b = threadIdx.x; b < kBins; b += blockDim.x) s.picked[0][b] = s.picked[1][b] = kPassNone;
  if (threadIdx.x < 2) s.picked_count[threadIdx.x] = s.count[threadIdx.x] = 0;
  __syncthreads();
  auto* keys = reinterpret_cast<uint64_t*>(dynamic_shared());
  const Sample sample(n, weights.round, static_cast<uint32_t>(index));
  take_sample(s, keys, sample, weights, gradient, with_step, rule);
  __syncthreads();
  if (swaps.drop > 0) set_list_threshold(storage.select, s, keys, sample, weights, state.drop, true, swaps.drop);
  if (swaps.grow > 0) set_list_threshold(storage.select, s, keys, sample, weights, state.grow, false, swaps.grow);
  block_sort<2, kBins>(s.picked[0]);
  for (unsigned b = threadIdx.x; b < kBins; b += blockDim.x) {
    store(&state.grow.splitters[b], s.picked[0][b]);
    store(&state.drop.splitters[b], s.picked[1][b]);
  }
}

}  // namespace dstee::cuda
