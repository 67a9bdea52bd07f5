// masked_sgd_: the SGD step on the active weights of all layers. Per weight 1/8 byte of mask is read; gradient, weight and
// momentum are touched only in cache lines that hold an active weight, packed momenta one after the other.
#include "../arguments.h"
#include "packed_rows.h"
#include "parallel.h"

namespace dstee::cpu {

void masked_sgd_(const StepArguments& a) {
  const auto layers = read_step(DeviceType::CPU, a);
  const auto pieces = cut_pieces(layers);
  const int workers = worker_count(total_weights(layers));
  SgdRule rule = rule_of(a.sgd, a.grad_scale.has_value());
  const bool packed = a.packed_momenta && rule.has_momentum;
  Rows rows;
  if (packed) {
    rows.count(layers, pieces, workers);
    check_rows(a.momenta, rows.of_layer);
  }
  if (a.lr) rule.lr = static_cast<float>(read_scalar(*a.lr));
  if (a.grad_scale) rule.grad_scale = static_cast<float>(read_scalar(*a.grad_scale));
  if (a.found_inf && read_scalar(*a.found_inf) != 0) return;

  const Loops& isa = loops();
  for_tickets(workers, static_cast<int64_t>(pieces.size()), [&](int, int64_t p) {
    const Piece& piece = pieces[p];
    const Layer& l = layers[piece.layer];
    void* const w = at(l.w, piece.begin, l.dtype);
    const void* const g = at(l.g, piece.begin, l.dtype);
    const uint8_t* const bits = l.bits + piece.begin / 8;
    if (packed)
      isa.step_packed[l.dtype](w, g, at(l.m, rows.before[p], l.dtype), rows.active[p], bits, piece.size, rule);
    else
      isa.step[l.dtype](w, g, l.m ? at(l.m, piece.begin, l.dtype) : nullptr, bits, piece.size, rule);
  });
}

STABLE_TORCH_LIBRARY_IMPL(dstee, CPU, m) { m.impl("masked_sgd_", TORCH_BOX(&masked_sgd_entry<masked_sgd_>)); }

}  // namespace dstee::cpu
