// What one call of drop_grow_ asks for, the same for all its layers.
#pragma once

#include <cstdint>

#include "launch.cuh"

namespace dstee::cuda {

struct Pass {
  const float* bonus;
  uint32_t bonus_size;
  int32_t round;
  const int64_t* round_pointer;  // or null: then it is `round`
  bool random, regrow, reset_regrown;
  bool shy_bracket;  // for tests
};

__device__ __forceinline__ int32_t round_of(const Pass& pass) {
  return pass.round_pointer ? static_cast<int32_t>(*pass.round_pointer) : pass.round;
}

}  // namespace dstee::cuda
