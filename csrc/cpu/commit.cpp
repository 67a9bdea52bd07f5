#include "loops.h"
#include "stages.h"

namespace dstee::cpu {

// First choose, without branches, then touch the memory of the chosen, prefetched.
void commit(const Update& u, Lists& lists, int64_t p) {
  constexpr size_t kAhead = 16;
  const Piece& piece = u.pieces[static_cast<size_t>(p)];
  PieceLists& l = lists.pieces[static_cast<size_t>(p)];
  const auto last = lists.grow[static_cast<size_t>(piece.layer)];
  auto weight = [&](uint32_t where) { return Weight(u, piece.layer, piece.begin + where); };

  size_t gone = l.drop_count, regrown = 0, grown = 0;
  uint32_t* const regrown_where = l.drop_key;  // whose keys have served
  const bool ties_pass = last.index >= piece.begin + piece.size - 1, ties_fail = last.index < piece.begin;
  if ((ties_pass || ties_fail) && !u.reset_regrown) {
    const uint32_t low = last.key + ties_fail;
    grown = loops().keep_between(l.grow_key, l.grow_count, low, UINT32_MAX, l.grow_where, nullptr);
    if (u.regrow && low > 0)
      gone = loops().keep_between(l.regrow_key, l.drop_count, 0, low - 1, l.drop_where, nullptr);
    else if (u.regrow)
      gone = 0;
  } else {
    for (size_t j = gone = 0; j < l.drop_count; ++j) {
      const uint32_t where = l.drop_where[j];
      const bool back = u.regrow && passes(last, l.regrow_key[j], piece.begin + where);
      regrown_where[regrown] = where;
      regrown += back;
      l.drop_where[gone] = where;
      gone += !back;
    }
    for (size_t j = 0; j < l.grow_count; ++j) {
      const uint32_t where = l.grow_where[j];
      l.grow_where[grown] = where;
      grown += passes(last, l.grow_key[j], piece.begin + where);
    }
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
