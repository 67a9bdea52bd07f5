#include "kth_largest.h"

#include <algorithm>
#include <array>
#include <functional>

#include "loops.h"

namespace dstee::cpu {
namespace {

constexpr int kListDigit = 12;
constexpr size_t kFew = 2048;  // few enough to sort

}  // namespace

KthLargest kth_largest(const Keys* arrays, size_t count, int64_t k) {
  const Keys* const end_of_arrays = arrays + count;
  uint32_t low = ~0u, high = 0;
  for (const Keys* a = arrays; a != end_of_arrays; ++a) loops().min_max(a->key, a->count, &low, &high);
  int bits = 0;
  while (bits < 32 && (static_cast<uint64_t>(high - low) >> bits) != 0) ++bits;

  KthLargest result;
  uint32_t prefix = 0;
  for (int end = bits; end > 0;) {
    const int top = end;
    end = std::max(0, end - kListDigit);
    std::array<uint32_t, 1 << kListDigit> bins{};
    const uint64_t want = prefix;
    for (const Keys* a = arrays; a != end_of_arrays; ++a)
      for (size_t j = 0; j < a->count; ++j) {
        const uint64_t x = a->key[j] - low;
        if (x >> top == want) ++bins[x >> end & ((1u << (top - end)) - 1)];
      }
    int64_t bin = (1 << (top - end)) - 1;
    for (; bins[bin] < k; --bin) {
      k -= bins[bin];
      result.above += bins[bin];
    }
    prefix = prefix << (top - end) | static_cast<uint32_t>(bin);
    result.equal = bins[bin];
    if (end > 0 && bins[bin] <= kFew) {
      std::array<uint32_t, kFew + kMaxLanes> few;
      size_t found = 0;
      const uint32_t from = low + (prefix << end), to = low + (prefix << end | ((1u << end) - 1));
      for (const Keys* a = arrays; a != end_of_arrays; ++a)
        found += loops().copy_between(a->key, a->count, from, to, few.data() + found);
      std::nth_element(few.begin(), few.begin() + (k - 1), few.begin() + found, std::greater<uint32_t>());
      result.key = few[k - 1];
      result.equal = std::count(few.begin(), few.begin() + found, result.key);
      result.above += std::count_if(few.begin(), few.begin() + found, [&](uint32_t x) { return x > result.key; });
      return result;
    }
  }
  if (bits == 0)
    for (const Keys* a = arrays; a != end_of_arrays; ++a) result.equal += static_cast<int64_t>(a->count);
  result.key = low + prefix;
  return result;
}

}  // namespace dstee::cpu
