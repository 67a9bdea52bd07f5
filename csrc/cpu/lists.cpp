#include "lists.h"

#include <algorithm>
#include <array>
#include <functional>
#include <tuple>
#include <utility>

#include "parallel.h"

namespace dstee {
namespace {

constexpr int64_t kBlock = 1 << 13;       // weights per turn of the sweep: they stay in the second-level cache
constexpr size_t kReserve = kPiece + 64;  // arena space that any piece fits into

struct Kth {
  uint32_t value = 0;
  int64_t above = 0, equal = 0;  // values larger than, and equal to, the k-th largest
};

// The k-th largest of all values in `runs`. No memory but the stack; two passes, as a rule, or up to four.
// Flip turns the order around: then it is the k-th smallest, `above` counts the smaller ones.
template <bool kFlip>
Kth kth(const Run* runs, size_t run_count, int64_t k) {
  constexpr int kDigit = 12;
  constexpr size_t kFew = 2048;
  const Run* const end_of_runs = runs + run_count;
  auto key = [](uint32_t x) { return kFlip ? kMaxRank + 1 - x : x; };
  uint32_t low = ~0u, high = 0;
  for (const Run* r = runs; r != end_of_runs; ++r) loops().range(r->values, r->count, &low, &high);
  if (kFlip) std::tie(low, high) = std::pair(key(high), key(low));
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
    if (end > 0 && bins[bin] <= kFew) {  // few enough to sort
      std::array<uint32_t, kFew + kMaxLanes> few;
      size_t count = 0;
      const uint32_t from = low + (prefix << end), to = low + (prefix << end | ((1u << end) - 1));
      for (const Run* r = runs; r != end_of_runs; ++r)
        count += loops().copy_between(r->values, r->count, kFlip ? key(to) : from, kFlip ? key(from) : to, few.data() + count);
      for (size_t j = 0; j < count; ++j) few[j] = key(few[j]);
      std::nth_element(few.begin(), few.begin() + (k - 1), few.begin() + count, std::greater<uint32_t>());
      const uint32_t value = few[k - 1];
      result.equal = std::count(few.begin(), few.begin() + count, value);
      result.above += std::count_if(few.begin(), few.begin() + count, [&](uint32_t x) { return x > value; });
      result.value = key(value);
      return result;
    }
  }
  if (bits == 0)
    for (const Run* r = runs; r != end_of_runs; ++r) result.equal += static_cast<int64_t>(r->count);
  result.value = key(low + prefix);
  return result;
}

}  // namespace

Lists::Lists(const Update& u, const std::vector<Bracket>& brackets, double share)
    : u_(u),
      brackets_(brackets),
      pieces_(u.pieces.size()),
      first_piece_(u.layers.size() + 1),
      cuts_(u.layers.size()),
      runs_(2 * u.pieces.size()),
      arenas_(u.workers),
      memory_([&] {
        // A worker that gets more than its share of the candidates overflows. Several times the share costs nothing where
        // it is not touched, but it is bounded: a model full of equal weights must not ask for tens of bytes a weight.
        int64_t grow = 0, drop = 0, widest = 0;
        for (size_t i = 0; i < brackets.size(); ++i)
          if (u.k[i]) {
            grow += brackets[i].expected_grow;
            drop += brackets[i].expected_drop;
            widest = std::max({widest, brackets[i].expected_grow, brackets[i].expected_drop});
          }
        const int64_t most = (int64_t{1} << 22) + total_weights(u.layers) / (2 * u.workers);
        auto room = [&](int64_t total) {
          return static_cast<size_t>(std::min(3 * total / u.workers + 2 * widest, most)) + kReserve;
        };
        for (Arena& a : arenas_) {
          a.grow_left = room(grow);
          a.drop_left = room(drop);
        }
        return arenas_.size() * (2 * arenas_[0].grow_left + 3 * arenas_[0].drop_left) * sizeof(uint32_t);
      }()) {
  auto* free = reinterpret_cast<uint32_t*>(memory_.data());
  for (Arena& a : arenas_) {
    for (uint32_t** p : {&a.grow_score, &a.grow_where}) *p = free, free += a.grow_left;
    for (uint32_t** p : {&a.drop_rank, &a.drop_where, &a.drop_score}) *p = free, free += a.drop_left;
  }
  if (share < 1)
    for (Arena& a : arenas_) {
      a.grow_left = static_cast<size_t>(share * static_cast<double>(a.grow_left));
      a.drop_left = static_cast<size_t>(share * static_cast<double>(a.drop_left));
    }
  for (size_t p = 0; p < u.pieces.size(); ++p) ++first_piece_[static_cast<size_t>(u.pieces[p].layer) + 1];
  for (size_t i = 0; i < u.layers.size(); ++i) first_piece_[i + 1] += first_piece_[i];
}

void Lists::sweep(int64_t p, int worker) {
  Arena& a = arenas_[static_cast<size_t>(worker)];
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
  scan.next_size = element_size(l.drop_dtype);

  const Loops& isa = loops();
  const Dtype grow_dtype = random ? kRandom : l.grow_dtype;
  for (int64_t begin = piece.begin; begin < piece.begin + piece.size; begin += kBlock) {
    const int64_t n = std::min(kBlock, piece.begin + piece.size - begin);
    const uint32_t index = static_cast<uint32_t>(begin - piece.begin);
    const uint8_t* bits = l.bits + begin / 8;
    const auto step = [&] {
      if (u_.sgd)
        isa.step[l.dtype](at(l.w, begin, l.dtype), at(l.g, begin, l.dtype),
                          u_.rule.has_momentum ? at(l.m, begin, l.dtype) : nullptr, bits, n, u_.rule);
    };
    // Another signal than the gradient is read after the step, which may have changed it.
    const bool step_first = !random && l.grow != l.g;
    if (step_first || !list || out.overflow) step();
    if (!list || out.overflow) continue;
    if (begin > bracket.last) {  // only what is better than the bound
      if (u_.bonus)
        scan.low_signal = bracket.low_signal + 1;
      else if (bracket.low_score < kMaxRank)
        scan.low_score = bracket.low_score + 1;
    }
    scan.signal = random ? nullptr : at(l.grow, begin, l.grow_dtype);
    scan.counts = l.counts ? l.counts + begin : nullptr;
    scan.first_index = static_cast<uint64_t>(begin);
    scan.next_w = static_cast<const char*>(at(l.drop, begin, l.drop_dtype));
    scan.next_m = u_.sgd && u_.rule.has_momentum ? static_cast<const char*>(at(l.m, begin, l.dtype)) : nullptr;
    out.grow_count +=
        isa.scan_grow[grow_dtype](scan, bits, n, index, out.grow_score + out.grow_count, out.grow_where + out.grow_count);
    if (!step_first) step();
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
  for (int64_t p = first_piece_[i]; p < first_piece_[i + 1]; ++p)
    runs[filled++] = {pieces_[p].drop_rank, pieces_[p].drop_count};
  const Kth cut = kth<true>(runs, filled, u_.k[i]);
  int64_t ties = u_.k[i] - cut.above;
  for (int64_t p = first_piece_[i]; p < first_piece_[i + 1]; ++p) {
    PieceLists& l = pieces_[p];
    if (ties == cut.equal) {
      l.drop_count = loops().keep_between(l.drop_rank, l.drop_count, 0, cut.value, l.drop_where, l.drop_score);
      continue;
    }
    size_t kept = 0;  // of the weights as large as the last dropped one the first go
    for (size_t j = 0; j < l.drop_count; ++j) {
      const bool tie = l.drop_rank[j] == cut.value && ties > 0;
      ties -= tie;
      l.drop_where[kept] = l.drop_where[j];
      l.drop_score[kept] = l.drop_score[j];
      kept += l.drop_rank[j] < cut.value || tie;
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
  if (grow + drop > int64_t{UINT32_MAX}) return false;  // kth counts in 32 bits
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
  int64_t known = INT64_MAX;  // of weights as good as the last winner those up to here are listed
  if (cut.equal > wanted || (cut.value == bracket.low_score && bracket.low_signal > 0)) {
    const bool at_bound = cut.value == bracket.low_score;
    split_ties(layer, cut.value);
    cut = all();
    if (at_bound && cut.value < bracket.low_signal) return false;
    if (at_bound && cut.value == bracket.low_signal) known = bracket.last;
    wanted = k - cut.above;
  }
  cuts_[i] = {cut.value, u_.layers[i].n};
  if (cut.equal == wanted && known == INT64_MAX) return true;

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
        return cuts_[i].index <= known;
      }
    }
  }
  return true;
}

void Lists::commit(int64_t p) {
  constexpr size_t kAhead = 16;
  const Piece& piece = u_.pieces[static_cast<size_t>(p)];
  PieceLists& l = pieces_[static_cast<size_t>(p)];
  const GrowCut& cut = cuts_[static_cast<size_t>(piece.layer)];
  auto weight = [&](uint32_t where) { return Weight(u_, piece.layer, piece.begin + where); };

  // First choose, without branches, then touch the memory of the chosen, prefetched.
  size_t gone = l.drop_count, regrown = 0, grown = 0;
  const bool ties = cut.index < u_.layers[static_cast<size_t>(piece.layer)].n;
  if (!ties && !u_.reset_regrown) {
    grown = loops().keep_between(l.grow_score, l.grow_count, cut.value, kMaxRank + 1, l.grow_where, nullptr);
    if (u_.regrow) gone = loops().keep_between(l.drop_score, l.drop_count, 0, cut.value - 1, l.drop_where, nullptr);
  } else {
    auto wins = [&](uint32_t value, uint32_t where) {
      return (value > cut.value) | ((value == cut.value) & (piece.begin + where <= cut.index));
    };
    for (size_t j = gone = 0; j < l.drop_count; ++j) {
      const uint32_t where = l.drop_where[j];
      const bool back = u_.regrow && wins(l.drop_score[j], where);
      l.drop_rank[regrown] = where;  // the ranks have served
      regrown += back;
      l.drop_where[gone] = where;
      gone += !back;
    }
    for (size_t j = 0; j < l.grow_count; ++j) {
      const uint32_t where = l.grow_where[j];
      l.grow_where[grown] = where;
      grown += wins(l.grow_score[j], where);
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
  if (u_.reset_regrown)
    for (size_t j = 0; j < regrown; ++j) weight(l.drop_rank[j]).clear();
}

int64_t Lists::entries() const {
  int64_t total = 0;
  for (const PieceLists& p : pieces_) total += static_cast<int64_t>(p.grow_count + p.drop_count);
  return total;
}

}  // namespace dstee
