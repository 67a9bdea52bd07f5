// A layer with what this update ranks: keys and changes of one weight or of a group.
#pragma once

#include <cstdint>

#include "../rules.h"
#include "group.cuh"
#include "last_block.cuh"
#include "options.cuh"
#include "table.cuh"
#include "threshold.cuh"

namespace dstee::cuda {

constexpr uint32_t kNoSignal = 1u << 31;  // bits above those of any absolute value

// The stored counters of a group.
struct StoredCounts {
  Quad pair;
  __device__ __forceinline__ int32_t at(int j) const {
    const uint64_t first = pair.x[0] | static_cast<uint64_t>(pair.x[1]) << 32;
    const uint64_t last = pair.x[2] | static_cast<uint64_t>(pair.x[3]) << 32;
    return static_cast<int16_t>((j < 4 ? first : last) >> j % 4 * 16);
  }
};

struct Weights {
  const Layer& layer;
  const Place& place;
  const UpdateOptions& options;
  int index;  // of the layer
  const void* signal;
  Dtype signal_dtype;
  uint64_t seed;
  int32_t round;

  // layer: row's, or a copy of it.
  __device__ __forceinline__ Weights(const Layer& layer, const Row& row, int index, const UpdateOptions& options,
                                     const void* gradient, uint64_t seed)
      : layer(layer),
        place(row.place),
        options(options),
        index(index),
        signal(layer.grow ? layer.grow : gradient),
        signal_dtype(layer.grow ? layer.grow_dtype : layer.dtype),
        seed(seed),
        round(round_of(options)) {}

  // Whole groups.
  __device__ __forceinline__ void load_signals(int64_t i, int count, float* out) const {
    if (!options.random) {
      load_group(signal, signal_dtype, i, count, out);
    } else {
#pragma unroll
      for (int j = 0; j < kGroup; ++j) out[j] = random_signal(i + j);
    }
  }
  __device__ __forceinline__ StoredCounts load_counts(int64_t i, int count) const {
    if (count == kGroup && reinterpret_cast<uintptr_t>(layer.counts + i) % 16 == 0)
      return {load(reinterpret_cast<const Quad*>(layer.counts + i))};
    StoredCounts counts{};
#pragma unroll
    for (int j = 0; j < kGroup; ++j)
      if (j < count)
        counts.pair.x[j / 2] |= static_cast<uint32_t>(static_cast<uint16_t>(load(layer.counts + i + j))) << j % 2 * 16;
    return counts;
  }
  // Paper, Eq. 1: the upper half of a growth key. The lower half, rank_of(signal), matters only where a bonus was added.
  __device__ __forceinline__ uint32_t score_rank(float signal_value, int32_t stored, bool active) const {
    const float abs_signal = float_of(bits_of(signal_value) & 0x7FFFFFFFu);
    if (!options.bonus) return rank_of(abs_signal);
    return rank_of(score(abs_signal, options.bonus.at(index, counter_of(stored, active, round, options.bonus.size))));
  }
  __device__ __forceinline__ uint64_t grow_key_of(uint32_t rank, float signal_value) const {
    return static_cast<uint64_t>(rank) << 32 | (options.bonus ? rank_of(signal_value) : 0);
  }
  // No signal whose absolute value has smaller bits reaches a score of rank `least`; others may. largest_bonus: bits of the
  // largest value of the bonus table.
  __device__ __forceinline__ uint32_t least_signal(uint32_t least, uint32_t largest_bonus) const {
    if (least <= 1) return 0;  // so does NaN
    if (least > kMaxRank) return kNoSignal;
    if (!options.bonus) return least - 1;
    if (largest_bonus >= kInfBits) return 0;  // Inf, NaN, or something negative
    const float wanted = float_of(least - 1);
    const float bound = wanted - float_of(largest_bonus) - wanted * 0x1p-22f;  // more than what rounding may add to the score
    return bound > 0 ? bits_of(bound) : 0;
  }
  // The keys of the lanes; other keys are undefined.
  __device__ __forceinline__ void grow_keys(int64_t i, int count, uint32_t active, uint32_t lanes, uint64_t* keys) const {
    float signals[kGroup];
    StoredCounts stored{};
    if (lanes == 0) return;
    load_signals(i, count, signals);
    if (options.bonus) stored = load_counts(i, count);
#pragma unroll
    for (int j = 0; j < kGroup; ++j) keys[j] = grow_key_of(score_rank(signals[j], stored.at(j), active >> j & 1), signals[j]);
  }
  __device__ __forceinline__ void drop_keys(int64_t i, int count, uint32_t lanes, uint64_t* keys) const {
    float x[kGroup];
    if (lanes == 0) return;
    load_group(layer.drop, layer.drop_dtype, i, count, x);
#pragma unroll
    for (int j = 0; j < kGroup; ++j) keys[j] = wide_drop_key(x[j]);
  }

  // One weight.
  __device__ __forceinline__ float signal_at(int64_t i) const {
    return options.random ? random_signal(i) : gather_float(signal, signal_dtype, i);
  }
  __device__ __forceinline__ uint32_t score_rank_at(int64_t i, float signal_value, bool active) const {
    return score_rank(signal_value, options.bonus ? gather(layer.counts + i) : 0, active);
  }
  __device__ __forceinline__ uint64_t grow_key(int64_t i, bool active) const {
    const float value = signal_at(i);
    return grow_key_of(score_rank_at(i, value, active), value);
  }
  __device__ __forceinline__ uint64_t drop_key_at(int64_t i) const {
    return wide_drop_key(gather_float(layer.drop, layer.drop_dtype, i));
  }
  // The SGD step of an active weight; its new value as it is stored.
  __device__ __forceinline__ float step(int64_t i, const SgdRule& rule) const {
    float w = gather_float(layer.w, layer.dtype, i), m = rule.has_momentum ? gather_float(layer.m, layer.dtype, i) : 0.0f;
    sgd(w, gather_float(layer.g, layer.dtype, i), m, rule);
    write(layer.w, i, w);
    if (rule.has_momentum) write(layer.m, i, m);
    return rounded(w, layer.dtype);
  }
  // Active becomes inactive and the other way round. Atomics change words of four bytes: of a word that is not the mask's alone
  // the bit goes to `ends`, for flip_ends.
  __device__ __forceinline__ void flip(int64_t i, uint32_t* ends) const {
    const uint32_t lead = lead_bytes(), byte = lead + static_cast<uint32_t>(i / 8);  // from the start of the first word on
    const bool whole = byte / 4 * 4 >= lead && (byte | 3) < end_byte();
    uint32_t* const target = whole ? reinterpret_cast<uint32_t*>(layer.bits - lead) + byte / 4 : ends + (byte >= 4);
    atomicXor(target, 1u << (8 * (byte & 3) + i % 8));
    if (layer.counts) scatter(layer.counts + i, static_cast<int16_t>(flip_count<int32_t>(gather(layer.counts + i), round)));
  }
  // By one thread, once all flips are done.
  __device__ __forceinline__ void flip_ends(const uint32_t* ends) const {
    for (int end = 0; end < 2; ++end) {
      const uint32_t flips = load_volatile(&ends[end]);
      uint8_t* const word = layer.bits - lead_bytes() + (end == 0 ? 0 : (end_byte() - 1) / 4 * 4);
      for (int b = 0; b < 4; ++b)
        if (const uint32_t byte = flips >> 8 * b & 0xFF) store(word + b, static_cast<uint8_t>(load(word + b) ^ byte));
    }
  }
  __device__ __forceinline__ void set_zero(int64_t i) const {
    write(layer.w, i, 0.0f);
    if (layer.m) write(layer.m, i, 0.0f);
  }

  // The outcome for one group that no other block touches.
  __device__ __forceinline__ void commit_group(int64_t i, int count, uint32_t active, uint32_t dropped, uint32_t grown) const {
    const uint32_t changed = dropped ^ grown, gone = options.reset_regrown ? dropped : dropped & ~grown;
    if (changed) store(&layer.bits[i / kGroup], static_cast<uint8_t>(active ^ changed));
    if (changed && layer.counts) {
      const StoredCounts stored = load_counts(i, count);
#pragma unroll
      for (int j = 0; j < kGroup; ++j)
        if (changed >> j & 1) store(&layer.counts[i + j], static_cast<int16_t>(flip_count(stored.at(j), round)));
    }
    if (gone) {
      const float zeros[kGroup] = {};
      store_group(layer.w, layer.dtype, i, gone, zeros);
      if (layer.m) store_group(layer.m, layer.dtype, i, gone, zeros);
    }
  }

 private:
  // Of the mask's first word, those before the mask; and where the mask ends, from the start of that word on.
  __device__ __forceinline__ uint32_t lead_bytes() const { return reinterpret_cast<uintptr_t>(layer.bits) & 3; }
  __device__ __forceinline__ uint32_t end_byte() const { return lead_bytes() + static_cast<uint32_t>((layer.n + 7) / 8); }
  __device__ __forceinline__ float random_signal(int64_t i) const {
    const auto local = static_cast<uint64_t>(i), at = options.has_places ? global_index(place, local) : local;
    return static_cast<float>(random24(static_cast<uint32_t>(at), static_cast<uint32_t>(at >> 32), seed)) * kRandomUnit;
  }
  // Element i of a tensor of the layer's dtype.
  __device__ __forceinline__ void write(void* p, int64_t i, float x) const {
    if (layer.dtype == kF32)
      scatter(static_cast<float*>(p) + i, x);
    else if (layer.dtype == kBF16)
      scatter_as<bf16>(p, i, x);
    else
      scatter_as<f16>(p, i, x);
  }
  template <class T>
  __device__ __forceinline__ static void scatter_as(void* p, int64_t i, float x) {
    T raw;
    from_float(x, raw);
    scatter(static_cast<T*>(p) + i, raw);
  }
};

__device__ __forceinline__ int group_size(int64_t n, int64_t i) { return n - i < kGroup ? static_cast<int>(n - i) : kGroup; }

}  // namespace dstee::cuda
