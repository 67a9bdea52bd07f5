// Sets of 32 neighbouring weights, whole pairs of cache lines, one per stratum at a hashed place in it. Regular spacing would
// alias with the rows of a matrix whose gradients are scaled by row or column.
#include <algorithm>
#include <array>
#include <cmath>
#include <functional>
#include <utility>

#include "kth_largest.h"
#include "loops.h"
#include "stages.h"

namespace dstee::cpu {
namespace {

constexpr int64_t kWholeLayer = 3 << 12;  // up to here a list of everything is cheaper than a sample
constexpr int kNeighbours = 32;
constexpr int kFewestSets = 24, kMostSets = 512;
constexpr int kSetsAtOnce = static_cast<int>(kBlock) / kNeighbours;

// Keys of the sampled weights in their order, with slack for whole vectors, and of which weights they are: bits of a plane.
struct Keyed {
  std::array<uint32_t, kMostSets * kNeighbours + kMaxLanes> key;
  std::array<uint8_t, kMostSets * kNeighbours / 8> plane;
  int64_t count = 0;

  // How many of the keys in each set are at least `low`: the mean and variance of that are what the bounds rest on.
  double spread(int64_t sets, uint32_t low) const {
    int64_t sum = 0, squares = 0;
    for (int64_t s = 0, j = 0; s < sets; ++s) {
      const int64_t here = __builtin_popcount(read<uint32_t>(plane.data(), s));
      int64_t passing = 0;
      for (const int64_t end = j + here; j < end; ++j) passing += key[static_cast<size_t>(j)] >= low;
      sum += passing;
      squares += passing * passing;
    }
    const auto total = static_cast<double>(sum);
    return std::sqrt(static_cast<double>(squares) - total * total / static_cast<double>(sets));
  }
  uint32_t at_rank(int64_t rank) const {  // from 1
    const Keys all{key.data(), static_cast<size_t>(count)};
    return kth_largest(&all, 1, rank).key;
  }
  uint32_t key_near(double rank) const { return at_rank(std::clamp<int64_t>(std::llround(rank), 1, count)); }
  int64_t passing(uint32_t low) const {
    return static_cast<int64_t>(loops().count_between(key.data(), static_cast<size_t>(count), low, UINT32_MAX));
  }
};

// Scores of inactive weights and drop keys of active ones (after the step, where there is one).
struct Sample {
  std::array<int64_t, kMostSets> first;  // weight of each set
  int64_t sets = 0;
  Keyed grow, drop;
};

template <class T>
void copy_sets(const void* from, const int64_t* first, int64_t sets, int64_t size, T* to) {
  const auto bytes = static_cast<size_t>(kNeighbours * size);
  for (int64_t s = 0; s < sets; ++s)
    memcpy(reinterpret_cast<char*>(to) + s * kNeighbours * size, static_cast<const char*>(from) + first[s] * size, bytes);
}

void prefetch_sets(const Update& u, int layer, const int64_t* first, int64_t sets) {
  constexpr int kLine = 16;  // weights; every one is a miss: let them overlap
  for (int64_t s = 0; s < sets; ++s)
    for (int j = 0; j < kNeighbours; j += kLine) Weight(u, layer, first[s] + j).prefetch();
}

// The packed momenta of the sets, whose masks are `bits`, one after the other; returns how many.
int64_t copy_rows(const void* from, const int64_t* first, int64_t sets, int64_t size, const uint8_t* bits, RowCursor& rows,
                  char* to) {
  int64_t count = 0;
  for (int64_t s = 0; s < sets; ++s) {
    const int64_t here = __builtin_popcount(read<uint32_t>(bits, s));
    if (here == 0) continue;
    memcpy(to + count * size, static_cast<const char*>(from) + rows.at(first[s]) * size, static_cast<size_t>(here * size));
    count += here;
  }
  return count;
}

// The sets from `begin` on, side by side. `rows` is in order before the first of them.
void take_sets(const Update& u, int layer, int64_t begin, int64_t sets, RowCursor& rows, Sample& sample) {
  const Layer& l = u.layers[static_cast<size_t>(layer)];
  const Loops& isa = loops();
  const bool random = !u.seeds.empty();
  const int64_t* const first = sample.first.data() + begin;
  const int64_t n = sets * kNeighbours;
  alignas(64) std::array<char, 4 * kBlock> signal, w, g, m;
  std::array<uint8_t, kBlock / 8> bits;
  std::array<int16_t, kBlock> counts;
  uint16_t none[kMostGroups];  // there is no next block
  for (int64_t s = 0; s < sets; ++s) memcpy(bits.data() + 4 * s, l.bits + first[s] / 8, 4);

  GrowScan scan;
  scan.before = bits.data();
  scan.bonus = u.bonus_of(static_cast<size_t>(layer));
  scan.bonus_size = u.bonus_size;
  scan.place = u.place_of(static_cast<size_t>(layer));
  if (l.counts) {
    copy_sets(l.counts, first, sets, 2, counts.data());
    scan.counts = counts.data();
  }
  scan.bits = bits.data();
  scan.low_score = 0;
  uint8_t* const plane = sample.grow.plane.data() + 4 * begin;
  if (random) {  // by the place in the layer
    scan.seed = u.seeds[static_cast<size_t>(layer)];
    for (int64_t s = 0; s < sets; ++s) {
      scan.before = scan.bits = bits.data() + 4 * s;
      scan.counts = l.counts ? counts.data() + kNeighbours * s : nullptr;
      scan.first_index = static_cast<uint64_t>(first[s]);
      sample.grow.count += static_cast<int64_t>(
          isa.scan_grow[kRandom](scan, kNeighbours, {sample.grow.key.data() + sample.grow.count, plane + 4 * s, none}).listed);
    }
  } else {
    copy_sets(l.grow, first, sets, element_size(l.grow_dtype), signal.data());
    scan.signal = signal.data();
    sample.grow.count += static_cast<int64_t>(
        isa.scan_grow[l.grow_dtype](scan, n, {sample.grow.key.data() + sample.grow.count, plane, none}).listed);
  }

  copy_sets(l.drop, first, sets, element_size(l.drop_dtype), w.data());
  if (u.sgd && l.drop == l.w) {
    copy_sets(l.g, first, sets, element_size(l.dtype), g.data());
    if (u.packs() && u.rule.has_momentum) {
      const int64_t active =
          copy_rows(u.packed[static_cast<size_t>(layer)], first, sets, element_size(l.dtype), bits.data(), rows, m.data());
      isa.step_packed[l.dtype](w.data(), g.data(), m.data(), active, bits.data(), n, u.rule);
    } else {
      if (u.rule.has_momentum) copy_sets(l.m, first, sets, element_size(l.dtype), m.data());
      isa.step[l.dtype](w.data(), g.data(), m.data(), bits.data(), n, u.rule);
    }
  }
  memcpy(sample.drop.plane.data() + 4 * begin, bits.data(), static_cast<size_t>(4 * sets));
  std::array<uint32_t, kBlock + kMaxLanes> where;
  sample.drop.count += static_cast<int64_t>(isa.scan_keys[l.drop_dtype](
      w.data(), bits.data(), n, kSmallest, 0, UINT32_MAX, 0, sample.drop.key.data() + sample.drop.count, where.data()));
}

void take_sample(const Update& u, int layer, Sample& sample) {
  const int64_t n = u.layers[static_cast<size_t>(layer)].n;
  sample.sets = std::clamp<int64_t>(n / 64 / kNeighbours, kFewestSets, kMostSets);
  const int64_t stratum = n / sample.sets;
  for (int64_t s = 0; s < sample.sets; ++s) {
    const uint32_t hash = mix(static_cast<uint32_t>(s) ^ mix(static_cast<uint32_t>(u.round * 977 + layer)));
    const int64_t offset = static_cast<int64_t>(hash % static_cast<uint64_t>(stratum - 2 * kNeighbours));
    sample.first[static_cast<size_t>(s)] = (s * stratum + offset + kNeighbours - 1) / kNeighbours * kNeighbours;
  }
  RowCursor rows(u.layers[static_cast<size_t>(layer)].bits);
  for (int64_t begin = 0; begin < sample.sets; begin += kSetsAtOnce) {
    const int64_t sets = std::min<int64_t>(kSetsAtOnce, sample.sets - begin);
    prefetch_sets(u, layer, sample.first.data() + begin, sets);
    take_sets(u, layer, begin, sets, rows, sample);
  }
}

// A rank in the sample about which the k-th of the population lies, and the distance to either side that almost surely has it:
// four and a half standard errors, as the sets differ.
struct Rank {
  double expected, margin;

  int64_t low() const { return static_cast<int64_t>(expected + margin) + 1; }
  int64_t high() const { return static_cast<int64_t>(expected - margin); }  // below 1: there is none on that side
};
Rank rank_in(const Keyed& sample, int64_t sets, int64_t k, int64_t population, double share) {
  const double expected = static_cast<double>(k) * static_cast<double>(sample.count) / static_cast<double>(population);
  const double error = std::max(sample.spread(sets, sample.key_near(expected)), std::sqrt(expected));
  return {expected, share * (4.5 * error + 6.0)};
}

// How many of the dropped weights will be grown again, rather too many than too few: so many fewer of the others are.
int64_t likely_back(const Update& u, int layer, const Sample& sample, uint32_t low_drop, uint32_t low_score) {
  if (!u.regrow) return 0;
  const float* const bonus = u.bonus_of(static_cast<size_t>(layer));
  int64_t back = 0, j = 0;
  for (int64_t s = 0; s < sample.sets; ++s)
    for (uint32_t bits = read<uint32_t>(sample.drop.plane.data(), s); bits; bits &= bits - 1, ++j) {
      if (sample.drop.key[static_cast<size_t>(j)] < low_drop) continue;
      back += Weight(u, layer, sample.first[static_cast<size_t>(s)] + __builtin_ctz(bits)).score_rank(bonus) >= low_score;
    }
  const auto most = static_cast<double>(back) + 3.0 * std::sqrt(static_cast<double>(back)) + 2.0;
  return static_cast<int64_t>(most * static_cast<double>(u.nnz(static_cast<size_t>(layer))) /
                              static_cast<double>(sample.drop.count));
}

// How many of `population` a bound will about list that lists `listed` of `sampled`.
int64_t expect(int64_t listed, int64_t sampled, int64_t population) { return (listed + 1) * population / sampled; }

// The growth's low bound, where many scores are equal to it, as when the bonus absorbs the gradients: order them by the signal
// and then by index. Returns how many of the sample are listed.
int64_t bound_ties(const Update& u, int layer, const Sample& sample, int64_t rank, Bounds& b) {
  using Candidate = std::pair<GrowKey, int64_t>;
  std::vector<Candidate> found;
  found.reserve(static_cast<size_t>(sample.grow.count));
  for (int64_t s = 0; s < sample.sets; ++s)
    for (uint32_t bits = read<uint32_t>(sample.grow.plane.data(), s); bits; bits &= bits - 1) {
      const int64_t i = sample.first[static_cast<size_t>(s)] + __builtin_ctz(bits);
      found.emplace_back(Weight(u, layer, i).grow_key(), -i);
    }
  std::nth_element(found.begin(), found.begin() + (rank - 1), found.end(), std::greater<Candidate>());
  const auto [low, place] = found[static_cast<size_t>(rank - 1)];
  b.low_score = static_cast<uint32_t>(low >> 32);
  b.low_signal = static_cast<uint32_t>(low);
  if (!u.bonus) b.low_score = std::max(b.low_score, b.low_signal);  // both keys are one number
  const auto listed = std::count_if(found.begin(), found.end(), [low = low](const Candidate& x) { return x.first >= low; });
  if (listed <= 2 * rank) return listed;
  b.last = -place;
  return rank;
}

}  // namespace

Bounds sample(const Update& u, int layer) {
  const auto i = static_cast<size_t>(layer);
  const Layer& l = u.layers[i];
  const int64_t nnz = u.nnz(i), inactive = l.n - nnz;
  Bounds b;
  b.expected_grow = inactive;
  b.expected_drop = nnz;
  if (l.n <= kWholeLayer) return b;

  Sample found;
  take_sample(u, layer, found);
  Rank drop{}, grow{};
  if (found.drop.count > 0) {
    drop = rank_in(found.drop, found.sets, u.k_drop[i], nnz, u.margin_share);
    if (drop.low() <= found.drop.count) {
      b.low_drop = found.drop.at_rank(drop.low());
      b.expected_drop = expect(found.drop.passing(b.low_drop), found.drop.count, nnz);
    }
  }
  if (found.grow.count > 0) {
    grow = rank_in(found.grow, found.sets, u.k_grow[i], inactive, u.margin_share);
    if (grow.low() <= found.grow.count) {
      b.low_score = found.grow.at_rank(grow.low());
      int64_t listed = found.grow.passing(b.low_score);
      if (listed > 2 * grow.low()) listed = bound_ties(u, layer, found, grow.low(), b);
      b.expected_grow = expect(listed, found.grow.count, inactive);
    }
  }
  if (drop.high() > 0 && grow.high() > 0) {
    const int64_t back = likely_back(u, layer, found, found.drop.key_near(drop.expected), found.grow.key_near(grow.expected));
    const double others = static_cast<double>(back) * static_cast<double>(found.grow.count) / static_cast<double>(inactive);
    grow.expected = std::min(grow.expected - others, static_cast<double>(found.grow.count));
    if (grow.high() > 0) {
      b.high_score = found.grow.at_rank(grow.high());
      b.high_drop = found.drop.at_rank(std::min(drop.high(), found.drop.count));
    }
  }
  // What is to be undone after all must be able to be: no weights but those that the drop ranks, no NaN score that could grow.
  if (u.reset_regrown || l.drop != l.w || b.low_score == 0) b.high_score = b.high_drop = kMaxRank;
  return b;
}

}  // namespace dstee::cpu
