// What one call of drop_grow_ asks for, the same for all its layers.
#pragma once

#include <cstdint>

#include "launch.cuh"

namespace dstee::cuda {

struct UpdateOptions {
  const float* bonus;
  uint32_t bonus_size;
  int32_t round;
  const int64_t* round_pointer;  // in place of `round`; or null
  bool random;                   // the growth's signal is a hash of seed and index
  bool regrow, reset_regrown;
  bool tight_bounds;  // see test_limits.h
};

__device__ __forceinline__ int32_t round_of(const UpdateOptions& options) {
  return options.round_pointer ? static_cast<int32_t>(*options.round_pointer) : options.round;
}

}  // namespace dstee::cuda
