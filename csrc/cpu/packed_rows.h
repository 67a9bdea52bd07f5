// Where the momenta of each piece begin among the packed ones of its layer.
#pragma once

#include "parallel.h"

namespace dstee::cpu {

// Active weights in each piece, and in those of its layer before it.
struct PackedRows {
  std::vector<int64_t> active, before;
};

// Throws where momenta[i] has not one entry for each active weight of layer i.
inline PackedRows packed_rows(const std::vector<Layer>& layers, const std::vector<Piece>& pieces, const Tensors& momenta,
                              int workers) {
  PackedRows rows{std::vector<int64_t>(pieces.size()), std::vector<int64_t>(pieces.size())};
  for_tickets(workers, static_cast<int64_t>(pieces.size()), [&](int, int64_t p) {
    const Piece& piece = pieces[p];
    rows.active[p] = loops().count_bits(layers[piece.layer].bits + piece.begin / 8, (piece.size + 7) / 8);
  });
  std::vector<int64_t> total(layers.size());
  for (size_t p = 0; p < pieces.size(); ++p) {
    int64_t& here = total[static_cast<size_t>(pieces[p].layer)];
    rows.before[p] = here;
    here += rows.active[p];
  }
  for (size_t i = 0; i < layers.size(); ++i)
    STD_TORCH_CHECK(momenta[i].numel() == total[i], "dstee: packed momenta have not one entry for each active weight");
  return rows;
}

}  // namespace dstee::cpu
