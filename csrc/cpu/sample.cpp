// One set of 16 neighbouring weights per stratum, at a hashed place in it. Regular spacing would alias with the rows of a
// matrix whose gradients are scaled by row or column.
#include <algorithm>
#include <cmath>
#include <functional>
#include <utility>

#include "loops.h"
#include "stages.h"

namespace dstee::cpu {
namespace {

constexpr int64_t kWholeLayer = 1 << 15;  // up to here a list of everything is cheaper than a sample
constexpr int kNeighbours = 16;
constexpr int kMaxSample = 1 << 13;

// The rank in the sample before which the k-th of `population` almost surely lies. A miss costs some scans of the layer by all
// threads: less than on a GPU, where one block does them, so that the margin is smaller than csrc/cuda's.
int64_t safe_rank(int64_t k, int64_t population, int64_t sampled) {
  const double expected = static_cast<double>(k) * static_cast<double>(sampled) / static_cast<double>(population);
  return static_cast<int64_t>(1.25 * expected + 6.0 * std::sqrt(expected) + 8.0);
}

// Keys of sampled weights and their places in the sample, with slack for whole vectors.
struct Sample {
  uint32_t key[kMaxSample + kMaxLanes], where[kMaxSample + kMaxLanes];
  int64_t count = 0;
};

// Scores of inactive weights and drop keys of active ones (after the step, where there is one). first[s] is the first sampled
// weight of stratum s.
void take_sample(const Update& u, int layer, Sample& grow, Sample& drop, int64_t* first, int64_t strata) {
  const Layer& l = u.layers[layer];
  const Loops& isa = loops();
  const bool random = !u.seeds.empty();
  const int64_t stratum = l.n / strata;
  for (int64_t s = 0; s < strata; ++s) {
    const uint32_t hash = mix(static_cast<uint32_t>(s) ^ mix(static_cast<uint32_t>(u.round * 977 + layer)));
    const int64_t offset = static_cast<int64_t>(hash % static_cast<uint64_t>(stratum - 2 * kNeighbours));
    first[s] = (s * stratum + offset + kNeighbours - 1) / kNeighbours * kNeighbours;
    Weight(u, layer, first[s]).prefetch();  // every one is a miss: let them overlap
  }
  GrowScan scan;
  scan.bonus = u.bonus_of(static_cast<size_t>(layer));
  scan.bonus_size = u.bonus_size;
  scan.seed = random ? u.seeds[layer] : 0;
  scan.place = u.place_of(static_cast<size_t>(layer));
  for (int64_t s = 0; s < strata; ++s) {
    const int64_t i = first[s];
    const uint8_t* bits = l.bits + i / 8;
    const auto index = static_cast<uint32_t>(s * kNeighbours);
    scan.signal = random ? nullptr : at(l.grow, i, l.grow_dtype);
    scan.counts = l.counts ? l.counts + i : nullptr;
    scan.first_index = static_cast<uint64_t>(i);
    grow.count += static_cast<int64_t>(isa.scan_grow[random ? kRandom : l.grow_dtype](
        scan, bits, kNeighbours, index, grow.key + grow.count, grow.where + grow.count));

    const void* x = at(l.drop, i, l.drop_dtype);
    alignas(64) char w[4 * kNeighbours], m[4 * kNeighbours];
    if (u.sgd && l.drop == l.w) {
      const size_t bytes = static_cast<size_t>(kNeighbours * element_size(l.dtype));
      memcpy(w, x, bytes);
      if (u.rule.has_momentum) memcpy(m, at(l.m, i, l.dtype), bytes);
      isa.step[l.dtype](w, at(l.g, i, l.dtype), m, bits, kNeighbours, u.rule);
      x = w;
    }
    drop.count += static_cast<int64_t>(
        isa.scan_drop[l.drop_dtype](x, bits, kNeighbours, 0, index, drop.key + drop.count, drop.where + drop.count));
  }
}

// How many of `population` a bound will about list that lists `listed` of `sampled`.
int64_t expect(int64_t listed, int64_t sampled, int64_t population) { return (listed + 1) * population / sampled; }

}  // namespace

Bounds sample(const Update& u, int layer) {
  const Layer& l = u.layers[layer];
  const int64_t nnz = u.nnz[layer], inactive = l.n - nnz;
  Bounds b;
  b.expected_grow = inactive;
  b.expected_drop = nnz;
  if (l.n <= kWholeLayer) return b;

  Sample grow, drop;
  const int64_t strata = std::clamp<int64_t>(l.n / 512, 2048, kMaxSample) / kNeighbours;
  int64_t first[kMaxSample / kNeighbours];
  take_sample(u, layer, grow, drop, first, strata);

  const int64_t grow_rank = grow.count ? safe_rank(u.k_grow[layer], inactive, grow.count) : 0;
  if (grow_rank < grow.count) {
    uint32_t sorted[kMaxSample];
    std::copy(grow.key, grow.key + grow.count, sorted);
    std::nth_element(sorted, sorted + grow_rank, sorted + grow.count, std::greater<uint32_t>());
    b.low_score = sorted[grow_rank];
    auto listed = std::count_if(grow.key, grow.key + grow.count, [&](uint32_t x) { return x >= b.low_score; });
    if (listed > 2 * grow_rank) {
      // Many equal scores, as when the bonus absorbs the gradients: order them by the signal and then by index.
      using Place = std::pair<GrowKey, int64_t>;
      std::vector<Place> places(static_cast<size_t>(grow.count));
      for (int64_t j = 0; j < grow.count; ++j) {
        const int64_t i = first[grow.where[j] / kNeighbours] + grow.where[j] % kNeighbours;
        places[j] = {Weight(u, layer, i).grow_key(), -i};
      }
      std::nth_element(places.begin(), places.begin() + grow_rank, places.end(), std::greater<Place>());
      const GrowKey low = places[grow_rank].first;
      b.low_score = static_cast<uint32_t>(low >> 32);
      b.low_signal = static_cast<uint32_t>(low);
      if (!u.bonus) b.low_score = std::max(b.low_score, b.low_signal);  // both keys are one number
      listed = std::count_if(places.begin(), places.end(), [&](const Place& x) { return x.first >= low; });
      if (listed > 2 * grow_rank) {
        b.last = -places[grow_rank].second;
        listed = grow_rank;
      }
    }
    b.expected_grow = expect(listed, grow.count, inactive);
  }
  const int64_t drop_rank = drop.count ? safe_rank(u.k_drop[layer], nnz, drop.count) : 0;
  if (drop_rank < drop.count) {
    std::nth_element(drop.key, drop.key + drop_rank, drop.key + drop.count, std::greater<uint32_t>());
    b.low_drop = drop.key[drop_rank];
    const auto listed = std::count_if(drop.key, drop.key + drop.count, [&](uint32_t x) { return x >= b.low_drop; });
    b.expected_drop = expect(listed, drop.count, nnz);
  }
  return b;
}

}  // namespace dstee::cpu
