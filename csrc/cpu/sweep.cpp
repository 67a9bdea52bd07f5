#include <algorithm>
#include <cmath>

#include "loops.h"
#include "stages.h"

namespace dstee::cpu {
namespace {

void prefetch_active(const Layer& l, bool momenta, int64_t begin, int64_t n) {
  constexpr int kGroup = 16;
  for (int64_t j = begin; j < begin + n; j += kGroup)
    if (l.bits[j / 8] | (j + 8 < l.n ? l.bits[j / 8 + 1] : 0)) {
      prefetch(at(l.drop, j, l.drop_dtype));
      if (momenta) prefetch(at(l.m, j, l.dtype));
    }
}

// The step of n weights whose packed momenta begin at `m`. Returns how many these are; about as many follow, which are
// prefetched.
int64_t step_rows(const Layer& l, int64_t begin, int64_t n, void* m, const SgdRule& rule) {
  const uint8_t* const bits = l.bits + begin / 8;
  const int64_t active = loops().count_bits(bits, (n + 7) / 8), bytes = active * element_size(l.dtype);
  loops().step_packed[l.dtype](at(l.w, begin, l.dtype), at(l.g, begin, l.dtype), m, active, bits, n, rule);
  if (begin + n < l.n)
    for (int64_t b = bytes; b < 2 * bytes; b += 64) prefetch(static_cast<const char*>(m) + b);
  return active;
}

}  // namespace

void sweep(const Update& u, Lists& lists, int64_t p, int worker) {
  Arena& a = lists.arenas[static_cast<size_t>(worker)];
  const Piece& piece = u.pieces[static_cast<size_t>(p)];
  const auto layer = static_cast<size_t>(piece.layer);
  const Layer& l = u.layers[layer];
  const Bounds& bounds = lists.bounds[layer];
  PieceLists& out = lists.pieces[static_cast<size_t>(p)];
  const bool random = !u.seeds.empty(), listed = u.moves(layer), with_momenta = u.sgd && u.rule.has_momentum;
  const bool momenta = with_momenta && !u.packs(), packed = with_momenta && u.packs(), commits = bounds.commits();
  int64_t row = u.rows.before[static_cast<size_t>(p)];
  out.begin = piece.begin;
  out.overflow = listed && (a.grow_left < kReserve || a.drop_left < kReserve);
  out.grow_key = a.grow_key;
  out.grow_where = a.grow_where;
  out.drop_key = a.drop_key;
  out.drop_where = a.drop_where;
  out.regrow_key = a.regrow_key;
  out.undo_w = a.undo_w;
  out.undo_m = a.undo_m;

  const Loops& isa = loops();
  const Dtype grow_dtype = random ? kRandom : l.grow_dtype;
  const bool signal_in_place = grow_dtype == kF32;
  alignas(64) float signal[kBlock];
  uint8_t plane[kBlock / 8];
  uint16_t groups[2][kMostGroups];  // of this block and the next, in turn
  std::fill(groups[0], groups[0] + 2 * kMostGroups, uint16_t{0});
  if (!u.regrow) std::fill(signal, signal + kBlock, 0.0f);

  GrowScan grow;
  grow.bonus = u.bonus_of(layer);
  grow.bonus_size = u.bonus_size;
  grow.round = u.round;
  grow.seed = random ? u.seeds[layer] : 0;
  grow.place = u.place_of(layer);
  grow.low_score = bounds.low_score;
  grow.low_signal = bounds.low_signal;
  grow.signal_out = u.regrow && !signal_in_place ? signal : nullptr;
  DropScan drop;
  drop.bonus = grow.bonus;
  drop.bonus_size = u.bonus_size;
  drop.round = u.round;
  drop.m_is_near = momenta;
  drop.next_size = element_size(l.drop_dtype);
  drop.most = number_of(kMaxRank - bounds.low_drop);
  drop.low_score = std::nanf("");  // not in the running for growth
  if (commits) {
    grow.high_score = number_of(bounds.high_score);
    drop.sure_below = number_of(kMaxRank - bounds.high_drop);
    if (u.regrow) {
      drop.low_score = number_of(bounds.low_score);
      drop.high_score = grow.high_score;
    }
  }

  const int64_t end = piece.begin + piece.size;
  prefetch_active(l, momenta, piece.begin, std::min(kBlock, piece.size));
  for (int64_t begin = piece.begin; begin < end; begin += kBlock) {
    const int64_t n = std::min(kBlock, end - begin), next = begin + n;
    uint8_t* const bits = l.bits + begin / 8;
    if (packed)
      row += step_rows(l, begin, n, at(u.packed[layer], row, l.dtype), u.rule);
    else if (u.sgd)
      isa.step[l.dtype](at(l.w, begin, l.dtype), at(l.g, begin, l.dtype), momenta ? at(l.m, begin, l.dtype) : nullptr, bits, n,
                        u.rule);
    if (!listed) continue;
    uint8_t* const before = out.before + (begin - piece.begin) / 8;
    if (commits || u.packs()) memcpy(before, bits, static_cast<size_t>((n + 7) / 8));
    if (out.overflow) continue;
    grow.before = drop.before = grow.bits = bits;
    if (commits) {
      grow.before = drop.before = before;
      drop.bits = bits;
      drop.w = at(l.w, begin, l.dtype);
      drop.m = l.m ? at(l.m, begin, l.dtype) : nullptr;
    }
    if (begin > bounds.last) {  // only what is better than the bound
      if (u.bonus && bounds.low_score > 0)
        grow.low_signal = bounds.low_signal + 1;
      else if (bounds.low_score < kMaxRank)
        grow.low_score = bounds.low_score + 1;
    }
    grow.signal = random ? nullptr : at(l.grow, begin, l.grow_dtype);
    grow.counts = drop.counts = l.counts ? l.counts + begin : nullptr;
    grow.first_index = static_cast<uint64_t>(begin);
    const bool first = begin == piece.begin, as_large = end - next >= kBlock;
    uint16_t* const here = groups[begin / kBlock % 2];
    uint16_t* const there = groups[begin / kBlock % 2 ^ 1];
    if (first) drop.next_count = isa.active_groups(bits, n, here);
    drop.groups = here;
    drop.group_count = drop.next_count;
    grow.next_bits = as_large ? l.bits + next / 8 : kNoBits;
    grow.next_signal = as_large && !random ? at(l.grow, next, l.grow_dtype) : kNoBits;
    const auto index = static_cast<uint32_t>(begin - piece.begin);
    const Found candidates = isa.scan_grow[grow_dtype](grow, n, {out.grow_key + out.grow_count, plane, there});
    isa.places_of(plane, n, index, out.grow_where + out.grow_count);
    out.grow_count += candidates.listed;
    out.grown += candidates.sure;

    drop.next_groups = there;
    drop.next_count =
        as_large || next == end ? candidates.next_groups : isa.active_groups(l.bits + next / 8, end - next, there);
    drop.next_w = next < end ? at(l.drop, next, l.drop_dtype) : kNoBits;
    drop.next_m = next < end && momenta ? at(l.m, next, l.dtype) : nullptr;
    drop.next_bytes = as_large && !random ? static_cast<size_t>(kBlock / 2 * element_size(l.grow_dtype)) : 0;
    drop.next_signal = static_cast<const char*>(grow.next_signal) + drop.next_bytes;
    drop.x = at(l.drop, begin, l.drop_dtype);
    drop.signal = u.regrow && signal_in_place ? static_cast<const float*>(grow.signal) : signal;
    const DropLists to{out.drop_key + out.drop_count, out.regrow_key + out.drop_count, out.undo_w + out.gone,
                       out.undo_m + out.gone, plane};
    const Dropped dropped = isa.scan_drop[l.drop_dtype](drop, n, to);
    isa.places_of(plane, n, index, out.drop_where + out.drop_count);
    out.drop_count += dropped.listed;
    out.gone += dropped.gone;
    out.back += dropped.back;
  }
  a.grow_key += out.grow_count;
  a.grow_where += out.grow_count;
  a.grow_left -= out.grow_count;
  a.drop_key += out.drop_count;
  a.drop_where += out.drop_count;
  a.regrow_key += out.drop_count;
  a.undo_w += out.gone;
  a.undo_m += out.gone;
  a.drop_left -= out.drop_count + out.gone;
}

}  // namespace dstee::cpu
