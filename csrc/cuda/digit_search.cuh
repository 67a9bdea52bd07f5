// The k-th of many candidates on many blocks, one byte of their words at a time: a launch counts the candidates that agree with
// what is known by their next byte, a second one takes the byte in which the k-th lies. No host sync; what is decided early
// leaves the launches that remain nothing to do.
#pragma once

#include <cstdint>

#include "launch.cuh"
#include "table.cuh"

namespace dstee::cuda {

constexpr int kBytes = 256;  // values of a byte
static_assert(kBytes == kThreads);

// A candidate is a key of 32 bits and, among equal keys, a place; larger ones come first.
struct DigitSearch {
  uint64_t key, place;  // of the last selected one, as far as they are known, and zeros behind
  int64_t left;         // how many are selected of those that agree so far
  uint32_t decided;     // all that agree are selected; or none was wanted, and nothing passes
  unsigned long long histogram[kBytes];
};

// What a block has counted.
struct DigitStorage {
  uint32_t histogram[kBytes];
};

struct Digit {
  bool of_place;  // of the key
  int shift;
};

// Calls body(digit, first) for each byte, from the highest on. places: all places are below it.
template <class Body>
void for_digits(int64_t places, const Body& body) {
  for (int shift = 24; shift >= 0; shift -= 8) body(Digit{false, shift}, shift == 24);
  int bytes = 0;
  while (bytes < 8 && (places - 1) >> (8 * bytes) > 0) ++bytes;
  for (int shift = 8 * (bytes - 1); shift >= 0; shift -= 8) body(Digit{true, shift}, false);
}

__device__ __forceinline__ bool agrees(const DigitSearch& s, Digit digit, uint64_t key, uint64_t place) {
  if (!digit.of_place) return ((key ^ s.key) >> digit.shift >> 8) == 0;
  return key == s.key && ((place ^ s.place) >> digit.shift >> 8) == 0;
}
__device__ __forceinline__ uint32_t byte_of(Digit digit, uint64_t key, uint64_t place) {
  return static_cast<uint32_t>((digit.of_place ? place : key) >> digit.shift) & (kBytes - 1);
}
__device__ __forceinline__ bool is_selected(const DigitSearch& s, uint64_t key, uint64_t place) {
  return key > s.key || (key == s.key && place >= s.place);
}

// Of one search, by one block of kBytes threads; k is clipped to the candidates.
__device__ __forceinline__ void start_search(DigitSearch& s, int64_t k) {
  store(&s.histogram[threadIdx.x], 0ull);
  if (threadIdx.x != 0) return;
  s.key = s.place = 0;
  s.left = k;
  s.decided = 0;
}

struct ByteCounts {
  unsigned long long of[kBytes];
};

// A block for each search. first: of the search's bytes.
static __global__ void __launch_bounds__(kBytes) take_digit_kernel(DigitSearch* searches, Digit digit, bool first) {
  auto& counts = shared<ByteCounts>();
  DigitSearch& s = searches[blockIdx.x];
  if (s.decided) return;
  counts.of[threadIdx.x] = s.histogram[threadIdx.x];
  store(&s.histogram[threadIdx.x], 0ull);
  __syncthreads();
  if (threadIdx.x != 0) return;
  auto left = static_cast<unsigned long long>(s.left < 0 ? 0 : s.left);
  if (first) {
    unsigned long long candidates = 0;
    for (int b = 0; b < kBytes; ++b) candidates += counts.of[b];
    left = left < candidates ? left : candidates;
  }
  if (left == 0) {
    s.key = s.place = ~uint64_t{0};
    s.decided = 1;
    return;
  }
  int byte = kBytes - 1;
  while (left > counts.of[byte]) left -= counts.of[byte--];
  (digit.of_place ? s.place : s.key) |= static_cast<uint64_t>(byte) << digit.shift;
  s.left = static_cast<int64_t>(left);
  s.decided = left == counts.of[byte];
}

}  // namespace dstee::cuda
