// From torch tensors to the pointers that the kernels see. Torch ends here.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <optional>
#include <type_traits>
#include <vector>

#include "rules.h"

namespace dstee {

using torch::stable::Tensor;
using Tensors = std::vector<Tensor>;
using torch::headeronly::DeviceType;

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

// Reads the lists (absent ones are empty) and refuses, before anything is written, what the kernels could not survive:
// the contract of dstee/ops.py, whose checks then find the words for it.
std::vector<Layer> read_layers(DeviceType device, const Tensors& params, const Tensors& grads, const Tensors& momenta,
                               const Tensors& mask_bits, const Tensors& counts, const Tensors& drop_scores,
                               const Tensors& grow_signal);

// What drop_grow_ needs beyond read_layers: a growth signal, gradients and momenta for the step, k, a long enough bonus.
void check_update(DeviceType device, const Tensors& params, const Tensors& grads, const Tensors& momenta, const Tensors& counts,
                  const std::vector<int64_t>& k, const std::optional<Tensor>& k_tensor, const std::optional<Tensor>& bonus,
                  int64_t round, const std::optional<Tensor>& round_tensor, const Tensors& grow_signal,
                  const std::vector<int64_t>& grow_seeds, bool sgd, double momentum);

// The rule without the numbers that may lie in a tensor: lr and grad_scale.
SgdRule make_rule(double momentum, double dampening, double weight_decay, bool nesterov, bool maximize, bool first_step,
                  bool scaled);

template <class T>
T* at(T* base, int64_t i, Dtype dtype) {
  using Byte = std::conditional_t<std::is_const_v<T>, const char, char>;
  return static_cast<T*>(static_cast<Byte*>(base) + i * (dtype == kF32 ? 4 : 2));
}

}  // namespace dstee
