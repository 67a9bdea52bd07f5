// The SGD step on active weights, over the lanes of a lanes_*.h header. Included by loops_over_lanes.h only.
#pragma once

#include "active_groups.h"

namespace dstee::cpu {
namespace {

template <class T, bool kMomentum>
DSTEE_INLINE void step_whole(T* w, const T* g, T* m, const uint8_t* bits, int64_t n, const SgdRule& rule) {
  const auto ahead = [&](int64_t j) {
    prefetch(w + j);
    prefetch(g + j);
    if (kMomentum) prefetch(m + j);
  };
  for_active_groups(bits, n, ahead, [&](int64_t j) {
    const uint32_t lanes = lanes_of(bits + j / 8);
    V weight = load(w + j), momentum = kMomentum ? load(m + j) : weight;
    sgd(weight, load(g + j), momentum, rule);
    store(w + j, lanes, weight);
    if (kMomentum) store(m + j, lanes, momentum);
  });
}

template <class T, bool kMomentum>
void step(T* w, const T* g, T* m, const uint8_t* bits, int64_t n, const SgdRule& rule) {
  const int64_t whole = n / W * W, rest = n - whole;
  step_whole<T, kMomentum>(w, g, m, bits, whole, rule);
  if (rest) {
    Tail<T> tw(w + whole, rest), tg(g + whole, rest), tm;
    if (kMomentum) tm = Tail<T>(m + whole, rest);
    const TailBits tb(bits + whole / 8, rest);
    step_whole<T, kMomentum>(tw.x, tg.x, tm.x, tb.b, W, rule);
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
