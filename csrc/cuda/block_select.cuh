// The exact selection of one block: digits of the key from the top, then of the index.
#pragma once

#include <cstdint>

#include "block_scan.cuh"
#include "threshold.cuh"

namespace dstee::cuda {

constexpr int kDigits = 1 << 11;  // 11 bits at a time

struct SelectStorage {
  uint32_t digits[kDigits];
  ScanStorage scan;
  uint32_t digit, left, found;
};

// The threshold that `count` of the weights pass. All threads of the block call it with the same arguments and the same
// weights, each thread with its own share: each(visit) calls visit(upper half of the key, function for the lower half, index).
// What it visits of other threads was written before a barrier.
//
//   count       at least 1, at most the number of weights
//   lower_half  false: the lower half is 0 in all keys
//   index_bits  all indices are below 1 << index_bits
//   slack       a threshold that at most so many more pass will do
template <class Each>
__device__ Threshold block_select(SelectStorage& s, uint32_t count, bool lower_half, int index_bits, uint32_t slack,
                                  Each each) {
  // Levels 0 to 2 are the upper half of the key, 3 to 5 the lower one, of 31 bits each; then come those of the index, counted
  // from the end so that larger comes first.
  constexpr int kKeyLevels = 6;
  const uint32_t last_index = static_cast<uint32_t>((uint64_t{1} << index_bits) - 1);
  uint64_t key_floor = 0;
  uint32_t index_floor = 0, left = count;
  int shift = 52, index_shift = index_bits;
  for (int level = 0;; level = level == 2 && !lower_half ? kKeyLevels : level + 1) {
    const bool by_index = level >= kKeyLevels;
    const int bits = by_index ? (index_shift < 11 ? index_shift : 11) : level % 3 == 0 ? 11 : 10;
    if (by_index)
      index_shift -= bits;
    else
      shift = (level < 3 ? 52 : 50) - 10 * level;

    // Nobody reads the digits any more: the level before, and an earlier call, ended behind their last reader.
    for (unsigned d = threadIdx.x; d < kDigits; d += blockDim.x) s.digits[d] = 0;
    __syncthreads();
    each([&](uint32_t upper, auto lower, uint32_t index) {
      uint64_t key = static_cast<uint64_t>(upper) << 32;
      if (level >= 3 && lower_half) {
        if (key >> 32 != key_floor >> 32) return;
        key |= lower();
      }
      if (!by_index) {
        if ((key ^ key_floor) >> (shift + bits) == 0) atomicAdd(&s.digits[key >> shift & ((1u << bits) - 1)], 1u);
      } else if (key == key_floor) {
        const uint64_t place = last_index - index;
        if ((place ^ index_floor) >> (index_shift + bits) == 0)
          atomicAdd(&s.digits[place >> index_shift & ((1u << bits) - 1)], 1u);
      }
    });
    __syncthreads();

    // From the highest digit down to that of the count-th weight.
    const unsigned per = kDigits / blockDim.x, first = kDigits - 1 - threadIdx.x * per;
    uint32_t mine = 0, total;
    for (unsigned d = 0; d < per; ++d) mine += s.digits[first - d];
    uint32_t before = block_scan(s.scan, mine, &total);
    if (before < left && left <= before + mine) {
      unsigned digit = first;
      while (before + s.digits[digit] < left) before += s.digits[digit--];
      s.digit = digit;
      s.left = left - before;
      s.found = s.digits[digit];
    }
    __syncthreads();
    left = s.left;
    if (by_index)
      index_floor |= s.digit << index_shift;
    else
      key_floor |= static_cast<uint64_t>(s.digit) << shift;
    if (s.found - left <= slack) break;  // all that have this digit pass
  }
  return {key_floor, last_index - index_floor};
}

}  // namespace dstee::cuda
