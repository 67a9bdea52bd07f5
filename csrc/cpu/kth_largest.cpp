#include "kth_largest.h"

#include <algorithm>
#include <array>
#include <functional>

#include "loops.h"

namespace dstee::cpu {
namespace {

constexpr int kMostDigit = 11;
constexpr size_t kFew = 2048;  // that are copied
constexpr size_t kSort = 64;   // that are sorted

int bit_width(uint64_t x) {
  int bits = 0;
  while (bits < 64 && x >> bits != 0) ++bits;
  return bits;
}

}  // namespace

KthLargest kth_largest(const Keys* arrays, size_t count, int64_t k) {
  const Loops& isa = loops();
  KthLargest result;
  std::array<uint32_t, kFew + kMaxLanes> few;
  Keys copied{few.data(), 0};
  uint32_t low = ~0u, high = 0;  // of the keys that are left: all those between
  for (size_t a = 0; a < count; ++a) {
    isa.min_max(arrays[a].key, arrays[a].count, &low, &high);
    result.equal += static_cast<int64_t>(arrays[a].count);
  }
  while (low < high) {
    if (result.equal <= static_cast<int64_t>(kFew) && copied.count == 0) {
      for (size_t a = 0; a < count; ++a)
        copied.count += isa.copy_between(arrays[a].key, arrays[a].count, low, high, arrays[a].key, few.data() + copied.count);
      arrays = &copied;
      count = 1;
    }
    if (result.equal <= static_cast<int64_t>(kSort)) {
      const size_t found = isa.copy_between(few.data(), copied.count, low, high, few.data(), few.data());
      std::sort(few.begin(), few.begin() + found, std::greater<uint32_t>());
      const uint32_t key = few[k - 1];
      const auto same = std::equal_range(few.begin(), few.begin() + found, key, std::greater<uint32_t>());
      result.key = key;
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
    high = std::min(high, low + ((uint32_t{1} << shift) - 1));
  }
  result.key = low;
  return result;
}

}  // namespace dstee::cpu
