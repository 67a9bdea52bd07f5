#include "parallel.h"
#include "stages.h"

namespace dstee::cpu {
namespace {

// Entries of `size` bytes.
void put_rows(const uint32_t* from, int64_t count, void* to, int64_t size) {
  if (count == 0) return;
  if (size == sizeof *from) {
    memcpy(to, from, static_cast<size_t>(count * size));
    return;
  }
  for (int64_t j = 0; j < count; ++j) {
    const auto half = static_cast<uint16_t>(from[j]);
    memcpy(static_cast<char*>(to) + j * size, &half, sizeof half);
  }
}

}  // namespace

void repack(const Update& u, Lists& lists) {
  Rows& after = lists.after;
  after.count(u.layers, u.pieces, u.workers);
  const auto made = [&](int64_t p) {
    const auto layer = static_cast<size_t>(u.pieces[p].layer);
    return lists.packed[layer] + after.before[p] + (p - lists.first_piece[layer]) * kMaxLanes;
  };
  // All of it is made before any of it is put in the place of the old.
  const auto pieces = static_cast<int64_t>(u.pieces.size());
  for_tickets(u.workers, pieces, [&](int, int64_t p) {
    const Piece& piece = u.pieces[p];
    const auto layer = static_cast<size_t>(piece.layer);
    const Layer& l = u.layers[layer];
    if (u.moves(layer))
      loops().repack[l.dtype](at(u.packed[layer], u.rows.before[p], l.dtype), u.rows.active[p], lists.pieces[p].before,
                              l.bits + piece.begin / 8, piece.size, made(p));
  });
  for_tickets(u.workers, pieces, [&](int, int64_t p) {
    const auto layer = static_cast<size_t>(u.pieces[p].layer);
    const Dtype dtype = u.layers[layer].dtype;
    if (u.moves(layer)) put_rows(made(p), after.active[p], at(u.packed[layer], after.before[p], dtype), element_size(dtype));
  });
}

}  // namespace dstee::cpu
