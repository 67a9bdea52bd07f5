// masked_sgd_: the SGD step on the active weights of all layers. Per weight 1/8 byte of mask is read; gradient, weight and
// momentum are touched only in groups of 8 or 16 that hold an active weight.
#include "parallel.h"
#include "pieces.h"

namespace dstee {

void masked_sgd_(const Tensors& params, const Tensors& grads, const Tensors& momenta, const Tensors& mask_bits, double lr,
                 const std::optional<Tensor>& lr_tensor, double momentum, double dampening, double weight_decay, bool nesterov,
                 bool maximize, bool first_step, const std::optional<Tensor>& grad_scale,
                 const std::optional<Tensor>& found_inf) {
  const auto layers = read_layers(DeviceType::CPU, params, grads, momenta, mask_bits, {}, {}, {});
  STD_TORCH_CHECK(params.empty() || !grads.empty(), "dstee: masked_sgd_ needs grads");
  STD_TORCH_CHECK(params.empty() || momentum == 0 || !momenta.empty(), "dstee: momentum needs momenta");
  SgdRule rule = make_rule(momentum, dampening, weight_decay, nesterov, maximize, first_step, grad_scale.has_value());
  rule.lr = static_cast<float>(lr_tensor ? read_scalar(*lr_tensor) : lr);
  if (grad_scale) rule.grad_scale = static_cast<float>(read_scalar(*grad_scale));
  if (is_set(found_inf)) return;

  const auto pieces = cut_pieces(layers);
  const Loops& isa = loops();
  for_tickets(worker_count(total_weights(layers)), static_cast<int64_t>(pieces.size()), [&](int, int64_t p) {
    const Piece& piece = pieces[p];
    const Layer& l = layers[piece.layer];
    isa.step[l.dtype](at(l.w, piece.begin, l.dtype), at(l.g, piece.begin, l.dtype),
                      l.m ? at(l.m, piece.begin, l.dtype) : nullptr, l.bits + piece.begin / 8, piece.size, rule);
  });
}

STABLE_TORCH_LIBRARY_IMPL(dstee, CPU, m) { m.impl("masked_sgd_", TORCH_BOX(&masked_sgd_)); }

}  // namespace dstee
