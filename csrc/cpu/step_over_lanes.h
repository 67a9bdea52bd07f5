// The SGD step on active weights, over the lanes of a lanes_*.h header. Included by loops_over_lanes.h only.
#pragma once

#include "active_groups.h"

namespace dstee::cpu {
namespace {

constexpr int64_t kNear = 1 << 13;  // weights of a block that is over before a prefetch pays
constexpr int kStreamAhead = 2048;  // bytes to prefetch ahead where every line is read

// Whether so many cache lines hold an active weight that reading all of them in order takes no longer than picking those. In
// plain C++ the groups are what counts.
template <class T>
DSTEE_INLINE bool mostly_active(const uint8_t* bits, int64_t n) {
  constexpr int kLine = kVectors ? 64 / static_cast<int>(sizeof(T)) : W;
  const int64_t lines = n / kLine;
  int64_t active = 0;
  for (int64_t i = 0; i < lines; ++i) {
    uint32_t word = 0;
    memcpy(&word, bits + i * (kLine / 8), kLine / 8);
    active += word != 0;
  }
  return 4 * active >= 3 * lines;
}

// A whole number of groups. Neither form writes an inactive weight.
template <class T, bool kMomentum, bool kPrefetch>
DSTEE_INLINE void step_whole(T* w, const T* g, T* m, const uint8_t* bits, int64_t n, const SgdRule& shared) {
  const SgdRule rule = shared;  // which no store can reach: its numbers stay in registers
  const auto ahead = [&](int64_t j) {
    if constexpr (!kPrefetch) return;
    prefetch(w + j);
    prefetch(g + j);
    if (kMomentum) prefetch(m + j);
  };
  const auto body = [&](int64_t j) {
    const uint32_t lanes = lanes_of(bits + j / 8);
    V weight = load(w + j), momentum = kMomentum ? load(m + j) : weight;
    sgd(weight, load(g + j), momentum, rule);
    store(w + j, lanes, weight);
    if (kMomentum) store(m + j, lanes, momentum);
  };
  if (!mostly_active<T>(bits, n)) return for_active_groups(bits, n, ahead, body);
  for (int64_t j = 0; j < n; j += W) {
    ahead(j + kStreamAhead / static_cast<int>(sizeof(T)));
    body(j);
  }
}

template <class T, bool kMomentum>
void step(T* w, const T* g, T* m, const uint8_t* bits, int64_t n, const SgdRule& rule) {
  const int64_t whole = n / W * W, rest = n - whole;
  if (n > kNear)
    step_whole<T, kMomentum, true>(w, g, m, bits, whole, rule);
  else
    step_whole<T, kMomentum, false>(w, g, m, bits, whole, rule);
  if (rest) {
    Tail<T> tw(w + whole, rest), tg(g + whole, rest), tm;
    if (kMomentum) tm = Tail<T>(m + whole, rest);
    const TailBits tb(bits + whole / 8, rest);
    step_whole<T, kMomentum, false>(tw.x, tg.x, tm.x, tb.b, W, rule);
    memcpy(w + whole, tw.x, static_cast<size_t>(rest) * sizeof(T));
    if (kMomentum) memcpy(m + whole, tm.x, static_cast<size_t>(rest) * sizeof(T));
  }
}

template <class T>
void step_any(void* w, const void* g, void* m, const uint8_t* bits, int64_t n, const SgdRule& rule) {
  auto run = rule.has_momentum ? step<T, true> : step<T, false>;
  run(static_cast<T*>(w), static_cast<const T*>(g), static_cast<T*>(m), bits, n, rule);
}

}  // namespace
}  // namespace dstee::cpu
