// masked_sgd_ on the GPU: one launch for the whole model. Per weight 1/8 byte of mask is read; gradient, weight and momentum
// only in 32-byte sectors that hold an active weight.
#include "masked_sgd.cuh"

namespace dstee::cuda {

void masked_sgd_(const StepArguments& a) {
  const auto layers = read_step(kDevice, a);
  if (layers.empty()) return;
  check_alignment(layers);
  const DeviceGuard guard(a.params[0]);
  const Step step = step_of(a.sgd, a.lr, a.grad_scale, a.found_inf);
  for_chunks(layers, a.params[0], guard.stream(), [&](const Table& table, const Gradients& gradients, size_t) {
    launch<step_kernel>(grid_for(table.tiles), kThreads, 0, guard.stream(), table, gradients, step);
  });
}

DSTEE_CUDA_LIBRARY(m) { m.impl("masked_sgd_", TORCH_BOX(&masked_sgd_entry<masked_sgd_>)); }

}  // namespace dstee::cuda
