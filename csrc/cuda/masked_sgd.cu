// masked_sgd_ on the GPU: one launch for the whole model. Per weight 1/8 byte of mask is read; gradient, weight and momentum
// only in 32-byte sectors that hold an active weight.
#include <cstdint>

#include "../arguments.h"
#include "group.cuh"
#include "launch.cuh"
#include "masked_sgd.cuh"
#include "scalar.cuh"
#include "table.cuh"

namespace dstee::cuda {
namespace {

__global__ void __launch_bounds__(kThreads, 4)
    masked_sgd_kernel(const Table table, const __grid_constant__ Gradients gradients, const SgdStep step) {
  if (value_of(step.found_inf) != 0) return;
  const SgdRule rule = rule_on_device(step);
  for_groups(table, [&](int index, const Row& row, int64_t i, int count) {
    const uint32_t lanes = active_lanes(row.layer, i, count);
    if (lanes == 0) return;
    float x[kGroup];
    load_group(gradients.g[index], row.layer.dtype, i, count, x);
    step_group(row.layer, i, count, lanes, x, rule);
  });
}

}  // namespace

void masked_sgd_(const StepArguments& a) {
  const auto layers = read_step(kDevice, a);
  if (layers.empty()) return;
  check_alignment(layers);
  const DeviceGuard guard(a.params[0]);
  const SgdStep step = step_of(a.sgd, a.lr, a.grad_scale, a.found_inf);
  for_each_launch(layers, a.params[0], guard.stream(), [&](const Table& table, const Gradients& gradients) {
    launch<masked_sgd_kernel>(grid_for(table.tiles), kThreads, 0, guard.stream(), table, gradients, step);
  });
}

DSTEE_CUDA_LIBRARY(m) { m.impl("masked_sgd_", TORCH_BOX(&masked_sgd_entry<masked_sgd_>)); }

}  // namespace dstee::cuda
