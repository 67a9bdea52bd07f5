// The loops of loops.h, written once over the lanes of a lanes_*.h header. Included by loops_*.cpp only.
#pragma once

#include "active_groups.h"
#include "loops.h"
#include "step_over_lanes.h"

namespace dstee::cpu {
namespace {

template <class T>
DSTEE_INLINE size_t scan_drop_whole(const T* x, const uint8_t* bits, int64_t n, uint32_t low, uint32_t index, uint32_t* key,
                                    uint32_t* where) {
  size_t count = 0;
  const U limit = splat(low);
  const auto body = [&](int64_t j) {
    const U keys = drop_keys(load(x + j));
    const Mask lanes = less_equal(static_cast<Mask>(lanes_of(bits + j / 8)), limit, keys);
    compress(key + count, keys, lanes);
    compress(where + count, iota(index + static_cast<uint32_t>(j)), lanes);
    count += count_of(lanes);
  };
  for_active_groups(bits, n, [](int64_t) {}, body);  // scan_grow has prefetched them
  return count;
}

template <class T>
size_t scan_drop(const void* pointer, const uint8_t* bits, int64_t n, uint32_t low, uint32_t index, uint32_t* key,
                 uint32_t* where) {
  const T* x = static_cast<const T*>(pointer);
  const int64_t whole = n / W * W, rest = n - whole;
  size_t count = scan_drop_whole(x, bits, whole, low, index, key, where);
  if (rest) {
    const Tail<T> tx(x + whole, rest);
    const TailBits tb(bits + whole / 8, rest);
    count += scan_drop_whole(tx.x, tb.b, W, low, index + static_cast<uint32_t>(whole), key + count, where + count);
  }
  return count;
}

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

struct Random {};        // the signal type of kRandom
struct RandomOfPart {};  // the same of a layer with a place

template <class T>
DSTEE_INLINE V signal_at(const GrowScan& scan, int64_t j) {
  return absolute(load(static_cast<const T*>(scan.signal) + j));
}
template <>
DSTEE_INLINE V signal_at<Random>(const GrowScan& scan, int64_t j) {
  const uint64_t first = scan.first_index + static_cast<uint64_t>(j);
  return to_unit(random24(iota(static_cast<uint32_t>(first)), static_cast<uint32_t>(first >> 32), scan.seed));
}

// The halves of the global indices of the W weights from i on. In one run, and in one block of 2^32, they follow each other.
DSTEE_INLINE void global_indices(const Place& place, uint64_t i, U& low_half, U& high_half) {
  const uint64_t within = i % place.run, first = global_index(place, i), last = first + (W - 1);
  if (within + (W - 1) < place.run && first >> 32 == last >> 32) {
    low_half = iota(static_cast<uint32_t>(first));
    high_half = splat(static_cast<uint32_t>(first >> 32));
    return;
  }
  uint32_t low[W], high[W];
  uint64_t at = first, left = place.run - within;
  for (int lane = 0; lane < W; ++lane) {
    low[lane] = static_cast<uint32_t>(at);
    high[lane] = static_cast<uint32_t>(at >> 32);
    const bool next_run = --left == 0;
    at += next_run ? place.pitch - place.run + 1 : 1;
    left = next_run ? place.run : left;
  }
  low_half = load_keys(low);
  high_half = load_keys(high);
}
template <>
DSTEE_INLINE V signal_at<RandomOfPart>(const GrowScan& scan, int64_t j) {
  U low, high;
  global_indices(*scan.place, scan.first_index + static_cast<uint64_t>(j), low, high);
  return to_unit(random24(low, high, scan.seed));
}

void noise_of(float* out, int64_t n, uint64_t first, const Place& place, const int64_t* seeds) {
  for (int64_t j = 0; j < n; j += W) {
    U low, high;
    global_indices(place, first + static_cast<uint64_t>(j), low, high);
    store(out + j, n - j < W ? (1u << (n - j)) - 1 : kAllLanes, to_unit(noise24(low, high, seeds)));
  }
}

// The inner loop of the update: every weight of the model passes here. Free of branches on the data. kFewCounts: no counter
// can exceed the bonus registers. kTies: the second key matters at the bound. kPrefetch: whole blocks, not the tail's copy.
template <class T, bool kCounts, bool kFewCounts, bool kTies, bool kPrefetch>
DSTEE_INLINE size_t scan_grow_whole(const GrowScan& scan, const Bonus& bonus, const uint8_t* bits, int64_t n, uint32_t valid,
                                    uint32_t index, uint32_t* score_out, uint32_t* where) {
  const U low = splat(scan.low_score), low_signal = splat(scan.low_signal), span = splat(kMaxRank - scan.low_score);
  size_t count = 0;
  U here = iota(index);
  int64_t active_group = 0;
  for (int64_t j = 0; j < n; j += W, here = here + static_cast<uint32_t>(W)) {
    const uint32_t active = lanes_of(bits + j / 8), inactive = ~active & valid;
    if constexpr (kPrefetch) {
      if constexpr (sizeof(T) > 1)
        prefetch(static_cast<const char*>(scan.signal) + j * static_cast<int64_t>(sizeof(T)) + kAheadBytes);
      if constexpr (kCounts) prefetch(reinterpret_cast<const char*>(scan.counts + j) + kAheadBytes / 2);
      active_group = active ? j : active_group;
      prefetch(scan.next_w + active_group * scan.next_size);
      if (scan.next_m) prefetch(scan.next_m + active_group * scan.next_size);
    }
    const V signal = signal_at<T>(scan, j);
    V total = signal;
    if constexpr (kCounts)
      total = score(signal, kFewCounts ? bonus.near(scan.counts + j) : bonus.at(scan.counts + j, inactive));
    // Numbers only: as an offset from the bound a NaN lies beyond the span.
    const U best = number_rank(total);
    Mask lanes = less_equal(static_cast<Mask>(inactive), best - low, span);
    if constexpr (kTies) lanes = without(lanes, less(equal(best, low), number_rank(signal), low_signal));
    compress(score_out + count, best, lanes);
    compress(where + count, here, lanes);
    count += count_of(lanes);
  }
  return count;
}

template <class T, bool kCounts, bool kFewCounts, bool kTies>
size_t scan_grow(const GrowScan& scan, const uint8_t* bits, int64_t n, uint32_t index, uint32_t* score_out, uint32_t* where) {
  const Bonus bonus(scan.bonus, kCounts ? scan.bonus_size : 0);
  const int64_t whole = n / W * W, rest = n - whole;
  size_t count =
      scan_grow_whole<T, kCounts, kFewCounts, kTies, true>(scan, bonus, bits, whole, kAllLanes, index, score_out, where);
  if (rest) {
    GrowScan last = scan;
    Tail<int16_t> counts;
    if (kCounts) counts = Tail<int16_t>(scan.counts + whole, rest);
    last.counts = counts.x;
    last.first_index += static_cast<uint64_t>(whole);
    Tail<T> signal;
    if constexpr (sizeof(T) > 1) signal = Tail<T>(static_cast<const T*>(scan.signal) + whole, rest);
    last.signal = signal.x;
    const TailBits tb(bits + whole / 8, rest);
    count += scan_grow_whole<T, kCounts, kFewCounts, kTies, false>(
        last, bonus, tb.b, W, (1u << rest) - 1, index + static_cast<uint32_t>(whole), score_out + count, where + count);
  }
  return count;
}

template <class T>
size_t scan_grow_any(const GrowScan& scan, const uint8_t* bits, int64_t n, uint32_t index, uint32_t* score_out,
                     uint32_t* where) {
  auto run = scan_grow<T, false, false, false>;  // without a bonus, score and signal are one number
  if (scan.counts && scan.bonus) {
    const bool few = scan.bonus_size <= Bonus::kNear, ties = scan.low_signal > 0;
    run = few ? (ties ? scan_grow<T, true, true, true> : scan_grow<T, true, true, false>)
              : (ties ? scan_grow<T, true, false, true> : scan_grow<T, true, false, false>);
  }
  return run(scan, bits, n, index, score_out, where);
}

size_t scan_grow_random(const GrowScan& scan, const uint8_t* bits, int64_t n, uint32_t index, uint32_t* score,
                        uint32_t* where) {
  auto run = scan.place ? scan_grow_any<RandomOfPart> : scan_grow_any<Random>;
  return run(scan, bits, n, index, score, where);
}

DSTEE_INLINE Mask lanes_between(const uint32_t* key, U low, U span) { return less_equal(load_keys(key) - low, span); }

// The last entries go one by one: a whole store would run into the list behind.
size_t keep_between(const uint32_t* key, size_t count, uint32_t low, uint32_t high, uint32_t* a, uint32_t* b) {
  const U from = splat(low), span = splat(high - low);
  size_t kept = 0, j = 0;
  for (; j + W <= count; j += W) {
    const Mask lanes = lanes_between(key + j, from, span);
    const U next_a = load_keys(a + j);
    if (b) compress(b + kept, load_keys(b + j), lanes);
    compress(a + kept, next_a, lanes);
    kept += count_of(lanes);
  }
  for (; j < count; ++j) {
    a[kept] = a[j];
    if (b) b[kept] = b[j];
    kept += key[j] - low <= high - low;
  }
  return kept;
}

size_t copy_between(const uint32_t* key, size_t count, uint32_t low, uint32_t high, uint32_t* out) {
  const U from = splat(low), span = splat(high - low);
  size_t found = 0, j = 0;
  for (; j + W <= count; j += W) {
    const Mask lanes = lanes_between(key + j, from, span);
    compress(out + found, load_keys(key + j), lanes);
    found += count_of(lanes);
  }
  for (; j < count; ++j) {
    out[found] = key[j];
    found += key[j] - low <= high - low;
  }
  return found;
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
   {scan_grow_any<float>, scan_grow_any<bf16>, scan_grow_any<f16>, scan_grow_random}, \
   {scan_drop<float>, scan_drop<bf16>, scan_drop<f16>},                               \
   {scan_keys_any<float>, scan_keys_any<bf16>, scan_keys_any<f16>},                   \
   noise_of,                                                                          \
   keep_between,                                                                      \
   copy_between,                                                                      \
   min_max,                                                                           \
   count_bits}
