// What one call of drop_grow_ asks for, the same for all its layers.
#pragma once

#include <cstdint>
#include <optional>

#include "../rules.h"
#include "launch.cuh"

namespace dstee::cuda {

// The exploration bonus by counter; with `scales` in units of its layer's one, as float64.
struct BonusTable {
  const void* values;  // or null
  const float* scales;
  uint32_t size;

  __device__ __forceinline__ explicit operator bool() const { return values != nullptr; }
  __device__ __forceinline__ float at(int layer, uint32_t counter) const {
    return scales ? scaled_bonus(scales[layer], static_cast<const double*>(values)[counter])
                  : static_cast<const float*>(values)[counter];
  }
};
inline BonusTable bonus_table_of(const std::optional<Tensor>& values, const std::optional<Tensor>& scales) {
  return {values ? values->const_data_ptr() : nullptr, scales ? static_cast<const float*>(scales->const_data_ptr()) : nullptr,
          values ? static_cast<uint32_t>(values->numel()) : 0};
}

struct UpdateOptions {
  BonusTable bonus;
  int32_t round;
  const int64_t* round_pointer;  // in place of `round`; or null
  bool random;                   // the growth's signal is a hash of seed and index
  bool has_places;               // the index is that of the whole layer
  bool uneven;                   // k_grow is given
  bool regrow, reset_regrown;
  bool tight_bounds;  // see test_limits.h
};

// How many weights of a layer are dropped and grown.
struct Swaps {
  uint32_t drop, grow;
  __device__ __forceinline__ bool any() const { return drop > 0 || grow > 0; }
};

// What there is room for, once the nnz active ones of n weights are counted.
__device__ __forceinline__ Swaps clipped(const Swaps& wanted, uint32_t nnz, uint32_t n, const UpdateOptions& options) {
  if (!options.uneven) {
    const auto k = static_cast<uint32_t>(clip_swaps(wanted.drop, nnz, n, options.regrow));
    return {k, k};
  }
  const uint32_t drop = wanted.drop < nnz ? wanted.drop : nnz;
  return {drop, static_cast<uint32_t>(clip_growth(wanted.grow, drop, nnz, n, options.regrow))};
}

__device__ __forceinline__ int32_t round_of(const UpdateOptions& options) {
  return options.round_pointer ? static_cast<int32_t>(*options.round_pointer) : options.round;
}

}  // namespace dstee::cuda
