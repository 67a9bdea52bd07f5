#include "kth_largest.h"
#include "loops.h"
#include "stages.h"

namespace dstee::cpu {

bool select_drop(const Update& u, Lists& lists, int layer) {
  const int64_t k = u.k_drop[static_cast<size_t>(layer)];
  Keys* const keys = lists.scratch(layer);
  size_t arrays = 0;
  int64_t listed = 0;
  for (const PieceLists& l : lists.of_layer(layer)) {
    if (l.overflow) return false;
    keys[arrays++] = {l.drop_key, l.drop_count};
    listed += static_cast<int64_t>(l.drop_count);
  }
  if (listed < k || listed > int64_t{UINT32_MAX}) return false;
  if (k == 0) {
    for (PieceLists& l : lists.of_layer(layer)) l.drop_count = 0;
    return true;
  }

  const KthLargest last = kth_largest(keys, arrays, k);
  int64_t ties = k - last.above;
  for (PieceLists& l : lists.of_layer(layer)) {
    if (ties == last.equal) {
      l.drop_count = loops().keep_between(l.drop_key, l.drop_count, last.key, kMaxRank, l.drop_where, l.regrow_key);
      continue;
    }
    size_t kept = 0;  // of the weights as large as the last dropped one the first go
    for (size_t j = 0; j < l.drop_count; ++j) {
      const bool tie = l.drop_key[j] == last.key && ties > 0;
      ties -= tie;
      l.drop_where[kept] = l.drop_where[j];
      l.regrow_key[kept] = l.regrow_key[j];
      kept += l.drop_key[j] > last.key || tie;
    }
    l.drop_count = kept;
  }
  return true;
}

}  // namespace dstee::cpu
