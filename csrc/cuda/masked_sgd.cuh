// The masked step of one layer list; drop_grow_ runs it too.
#pragma once

#include "group.cuh"

namespace dstee::cuda {

struct Step {
  SgdRule rule;  // lr and grad_scale are read on the device
  Scalar lr, grad_scale, found_inf;
};

__device__ __forceinline__ void step_group(const Layer& l, const void* gradient, int64_t i, int count, uint32_t lanes,
                                           const SgdRule& rule) {
  float w[kGroup], g[kGroup], m[kGroup] = {};
  load_group(l.w, l.dtype, i, count, w);
  load_group(gradient, l.dtype, i, count, g);
  if (rule.has_momentum) load_group(l.m, l.dtype, i, count, m);
#pragma unroll
  for (int j = 0; j < kGroup; ++j) sgd(w[j], g[j], m[j], rule);
  store_group(l.w, l.dtype, i, lanes, w);
  if (rule.has_momentum) store_group(l.m, l.dtype, i, lanes, m);
}

static __global__ void __launch_bounds__(kThreads, 4)
    step_kernel(const Table table, const __grid_constant__ Gradients gradients, const Step step) {
  if (value_of(step.found_inf) != 0) return;
  SgdRule rule = step.rule;
  rule.lr = value_of(step.lr);
  rule.grad_scale = value_of(step.grad_scale);
  for_groups(
      table, [](int, const Row&) { return true; },
      [&](int index, const Row& row, int64_t i, int count) {
        const uint32_t lanes = active_lanes(row.layer, i, count);
        if (lanes) step_group(row.layer, gradients.g[index], i, count, lanes, rule);
      },
      [](int, const Row&, int64_t) {});
}

}  // namespace dstee::cuda
