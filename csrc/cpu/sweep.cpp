#include <algorithm>

#include "loops.h"
#include "stages.h"

namespace dstee::cpu {
namespace {

constexpr int64_t kBlock = 1 << 13;  // weights per turn of the sweep: they stay in the second-level cache

}  // namespace

void sweep(const Update& u, Lists& lists, int64_t p, int worker) {
  Arena& a = lists.arenas[static_cast<size_t>(worker)];
  const Piece& piece = u.pieces[static_cast<size_t>(p)];
  const Layer& l = u.layers[static_cast<size_t>(piece.layer)];
  const Bounds& bounds = lists.bounds[static_cast<size_t>(piece.layer)];
  PieceLists& out = lists.pieces[static_cast<size_t>(p)];
  const bool random = !u.seeds.empty();
  const bool listed = u.moves(static_cast<size_t>(piece.layer));
  out.begin = piece.begin;
  out.overflow = listed && (a.grow_left < kReserve || a.drop_left < kReserve);
  out.grow_key = a.grow_key;
  out.grow_where = a.grow_where;
  out.drop_key = a.drop_key;
  out.drop_where = a.drop_where;
  out.regrow_key = a.regrow_key;

  GrowScan scan;
  scan.bonus = u.bonus_of(static_cast<size_t>(piece.layer));
  scan.bonus_size = u.bonus_size;
  scan.seed = random ? u.seeds[static_cast<size_t>(piece.layer)] : 0;
  scan.place = u.place_of(static_cast<size_t>(piece.layer));
  scan.low_score = bounds.low_score;
  scan.low_signal = bounds.low_signal;
  scan.next_size = element_size(l.drop_dtype);

  const Loops& isa = loops();
  const Dtype grow_dtype = random ? kRandom : l.grow_dtype;
  for (int64_t begin = piece.begin; begin < piece.begin + piece.size; begin += kBlock) {
    const int64_t n = std::min(kBlock, piece.begin + piece.size - begin);
    const uint32_t index = static_cast<uint32_t>(begin - piece.begin);
    const uint8_t* bits = l.bits + begin / 8;
    const auto step = [&] {
      if (u.sgd)
        isa.step[l.dtype](at(l.w, begin, l.dtype), at(l.g, begin, l.dtype),
                          u.rule.has_momentum ? at(l.m, begin, l.dtype) : nullptr, bits, n, u.rule);
    };
    // Another signal than the gradient is read after the step, which may have changed it.
    const bool step_first = !random && l.grow != l.g;
    if (step_first || !listed || out.overflow) step();
    if (!listed || out.overflow) continue;
    if (begin > bounds.last) {  // only what is better than the bound
      if (u.bonus)
        scan.low_signal = bounds.low_signal + 1;
      else if (bounds.low_score < kMaxRank)
        scan.low_score = bounds.low_score + 1;
    }
    scan.signal = random ? nullptr : at(l.grow, begin, l.grow_dtype);
    scan.counts = l.counts ? l.counts + begin : nullptr;
    scan.first_index = static_cast<uint64_t>(begin);
    scan.next_w = static_cast<const char*>(at(l.drop, begin, l.drop_dtype));
    scan.next_m = u.sgd && u.rule.has_momentum ? static_cast<const char*>(at(l.m, begin, l.dtype)) : nullptr;
    out.grow_count +=
        isa.scan_grow[grow_dtype](scan, bits, n, index, out.grow_key + out.grow_count, out.grow_where + out.grow_count);
    if (!step_first) step();
    const size_t before = out.drop_count;
    out.drop_count += isa.scan_drop[l.drop_dtype](at(l.drop, begin, l.drop_dtype), bits, n, bounds.low_drop, index,
                                                  out.drop_key + before, out.drop_where + before);
    if (u.regrow)
      for (size_t j = before; j < out.drop_count; ++j)
        out.regrow_key[j] = Weight(u, piece.layer, piece.begin + out.drop_where[j]).score_rank(scan.bonus);
  }
  a.grow_key += out.grow_count;
  a.grow_where += out.grow_count;
  a.grow_left -= out.grow_count;
  a.drop_key += out.drop_count;
  a.drop_where += out.drop_count;
  a.regrow_key += out.drop_count;
  a.drop_left -= out.drop_count;
}

}  // namespace dstee::cpu
