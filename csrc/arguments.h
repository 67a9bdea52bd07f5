// The arguments of the ops that work on layers, and the one way from them to the layers and rules that the kernels see.
//
// A device enters an op with m.impl("drop_grow_", TORCH_BOX(&drop_grow_entry<run>)), where run(const UpdateArguments&) is its
// own.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <optional>
#include <vector>

#include "layers.h"

namespace dstee {

using torch::stable::Tensor;
using Tensors = std::vector<Tensor>;
using torch::headeronly::DeviceType;

// As in the schemas of dstee/ops; absent lists are empty.
struct StepArguments {
  const Tensors &params, &grads, &momenta, &mask_bits;
  const std::vector<double>& sgd;
  const std::optional<Tensor>&lr, &grad_scale, &found_inf;
  bool packed_momenta;
};
struct UpdateArguments {
  const Tensors &params, &grads, &momenta, &mask_bits, &counts;
  const std::vector<int64_t>& k;
  const std::optional<Tensor>& k_tensor;
  const std::vector<int64_t>& k_grow;
  const std::optional<Tensor>&k_grow_tensor, &bonus, &bonus_scale;
  int64_t round;
  const std::optional<Tensor>& round_tensor;
  const Tensors &drop_scores, &grow_signal;
  const std::vector<int64_t>&grow_seeds, &where;
  bool regrow, reset_regrown;
  const std::vector<double>& sgd;
  const std::optional<Tensor>&lr, &found_inf;
  bool packed_momenta;
};

struct HistogramArguments {
  const Tensors &params, &grads, &mask_bits, &counts;
  const std::optional<Tensor>&bonus, &bonus_scale;
  int64_t round;
  const std::optional<Tensor>& round_tensor;
  const Tensors &drop_scores, &grow_signal;
  const std::vector<int64_t>&grow_seeds, &where, &total;
  bool growth;
  int64_t word, shift;
  const Tensor& prefix;
  const std::optional<Tensor>& drop_from;
};
struct KeepArguments {
  const Tensors &params, &momenta, &mask_bits, &counts, &scores;
  int64_t total;
  const std::optional<Tensor>& total_tensor;
  int64_t round;
  const std::optional<Tensor>& round_tensor;
};
struct ScaleArguments {
  const Tensors &signals, &mask_bits;
  const std::vector<int64_t>& k;
  const std::optional<Tensor>& k_tensor;
  int64_t round;
  const std::optional<Tensor>& round_tensor;
};

template <void (*run)(const StepArguments&)>
void masked_sgd_entry(const Tensors& params, const Tensors& grads, const Tensors& momenta, const Tensors& mask_bits,
                      const std::vector<double>& sgd, const std::optional<Tensor>& lr, const std::optional<Tensor>& grad_scale,
                      const std::optional<Tensor>& found_inf, bool packed_momenta) {
  run({params, grads, momenta, mask_bits, sgd, lr, grad_scale, found_inf, packed_momenta});
}

template <void (*run)(const UpdateArguments&)>
void drop_grow_entry(const Tensors& params, const Tensors& grads, const Tensors& momenta, const Tensors& mask_bits,
                     const Tensors& counts, const std::vector<int64_t>& k, const std::optional<Tensor>& k_tensor,
                     const std::vector<int64_t>& k_grow, const std::optional<Tensor>& k_grow_tensor,
                     const std::optional<Tensor>& bonus, const std::optional<Tensor>& bonus_scale, int64_t round,
                     const std::optional<Tensor>& round_tensor, const Tensors& drop_scores, const Tensors& grow_signal,
                     const std::vector<int64_t>& grow_seeds, const std::vector<int64_t>& where, bool regrow, bool reset_regrown,
                     const std::vector<double>& sgd, const std::optional<Tensor>& lr, const std::optional<Tensor>& found_inf,
                     bool packed_momenta) {
  run({params,        grads,  momenta,       mask_bits, counts,       k,           k_tensor,      k_grow,
       k_grow_tensor, bonus,  bonus_scale,   round,     round_tensor, drop_scores, grow_signal,   grow_seeds,
       where,         regrow, reset_regrown, sgd,       lr,           found_inf,   packed_momenta});
}

template <Tensor (*run)(const HistogramArguments&)>
Tensor key_histogram_entry(const Tensors& params, const Tensors& grads, const Tensors& mask_bits, const Tensors& counts,
                           const std::optional<Tensor>& bonus, const std::optional<Tensor>& bonus_scale, int64_t round,
                           const std::optional<Tensor>& round_tensor, const Tensors& drop_scores, const Tensors& grow_signal,
                           const std::vector<int64_t>& grow_seeds, const std::vector<int64_t>& where,
                           const std::vector<int64_t>& total, bool growth, int64_t word, int64_t shift, const Tensor& prefix,
                           const std::optional<Tensor>& drop_from) {
  return run({params, grads, mask_bits, counts, bonus, bonus_scale, round, round_tensor, drop_scores, grow_signal, grow_seeds,
              where, total, growth, word, shift, prefix, drop_from});
}

template <void (*run)(const KeepArguments&)>
void global_keep_entry(const Tensors& params, const Tensors& momenta, const Tensors& mask_bits, const Tensors& counts,
                       const Tensors& scores, int64_t total, const std::optional<Tensor>& total_tensor, int64_t round,
                       const std::optional<Tensor>& round_tensor) {
  run({params, momenta, mask_bits, counts, scores, total, total_tensor, round, round_tensor});
}

template <Tensor (*run)(const ScaleArguments&)>
Tensor growth_scale_entry(const Tensors& signals, const Tensors& mask_bits, const std::vector<int64_t>& k,
                          const std::optional<Tensor>& k_tensor, int64_t round, const std::optional<Tensor>& round_tensor) {
  return run({signals, mask_bits, k, k_tensor, round, round_tensor});
}

// These refuse, before anything is written, what the kernels could not survive: a fast mirror of the contract in dstee/ops,
// whose checks (dstee/_checks.py) then find the words for it.
std::vector<Layer> read_step(DeviceType device, const StepArguments& a);
std::vector<Layer> read_update(DeviceType device, const UpdateArguments& a);
std::vector<Layer> read_histogram(DeviceType device, const HistogramArguments& a);
std::vector<Layer> read_keep(DeviceType device, const KeepArguments& a);  // the scores are ranked by the drop
std::vector<Layer> read_scale(DeviceType device, const ScaleArguments& a);
std::vector<Layer> read_masked(DeviceType device, const Tensors& params, const Tensors& mask_bits);
std::vector<Layer> read_thresholds(DeviceType device, const Tensors& tensors, const Tensors& mask_bits,
                                   const Tensor& thresholds);
// Float32 layers without a mask.
std::vector<Layer> read_noise(DeviceType device, const Tensors& out, const std::vector<int64_t>& seeds,
                              const std::vector<int64_t>& where);

// One for each layer, or none, of a checked `where`.
std::vector<Place> places_of(const std::vector<int64_t>& where);

// Refuses packed momenta that do not have one entry for each of the layers' active weights.
void check_rows(const Tensors& momenta, const std::vector<int64_t>& active);

// Refuses a tensor whose storage has been freed, or that stands for another: all that has no memory of its own.
void check_memory(const Tensor& t, const char* name);

// The number in a checked `lr`, `grad_scale` or `found_inf` on the CPU.
double read_scalar(const Tensor& t);
// A checked `round` on the CPU, refused where it is out of range.
int32_t read_round(int64_t round, const std::optional<Tensor>& tensor);

// From the numbers of a checked `sgd`. Of lr and grad_scale only what does not lie in a tensor.
SgdRule rule_of(const std::vector<double>& sgd, bool scaled);

}  // namespace dstee
