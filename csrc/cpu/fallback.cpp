// For layers whose bounds missed or whose lists overflowed: radix selection by whole scans of the layer, 11 bits of the key at
// a time, equal keys by index; then one scan that commits. About eight scans where the lists need one.
#include <array>
#include <mutex>

#include "parallel.h"
#include "stages.h"

namespace dstee::cpu {
namespace {

constexpr int kScanDigit = 11;

using Last = Threshold<uint64_t, int64_t>;
constexpr Last kPassNone{~uint64_t{0}, -1};

// The k-th largest key and the last index that is selected with it. key_of(i, key) is false where i is no candidate; at least k
// are.
template <class KeyOf>
Last select(const Update& u, int64_t n, int64_t k, int key_bits, const KeyOf& key_of) {
  if (k == 0) return kPassNone;
  uint64_t prefix = 0;
  for (int low = key_bits; low > 0;) {
    const int high = low;
    low = std::max(0, low - kScanDigit);
    std::array<int64_t, 1 << kScanDigit> total{};
    std::mutex merge;
    for_ranges(u.workers, n, [&](int64_t first, int64_t last) {
      std::array<int64_t, 1 << kScanDigit> here{};
      uint64_t key;
      for (int64_t i = first; i < last; ++i)
        if (key_of(i, key) && key >> high == prefix) ++here[key >> low & ((1 << (high - low)) - 1)];
      const std::lock_guard<std::mutex> lock(merge);
      for (size_t b = 0; b < total.size(); ++b) total[b] += here[b];
    });
    int64_t bin = (1 << (high - low)) - 1;
    for (; total[bin] < k; --bin) k -= total[bin];
    prefix = prefix << (high - low) | static_cast<uint64_t>(bin);
  }
  // k of the keys equal to the prefix are still selected: those with the lowest indices.
  int64_t index = -1;
  uint64_t key;
  for (int64_t i = 0; k > 0 && i < n; ++i)
    if (key_of(i, key) && key == prefix) {
      --k;
      index = i;
    }
  return {prefix, index};
}

}  // namespace

void fallback(const Update& u, const Lists& lists, int layer) {
  const auto at = static_cast<size_t>(layer);
  const int64_t n = u.layers[at].n;
  auto drop_key_of = [&](int64_t i, uint64_t& key) {
    const Weight w(u, layer, i);
    if (!w.active()) return false;
    key = w.drop_key();
    return true;
  };
  const Last drop = select(u, n, u.k_drop[at], 31, drop_key_of);
  auto dropped = [&](int64_t i) {
    uint64_t key;
    return drop_key_of(i, key) && passes(drop, key, i);
  };
  auto grow_key_of = [&](int64_t i, uint64_t& key) {
    const Weight w(u, layer, i);
    if (w.active() && !(u.regrow && dropped(i))) return false;
    key = w.grow_key();
    return true;
  };
  const Last grow = select(u, n, u.k_grow[at], 63, grow_key_of);

  for_ranges(u.workers, n, [&](int64_t first, int64_t last) {
    const auto piece = static_cast<size_t>(lists.first_piece[at] + first / kPiece);
    RowCursor rows(lists.pieces[piece].before, u.rows.before[piece]);
    for (int64_t i = first; i < last; ++i) {
      uint64_t key;
      const Weight w(u, layer, i);
      const bool grown = grow_key_of(i, key) && passes(grow, key, i);
      if (dropped(i)) {
        if (!grown)
          w.drop();
        else if (u.reset_regrown) {
          w.clear();
          if (u.packs()) u.clear_row(at, rows.at(i - first));
        }
      } else if (grown) {
        w.grow();
      }
    }
  });
}

}  // namespace dstee::cpu
