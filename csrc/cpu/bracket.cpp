// Sampling: one group of 16 neighbouring weights per stratum, at a hashed place in it. Regular spacing would alias with the
// rows of a matrix whose gradients are scaled by row or column.
#include <algorithm>
#include <cmath>

#include "update.h"

namespace dstee {
namespace {

constexpr int64_t kWholeLayer = 1 << 15;  // up to here a list of everything is cheaper than a sample
constexpr int kGroup = 16;
constexpr int kMaxSample = 1 << 13;

// The rank in the sample behind which the k-th of `population` almost surely lies.
int64_t safe_rank(int64_t k, int64_t population, int64_t sampled) {
  const double expected = static_cast<double>(k) * static_cast<double>(sampled) / static_cast<double>(population);
  return static_cast<int64_t>(1.25 * expected + 6.0 * std::sqrt(expected) + 8.0);
}

}  // namespace

Bracket sample_bracket(const Update& u, int layer) {
  const Layer& l = u.layers[layer];
  const int64_t nnz = u.nnz[layer], inactive = l.n - nnz, k = u.k[layer];
  Bracket b;
  b.expected_grow = inactive;
  b.expected_drop = nnz;
  if (l.n <= kWholeLayer) return b;

  GrowKey grow[kMaxSample];
  uint32_t drop[kMaxSample];
  int64_t grow_count = 0, drop_count = 0;
  const int64_t groups = std::clamp<int64_t>(l.n / 512, 2048, kMaxSample) / kGroup, stratum = l.n / groups;
  for (int64_t s = 0; s < groups; ++s) {
    const uint32_t hash = mix(static_cast<uint32_t>(s) ^ mix(static_cast<uint32_t>(u.round * 977 + layer)));
    const int64_t first = s * stratum + static_cast<int64_t>(hash % static_cast<uint64_t>(stratum - kGroup + 1));
    for (int64_t i = first; i < first + kGroup; ++i) {
      const Weight w(u, layer, i);
      if (w.active())
        drop[drop_count++] = w.drop_rank_after_step();
      else
        grow[grow_count++] = w.grow_key();
    }
  }

  const int64_t grow_rank = grow_count ? safe_rank(k, std::max<int64_t>(inactive, 1), grow_count) : 0;
  if (grow_rank < grow_count) {
    std::nth_element(grow, grow + grow_rank, grow + grow_count, std::greater<GrowKey>());
    GrowKey low = std::max<GrowKey>(grow[grow_rank], GrowKey{1} << 32);
    auto at_least = [&](GrowKey key) { return std::count_if(grow, grow + grow_count, [&](GrowKey x) { return x >= key; }); };
    int64_t listed = at_least(low);
    if (listed > 2 * grow_rank) listed = at_least(++low);  // a crowd of equals: list what is better and scan for them
    b.low_score = static_cast<uint32_t>(low >> 32);
    b.low_signal = static_cast<uint32_t>(low);
    b.expected_grow = (listed + 1) * inactive / grow_count;
  }
  const int64_t drop_rank = drop_count ? safe_rank(k, std::max<int64_t>(nnz, 1), drop_count) : 0;
  if (drop_rank < drop_count) {
    std::nth_element(drop, drop + drop_rank, drop + drop_count);
    b.high_drop = drop[drop_rank];
    const auto listed = std::count_if(drop, drop + drop_count, [&](uint32_t x) { return x <= b.high_drop; });
    b.expected_drop = (listed + 1) * nnz / drop_count;
  }
  return b;
}

}  // namespace dstee
