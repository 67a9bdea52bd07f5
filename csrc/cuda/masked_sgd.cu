// masked_sgd_ on the GPU: one launch for the whole model. Per weight 1/8 byte of mask is read; gradient, weight and momentum
// only in 32-byte sectors that hold an active weight.
#include "masked_sgd.cuh"

namespace dstee::cuda {

void masked_sgd_(const Tensors& params, const Tensors& grads, const Tensors& momenta, const Tensors& mask_bits, double lr,
                 const std::optional<Tensor>& lr_tensor, double momentum, double dampening, double weight_decay, bool nesterov,
                 bool maximize, bool first_step, const std::optional<Tensor>& grad_scale,
                 const std::optional<Tensor>& found_inf) {
  const auto layers = read_layers(kDevice, params, grads, momenta, mask_bits, {}, {}, {});
  if (layers.empty()) return;
  check_alignment(layers);
  STD_TORCH_CHECK(!grads.empty(), "dstee: masked_sgd_ needs grads");
  STD_TORCH_CHECK(momentum == 0 || !momenta.empty(), "dstee: momentum needs momenta");
  const DeviceGuard guard(params[0]);
  const Step step{make_rule(momentum, dampening, weight_decay, nesterov, maximize, first_step, grad_scale.has_value()),
                  scalar_of(lr, lr_tensor), scalar_of(1.0, grad_scale), scalar_of(0.0, found_inf)};
  for_chunks(layers, params[0], guard.stream(), [&](const Table& table, const Gradients& gradients, size_t) {
    launch<step_kernel>(grid_for(table.tiles), kThreads, 0, guard.stream(), table, gradients, step);
  });
}

DSTEE_CUDA_LIBRARY(m) { m.impl("masked_sgd_", TORCH_BOX(&masked_sgd_)); }

}  // namespace dstee::cuda
