// The SGD step on active weights, over the lanes of a lanes_*.h header. Included by loops_over_lanes.h only.
#pragma once

#include "rows_over_lanes.h"

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

// Where a step finds the momenta of a group: nowhere, at the weights' places, or packed. `lanes`: its active ones.
struct NoMomenta {
  DSTEE_INLINE void ahead(int64_t) const {}
  DSTEE_INLINE V read(int64_t, uint32_t) const { return V{}; }
  DSTEE_INLINE void write(int64_t, uint32_t, V) const {}
};
template <class T>
struct MomentaInPlace {
  T* m;
  DSTEE_INLINE void ahead(int64_t j) const { prefetch(m + j); }
  DSTEE_INLINE V read(int64_t j, uint32_t) const { return load(m + j); }
  DSTEE_INLINE void write(int64_t j, uint32_t lanes, V x) const { store(m + j, lanes, x); }
};

// The momenta of the active weights of a block, one after the other. The new ones are collected and then copied: a load would
// have to wait for the store before it, which overlaps.
template <class T>
class MomentaInRow {
 public:
  MomentaInRow(T* m, int64_t count) : rows_(m, count), written_(m) {}
  DSTEE_INLINE void ahead(int64_t) const { rows_.ahead(kStreamAhead); }
  DSTEE_INLINE V read(int64_t, uint32_t lanes) { return expand(load(rows_.next(__builtin_popcount(lanes))), lanes); }
  DSTEE_INLINE void write(int64_t, uint32_t lanes, V x) {
    store(collected_ + count_, kAllLanes, compress(x, lanes));
    count_ += __builtin_popcount(lanes);
    if (count_ >= kCollected) copy();
  }
  void copy() {
    if (count_ == 0) return;  // a layer without active weights has no memory for them
    T rounded[kCollected + 2 * W];
    for (int j = 0; j < count_; j += W) store(rounded + j, kAllLanes, load(collected_ + j));
    memcpy(written_, rounded, static_cast<size_t>(count_) * sizeof(T));
    written_ += count_;
    count_ = 0;
  }

 private:
  static constexpr int kCollected = 512;

  RowReader<T> rows_;
  T* written_;
  int count_ = 0;
  float collected_[kCollected + 2 * W];
};

// A whole number of groups. Neither form writes an inactive weight.
template <bool kPrefetch, class T, class Momenta>
DSTEE_INLINE void step_whole(T* w, const T* g, Momenta& m, const uint8_t* bits, int64_t n, const SgdRule& shared) {
  const SgdRule rule = shared;  // which no store can reach: its numbers stay in registers
  const auto ahead = [&](int64_t j) {
    if constexpr (!kPrefetch) return;
    prefetch(w + j);
    prefetch(g + j);
    m.ahead(j);
  };
  const auto body = [&](int64_t j) {
    const uint32_t lanes = lanes_of(bits + j / 8);
    V weight = load(w + j), momentum = m.read(j, lanes);
    sgd(weight, load(g + j), momentum, rule);
    store(w + j, lanes, weight);
    m.write(j, lanes, momentum);
  };
  if (!mostly_active<T>(bits, n)) return for_active_groups(bits, n, ahead, body);
  for (int64_t j = 0; j < n; j += W) {
    ahead(j + kStreamAhead / static_cast<int>(sizeof(T)));
    body(j);
  }
}

template <class T, class Momenta>
DSTEE_INLINE void step_blocks(T* w, const T* g, Momenta& m, const uint8_t* bits, int64_t n, const SgdRule& rule) {
  if (n > kNear)
    step_whole<true>(w, g, m, bits, n, rule);
  else
    step_whole<false>(w, g, m, bits, n, rule);
}

// The n < W weights behind the last whole group.
template <class T, class Momenta>
DSTEE_INLINE void step_tail(T* w, const T* g, Momenta& m, const uint8_t* bits, int64_t n, const SgdRule& rule) {
  Tail<T> tw(w, n), tg(g, n);
  const TailBits tb(bits, n);
  step_whole<false>(tw.x, static_cast<const T*>(tg.x), m, tb.b, W, rule);
  memcpy(w, tw.x, static_cast<size_t>(n) * sizeof(T));
}

template <class T>
void step(void* weights, const void* gradients, void* momenta, const uint8_t* bits, int64_t n, const SgdRule& rule) {
  T* const w = static_cast<T*>(weights);
  const T* const g = static_cast<const T*>(gradients);
  const int64_t whole = n / W * W, rest = n - whole;
  if (!rule.has_momentum) {
    const NoMomenta none;
    step_blocks(w, g, none, bits, whole, rule);
    if (rest) step_tail(w + whole, g + whole, none, bits + whole / 8, rest, rule);
    return;
  }
  T* const m = static_cast<T*>(momenta);
  const MomentaInPlace<T> in_place{m};
  step_blocks(w, g, in_place, bits, whole, rule);
  if (rest == 0) return;
  Tail<T> tm(m + whole, rest);
  const MomentaInPlace<T> in_tail{tm.x};
  step_tail(w + whole, g + whole, in_tail, bits + whole / 8, rest, rule);
  memcpy(m + whole, tm.x, static_cast<size_t>(rest) * sizeof(T));
}

template <class T>
void step_packed(void* weights, const void* gradients, void* momenta, int64_t active, const uint8_t* bits, int64_t n,
                 const SgdRule& rule) {
  T* const w = static_cast<T*>(weights);
  const T* const g = static_cast<const T*>(gradients);
  const int64_t whole = n / W * W, rest = n - whole;
  MomentaInRow<T> m(static_cast<T*>(momenta), active);
  step_blocks(w, g, m, bits, whole, rule);
  if (rest) step_tail(w + whole, g + whole, m, bits + whole / 8, rest, rule);
  m.copy();
}

}  // namespace
}  // namespace dstee::cpu
