#include "packed_rows.h"

#include "parallel.h"

namespace dstee::cpu {

void Rows::count(const std::vector<Layer>& layers, const std::vector<Piece>& pieces, int workers) {
  active.resize(pieces.size());
  before.resize(pieces.size());
  of_layer.assign(layers.size(), 0);
  for_tickets(workers, static_cast<int64_t>(pieces.size()), [&](int, int64_t p) {
    const Piece& piece = pieces[p];
    active[p] = loops().count_bits(layers[piece.layer].bits + piece.begin / 8, (piece.size + 7) / 8);
  });
  for (size_t p = 0; p < pieces.size(); ++p) {
    int64_t& total = of_layer[static_cast<size_t>(pieces[p].layer)];
    before[p] = total;
    total += active[p];
  }
}

}  // namespace dstee::cpu
