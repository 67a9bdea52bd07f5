// From torch tensors to the pointers that the kernels see. Torch ends here.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <optional>
#include <vector>

#include "isa.h"

namespace dstee {

using torch::stable::Tensor;
using Tensors = std::vector<Tensor>;

struct Layer {
  void* w = nullptr;
  const void* g = nullptr;
  void* m = nullptr;
  uint8_t* bits = nullptr;
  int16_t* counts = nullptr;
  const void* drop = nullptr;  // ranked by the drop: another tensor or w itself
  const void* grow = nullptr;  // ranked by the growth: another tensor or g itself
  Dtype dtype = kF32, drop_dtype = kF32, grow_dtype = kF32;
  int64_t n = 0;
};

// Reads the lists (absent ones are empty) and refuses, before anything is written, what the kernels could not survive:
// the contract of dstee/ops.py, whose checks then find the words for it.
std::vector<Layer> read_layers(const Tensors& params, const Tensors& grads, const Tensors& momenta, const Tensors& mask_bits,
                               const Tensors& counts, const Tensors& drop_scores, const Tensors& grow_signal);

SgdRule make_rule(double lr, const std::optional<Tensor>& lr_tensor, double momentum, double dampening, double weight_decay,
                  bool nesterov, bool maximize, bool first_step, const std::optional<Tensor>& grad_scale);

// A one-element floating-point CPU tensor.
double read_scalar(const Tensor& t);
bool is_set(const std::optional<Tensor>& flag);

// A run of weights of one layer that one thread handles. Starts at a multiple of 64 weights.
struct Piece {
  int layer;
  int64_t begin, size;
};
constexpr int64_t kPiece = 1 << 16;
std::vector<Piece> cut_pieces(const std::vector<Layer>& layers);
int64_t total_weights(const std::vector<Layer>& layers);

template <class T>
T* at(T* base, int64_t i, Dtype dtype) {
  using Byte = std::conditional_t<std::is_const_v<T>, const char, char>;
  return static_cast<T*>(static_cast<Byte*>(base) + i * (dtype == kF32 ? 4 : 2));
}

}  // namespace dstee
