// What the kernels see of a layer: pointers and numbers. Torch's tensors end in arguments.cpp.
#pragma once

#include <type_traits>

#include "rules.h"

namespace dstee {

struct Layer {
  void* w = nullptr;
  const void* g = nullptr;
  void* m = nullptr;
  uint8_t* bits = nullptr;
  int16_t* counts = nullptr;
  const void* drop = nullptr;  // ranked by the drop: another tensor or w itself
  const void* grow = nullptr;  // ranked by the growth: another tensor or g itself
  Dtype dtype = kF32, drop_dtype = kF32, grow_dtype = kF32;
  int unused = 0;  // in place of padding: a layer is compared byte by byte
  int64_t n = 0;
};

// Bit i of a mask.
DSTEE_HD bool is_active(const uint8_t* bits, int64_t i) { return bits[i / 8] >> (i % 8) & 1; }

// Element i of an array of the type.
template <class T>
T* at(T* base, int64_t i, Dtype dtype) {
  using Byte = std::conditional_t<std::is_const_v<T>, const char, char>;
  return static_cast<T*>(static_cast<Byte*>(base) + i * element_size(dtype));
}

// The same as a number.
DSTEE_HD float value_at(const void* base, int64_t i, Dtype dtype) {
  if (dtype == kF32) return read<float>(base, i);
  return dtype == kBF16 ? to_float(read<bf16>(base, i)) : to_float(read<f16>(base, i));
}

}  // namespace dstee
