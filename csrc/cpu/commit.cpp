#include <algorithm>

#include "loops.h"
#include "stages.h"

namespace dstee::cpu {
namespace {

// A list, which is in index order, parted by whether a weight with the key of the last one that is grown is grown, too.
struct Parts {
  const uint32_t *key, *where;
  size_t first, count;

  Parts(const uint32_t* keys, const uint32_t* places, size_t size, int64_t last) : key(keys), where(places), count(size) {
    const auto beyond = [](int64_t index, uint32_t place) { return index < place; };
    first = static_cast<size_t>(std::upper_bound(places, places + size, last, beyond) - places);
  }
  // Writes the places of those that pass, or do not, to `out`, which may be where they are.
  size_t passing(uint32_t least, uint32_t* out) const {
    const size_t found = loops().copy_between(key, first, least, UINT32_MAX, where, out);
    return found + loops().copy_between(key + first, count - first, least + 1, UINT32_MAX, where + first, out + found);
  }
  size_t failing(uint32_t least, uint32_t* out) const {
    const size_t found = least > 0 ? loops().copy_between(key, first, 0, least - 1, where, out) : 0;
    return found + loops().copy_between(key + first, count - first, 0, least, where + first, out + found);
  }
};

}  // namespace

// First choose, without branches, then touch the memory of the chosen, prefetched.
void commit(const Update& u, Lists& lists, int64_t p) {
  constexpr size_t kAhead = 16;
  const Piece& piece = u.pieces[static_cast<size_t>(p)];
  PieceLists& l = lists.pieces[static_cast<size_t>(p)];
  const auto last = lists.grow[static_cast<size_t>(piece.layer)];
  auto weight = [&](uint32_t where) { return Weight(u, piece.layer, piece.begin + where); };

  const Parts candidates(l.grow_key, l.grow_where, l.grow_count, last.index - piece.begin);
  const size_t grown = candidates.passing(last.key, l.grow_where);
  size_t gone = l.drop_count, regrown = 0;
  uint32_t* const regrown_where = l.drop_key;  // whose keys have served
  if (u.regrow) {
    const Parts dropped(l.regrow_key, l.drop_where, l.drop_count, last.index - piece.begin);
    if (u.reset_regrown) regrown = dropped.passing(last.key, regrown_where);
    gone = dropped.failing(last.key, l.drop_where);
  }
  for (size_t j = 0; j < gone; ++j) {
    if (j + kAhead < gone) {
      weight(l.drop_where[j + kAhead]).prefetch_state();
      weight(l.drop_where[j + kAhead]).prefetch_weight();
    }
    weight(l.drop_where[j]).drop();
  }
  for (size_t j = 0; j < grown; ++j) {
    if (j + kAhead < grown) weight(l.grow_where[j + kAhead]).prefetch_state();
    weight(l.grow_where[j]).grow();
  }
  if (!u.reset_regrown) return;
  RowCursor rows(l.before, u.rows.before[static_cast<size_t>(p)]);
  for (size_t j = 0; j < regrown; ++j) {
    weight(regrown_where[j]).clear();
    if (u.packs()) u.clear_row(static_cast<size_t>(piece.layer), rows.at(regrown_where[j]));
  }
}

// Swapped weights are those whose bit has changed; a flipped counter flips back.
void undo(const Update& u, Lists& lists, int64_t p) {
  const Piece& piece = u.pieces[static_cast<size_t>(p)];
  PieceLists& l = lists.pieces[static_cast<size_t>(p)];
  const Layer& layer = u.layers[static_cast<size_t>(piece.layer)];
  if (l.overflow || l.grown + l.gone == 0) return;
  size_t restored = 0;
  for (int64_t j = 0; j < piece.size; j += 8) {
    uint8_t& now = layer.bits[(piece.begin + j) / 8];
    const uint8_t before = l.before[j / 8];
    for (int b = 0; b < 8; ++b) {
      if (!((now ^ before) >> b & 1)) continue;
      const Weight weight(u, piece.layer, piece.begin + j + b);
      weight.flip();
      if (!(before >> b & 1)) continue;
      weight.restore(l.undo_w[restored], l.undo_m[restored]);
      ++restored;
    }
    now = before;
  }
}

}  // namespace dstee::cpu
