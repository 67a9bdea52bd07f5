#include "kth_largest.h"
#include "stages.h"

namespace dstee::cpu {
namespace {

// The k-th largest key of the candidates: those that were inactive and, with regrow, the dropped.
KthLargest last_candidate(const Update& u, Lists& lists, int layer) {
  Keys* const keys = lists.scratch(layer);
  size_t arrays = 0;
  for (const PieceLists& l : lists.of_layer(layer)) {
    keys[arrays++] = {l.grow_key, l.grow_count};
    if (u.regrow) keys[arrays++] = {l.regrow_key, l.drop_count};
  }
  return kth_largest(keys, arrays, u.k_grow[static_cast<size_t>(layer)]);
}

// Keeps the candidates at `score` and above. Their key becomes what orders them further: the rank of |signal| for those at
// `score`, more than any rank for those above.
void rank_ties(const Update& u, Lists& lists, int layer, uint32_t score) {
  for (PieceLists& l : lists.of_layer(layer)) {
    auto second = [&](uint32_t key, uint32_t where) -> uint32_t {
      if (key != score) return key > score ? kMaxRank + 1 : 0;
      return Weight(u, layer, l.begin + where).signal_rank();
    };
    size_t kept = 0;
    for (size_t j = 0; j < l.grow_count; ++j) {
      const uint32_t key = l.grow_key[j], where = l.grow_where[j];
      if (key < score) continue;
      l.grow_key[kept] = second(key, where);
      l.grow_where[kept++] = where;
    }
    l.grow_count = kept;
    if (u.regrow)
      for (size_t j = 0; j < l.drop_count; ++j) l.regrow_key[j] = second(l.regrow_key[j], l.drop_where[j]);
  }
}

// The index of the `wanted`-th candidate with this key: both lists of a piece are in index order, walk them together.
int64_t index_of_tie(const Update& u, Lists& lists, int layer, uint32_t key, int64_t wanted) {
  for (const PieceLists& l : lists.of_layer(layer)) {
    const size_t drops = u.regrow ? l.drop_count : 0;
    for (size_t a = 0, b = 0; a < l.grow_count || b < drops;) {
      const bool from_grow = b == drops || (a < l.grow_count && l.grow_where[a] < l.drop_where[b]);
      const uint32_t other = from_grow ? l.grow_key[a] : l.regrow_key[b];
      const uint32_t where = from_grow ? l.grow_where[a++] : l.drop_where[b++];
      if (other == key && --wanted == 0) return l.begin + where;
    }
  }
  return u.layers[static_cast<size_t>(layer)].n;
}

}  // namespace

bool select_grow(const Update& u, Lists& lists, int layer) {
  const auto i = static_cast<size_t>(layer);
  const Bounds& bounds = lists.bounds[i];
  const int64_t k = u.k_grow[i];
  int64_t listed = u.regrow ? u.k_drop[i] : 0;
  for (const PieceLists& l : lists.of_layer(layer)) listed += static_cast<int64_t>(l.grow_count);
  // NaN gradients are never listed, so even a list of everything can be short.
  if (listed < k || listed > int64_t{UINT32_MAX}) return false;

  lists.grow[i] = {kMaxRank + 1, u.layers[i].n};  // before all candidates
  if (k == 0) return true;
  KthLargest last = last_candidate(u, lists, layer);
  if (last.key < bounds.low_score) return false;
  int64_t known = INT64_MAX;  // of weights as good as the last grown one those up to here are listed
  if (last.equal > k - last.above || (last.key == bounds.low_score && bounds.low_signal > 0)) {
    const bool at_bound = last.key == bounds.low_score;
    rank_ties(u, lists, layer, last.key);
    last = last_candidate(u, lists, layer);
    if (at_bound && last.key < bounds.low_signal) return false;
    if (at_bound && last.key == bounds.low_signal) known = bounds.last;
  }
  const int64_t wanted = k - last.above;
  lists.grow[i] = {last.key, u.layers[i].n};
  if (last.equal == wanted && known == INT64_MAX) return true;
  lists.grow[i].index = index_of_tie(u, lists, layer, last.key, wanted);  // equal in both keys: the lowest indices grow
  return lists.grow[i].index <= known;
}

}  // namespace dstee::cpu
