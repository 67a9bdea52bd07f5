// First launch, one block a layer. A small layer is updated from the first step to the last, with its keys in shared memory. Of
// a large one a sample is taken: who stands behind its `low` almost surely does not win.
//
// Traffic: small, per weight: what the update must move, the signal and counter of ties twice. Large: up to 200 KB a layer.
#pragma once

#include "lists.cuh"

namespace dstee::cuda {

constexpr uint32_t kMostSampled = 1 << 13, kLeastSampled = 1 << 11;

// What comes with a call, for so many layers.
template <int layers>
struct Calls {
  const void* gradient[layers];
  int64_t k[layers], seed[layers];
};

struct PrepareStorage {
  SelectStorage select;
  Cut picked[kBins];
  uint32_t count[2], picked_count;
  uint8_t active[kSmallLayer / kGroup], dropped[kSmallLayer / kGroup];
};

// --- small layers --------------------------------------------------------------------------------------------------------

// `upper`: of each weight its rank in the side it stands on, the upper half of its key.
__device__ __forceinline__ void update_small(PrepareStorage& s, uint32_t* upper, const Weights& x, int64_t asked,
                                             const void* gradient, bool with_step, const SgdRule& rule) {
  const auto n = static_cast<uint32_t>(x.l.n);
  const bool ranked = asked > 0;
  if (threadIdx.x == 0) s.count[0] = 0;
  __syncthreads();
  for (uint32_t i = threadIdx.x * kGroup; i < n; i += blockDim.x * kGroup) {
    const int count = group_size(n, i);
    const uint32_t active = active_lanes(x.l, i, count);
    if (active && with_step) {
      float g[kGroup];
      load_group(gradient, x.l.dtype, i, count, g);
      step_group(x.l, i, count, active, g, rule);
    }
    if (!ranked) continue;
    s.active[i / kGroup] = static_cast<uint8_t>(active);
    if (active) atomicAdd(&s.count[0], static_cast<uint32_t>(__popc(active)));
    uint64_t drop[kGroup], grow[kGroup];
    x.drop_keys(i, count, active, drop);
    x.grow_keys(i, count, active, ~active & ((1u << count) - 1), grow);
#pragma unroll
    for (int j = 0; j < kGroup; ++j)
      if (j < count) upper[i + j] = static_cast<uint32_t>((active >> j & 1 ? drop[j] : grow[j]) >> 32);
  }
  if (!ranked) return;
  __syncthreads();
  const auto k = static_cast<uint32_t>(clip_swaps(asked, s.count[0], n, x.pass.regrow));
  if (k == 0) return;

  const int index_bits = 32 - __clz(static_cast<int>(n - 1));
  const Cut drop = block_select(s.select, k, false, index_bits, 0, [&](auto visit) {
    for (uint32_t i = threadIdx.x; i < n; i += blockDim.x)
      if (s.active[i / kGroup] >> i % kGroup & 1) visit(upper[i], [] { return 0u; }, i);
  });
  for (uint32_t i = threadIdx.x * kGroup; i < n; i += blockDim.x * kGroup) {
    const uint32_t active = s.active[i / kGroup];
    uint32_t dropped = 0;
    for (int j = 0; j < kGroup; ++j)
      if (active >> j & 1 && takes(drop, static_cast<uint64_t>(upper[i + j]) << 32, i + j)) {
        dropped |= 1u << j;
        if (x.pass.regrow) upper[i + j] = static_cast<uint32_t>(x.grow_key(i + j, true) >> 32);
      }
    s.dropped[i / kGroup] = static_cast<uint8_t>(dropped);
  }
  __syncthreads();

  auto is_candidate = [&](uint32_t i) {
    const uint32_t lane = i % kGroup, active = s.active[i / kGroup], dropped = s.dropped[i / kGroup];
    return ((~active | (x.pass.regrow ? dropped : 0)) >> lane & 1) != 0;
  };
  auto lower = [&](uint32_t i) { return static_cast<uint32_t>(x.grow_key(i, s.active[i / kGroup] >> i % kGroup & 1)); };
  const bool has_lower = x.pass.bonus != nullptr;
  const Cut grow = block_select(s.select, k, has_lower, index_bits, 0, [&](auto visit) {
    for (uint32_t i = threadIdx.x; i < n; i += blockDim.x)
      if (is_candidate(i)) visit(upper[i], [&] { return lower(i); }, i);
  });
  for (uint32_t i = threadIdx.x * kGroup; i < n; i += blockDim.x * kGroup) {
    const int count = group_size(n, i);
    uint32_t grown = 0;
    for (int j = 0; j < count; ++j) {
      if (!is_candidate(i + j)) continue;
      uint64_t key = static_cast<uint64_t>(upper[i + j]) << 32;
      if (has_lower && key >> 32 == grow.key >> 32) key |= lower(i + j);
      grown |= static_cast<uint32_t>(takes(grow, key, i + j)) << j;
    }
    x.commit_group(i, count, s.active[i / kGroup], s.dropped[i / kGroup], grown);
  }
}

// --- the sample of a large layer -----------------------------------------------------------------------------------------

// One group of neighbours per stratum, at a hashed place in it: regular steps would alias with the rows of a matrix whose
// gradients are scaled by row or column.
struct Sample {
  uint32_t groups, stratum, salt;

  __device__ Sample(int64_t n, int32_t round, uint32_t layer) {
    uint32_t size = static_cast<uint32_t>(n / 64);
    size = size < kLeastSampled ? kLeastSampled : size > kMostSampled ? kMostSampled : size;
    groups = size / kGroup;
    stratum = static_cast<uint32_t>(n / groups);
    salt = mix(static_cast<uint32_t>(round) * 977u + layer);
  }
  __device__ __forceinline__ uint32_t first(uint32_t group) const {
    return (group * stratum + mix(group ^ salt) % (stratum - 2 * kGroup) + kGroup - 1) / kGroup * kGroup;
  }
  __device__ __forceinline__ uint32_t place(uint32_t sampled) const { return first(sampled / kGroup) + sampled % kGroup; }
};

constexpr uint64_t kActive = uint64_t{1} << 63;  // a sampled key that is a drop key

__device__ __forceinline__ void take_sample(PrepareStorage& s, uint64_t* keys, const Sample& sample, const Weights& x,
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
__device__ __forceinline__ void set_bounds(PrepareStorage& s, const uint64_t* keys, const Sample& sample, const Weights& x,
                                           Side& side, bool is_drop, uint32_t k) {
  const uint32_t size = sample.groups * kGroup, count = s.count[is_drop];
  const uint64_t tag = is_drop ? kActive : 0;
  // A loose bound costs some room in a list, a missed one a second look at the layer. Winners may come in runs as long as a
  // group, which makes the spread sqrt(8) times that of single draws.
  const float expected = static_cast<float>(k) * static_cast<float>(size) / static_cast<float>(x.l.n);
  auto rank = static_cast<uint32_t>(1.25f * expected + 10.0f * sqrtf(expected) + 16.0f);
  if (x.pass.shy_bracket) rank = 1;
  Cut low = kEverybody;
  if (rank < count) {
    const int bits = 32 - __clz(static_cast<int>(size - 1));
    low = block_select(s.select, rank, !is_drop && x.pass.bonus != nullptr, bits, rank / 8, [&](auto visit) {
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

template <int layers>
__global__ void __launch_bounds__(2 * kThreads)
    prepare_kernel(const Table table, const __grid_constant__ Calls<layers> calls, int first, const int64_t* k_on_device,
                   const Pass pass, const Step step, bool with_step, State* states, const Pool pool) {
  auto& s = shared<PrepareStorage>();
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
    if (!skip) update_small(s, reinterpret_cast<uint32_t*>(dynamic_shared()), x, asked, gradient, with_step, rule);
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
    s.count[0] = s.count[1] = 0;
  }
  if (k == 0) return;
  __syncthreads();
  auto* keys = reinterpret_cast<uint64_t*>(dynamic_shared());
  const Sample sample(n, x.round, static_cast<uint32_t>(index));
  take_sample(s, keys, sample, x, gradient, with_step, rule);
  __syncthreads();
  set_bounds(s, keys, sample, x, state.drop, true, k);
  set_bounds(s, keys, sample, x, state.grow, false, k);
}

}  // namespace dstee::cuda
