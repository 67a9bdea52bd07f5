// Numbers that kernels read from device memory, so that a captured graph follows them.
#pragma once

#include <optional>

#include "../arguments.h"
#include "../rules.h"
#include "launch.cuh"

namespace dstee::cuda {

// A floating-point number in device memory, or a constant.
struct Scalar {
  const void* pointer = nullptr;
  bool is_double = false;
  Dtype dtype = kF32;
  float constant = 0;
};

DSTEE_HD float value_of(const Scalar& s) {
  if (!s.pointer) return s.constant;
  if (s.is_double) return static_cast<float>(*static_cast<const double*>(s.pointer));
  if (s.dtype == kBF16) return to_float(*static_cast<const bf16*>(s.pointer));
  if (s.dtype == kF16) return to_float(*static_cast<const f16*>(s.pointer));
  return *static_cast<const float*>(s.pointer);
}

// `tensor` has been checked: one floating-point number on the device.
inline Scalar scalar_of(double constant, const std::optional<Tensor>& tensor) {
  using torch::headeronly::ScalarType;
  Scalar s;
  s.constant = static_cast<float>(constant);
  if (!tensor) return s;
  const ScalarType dtype = tensor->scalar_type();
  s.pointer = tensor->const_data_ptr();
  s.is_double = dtype == ScalarType::Double;
  s.dtype = dtype == ScalarType::BFloat16 ? kBF16 : dtype == ScalarType::Half ? kF16 : kF32;
  return s;
}

}  // namespace dstee::cuda
