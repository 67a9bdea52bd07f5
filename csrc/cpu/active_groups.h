// How the loops over lanes walk a mask, and a layer's end. Included by the headers of such loops only.
#pragma once

#include "prefetch.h"

namespace dstee::cpu {
namespace {

constexpr uint32_t kAllLanes = (1u << W) - 1;
constexpr int kLookAhead = 1 << 16;  // weights whose active groups are found at a time
constexpr int kAheadGroups = 64;     // active groups, and bytes of a stream, to prefetch ahead: hardware stops at each page
constexpr int kAheadBytes = 4096;

// The n < W weights behind the last whole group, padded with zeros so that the loops need no second form.
template <class T>
struct Tail {
  T x[W] = {};
  Tail() = default;
  Tail(const T* from, int64_t n) { memcpy(x, from, static_cast<size_t>(n) * sizeof(T)); }
};
struct TailBits {
  uint8_t b[2] = {};
  TailBits(const uint8_t* from, int64_t n) { memcpy(b, from, static_cast<size_t>((n + 7) / 8)); }
};

// Calls body(j) for each group of W weights that has an active one, j its first weight, and ahead(j) some groups earlier.
// Finding the groups first costs less than mispredicting which ones are empty.
template <class Ahead, class Body>
DSTEE_INLINE void for_active_groups(const uint8_t* bits, int64_t n, Ahead ahead, Body body) {
  uint16_t groups[kLookAhead / W];
  for (int64_t start = 0; start < n; start += kLookAhead) {
    const int64_t here = n - start < kLookAhead ? n - start : kLookAhead;
    int found = 0;
    for (int j = 0; j < here; j += W) {
      groups[found] = static_cast<uint16_t>(j);
      found += lanes_of(bits + (start + j) / 8) != 0;
    }
    for (int f = 0; f < kAheadGroups && f < found; ++f) ahead(start + groups[f]);
    for (int f = 0; f < found; ++f) {
      if (f + kAheadGroups < found) ahead(start + groups[f + kAheadGroups]);
      body(start + groups[f]);
    }
  }
}

}  // namespace
}  // namespace dstee::cpu
