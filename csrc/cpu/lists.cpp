#include "lists.h"

#include <algorithm>
#include <utility>

namespace dstee::cpu {
namespace {

// A worker that gets more than its share of the candidates overflows. Several times the share costs nothing where it is not
// touched, but it is bounded: a model full of equal weights must not ask for tens of bytes a weight.
std::vector<Arena> plan_arenas(const Update& u, const std::vector<Bounds>& bounds) {
  int64_t grow = 0, drop = 0, widest = 0;
  for (size_t i = 0; i < bounds.size(); ++i)
    if (u.moves(i) && !Lists::is_one_piece(u.layers[i])) {
      grow += bounds[i].expected_grow;
      drop += bounds[i].expected_drop;
      widest = std::max({widest, bounds[i].expected_grow, bounds[i].expected_drop});
    }
  const int64_t most = (int64_t{1} << 22) + total_weights(u.layers) / (2 * u.workers);
  auto room = [&](int64_t total) { return static_cast<size_t>(std::min(3 * total / u.workers + 2 * widest, most)) + kReserve; };
  Arena arena{};
  arena.grow_left = room(grow);
  arena.drop_left = room(drop);
  return std::vector<Arena>(static_cast<size_t>(u.workers), arena);
}

// Of the masks as they were, a piece's in words of its own.
size_t mask_bytes(const Piece& piece) { return static_cast<size_t>((piece.size + 63) / 64 * 8); }

size_t packed_room(const Update& u, size_t layer) {
  if (!u.packs() || !u.moves(layer)) return 0;
  const int64_t pieces = (u.layers[layer].n + kPiece - 1) / kPiece;
  return static_cast<size_t>(u.nnz(layer) + pieces * kMaxLanes);
}

size_t bytes_of(const std::vector<Arena>& arenas, const Update& u) {
  size_t bytes = arenas.size() * (2 * arenas[0].grow_left + 5 * arenas[0].drop_left) * sizeof(uint32_t);
  for (const Piece& piece : u.pieces) bytes += mask_bytes(piece);
  for (size_t i = 0; i < u.layers.size(); ++i) bytes += packed_room(u, i) * sizeof(uint32_t);
  return bytes;
}

}  // namespace

Lists::Lists(const Update& u, std::vector<Bounds> bounds_of_layers, double share)
    : bounds(std::move(bounds_of_layers)),
      pieces(u.pieces.size()),
      first_piece(u.layers.size() + 1),
      grow(u.layers.size()),
      keys(2 * u.pieces.size()),
      arenas(plan_arenas(u, bounds)),
      packed(u.packed.size()),
      memory(bytes_of(arenas, u)) {
  auto* free = reinterpret_cast<uint32_t*>(memory.data());
  auto take = [&](size_t count) { return std::exchange(free, free + count); };
  for (Arena& a : arenas) {
    a.grow_key = take(a.grow_left);
    a.grow_where = take(a.grow_left);
    a.drop_key = take(a.drop_left);
    a.drop_where = take(a.drop_left);
    a.regrow_key = take(a.drop_left);
    a.undo_w = take(a.drop_left);
    a.undo_m = take(a.drop_left);
    if (share < 1) {
      a.grow_left = static_cast<size_t>(share * static_cast<double>(a.grow_left));
      a.drop_left = static_cast<size_t>(share * static_cast<double>(a.drop_left));
    }
  }
  auto* masks = reinterpret_cast<uint8_t*>(free);
  for (size_t p = 0; p < u.pieces.size(); ++p) {
    pieces[p].before = std::exchange(masks, masks + mask_bytes(u.pieces[p]));
    ++first_piece[static_cast<size_t>(u.pieces[p].layer) + 1];
  }
  for (size_t i = 0; i < u.layers.size(); ++i) first_piece[i + 1] += first_piece[i];
  free = reinterpret_cast<uint32_t*>(masks);
  for (size_t i = 0; i < packed.size(); ++i) packed[i] = take(packed_room(u, i));
  if (u.packs()) after = u.rows;  // as large
}

int64_t Lists::entries() const {
  int64_t total = 0;
  for (const PieceLists& p : pieces) total += static_cast<int64_t>(p.grow_count + p.drop_count);
  return total;
}

}  // namespace dstee::cpu
