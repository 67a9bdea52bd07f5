#include <algorithm>
#include <array>

#include "kth_largest.h"
#include "loops.h"
#include "stages.h"

namespace dstee::cpu {
namespace {

// The k-th largest key of the listed candidates: those that were inactive and, with regrow, the dropped.
KthLargest last_candidate(const Update& u, Lists& lists, int layer, int64_t k) {
  Keys* const keys = lists.scratch(layer);
  size_t arrays = 0;
  for (const PieceLists& l : lists.of_layer(layer)) {
    keys[arrays++] = {l.grow_key, l.grow_count};
    if (u.regrow) keys[arrays++] = {l.regrow_key, l.drop_count};
  }
  return kth_largest(keys, arrays, k);
}

// Whether all candidates at `score` have the same signal; sets its rank.
class OneSignal {
 public:
  OneSignal(const Update& u, int layer, uint32_t score) : u_(u), layer_(layer), score_(score) {}

  bool among(const uint32_t* key, const uint32_t* where, size_t count, int64_t begin) {
    constexpr size_t kAtOnce = 1 << 10;
    std::array<uint32_t, kAtOnce + kMaxLanes> tied;
    for (size_t start = 0; start < count; start += kAtOnce) {
      const size_t here = std::min(kAtOnce, count - start);
      const size_t found = loops().copy_between(key + start, here, score_, score_, where + start, tied.data());
      for (size_t j = 0; j < found; ++j) {
        const uint32_t signal = Weight(u_, layer_, begin + tied[j]).signal_rank();
        if (known_ && signal != rank) return false;
        rank = signal;
        known_ = true;
      }
    }
    return true;
  }

  uint32_t rank = 0;

 private:
  const Update& u_;
  int layer_;
  uint32_t score_;
  bool known_ = false;
};

bool one_signal(const Update& u, Lists& lists, int layer, uint32_t score, uint32_t* rank) {
  *rank = score;  // without a bonus both are one number
  if (!u.bonus) return true;
  OneSignal signal(u, layer, score);
  for (const PieceLists& l : lists.of_layer(layer))
    if (!signal.among(l.grow_key, l.grow_where, l.grow_count, l.begin) ||
        (u.regrow && !signal.among(l.regrow_key, l.drop_where, l.drop_count, l.begin)))
      return false;
  *rank = signal.rank;
  return true;
}

// Keeps the candidates at `score` and above. Their key becomes what orders them further: the rank of |signal| for those at
// `score`, more than any rank for those above.
void rank_ties(const Update& u, Lists& lists, int layer, uint32_t score) {
  for (PieceLists& l : lists.of_layer(layer)) {
    auto second = [&](uint32_t key, uint32_t where) -> uint32_t {
      if (key != score) return key > score ? kMaxRank + 1 : 0;
      return Weight(u, layer, l.begin + where).signal_rank();
    };
    l.grow_count = loops().keep_between(l.grow_key, l.grow_count, score, kMaxRank, l.grow_where, l.grow_key);
    for (size_t j = 0; j < l.grow_count; ++j) l.grow_key[j] = second(l.grow_key[j], l.grow_where[j]);
    if (u.regrow)
      for (size_t j = 0; j < l.drop_count; ++j) l.regrow_key[j] = second(l.regrow_key[j], l.drop_where[j]);
  }
}

// A part of a list, which is in index order.
struct Entries {
  const uint32_t *key, *where;
  size_t count;

  int64_t with(uint32_t wanted) const { return static_cast<int64_t>(loops().count_between(key, count, wanted, wanted)); }
  Entries before(uint32_t place) const {
    return {key, where, static_cast<size_t>(std::lower_bound(where, where + count, place) - where)};
  }
  Entries behind(const Entries& first) const { return {key + first.count, where + first.count, count - first.count}; }
};

// The index of the `wanted`-th candidate with this key.
int64_t index_of_tie(const Update& u, Lists& lists, int layer, uint32_t key, int64_t wanted) {
  for (const PieceLists& l : lists.of_layer(layer)) {
    Entries grown{l.grow_key, l.grow_where, l.grow_count}, back{l.regrow_key, l.drop_where, u.regrow ? l.drop_count : 0};
    const int64_t here = grown.with(key) + back.with(key);
    if (here < wanted) {
      wanted -= here;
      continue;
    }
    uint32_t first = 0, end = static_cast<uint32_t>(kPiece);  // where it lies, halved until that is one place
    while (end - first > 1) {
      const uint32_t middle = first + (end - first) / 2;
      const Entries early_grown = grown.before(middle), early_back = back.before(middle);
      const int64_t early = early_grown.with(key) + early_back.with(key);
      if (early >= wanted) {
        end = middle;
        grown = early_grown;
        back = early_back;
      } else {
        wanted -= early;
        first = middle;
        grown = grown.behind(early_grown);
        back = back.behind(early_back);
      }
    }
    return l.begin + first;
  }
  return u.layers[static_cast<size_t>(layer)].n;
}

}  // namespace

bool select_grow(const Update& u, Lists& lists, int layer) {
  const auto i = static_cast<size_t>(layer);
  const Bounds& bounds = lists.bounds[i];
  const Loops& isa = loops();
  int64_t k = u.k_grow[i], listed = 0, beyond = 0;
  for (const PieceLists& l : lists.of_layer(layer)) {
    const size_t drops = u.regrow ? l.drop_count : 0;
    k -= static_cast<int64_t>(l.grown + l.back);
    listed += static_cast<int64_t>(l.grow_count + drops);
    beyond += static_cast<int64_t>(isa.count_between(l.grow_key, l.grow_count, bounds.high_score + 1, UINT32_MAX) +
                                   isa.count_between(l.regrow_key, drops, bounds.high_score + 1, UINT32_MAX));
  }
  // What is committed was chosen by the high bound alone: that is right only if all that lie beyond it are grown.
  if (listed < k || k < beyond || listed > int64_t{UINT32_MAX}) return false;

  lists.grow[i] = {kMaxRank + 1, u.layers[i].n};  // before all candidates
  if (k == 0) return true;
  KthLargest last = last_candidate(u, lists, layer, k);
  if (last.key < bounds.low_score) return false;
  int64_t known = INT64_MAX;  // of weights as good as the last grown one those up to here are listed
  const bool at_bound = last.key == bounds.low_score && (bounds.low_signal > 0 || bounds.last < INT64_MAX);
  if (last.equal > k - last.above || at_bound) {
    uint32_t signal;
    if (!one_signal(u, lists, layer, last.key, &signal)) {
      rank_ties(u, lists, layer, last.key);
      last = last_candidate(u, lists, layer, k);
      signal = last.key;
    }
    if (at_bound && signal < bounds.low_signal) return false;
    if (at_bound && signal == bounds.low_signal) known = bounds.last;
  }
  const int64_t wanted = k - last.above;
  lists.grow[i] = {last.key, u.layers[i].n};
  if (last.equal == wanted && known == INT64_MAX) return true;
  lists.grow[i].index = index_of_tie(u, lists, layer, last.key, wanted);  // equal in both keys: the lowest indices grow
  return lists.grow[i].index <= known;
}

}  // namespace dstee::cpu
