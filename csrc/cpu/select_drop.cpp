#include "kth_largest.h"
#include "loops.h"
#include "stages.h"

namespace dstee::cpu {
namespace {

// Of equal keys those of the first entries.
void keep_first(PieceLists& l, uint32_t key, int64_t ties) {
  constexpr size_t kAtOnce = 256;
  const Loops& isa = loops();
  size_t end = 0;  // behind the last tie that is kept
  for (size_t here = kAtOnce; here == kAtOnce && end + here <= l.drop_count; end += here) {
    const auto found = static_cast<int64_t>(isa.count_between(l.drop_key + end, here, key, key));
    if (found >= ties) break;
    ties -= found;
  }
  for (; ties > 0; ++end) ties -= l.drop_key[end] == key;
  const size_t kept = isa.keep_between(l.drop_key, end, key, UINT32_MAX, l.drop_where, l.regrow_key), rest = l.drop_count - end;
  const size_t more = isa.keep_between(l.drop_key + end, rest, key + 1, UINT32_MAX, l.drop_where + end, l.regrow_key + end);
  memmove(l.drop_where + kept, l.drop_where + end, more * sizeof *l.drop_where);
  memmove(l.regrow_key + kept, l.regrow_key + end, more * sizeof *l.regrow_key);
  l.drop_count = kept + more;
}

}  // namespace

bool select_drop(const Update& u, Lists& lists, int layer) {
  const Loops& isa = loops();
  const uint32_t high = lists.bounds[static_cast<size_t>(layer)].high_drop;
  int64_t k = u.k_drop[static_cast<size_t>(layer)], beyond = 0, listed = 0;
  Keys* const keys = lists.scratch(layer);
  size_t arrays = 0;
  for (const PieceLists& l : lists.of_layer(layer)) {
    if (l.overflow) return false;
    keys[arrays++] = {l.drop_key, l.drop_count};
    k -= static_cast<int64_t>(l.gone + l.back);
    beyond += static_cast<int64_t>(isa.count_between(l.drop_key, l.drop_count, high + 1, UINT32_MAX));
    listed += static_cast<int64_t>(l.drop_count);
  }
  // What is committed was chosen by the high bound alone: that is right only if all that lie beyond it are dropped.
  if (listed < k || k < beyond || listed > int64_t{UINT32_MAX}) return false;
  if (k == 0) {
    for (PieceLists& l : lists.of_layer(layer)) l.drop_count = 0;
    return true;
  }

  const KthLargest last = kth_largest(keys, arrays, k);
  int64_t ties = k - last.above;
  const bool all = ties == last.equal;
  for (PieceLists& l : lists.of_layer(layer)) {
    const auto here = all ? 0 : static_cast<int64_t>(isa.count_between(l.drop_key, l.drop_count, last.key, last.key));
    if (ties > 0 && ties < here) {
      keep_first(l, last.key, ties);
      ties = 0;
      continue;
    }
    const uint32_t low = last.key + (ties == 0);
    l.drop_count = isa.keep_between(l.drop_key, l.drop_count, low, UINT32_MAX, l.drop_where, l.regrow_key);
    if (!all) ties -= ties > 0 ? here : 0;
  }
  return true;
}

}  // namespace dstee::cpu
