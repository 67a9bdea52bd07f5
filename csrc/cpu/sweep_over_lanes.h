// The loops of the update's sweep, over the lanes of a lanes_*.h header. Included by loops_over_lanes.h only.
//
// What lies beyond the bounds on the sure side is committed here, while its lines are in the first cache; what lies between the
// bounds is listed: its keys packed, its places as bits of a plane, which costs less than a list of indices.
#pragma once

#include "active_groups.h"

namespace dstee::cpu {
namespace {

struct Random {};        // the signal type of kRandom
struct RandomOfPart {};  // the same of a layer with a place

template <class T>
constexpr bool kIsMemory = true;
template <>
constexpr bool kIsMemory<Random> = false;
template <>
constexpr bool kIsMemory<RandomOfPart> = false;
template <class T>
constexpr bool kInPlace = false;  // scan_drop reads the signal itself
template <>
constexpr bool kInPlace<float> = true;

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

// The functions below take what they read by value: a store through their pointers may not change it then.

// What the counters are worth. kFew: none can exceed the bonus registers, and `lanes` need not be looked at.
template <bool kFew>
DSTEE_INLINE V bonus_of(const Bonus& bonus, U counters, Mask lanes) {
  return kFew ? bonus.near(counters) : bonus.at(counters, lanes);
}

constexpr int kTurn = 32;  // weights a turn: a line of counters, a word of the mask

// A layer's end of n < kTurn weights, padded with zeros so that the loops need no second form.
template <class T>
struct End {
  T x[kTurn] = {};
  End() = default;
  End(const T* from, int64_t n) { memcpy(x, from, static_cast<size_t>(n) * sizeof(T)); }
};
DSTEE_INLINE uint32_t bits_of_end(const uint8_t* bits, int64_t n) {
  uint32_t word = 0;
  memcpy(&word, bits, static_cast<size_t>((n + 7) / 8));
  return word;
}

// Appends the first weights of the groups that have an active one, to `count` others; returns how many there are then.
DSTEE_INLINE size_t append_groups(uint32_t active, int64_t j, uint16_t* groups, size_t count) {
  for (int k = 0; k < kTurn; k += W) {
    groups[count] = static_cast<uint16_t>(j + k);
    count += (active >> k & kAllLanes) != 0;
  }
  return count;
}
size_t active_groups(const uint8_t* bits, int64_t n, uint16_t* groups) {
  size_t count = 0;
  for (int64_t j = 0; j + kTurn <= n; j += kTurn) count = append_groups(read<uint32_t>(bits + j / 8), j, groups, count);
  return count;
}

// How low candidates are listed: all; numbers from the bound on; of those right at it the ones with a large enough signal.
enum Low { kAll, kNumbers, kTies };

template <Low low>
DSTEE_INLINE Mask list_candidates(Mask inactive, V total, V signal, U best, const GrowScan& scan, V low_number) {
  if constexpr (low == kAll) return inactive;
  if constexpr (low == kNumbers) return at_least(inactive, total, low_number);
  const U low_score = splat(scan.low_score);
  const Mask listed = less_equal(inactive, low_score, best);
  return without(listed, less(equal(best, low_score), rank(signal), splat(scan.low_signal)));
}

// Every weight of the model passes here. Free of branches on the data. kWhole: a block in its place, not the copy of a layer's
// end, where nothing is committed and nothing prefetched.
template <class T, bool kCounts, bool kFew, Low low, bool kWhole>
DSTEE_INLINE void scan_grow_whole(GrowScan scan, Bonus bonus, int64_t n, uint32_t valid, GrowLists out, Found& found) {
  const V low_number = spread_value(number_of(scan.low_score)), high = spread_value(scan.high_score);
  size_t listed_count = found.listed, sure_count = found.sure, groups = found.next_groups;
  for (int64_t j = 0; j < n; j += kTurn) {
    const uint32_t active = read<uint32_t>(scan.before + j / 8);
    if constexpr (kWhole) {
      groups = append_groups(read<uint32_t>(scan.next_bits + j / 8), j, out.next_groups, groups);
      if constexpr (kIsMemory<T>)
        prefetch(static_cast<const char*>(scan.next_signal) + j * static_cast<int64_t>(sizeof(T)) / 2);
      if constexpr (kCounts) prefetch(reinterpret_cast<const char*>(scan.counts + j) + kAheadBytes);
    }
    uint32_t listed = 0, sure = 0;
    for (int k = 0; k < kTurn; k += W) {
      const auto inactive = static_cast<Mask>(~active >> k & valid >> k & kAllLanes);
      const V signal = signal_at<T>(scan, j + k);
      if (!kInPlace<T> && scan.signal_out) store(scan.signal_out + j + k, kAllLanes, signal);
      V total = signal;
      if constexpr (kCounts) total = score(signal, bonus_of<kFew>(bonus, load_counts(scan.counts + j + k), inactive));
      const U best = low == kNumbers ? number_rank(total) : rank(total);
      Mask candidates = list_candidates<low>(inactive, total, signal, best, scan, low_number);
      if constexpr (kWhole) {
        const Mask grown = greater(candidates, total, high);
        sure |= lanes_in(grown) << k;
        candidates = without(candidates, grown);
      }
      compress(out.key + listed_count, best, candidates);
      const uint32_t lanes = lanes_in(candidates);
      listed |= lanes << k;
      listed_count += static_cast<size_t>(__builtin_popcount(lanes));
    }
    memcpy(out.plane + j / 8, &listed, sizeof listed);
    if constexpr (kWhole) {
      const uint32_t grown = active | sure;
      memcpy(scan.bits + j / 8, &grown, sizeof grown);
      if (kCounts || scan.counts) flip_turn(scan.counts + j, sure, scan.round);
      sure_count += static_cast<size_t>(__builtin_popcount(sure));
    }
  }
  found = {listed_count, sure_count, groups};
}

template <class T, bool kCounts, bool kFew, Low low>
Found scan_grow(const GrowScan& scan, int64_t n, const GrowLists& out) {
  const Bonus bonus(scan.bonus, kCounts ? scan.bonus_size : 0);
  const int64_t whole = n / kTurn * kTurn, rest = n - whole;
  Found found;
  scan_grow_whole<T, kCounts, kFew, low, true>(scan, bonus, whole, ~0u, out, found);
  if (rest) {
    GrowScan last = scan;
    GrowLists to = out;
    End<int16_t> counts;
    if (kCounts) counts = End<int16_t>(scan.counts + whole, rest);
    last.counts = counts.x;
    last.first_index += static_cast<uint64_t>(whole);
    End<T> signal;
    if constexpr (kIsMemory<T>) signal = End<T>(static_cast<const T*>(scan.signal) + whole, rest);
    last.signal = signal.x;
    if (scan.signal_out) last.signal_out += whole;
    const uint32_t bits = bits_of_end(scan.before + whole / 8, rest);
    last.before = reinterpret_cast<const uint8_t*>(&bits);
    to.plane += whole / 8;
    scan_grow_whole<T, kCounts, kFew, low, false>(last, bonus, kTurn, (1u << rest) - 1, to, found);
  }
  return found;
}

template <class T, bool kCounts, bool kFew>
Found scan_grow_low(const GrowScan& scan, int64_t n, const GrowLists& out) {
  // Without a bonus, score and signal are one number.
  auto run = scan.low_score == 0 ? scan_grow<T, kCounts, kFew, kAll> : scan_grow<T, kCounts, kFew, kNumbers>;
  if constexpr (kCounts)
    if (scan.low_signal > 0) run = scan_grow<T, true, kFew, kTies>;
  return run(scan, n, out);
}

template <class T>
Found scan_grow_any(const GrowScan& scan, int64_t n, const GrowLists& out) {
  auto run = scan_grow_low<T, false, false>;
  if (scan.counts && scan.bonus)
    run = scan.bonus_size <= Bonus::kNear ? scan_grow_low<T, true, true> : scan_grow_low<T, true, false>;
  return run(scan, n, out);
}

Found scan_grow_random(const GrowScan& scan, int64_t n, const GrowLists& out) {
  auto run = scan.place ? scan_grow_any<RandomOfPart> : scan_grow_any<Random>;
  return run(scan, n, out);
}

// A line of the next block's signal, and of the weights and momenta of one of its groups.
DSTEE_INLINE void fetch_next(const DropScan& scan, size_t f) {
  prefetch(static_cast<const char*>(scan.next_signal) + 64 * f);
  prefetch(static_cast<const char*>(scan.next_w) + scan.next_groups[f] * scan.next_size);
  if (scan.next_m) prefetch(static_cast<const char*>(scan.next_m) + scan.next_groups[f] * scan.next_size);
}

// Of the groups those with a weight that is to be listed or dropped: most have none, and finding them first costs less than
// mispredicting which.
template <class T>
DSTEE_INLINE size_t groups_below(DropScan scan, uint16_t* out) {
  const V most = spread_value(scan.most);
  size_t found = 0;
  for (size_t f = 0; f < scan.group_count; ++f) {
    fetch_next(scan, f);
    const int64_t j = scan.groups[f];
    const auto active = static_cast<Mask>(lanes_of(scan.before + j / 8));
    out[found] = static_cast<uint16_t>(j);
    found += lanes_in(not_greater(active, absolute(load(static_cast<const T*>(scan.x) + j)), most)) != 0;
  }
  return found;
}

template <class T, bool kCounts, bool kFew, bool kWhole>
DSTEE_INLINE void scan_drop_groups(DropScan scan, Bonus bonus, const uint16_t* groups, size_t count, DropLists out,
                                   Dropped& to) {
  const V most = spread_value(scan.most), sure_below = spread_value(scan.sure_below);
  const V low_score = spread_value(scan.low_score), high_score = spread_value(scan.high_score);
  const T* const x = static_cast<const T*>(scan.x);
  const U flipped = splat(static_cast<uint32_t>(scan.round + 1));
  Dropped found = to;
  Tally back_count;
  for (size_t f = 0; f < count; ++f) {
    const int64_t j = groups[f];
    const auto active = static_cast<Mask>(lanes_of(scan.before + j / 8));
    const V value = load(x + j), size = absolute(value);
    Mask listed = not_greater(active, size, most);
    V total = absolute(load(scan.signal + j));
    if constexpr (kCounts) total = score(total, bonus_of<kFew>(bonus, flipped - load_counts(scan.counts + j), listed));
    if constexpr (kWhole) {
      if (scan.w) {
        const Mask sure = below(active, size, sure_below), back = greater(sure, total, high_score);
        const Mask gone = below(sure, total, low_score);
        const uint32_t gone_lanes = lanes_in(gone);
        listed = without(without(listed, back), gone);
        back_count.add(back);
        compress(out.undo_w + found.gone, load_raw(x + j), gone);
        store(static_cast<T*>(scan.w) + j, gone_lanes, spread_value(0.0f));
        if (scan.m && (scan.m_is_near || gone_lanes)) {
          T* const m = static_cast<T*>(scan.m) + j;
          compress(out.undo_m + found.gone, load_raw(m), gone);
          store(m, gone_lanes, spread_value(0.0f));
        }
        found.gone += static_cast<size_t>(__builtin_popcount(gone_lanes));
        if (scan.counts) flip_counts(scan.counts + j, gone, scan.round);
        store_lanes(scan.bits + j / 8, lanes_of(scan.bits + j / 8) & ~gone_lanes);
      }
    }
    compress(out.key + found.listed, drop_keys(value), listed);
    compress(out.regrow_key + found.listed, rank(total), listed);
    store_lanes(out.plane + j / 8, lanes_in(listed));
    found.listed += count_of(listed);
  }
  found.back += back_count.total();
  to = found;
}

template <class T, bool kCounts, bool kFew>
Dropped scan_drop(const DropScan& scan, int64_t n, const DropLists& out) {
  const Bonus bonus(scan.bonus, kCounts ? scan.bonus_size : 0);
  const int64_t whole = n / kTurn * kTurn, rest = n - whole;
  uint16_t some[kBlock / W];
  Dropped found;
  memset(out.plane, 0, static_cast<size_t>((n + 7) / 8));
  const size_t few = groups_below<T>(scan, some);
  scan_drop_groups<T, kCounts, kFew, true>(scan, bonus, some, few, out, found);
  for (size_t f = scan.group_count; f < scan.next_count || 64 * f < scan.next_bytes; ++f) fetch_next(scan, f);
  if (rest) {
    DropScan last = scan;
    DropLists to = out;
    const End<T> x(static_cast<const T*>(scan.x) + whole, rest);
    const End<float> signal(scan.signal + whole, rest);
    End<int16_t> counts;
    if (kCounts) counts = End<int16_t>(scan.counts + whole, rest);
    const uint32_t bits = bits_of_end(scan.before + whole / 8, rest);
    last.x = x.x;
    last.signal = signal.x;
    last.counts = counts.x;
    last.before = reinterpret_cast<const uint8_t*>(&bits);
    to.plane += whole / 8;
    size_t groups_here = 0;
    for (int k = 0; k < kTurn; k += W) some[groups_here++] = static_cast<uint16_t>(k);
    scan_drop_groups<T, kCounts, kFew, false>(last, bonus, some, groups_here, to, found);
  }
  return found;
}

template <class T>
Dropped scan_drop_any(const DropScan& scan, int64_t n, const DropLists& out) {
  auto run = scan_drop<T, false, false>;
  if (scan.counts && scan.bonus) run = scan.bonus_size <= Bonus::kNear ? scan_drop<T, true, true> : scan_drop<T, true, false>;
  return run(scan, n, out);
}

// In its register: gathering four into a vector costs more than to store them.
DSTEE_INLINE void keep_scalar(uint32_t& x) {
#if defined(__GNUC__)
  asm("" : "+r"(x));
#endif
}

// Four at a time, whether there are as many or not: few words have more.
template <class Word>
DSTEE_INLINE void few_places(Word word, size_t count, uint32_t first, uint32_t* where) {
  size_t done = 0;
  do {
    for (int k = 0; k < 4; ++k) {
      uint32_t place = first + static_cast<uint32_t>(__builtin_ctzll(word | uint64_t{1} << 63));
      keep_scalar(place);
      *where++ = place;
      word &= word - 1;
    }
    done += 4;
  } while (done < count);
}

template <class Word>
DSTEE_INLINE void many_places(Word word, uint32_t first, uint32_t* where) {
  for (int k = 0; k < 8 * static_cast<int>(sizeof word); k += W) {
    const auto lanes = static_cast<uint32_t>(word >> k) & kAllLanes;
    compress(where, iota(first + static_cast<uint32_t>(k)), static_cast<Mask>(lanes));
    where += __builtin_popcount(lanes);
  }
}

template <class Word>
DSTEE_INLINE size_t places_in(Word word, uint32_t first, uint32_t* where) {
  constexpr size_t kMany = kVectors ? 16 : 64;  // as where everything is listed
  const auto count = static_cast<size_t>(__builtin_popcountll(word));
  if (count > kMany)
    many_places(word, first, where);
  else
    few_places(word, count, first, where);
  return count;
}

size_t places_of(const uint8_t* plane, int64_t n, uint32_t first, uint32_t* where) {
  size_t count = 0;
  int64_t j = 0;
  for (; j + 64 <= n; j += 64)
    count += places_in(read<uint64_t>(plane + j / 8), first + static_cast<uint32_t>(j), where + count);
  for (; j < n; j += kTurn) count += places_in(read<uint32_t>(plane + j / 8), first + static_cast<uint32_t>(j), where + count);
  return count;
}

}  // namespace
}  // namespace dstee::cpu
