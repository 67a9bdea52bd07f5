// First launch, one block a layer. A small layer is updated from the first step to the last, with its keys in shared memory. Of
// a large one a sample is taken: who stands behind its `low` almost surely does not win.
//
// Traffic: small, per weight: what the update must move, the signal and counter of ties twice. Large: up to 200 KB a layer.
#pragma once

#include <cstdint>

#include "../rules.h"
#include "block_select.cuh"
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
  Cut picked[kBins];
  uint32_t count[2], picked_count;
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
  __device__ __forceinline__ uint32_t place(uint32_t sampled) const { return first(sampled / kGroup) + sampled % kGroup; }
};

constexpr uint64_t kActive = uint64_t{1} << 63;  // a sampled key that is a drop key

__device__ __forceinline__ void take_sample(SampleStorage& s, uint64_t* keys, const Sample& sample, const Weights& x,
                                            const void* gradient, bool with_step, const SgdRule& rule) {
  for (uint32_t group = threadIdx.x; group < sample.groups; group += blockDim.x) {
    const int64_t i = sample.first(group);
    const uint32_t active = active_lanes(x.l, i, kGroup);
    uint64_t drop[kGroup], grow[kGroup];
    x.grow_keys(i, kGroup, active, ~active & 0xFF, grow);
    x.drop_keys(i, kGroup, active, drop);
    if (active && with_step && x.l.drop == x.l.w) {  // as they will be after the step
      float w[kGroup], g[kGroup], m[kGroup] = {};
      load_group(x.l.w, x.l.dtype, i, kGroup, w);
      load_group(gradient, x.l.dtype, i, kGroup, g);
      if (rule.has_momentum) load_group(x.l.m, x.l.dtype, i, kGroup, m);
#pragma unroll
      for (int j = 0; j < kGroup; ++j) {
        sgd(w[j], g[j], m[j], rule);
        drop[j] = wide_drop_key(rounded(w[j], x.l.dtype));
      }
    }
#pragma unroll
    for (int j = 0; j < kGroup; ++j) keys[group * kGroup + j] = active >> j & 1 ? drop[j] | kActive : grow[j];
    if (active) atomicAdd(&s.count[1], static_cast<uint32_t>(__popc(active)));
    if (active != 0xFF) atomicAdd(&s.count[0], static_cast<uint32_t>(kGroup - __popc(active)));
  }
}

// From the sample to the bounds of one side. k winners are sought in the layer.
__device__ __forceinline__ void set_bounds(SelectStorage& select, SampleStorage& s, const uint64_t* keys, const Sample& sample,
                                           const Weights& x, Side& side, bool is_drop, uint32_t k) {
  const uint32_t size = sample.groups * kGroup, count = s.count[is_drop];
  const uint64_t tag = is_drop ? kActive : 0;
  const float expected = static_cast<float>(k) * static_cast<float>(size) / static_cast<float>(x.l.n);
  auto rank = static_cast<uint32_t>(sample_rank(expected));
  if (x.pass.shy_bracket) rank = 1;
  Cut low = kEverybody;
  if (rank < count) {
    const int bits = 32 - __clz(static_cast<int>(size - 1));
    low = block_select(select, rank, !is_drop && x.pass.bonus != nullptr, bits, rank / 8, [&](auto visit) {
      for (uint32_t p = threadIdx.x; p < size; p += blockDim.x) {
        const uint64_t key = keys[p];
        if ((key & kActive) == tag)
          visit(static_cast<uint32_t>((key & ~kActive) >> 32), [&] { return static_cast<uint32_t>(key); }, p);
      }
    });
  } else {
    rank = count;
  }

  // Up to kBins - 1 of the sampled weights that would be listed part the bins.
  __syncthreads();  // the other side has been read
  if (threadIdx.x == 0) s.picked_count = 0;
  __syncthreads();
  for (uint32_t p = threadIdx.x; p < size; p += blockDim.x) {
    const uint64_t key = keys[p];
    if ((key & kActive) != tag || !takes(low, key & ~kActive, p)) continue;
    if (rank > kBins * 3 / 4 && __umulhi(mix(p ^ sample.salt), rank) >= kBins * 3 / 4) continue;
    const uint32_t at = atomicAdd(&s.picked_count, 1u);
    if (at < kBins - 1) s.picked[at] = {key & ~kActive, p};
  }
  __syncthreads();
  const uint32_t picked = s.picked_count < kBins - 1 ? s.picked_count : kBins - 1;
  for (uint32_t i = threadIdx.x; i < kBins; i += blockDim.x) {
    uint32_t worse = 0;
    for (uint32_t other = 0; other < picked && i < picked; ++other)
      worse += other != i && takes(s.picked[other], s.picked[i].key, s.picked[i].index);
    const Cut cut = i < picked ? Cut{s.picked[i].key, sample.place(s.picked[i].index)} : kNobody;
    store(&side.splitters[i < picked ? worse : i], cut);
  }
  if (threadIdx.x == 0) {
    const bool any_index = low.index >= size - 1;
    store(&side.low, Cut{low.key, any_index ? ~uint32_t{0} : sample.place(low.index)});
  }
}

// --- the launch ----------------------------------------------------------------------------------------------------------

// What comes with a call, for so many layers.
template <int layers>
struct Calls {
  const void* gradient[layers];
  int64_t k[layers], seed[layers];
};

struct PrepareStorage {
  SelectStorage select;
  SmallLayerStorage small;
  SampleStorage sample;
};

template <int layers>
__global__ void __launch_bounds__(2 * kThreads)
    sample_kernel(const Table table, const __grid_constant__ Calls<layers> calls, int first, const int64_t* k_on_device,
                  const Pass pass, const Step step, bool with_step, State* states, const Pool pool) {
  auto& storage = shared<PrepareStorage>();
  const int index = first + static_cast<int>(blockIdx.x);
  const Row& row = table.rows[index];
  if (index == 0 && threadIdx.x == 0) store(pool.used, 0ull);
  const int64_t n = row.layer.n;
  if (n == 0) return;
  const void* gradient = calls.gradient[blockIdx.x];
  const bool skip = value_of(step.found_inf) != 0;
  const int64_t asked = k_on_device ? k_on_device[index] : calls.k[blockIdx.x];
  const Weights x(row.layer, pass, gradient, static_cast<uint64_t>(calls.seed[blockIdx.x]));
  const SgdRule rule = rule_on_device(step);
  if (n <= kSmallLayer) {
    if (!skip)
      update_small(storage.select, storage.small, reinterpret_cast<uint32_t*>(dynamic_shared()), x, asked, gradient, with_step,
                   rule);
    return;
  }

  State& state = states[index];
  const auto k = static_cast<uint32_t>(skip || asked < 0 ? 0 : asked < n ? asked : n);
  for (unsigned b = threadIdx.x; b < kBins; b += blockDim.x)
    for (Side* side : {&state.drop, &state.grow}) store(&side->bins[b], 0u);
  if (threadIdx.x == 0) {
    state.gradient = gradient;
    state.seed = x.seed;
    state.k = k;
    state.nnz = state.tiles_done = state.chunks = state.chunks_done = state.flagged = 0;
    for (Side* side : {&state.drop, &state.grow}) {
      side->low = kNobody;
      side->bin = kBins;
      side->left = side->finalists = side->finalist_count = 0;
    }
    storage.sample.count[0] = storage.sample.count[1] = 0;
  }
  if (k == 0) return;
  __syncthreads();
  auto* keys = reinterpret_cast<uint64_t*>(dynamic_shared());
  const Sample sample(n, x.round, static_cast<uint32_t>(index));
  take_sample(storage.sample, keys, sample, x, gradient, with_step, rule);
  __syncthreads();
  set_bounds(storage.select, storage.sample, keys, sample, x, state.drop, true, k);
  set_bounds(storage.select, storage.sample, keys, sample, x, state.grow, false, k);
}

}  // namespace dstee::cuda
