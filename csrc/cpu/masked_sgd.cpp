// masked_sgd_: the SGD step on the active weights of all layers. Per weight 1/8 byte of mask is read; gradient, weight and
// momentum are touched only in groups of 8 or 16 that hold an active weight.
#include "../arguments.h"
#include "parallel.h"

namespace dstee::cpu {

void masked_sgd_(const StepArguments& a) {
  const auto layers = read_step(DeviceType::CPU, a);
  SgdRule rule = rule_of(a.sgd, a.grad_scale.has_value());
  if (a.lr) rule.lr = static_cast<float>(read_scalar(*a.lr));
  if (a.grad_scale) rule.grad_scale = static_cast<float>(read_scalar(*a.grad_scale));
  if (a.found_inf && read_scalar(*a.found_inf) != 0) return;

  const auto pieces = cut_pieces(layers);
  const Loops& isa = loops();
  for_tickets(worker_count(total_weights(layers)), static_cast<int64_t>(pieces.size()), [&](int, int64_t p) {
    const Piece& piece = pieces[p];
    const Layer& l = layers[piece.layer];
    isa.step[l.dtype](at(l.w, piece.begin, l.dtype), at(l.g, piece.begin, l.dtype),
                      l.m ? at(l.m, piece.begin, l.dtype) : nullptr, l.bits + piece.begin / 8, piece.size, rule);
  });
}

STABLE_TORCH_LIBRARY_IMPL(dstee, CPU, m) { m.impl("masked_sgd_", TORCH_BOX(&masked_sgd_entry<masked_sgd_>)); }

}  // namespace dstee::cpu
