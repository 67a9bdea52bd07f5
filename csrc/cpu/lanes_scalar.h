// Eight lanes in plain C++: the path for any processor, and the simplest statement of what the SIMD headers do.
// Included by loops_scalar.cpp only.
#pragma once

#include "loops.h"

namespace dstee::cpu {
namespace {

constexpr int W = 8;
constexpr bool kVectors = false;  // arithmetic costs more here than reading a cache line

template <class E>
struct Lanes {
  E v[W];
};
using V = Lanes<float>;
using U = Lanes<uint32_t>;

#define DSTEE_LANES(out, expression)                   \
  do {                                                 \
    for (int j = 0; j < W; ++j) out.v[j] = expression; \
    return out;                                        \
  } while (0)

template <class E>
inline Lanes<E> splat(E x) {
  Lanes<E> r;
  DSTEE_LANES(r, x);
}
inline V operator+(V a, V b) {
  V r;
  DSTEE_LANES(r, a.v[j] + b.v[j]);
}
inline V operator-(V a, V b) {
  V r;
  DSTEE_LANES(r, a.v[j] - b.v[j]);
}
inline V operator-(V a) {
  V r;
  DSTEE_LANES(r, -a.v[j]);
}
inline V operator*(V a, float b) {
  V r;
  DSTEE_LANES(r, a.v[j] * b);
}
inline V operator/(V a, float b) {
  V r;
  DSTEE_LANES(r, a.v[j] / b);
}
inline U operator-(U a, U b) {
  U r;
  DSTEE_LANES(r, a.v[j] - b.v[j]);
}
inline U operator+(U a, uint32_t b) {
  U r;
  DSTEE_LANES(r, a.v[j] + b);
}
inline U operator+(U a, U b) {
  U r;
  DSTEE_LANES(r, a.v[j] + b.v[j]);
}
inline U operator*(U a, uint32_t b) {
  U r;
  DSTEE_LANES(r, a.v[j] * b);
}
inline U operator^(U a, U b) {
  U r;
  DSTEE_LANES(r, a.v[j] ^ b.v[j]);
}
inline U operator^(U a, uint32_t b) {
  U r;
  DSTEE_LANES(r, a.v[j] ^ b);
}
inline U operator>>(U a, int b) {
  U r;
  DSTEE_LANES(r, a.v[j] >> b);
}

template <class T>
inline V load(const T* p) {
  T x[W];
  memcpy(x, p, sizeof x);  // may be unaligned
  V r;
  DSTEE_LANES(r, to_float(x[j]));
}
template <class T>
inline void store(T* p, uint32_t lanes, V x) {
  for (int j = 0; j < W; ++j)
    if (lanes >> j & 1) {
      T rounded;
      from_float(x.v[j], rounded);
      memcpy(p + j, &rounded, sizeof rounded);
    }
}

inline V absolute(V x) {
  V r;
  DSTEE_LANES(r, float_of(bits_of(x.v[j]) & 0x7FFFFFFFu));
}
inline U drop_keys(V x) {
  U r;
  DSTEE_LANES(r, drop_key(x.v[j]));
}
inline U signed_ranks(V x) {
  U r;
  DSTEE_LANES(r, signed_rank_of(x.v[j]));
}
// rank_of(x), where x has no sign; number_rank: nor is NaN.
inline U number_rank(V x) {
  U r;
  DSTEE_LANES(r, bits_of(x.v[j]) + 1);
}
inline U rank(V x) {
  U r;
  DSTEE_LANES(r, rank_of(x.v[j]));
}
inline V to_unit(U x) {
  V r;
  DSTEE_LANES(r, static_cast<float>(static_cast<int32_t>(x.v[j])) * kRandomUnit);
}
inline U iota(uint32_t base) {
  U r;
  DSTEE_LANES(r, base + static_cast<uint32_t>(j));
}
inline U load_keys(const uint32_t* p) {
  U r;
  DSTEE_LANES(r, p[j]);
}
inline uint32_t lanes_of(const uint8_t* bits) { return *bits; }

typedef uint32_t Mask;
// Where a <= b, a == b; of `among` those where a <= b, a < b.
inline Mask less_equal(U a, U b) {
  Mask lanes = 0;
  for (int j = 0; j < W; ++j) lanes |= static_cast<Mask>(a.v[j] <= b.v[j]) << j;
  return lanes;
}
inline Mask less_equal(Mask among, U a, U b) { return less_equal(a, b) & among; }
inline Mask less(Mask among, U a, U b) { return among & ~less_equal(b, a); }
inline Mask equal(U a, U b) {
  Mask lanes = 0;
  for (int j = 0; j < W; ++j) lanes |= static_cast<Mask>(a.v[j] == b.v[j]) << j;
  return lanes;
}
inline Mask without(Mask a, Mask b) { return a & ~b; }
// Of `among` those where a > b, a >= b; where not, which holds for NaN too.
inline Mask greater(Mask among, V a, V b) {
  Mask lanes = 0;
  for (int j = 0; j < W; ++j) lanes |= static_cast<Mask>(a.v[j] > b.v[j]) << j;
  return lanes & among;
}
inline Mask at_least(Mask among, V a, V b) {
  Mask lanes = 0;
  for (int j = 0; j < W; ++j) lanes |= static_cast<Mask>(a.v[j] >= b.v[j]) << j;
  return lanes & among;
}
inline Mask not_greater(Mask among, V a, V b) { return without(among, greater(among, a, b)); }
inline Mask below(Mask among, V a, V b) { return without(among, at_least(among, a, b)); }
inline uint32_t lanes_in(Mask mask) { return mask; }
inline size_t count_of(Mask mask) { return static_cast<size_t>(__builtin_popcount(mask)); }
// How many lanes there were in all.
struct Tally {
  size_t count = 0;
  void add(Mask mask) { count += count_of(mask); }
  size_t total() const { return count; }
};
inline void store_lanes(uint8_t* bits, uint32_t lanes) { *bits = static_cast<uint8_t>(lanes); }

// The bits of each value, behind zeros where it has 16.
inline U load_raw(const float* p) {
  U r;
  DSTEE_LANES(r, read<uint32_t>(p, j));
}
template <class T>
inline U load_raw(const T* p) {
  U r;
  DSTEE_LANES(r, read<uint16_t>(p, j));
}

inline V spread_value(float x) { return splat(x); }

// Stored counters; flip_count of some of them, in place.
inline U load_counts(const int16_t* p) {
  U r;
  DSTEE_LANES(r, static_cast<uint32_t>(read<int16_t>(p, j)));
}
inline void flip_counts(int16_t* p, Mask lanes, int32_t round) {
  for (int j = 0; j < W; ++j) {
    if (!(lanes >> j & 1)) continue;
    const auto flipped = static_cast<int16_t>(flip_count<int32_t>(read<int16_t>(p, j), round));
    memcpy(p + j, &flipped, sizeof flipped);
  }
}
// The same of 32.
inline void flip_turn(int16_t* p, uint32_t lanes, int32_t round) {
  for (int k = 0; k < 32; k += W) flip_counts(p + k, lanes >> k & 0xFFu, round);
}

// What counters are worth: the entry of counter_of.
struct Bonus {
  static constexpr uint32_t kNear = 0;  // no registers: every counter is looked up in the table
  const float* table;
  uint32_t last;
  Bonus(const float* t, uint32_t size) : table(t), last(size - 1) {}
  inline V near(U counters) const { return at(counters, 0); }
  // Only of `lanes`, elsewhere anything.
  inline V at(U counters, Mask lanes) const {
    V r;
    DSTEE_LANES(r, lanes >> j & 1 ? read<float>(table, counters.v[j] < last ? counters.v[j] : last) : 0.0f);
  }
};

// The chosen lanes of x, packed to the front of `out`; up to W entries there are overwritten.
inline void compress(uint32_t* out, U x, uint32_t lanes) {
  for (int j = 0; j < W; ++j) {
    *out = x.v[j];
    out += lanes >> j & 1;
  }
}

// The chosen lanes of x at the front, and the inverse: the front of x in the chosen lanes. The others may be anything.
inline V compress(V x, uint32_t lanes) {
  V r = x;
  for (int j = 0, to = 0; j < W; ++j) {
    r.v[to] = x.v[j];
    to += lanes >> j & 1;
    to = to < W ? to : W - 1;
  }
  return r;
}
inline V expand(V x, uint32_t lanes) {
  V r;
  for (int j = 0, from = 0; j < W; ++j) {
    r.v[j] = x.v[from];
    from += lanes >> j & 1;
    from = from < W ? from : W - 1;
  }
  return r;
}

// The others are 0.
inline U expand(U x, uint32_t lanes) {
  U r;
  for (int j = 0, from = 0; j < W; ++j) {
    r.v[j] = lanes >> j & 1 ? x.v[from] : 0;
    from += lanes >> j & 1;
    from = from < W ? from : W - 1;
  }
  return r;
}

#undef DSTEE_LANES

}  // namespace
}  // namespace dstee::cpu
