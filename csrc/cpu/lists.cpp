#include "lists.h"

#include <algorithm>
#include <array>

#include "parallel.h"

namespace dstee {
namespace {

constexpr int64_t kBlock = 4096;         // weights per turn of the sweep: they stay in the first-level cache
constexpr size_t kReserve = kPiece + 64;  // arena space that any piece fits into

struct Kth {
  uint32_t value = 0;
  int64_t above = 0, equal = 0;  // values larger than, and equal to, the k-th largest
};

// The k-th largest of all values in `runs`, by radix on their offset from the smallest. No memory, at most three passes.
// Flip turns the order around: then it is the k-th smallest, `above` counts the smaller ones.
template <bool kFlip>
Kth kth(const Run* runs, size_t run_count, int64_t k) {
  constexpr int kDigit = 12;
  const Run* const end_of_runs = runs + run_count;
  auto key = [](uint32_t x) { return kFlip ? kMaxRank + 1 - x : x; };
  uint32_t low = ~0u, high = 0;
  for (const Run* r = runs; r != end_of_runs; ++r)
    for (size_t j = 0; j < r->count; ++j) {
      const uint32_t x = key(r->values[j]);
      low = std::min(low, x);
      high = std::max(high, x);
    }
  int bits = 0;
  while (bits < 32 && (static_cast<uint64_t>(high - low) >> bits) != 0) ++bits;

  Kth result;
  uint32_t prefix = 0;
  for (int end = bits; end > 0;) {
    const int top = end;
    end = std::max(0, end - kDigit);
    std::array<uint32_t, 1 << kDigit> bins{};
    const uint64_t want = prefix;
    for (const Run* r = runs; r != end_of_runs; ++r)
      for (size_t j = 0; j < r->count; ++j) {
        const uint64_t x = key(r->values[j]) - low;
        if (x >> top == want) ++bins[x >> end & ((1u << (top - end)) - 1)];
      }
    int64_t bin = (1 << (top - end)) - 1;
    for (; bins[bin] < k; --bin) {
      k -= bins[bin];
      result.above += bins[bin];
    }
    prefix = prefix << (top - end) | static_cast<uint32_t>(bin);
    result.equal = bins[bin];
  }
  if (bits == 0)
    for (const Run* r = runs; r != end_of_runs; ++r) result.equal += static_cast<int64_t>(r->count);
  result.value = key(low + prefix);
  return result;
}

}  // namespace

Lists::Lists(const Update& u, const std::vector<Bracket>& brackets)
    : u_(u), brackets_(brackets), pieces_(u.pieces.size()), first_piece_(u.layers.size() + 1), cuts_(u.layers.size()),
      runs_(2 * u.pieces.size()), arenas_(u.workers), memory_([&] {
        // A worker that gets more than its share of the candidates overflows; several times the share is not touched
        // memory and costs nothing.
        int64_t grow = 0, drop = 0, widest = 0;
        for (size_t i = 0; i < brackets.size(); ++i)
          if (u.k[i]) {
            grow += brackets[i].expected_grow;
            drop += brackets[i].expected_drop;
            widest = std::max({widest, brackets[i].expected_grow, brackets[i].expected_drop});
          }
        auto share = [&](int64_t total) { return static_cast<size_t>(3 * total / u.workers + 2 * widest) + kReserve; };
        for (Arena& a : arenas_) {
          a.grow_left = share(grow);
          a.drop_left = share(drop);
        }
        return arenas_.size() * (2 * arenas_[0].grow_left + 3 * arenas_[0].drop_left) * sizeof(uint32_t);
      }()) {
  auto* free = reinterpret_cast<uint32_t*>(memory_.data());
  for (Arena& a : arenas_) {
    for (uint32_t** p : {&a.grow_score, &a.grow_where}) *p = free, free += a.grow_left;
    for (uint32_t** p : {&a.drop_rank, &a.drop_where, &a.drop_score}) *p = free, free += a.drop_left;
  }
  for (size_t p = 0; p < u.pieces.size(); ++p) ++first_piece_[static_cast<size_t>(u.pieces[p].layer) + 1];
  for (size_t i = 0; i < u.layers.size(); ++i) first_piece_[i + 1] += first_piece_[i];
}

void Lists::lose_arenas() {
  for (Arena& a : arenas_) a.grow_left = a.drop_left = 0;
}

void Lists::sweep() {
  for_tickets(u_.workers, static_cast<int64_t>(pieces_.size()),
              [&](int worker, int64_t p) { sweep_piece(arenas_[static_cast<size_t>(worker)], p); });
}

void Lists::sweep_piece(Arena& a, int64_t p) {
  const Piece& piece = u_.pieces[static_cast<size_t>(p)];
  const Layer& l = u_.layers[static_cast<size_t>(piece.layer)];
  const Bracket& bracket = brackets_[static_cast<size_t>(piece.layer)];
  PieceLists& out = pieces_[static_cast<size_t>(p)];
  const bool random = !u_.seeds.empty();
  const bool list = u_.k[static_cast<size_t>(piece.layer)] > 0;
  out.overflow = list && (a.grow_left < kReserve || a.drop_left < kReserve);
  out.grow_score = a.grow_score;
  out.grow_where = a.grow_where;
  out.drop_rank = a.drop_rank;
  out.drop_where = a.drop_where;
  out.drop_score = a.drop_score;

  GrowScan scan;
  scan.bonus = u_.bonus;
  scan.bonus_size = u_.bonus_size;
  scan.seed = random ? u_.seeds[static_cast<size_t>(piece.layer)] : 0;
  scan.low_score = bracket.low_score;
  scan.low_signal = bracket.low_signal;

  const Loops& isa = loops();
  const Dtype grow_dtype = random ? kRandom : l.grow_dtype;
  for (int64_t begin = piece.begin; begin < piece.begin + piece.size; begin += kBlock) {
    const int64_t n = std::min(kBlock, piece.begin + piece.size - begin);
    const uint32_t index = static_cast<uint32_t>(begin - piece.begin);
    const uint8_t* bits = l.bits + begin / 8;
    if (u_.sgd)
      isa.step[l.dtype](at(l.w, begin, l.dtype), at(l.g, begin, l.dtype),
                        u_.rule.has_momentum ? at(l.m, begin, l.dtype) : nullptr, bits, n, u_.rule);
    if (!list || out.overflow) continue;
    scan.signal = random ? nullptr : at(l.grow, begin, l.grow_dtype);
    scan.counts = l.counts ? l.counts + begin : nullptr;
    scan.first_index = static_cast<uint64_t>(begin);
    out.grow_count +=
        isa.scan_grow[grow_dtype](scan, bits, n, index, out.grow_score + out.grow_count, out.grow_where + out.grow_count);
    const size_t before = out.drop_count;
    out.drop_count += isa.scan_drop[l.drop_dtype](at(l.drop, begin, l.drop_dtype), bits, n, bracket.high_drop, index,
                                                  out.drop_rank + before, out.drop_where + before);
    if (u_.regrow)
      for (size_t j = before; j < out.drop_count; ++j)
        out.drop_score[j] = Weight(u_, piece.layer, piece.begin + out.drop_where[j]).score_rank();
  }
  a.grow_score += out.grow_count;
  a.grow_where += out.grow_count;
  a.grow_left -= out.grow_count;
  a.drop_rank += out.drop_count;
  a.drop_where += out.drop_count;
  a.drop_score += out.drop_count;
  a.drop_left -= out.drop_count;
}

// Shortens the drop lists of a layer to the k weights that are dropped.
void Lists::keep_dropped(int layer) {
  const auto i = static_cast<size_t>(layer);
  Run* const runs = &runs_[2 * first_piece_[i]];
  size_t filled = 0;
  for (int64_t p = first_piece_[i]; p < first_piece_[i + 1]; ++p) runs[filled++] = {pieces_[p].drop_rank, pieces_[p].drop_count};
  const Kth cut = kth<true>(runs, filled, u_.k[i]);
  int64_t ties = u_.k[i] - cut.above;  // of the weights as large as the last dropped one the first go
  for (int64_t p = first_piece_[i]; p < first_piece_[i + 1]; ++p) {
    PieceLists& l = pieces_[p];
    size_t kept = 0;
    for (size_t j = 0; j < l.drop_count; ++j) {
      const uint32_t rank = l.drop_rank[j];
      const bool tie = rank == cut.value && ties > 0;
      ties -= tie;
      l.drop_where[kept] = l.drop_where[j];
      l.drop_score[kept] = l.drop_score[j];
      kept += rank < cut.value || tie;
    }
    l.drop_count = kept;
  }
}

// Keeps the candidates at `score` and above, and replaces the score by what orders them further: the rank of |signal| for
// those at `score`, more than any rank for those above.
void Lists::split_ties(int layer, uint32_t score) {
  const auto i = static_cast<size_t>(layer);
  for (int64_t p = first_piece_[i]; p < first_piece_[i + 1]; ++p) {
    PieceLists& l = pieces_[p];
    auto second = [&](uint32_t value, uint32_t where) -> uint32_t {
      if (value != score) return value > score ? kMaxRank + 1 : 0;
      return Weight(u_, layer, u_.pieces[p].begin + where).signal_rank();
    };
    size_t kept = 0;
    for (size_t j = 0; j < l.grow_count; ++j) {
      const uint32_t value = l.grow_score[j], where = l.grow_where[j];
      if (value < score) continue;
      l.grow_score[kept] = second(value, where);
      l.grow_where[kept++] = where;
    }
    l.grow_count = kept;
    if (u_.regrow)
      for (size_t j = 0; j < l.drop_count; ++j) l.drop_score[j] = second(l.drop_score[j], l.drop_where[j]);
  }
}

bool Lists::resolve(int layer) {
  const auto i = static_cast<size_t>(layer);
  const Bracket& bracket = brackets_[i];
  const int64_t k = u_.k[i];
  int64_t grow = 0, drop = 0;
  for (int64_t p = first_piece_[i]; p < first_piece_[i + 1]; ++p) {
    if (pieces_[p].overflow) return false;
    grow += static_cast<int64_t>(pieces_[p].grow_count);
    drop += static_cast<int64_t>(pieces_[p].drop_count);
  }
  // NaN gradients are never listed, so even a list of everything can be short.
  if (drop < k || grow + (u_.regrow ? k : 0) < k) return false;
  keep_dropped(layer);

  auto all = [&] {
    Run* const runs = &runs_[2 * first_piece_[i]];
    size_t filled = 0;
    for (int64_t p = first_piece_[i]; p < first_piece_[i + 1]; ++p) {
      runs[filled++] = {pieces_[p].grow_score, pieces_[p].grow_count};
      if (u_.regrow) runs[filled++] = {pieces_[p].drop_score, pieces_[p].drop_count};
    }
    return kth<false>(runs, filled, k);
  };
  Kth cut = all();
  if (cut.value < bracket.low_score) return false;
  int64_t wanted = k - cut.above;
  if (cut.equal > wanted || (cut.value == bracket.low_score && bracket.low_signal > 0)) {
    const bool at_bound = cut.value == bracket.low_score;
    split_ties(layer, cut.value);
    cut = all();
    if (at_bound && cut.value < bracket.low_signal) return false;
    wanted = k - cut.above;
  }
  cuts_[i] = {cut.value, u_.layers[i].n};
  if (cut.equal == wanted) return true;

  // Equal in both keys: the lowest indices win. Both lists of a piece are in index order; walk them together.
  for (int64_t p = first_piece_[i]; p < first_piece_[i + 1]; ++p) {
    const PieceLists& l = pieces_[p];
    const size_t drops = u_.regrow ? l.drop_count : 0;
    for (size_t a = 0, b = 0; a < l.grow_count || b < drops;) {
      const bool from_grow = b == drops || (a < l.grow_count && l.grow_where[a] < l.drop_where[b]);
      const uint32_t value = from_grow ? l.grow_score[a] : l.drop_score[b];
      const uint32_t where = from_grow ? l.grow_where[a++] : l.drop_where[b++];
      if (value == cut.value && --wanted == 0) {
        cuts_[i].index = u_.pieces[p].begin + where;
        return true;
      }
    }
  }
  return true;
}

void Lists::commit(int64_t p) {
  const Piece& piece = u_.pieces[static_cast<size_t>(p)];
  const PieceLists& l = pieces_[static_cast<size_t>(p)];
  const GrowCut& cut = cuts_[static_cast<size_t>(piece.layer)];
  auto wins = [&](uint32_t value, int64_t i) { return value > cut.value || (value == cut.value && i <= cut.index); };
  for (size_t j = 0; j < l.drop_count; ++j) {
    const int64_t i = piece.begin + l.drop_where[j];
    const Weight w(u_, piece.layer, i);
    if (!(u_.regrow && wins(l.drop_score[j], i)))
      w.drop();
    else if (u_.reset_regrown)
      w.clear();
  }
  for (size_t j = 0; j < l.grow_count; ++j) {
    const int64_t i = piece.begin + l.grow_where[j];
    if (wins(l.grow_score[j], i)) Weight(u_, piece.layer, i).grow();
  }
}

int64_t Lists::entries() const {
  int64_t total = 0;
  for (const PieceLists& p : pieces_) total += static_cast<int64_t>(p.grow_count + p.drop_count);
  return total;
}

}  // namespace dstee
