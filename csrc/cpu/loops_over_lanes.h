// The loops of loops.h, written once over the lanes of a lanes_*.h header. Included by loops_*.cpp only.
#pragma once

#include "active_groups.h"
#include "loops.h"
#include "step_over_lanes.h"
#include "sweep_over_lanes.h"

namespace dstee::cpu {
namespace {

template <class T, Order order>
DSTEE_INLINE size_t scan_keys_whole(const T* x, const uint8_t* bits, int64_t n, uint32_t low, uint32_t high, uint32_t index,
                                    uint32_t* key, uint32_t* where) {
  size_t count = 0;
  const U from = splat(low), span = splat(high - low);
  const auto ahead = [&](int64_t j) { prefetch(x + j); };
  for_active_groups(bits, n, ahead, [&](int64_t j) {
    const V value = load(x + j);
    const U keys = order == kSmallest        ? drop_keys(value)
                   : order == kLargestSigned ? signed_ranks(value)
                                             : splat(kMaxRank) - drop_keys(value);
    const Mask lanes = less_equal(static_cast<Mask>(lanes_of(bits + j / 8)), keys - from, span);
    compress(key + count, keys, lanes);
    compress(where + count, iota(index + static_cast<uint32_t>(j)), lanes);
    count += count_of(lanes);
  });
  return count;
}

template <class T, Order order>
size_t scan_keys(const T* x, const uint8_t* bits, int64_t n, uint32_t low, uint32_t high, uint32_t index, uint32_t* key,
                 uint32_t* where) {
  const int64_t whole = n / W * W, rest = n - whole;
  size_t count = scan_keys_whole<T, order>(x, bits, whole, low, high, index, key, where);
  if (rest) {
    const Tail<T> tx(x + whole, rest);
    const TailBits tb(bits + whole / 8, rest);
    count +=
        scan_keys_whole<T, order>(tx.x, tb.b, W, low, high, index + static_cast<uint32_t>(whole), key + count, where + count);
  }
  return count;
}

template <class T>
size_t scan_keys_any(const void* x, const uint8_t* bits, int64_t n, Order order, uint32_t low, uint32_t high, uint32_t index,
                     uint32_t* key, uint32_t* where) {
  auto run = order == kLargest ? scan_keys<T, kLargest> : scan_keys<T, kSmallest>;
  if (order == kLargestSigned) run = scan_keys<T, kLargestSigned>;
  return run(static_cast<const T*>(x), bits, n, low, high, index, key, where);
}

void noise_of(float* out, int64_t n, uint64_t first, const Place& place, const int64_t* seeds) {
  for (int64_t j = 0; j < n; j += W) {
    U low, high;
    global_indices(place, first + static_cast<uint64_t>(j), low, high);
    store(out + j, n - j < W ? (1u << (n - j)) - 1 : kAllLanes, to_unit(noise24(low, high, seeds)));
  }
}

DSTEE_INLINE Mask lanes_between(const uint32_t* key, U low, U span) { return less_equal(load_keys(key) - low, span); }

// The last entries go one by one: a whole store would run into the list behind.
size_t keep_between(const uint32_t* key, size_t count, uint32_t low, uint32_t high, uint32_t* a, uint32_t* b) {
  const U from = splat(low), span = splat(high - low);
  size_t kept = 0, j = 0;
  for (; j + W <= count; j += W) {
    const Mask lanes = lanes_between(key + j, from, span);
    const U next_a = load_keys(a + j);  // b may be the keys
    compress(b + kept, load_keys(b + j), lanes);
    compress(a + kept, next_a, lanes);
    kept += count_of(lanes);
  }
  for (; j < count; ++j) {
    const bool keeps = key[j] - low <= high - low;
    a[kept] = a[j];
    b[kept] = b[j];
    kept += keeps;
  }
  return kept;
}

size_t copy_between(const uint32_t* key, size_t count, uint32_t low, uint32_t high, const uint32_t* source, uint32_t* out) {
  const U from = splat(low), span = splat(high - low);
  size_t found = 0, j = 0;
  for (; j + W <= count; j += W) {
    const Mask lanes = lanes_between(key + j, from, span);
    compress(out + found, load_keys(source + j), lanes);
    found += count_of(lanes);
  }
  for (; j < count; ++j) {
    out[found] = source[j];
    found += key[j] - low <= high - low;
  }
  return found;
}

size_t count_between(const uint32_t* key, size_t count, uint32_t low, uint32_t high) {
  const U from = splat(low), span = splat(high - low);
  size_t found = 0, j = 0;
  for (; j + W <= count; j += W) found += count_of(lanes_between(key + j, from, span));
  for (; j < count; ++j) found += key[j] - low <= high - low;
  return found;
}

void count_bins(const uint32_t* key, size_t count, uint32_t low, uint32_t high, int shift, uint32_t* bins) {
  uint32_t beyond = 0;  // takes what does not count, without a branch
  for (size_t j = 0; j < count; ++j) {
    const uint32_t x = key[j] - low;
    ++*(x <= high - low ? bins + (x >> shift) : &beyond);
  }
}

int64_t count_bits(const uint8_t* bits, int64_t bytes) {
  int64_t total = 0, i = 0;
  for (; i + 8 <= bytes; i += 8) {
    uint64_t word;
    memcpy(&word, bits + i, sizeof word);
    total += __builtin_popcountll(word);
  }
  for (; i < bytes; ++i) total += __builtin_popcount(bits[i]);
  return total;
}

void min_max(const uint32_t* key, size_t count, uint32_t* low, uint32_t* high) {
  uint32_t smallest = *low, largest = *high;
  for (size_t j = 0; j < count; ++j) {
    smallest = key[j] < smallest ? key[j] : smallest;
    largest = key[j] > largest ? key[j] : largest;
  }
  *low = smallest;
  *high = largest;
}

}  // namespace
}  // namespace dstee::cpu

#define DSTEE_LOOPS(name)                                                             \
  {name,                                                                              \
   {step<float>, step<bf16>, step<f16>},                                              \
   {step_packed<float>, step_packed<bf16>, step_packed<f16>},                         \
   {repack<float>, repack<bf16>, repack<f16>},                                        \
   active_groups,                                                                     \
   {scan_grow_any<float>, scan_grow_any<bf16>, scan_grow_any<f16>, scan_grow_random}, \
   {scan_drop_any<float>, scan_drop_any<bf16>, scan_drop_any<f16>},                   \
   places_of,                                                                         \
   {scan_keys_any<float>, scan_keys_any<bf16>, scan_keys_any<f16>},                   \
   noise_of,                                                                          \
   keep_between,                                                                      \
   copy_between,                                                                      \
   count_between,                                                                     \
   count_bins,                                                                        \
   min_max,                                                                           \
   count_bits}
