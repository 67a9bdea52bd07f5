// The SGD step of a group of weights: masked_sgd_ runs it by itself, drop_grow_ within its sweep.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "../arguments.h"
#include "../layers.h"
#include "../rules.h"
#include "group.cuh"
#include "launch.cuh"
#include "scalar.cuh"
#include "table.cuh"

namespace dstee::cuda {

struct SgdStep {
  SgdRule rule;  // lr and grad_scale are read on the device
  Scalar lr, grad_scale, found_inf;
};

inline SgdStep step_of(const std::vector<double>& sgd, const std::optional<Tensor>& lr, const std::optional<Tensor>& grad_scale,
                       const std::optional<Tensor>& found_inf) {
  const SgdRule rule = rule_of(sgd, grad_scale.has_value());
  return {rule, scalar_of(rule.lr, lr), scalar_of(1.0, grad_scale), scalar_of(0.0, found_inf)};
}

// The step of the lanes. x: their gradients, afterwards their weights as they are stored.
__device__ __forceinline__ void step_group(const Layer& l, int64_t i, int count, uint32_t lanes, float* x,
                                           const SgdRule& rule) {
  float w[kGroup], m[kGroup] = {};
  load_group(l.w, l.dtype, i, count, w);
  if (rule.has_momentum) load_group(l.m, l.dtype, i, count, m);
#pragma unroll
  for (int j = 0; j < kGroup; ++j) {
    sgd(w[j], x[j], m[j], rule);
    if (lanes >> j & 1) x[j] = rounded(w[j], l.dtype);
  }
  store_group(l.w, l.dtype, i, lanes, w);
  if (rule.has_momentum) store_group(l.m, l.dtype, i, lanes, m);
}

__device__ __forceinline__ SgdRule rule_on_device(const SgdStep& step) {
  SgdRule rule = step.rule;
  rule.lr = value_of(step.lr);
  rule.grad_scale = value_of(step.grad_scale);
  return rule;
}

}  // namespace dstee::cuda
