// The exact path for layers whose bracket missed or whose lists overflowed: radix selection by whole scans of the layer, 11
// bits of the key at a time, equal keys by index; then one scan that commits. About eight scans where the lists need one,
// and no memory, so that it cannot fail.
#include <array>
#include <mutex>

#include "parallel.h"
#include "update.h"

namespace dstee {
namespace {

constexpr int kDigit = 11;

// Winners: keys above `key`, and keys equal to it up to `index`.
struct Cut {
  uint64_t key;
  int64_t index;
  bool takes(uint64_t x, int64_t i) const { return x > key || (x == key && i <= index); }
};
constexpr Cut kNone{~uint64_t{0}, -1};

// Calls body(first, last) for runs of the layer, in parallel.
template <class Body>
void for_runs(const Update& u, int64_t n, const Body& body) {
  for_tickets(u.workers, (n + kPiece - 1) / kPiece, [&](int, int64_t t) { body(t * kPiece, std::min(n, (t + 1) * kPiece)); });
}

// The k-th largest key and the index of its last winner. key_of(i, key) is false where i is no candidate; at least k are.
template <class KeyOf>
Cut select(const Update& u, int64_t n, int64_t k, int key_bits, const KeyOf& key_of) {
  if (k == 0) return kNone;
  uint64_t prefix = 0;
  for (int low = key_bits; low > 0;) {
    const int high = low;
    low = std::max(0, low - kDigit);
    std::array<int64_t, 1 << kDigit> total{};
    std::mutex merge;
    for_runs(u, n, [&](int64_t first, int64_t last) {
      std::array<int64_t, 1 << kDigit> here{};
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
  // k of the keys equal to the prefix still win: those with the lowest indices.
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

void update_by_scans(const Update& u, int layer) {
  const int64_t n = u.layers[layer].n, k = u.k[layer];
  auto drop_key = [&](int64_t i, uint64_t& key) {
    const Weight w(u, layer, i);
    if (!w.active()) return false;
    key = kMaxRank - w.drop_rank();
    return true;
  };
  const Cut drop = select(u, n, k, 31, drop_key);
  auto dropped = [&](int64_t i) {
    uint64_t key;
    return drop_key(i, key) && drop.takes(key, i);
  };
  auto grow_key = [&](int64_t i, uint64_t& key) {
    const Weight w(u, layer, i);
    if (w.active() && !(u.regrow && dropped(i))) return false;
    key = w.grow_key();
    return true;
  };
  const Cut grow = select(u, n, k, 63, grow_key);

  for_runs(u, n, [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; ++i) {
      uint64_t key;
      const Weight w(u, layer, i);
      const bool grown = grow_key(i, key) && grow.takes(key, i);
      if (dropped(i)) {
        if (!grown)
          w.drop();
        else if (u.reset_regrown)
          w.clear();
      } else if (grown) {
        w.grow();
      }
    }
  });
}

}  // namespace dstee
