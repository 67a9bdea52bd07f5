// The keys of one group of weights, and what the scans of one update share.
#pragma once

#include "masked_sgd.cuh"

namespace dstee::cuda {

// The running search for the last winner of one side of one layer.
struct Cut {
  uint64_t floor;           // the digits found so far, lower ones 0; at the end the last winner's key
  unsigned long long left;  // winners still sought among the keys that share those digits
  int64_t index;            // of the keys equal to floor those up to here win
  uint32_t done;            // tiles that finished the current launch
  int settled;              // nothing more to find
  unsigned long long bins[1 << 11];
};

struct State {
  unsigned long long nnz;
  int64_t k;
  uint64_t seed;
  Cut drop, grow;
};

struct Pass {
  const float* bonus;
  uint32_t bonus_size;
  int32_t round;
  const int64_t* round_pointer;  // or null: then it is `round`
  bool random, regrow, reset_regrown;
};

__device__ __forceinline__ int32_t round_of(const Pass& pass) {
  return pass.round_pointer ? static_cast<int32_t>(*pass.round_pointer) : pass.round;
}

struct Longs {
  int64_t x[kMaxLayers];
};
inline Longs longs(const std::vector<int64_t>& values, size_t first, int count) {
  Longs out{};
  for (int i = 0; i < count && first + static_cast<size_t>(i) < values.size(); ++i)
    out.x[i] = values[first + static_cast<size_t>(i)];
  return out;
}

__device__ __forceinline__ bool takes(const Cut& cut, uint64_t key, int64_t i) {
  return key > cut.floor || (key == cut.floor && i <= cut.index);
}

// The smaller |x|, the larger the key; NaN above all.
__device__ __forceinline__ void drop_keys(const Layer& l, int64_t i, int count, uint64_t* keys) {
  float x[kGroup];
  load_group(l.drop, l.drop_dtype, i, count, x);
#pragma unroll
  for (int j = 0; j < kGroup; ++j) keys[j] = static_cast<uint64_t>(kMaxRank - rank_of(x[j])) << 32;
}

__device__ __forceinline__ uint32_t dropped_lanes(const State& state, const Layer& l, int64_t i, int count, uint32_t active) {
  uint64_t keys[kGroup];
  drop_keys(l, i, count, keys);
  uint32_t lanes = 0;
#pragma unroll
  for (int j = 0; j < kGroup; ++j) lanes |= static_cast<uint32_t>(active >> j & 1 && takes(state.drop, keys[j], i + j)) << j;
  return lanes;
}

// Paper, Eq. 1, as (rank of score, rank of |signal|).
__device__ __forceinline__ void grow_keys(const Pass& pass, const State& state, const Layer& l, const void* gradient, int64_t i,
                                          int count, uint32_t active, uint64_t* keys) {
  float signal[kGroup];
  if (!pass.random) load_group(l.grow ? l.grow : gradient, l.grow ? l.grow_dtype : l.dtype, i, count, signal);
#pragma unroll
  for (int j = 0; j < kGroup; ++j) {
    const uint64_t at = static_cast<uint64_t>(i + j);
    const float abs_signal =
        pass.random
            ? static_cast<float>(random24(static_cast<uint32_t>(at), static_cast<uint32_t>(at >> 32), state.seed)) * kRandomUnit
            : float_of(bits_of(signal[j]) & 0x7FFFFFFFu);
    float total = abs_signal;
    if (pass.bonus && j < count) {
      const int32_t stored = l.counts[i + j];
      const auto N = static_cast<uint32_t>(active >> j & 1 ? flip_count(stored, round_of(pass)) : stored);
      total = score(abs_signal, pass.bonus[N < pass.bonus_size ? N : pass.bonus_size - 1]);
    }
    keys[j] = static_cast<uint64_t>(rank_of(total)) << 32 | (pass.bonus ? rank_of(abs_signal) : 0);
  }
}

}  // namespace dstee::cuda
