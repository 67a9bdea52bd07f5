#include "kth_largest.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <functional>

#include "loops.h"

namespace dstee::cpu {
namespace {

constexpr int kMostDigit = 11;
constexpr int64_t kFew = 1 << 14;  // that are copied
constexpr int64_t kSort = 64;      // that are sorted
constexpr int64_t kMostSampled = 1024;

int bit_width(uint64_t x) {
  int bits = 0;
  while (bits < 64 && x >> bits != 0) ++bits;
  return bits;
}

struct Bracket {
  uint32_t low, high;
};

// Between which the k-th largest of `total` most likely lies: by every so-manieth of them.
Bracket likely_bracket(const Keys* arrays, size_t count, int64_t total, int64_t k) {
  std::array<uint32_t, kMostSampled> sample;
  const int64_t stride = std::max<int64_t>(32, total / kMostSampled);
  int64_t found = 0, next = stride / 2;
  for (size_t a = 0; a < count; ++a) {
    const auto here = static_cast<int64_t>(arrays[a].count);
    for (; next < here && found < kMostSampled; next += stride) sample[found++] = arrays[a].key[next];
    next -= here;
  }
  const double expected = static_cast<double>(k) * static_cast<double>(found) / static_cast<double>(total);
  const double margin = 2.0 * std::sqrt(expected) + 3.0;
  const auto last = static_cast<int64_t>(expected + margin), first = static_cast<int64_t>(expected - margin);
  Bracket bracket{0, UINT32_MAX};
  const auto end = sample.begin() + found;
  if (last < found) {
    std::nth_element(sample.begin(), sample.begin() + last, end, std::greater<uint32_t>());
    bracket.low = sample[last];
  }
  if (first > 0) {
    std::nth_element(sample.begin(), sample.begin() + first, last < found ? sample.begin() + last : end,
                     std::greater<uint32_t>());
    bracket.high = sample[first];
  }
  return bracket;
}

}  // namespace

KthLargest kth_largest(const Keys* arrays, size_t count, int64_t k) {
  const Loops& isa = loops();
  KthLargest result;
  for (size_t a = 0; a < count; ++a) result.equal += static_cast<int64_t>(arrays[a].count);

  // The keys that are left are those in [low, high]: `result.equal` of them.
  uint32_t low = 0, high = UINT32_MAX;
  if (result.equal > kMostSampled) {
    const Bracket bracket = likely_bracket(arrays, count, result.equal, k);
    int64_t above = 0, between = 0;
    for (size_t a = 0; a < count; ++a) {
      if (bracket.high < UINT32_MAX)
        above += static_cast<int64_t>(isa.count_between(arrays[a].key, arrays[a].count, bracket.high + 1, UINT32_MAX));
      between += static_cast<int64_t>(isa.count_between(arrays[a].key, arrays[a].count, bracket.low, bracket.high));
    }
    if (above < k && k <= above + between) {
      low = bracket.low;
      high = bracket.high;
      k -= above;
      result.above = above;
      result.equal = between;
    }
  }
  std::array<uint32_t, kFew + kMaxLanes> few;
  Keys copied{few.data(), 0};
  const auto copy_if_few = [&] {
    if (result.equal > kFew || arrays == &copied) return;
    for (size_t a = 0; a < count; ++a)
      copied.count += isa.copy_between(arrays[a].key, arrays[a].count, low, high, arrays[a].key, few.data() + copied.count);
    arrays = &copied;
    count = 1;
  };
  copy_if_few();
  if (low == 0 || high == UINT32_MAX) {  // one side is open
    uint32_t smallest = UINT32_MAX, largest = 0;
    for (size_t a = 0; a < count; ++a) isa.min_max(arrays[a].key, arrays[a].count, &smallest, &largest);
    low = std::max(low, smallest);
    high = std::min(high, largest);
  }
  while (low < high) {
    copy_if_few();
    if (result.equal <= kSort) {
      const auto end = few.begin() + isa.copy_between(few.data(), copied.count, low, high, few.data(), few.data());
      std::sort(few.begin(), end, std::greater<uint32_t>());
      result.key = few[k - 1];
      const auto same = std::equal_range(few.begin(), end, result.key, std::greater<uint32_t>());
      result.above += same.first - few.begin();
      result.equal = same.second - same.first;
      return result;
    }
    // As many bins as there are keys, so that a bin has few.
    const int digit = std::min(kMostDigit, bit_width(static_cast<uint64_t>(result.equal)));
    const int shift = std::max(0, bit_width(high - low) - digit);
    std::array<uint32_t, 1 << kMostDigit> bins;
    uint32_t bin = (high - low) >> shift;
    std::fill(bins.begin(), bins.begin() + (bin + 1), 0);
    for (size_t a = 0; a < count; ++a) isa.count_bins(arrays[a].key, arrays[a].count, low, high, shift, bins.data());
    for (; bins[bin] < k; --bin) {
      k -= bins[bin];
      result.above += bins[bin];
    }
    result.equal = bins[bin];
    low += bin << shift;
    high = low + std::min(high - low, (uint32_t{1} << shift) - 1);
  }
  result.key = low;
  return result;
}

}  // namespace dstee::cpu
