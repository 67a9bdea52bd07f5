// The scalar maths of the update, for host and device: the only place where it stands in C++.
//
// The functions are templates over the value type where a SIMD vector computes the same as a float or a CUDA thread.
// Compiled without FMA contraction (-ffp-contract=off, -fmad=false): each operation is rounded once, as in
// dstee/reference.py.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__FAST_MATH__) || (defined(__FINITE_MATH_ONLY__) && __FINITE_MATH_ONLY__ > 0)
#error "dstee must be compiled without -ffast-math and its parts: every backend returns the same bits, NaN and Inf among them"
#endif

#if defined(__CUDACC__)
#define DSTEE_HD __host__ __device__ __forceinline__
#elif defined(__GNUC__)
#define DSTEE_HD __attribute__((always_inline)) inline
#else
#define DSTEE_HD inline
#endif

namespace dstee {

// One SGD step, torch.optim.SGD's definitions. `damped` is float(1 - dampening).
struct SgdRule {
  float lr, momentum, damped, weight_decay, grad_scale;
  bool has_momentum, has_decay, scaled, nesterov, maximize, first_step;
};

// w and m become the new weight and momentum buffer.
template <class V>
DSTEE_HD void sgd(V& w, V g, V& m, const SgdRule& r) {
  V d = r.scaled ? g / r.grad_scale : g;
  if (r.maximize) d = -d;
  if (r.has_decay) d = d + w * r.weight_decay;
  V u = d;
  if (r.has_momentum) {
    m = r.first_step ? d : m * r.momentum + d * r.damped;
    u = r.nesterov ? d + m * r.momentum : m;
  }
  w = w - u * r.lr;
}

// Paper, Eq. 1; the bonus c ln(t) / (N + eps) comes from a table.
template <class V>
DSTEE_HD V score(V abs_g, V bonus) {
  return abs_g + bonus;
}

// An entry of the table of one layer, from a table of units and what they are worth there.
DSTEE_HD float scaled_bonus(float scale, double unit) { return static_cast<float>(static_cast<double>(scale) * unit); }

// The stored counter <-> N, by the parity of the mask: an inactive weight stores N, an active one round + 1 - N. A weight
// that changes state is mapped the same way (see dstee/state.py).
template <class I>
DSTEE_HD I flip_count(I stored, I round) {
  return round + 1 - stored;
}

// The counter N of a weight as a place in a table: one that the table does not have, a negative one too, takes the last.
DSTEE_HD uint32_t counter_of(int32_t stored, bool active, int32_t round, uint32_t table_size) {
  const auto N = static_cast<uint32_t>(active ? flip_count(stored, round) : stored);
  const uint32_t last = table_size - 1;
  return N < last ? N : last;
}

constexpr int32_t kMaxRound = 32765;  // the counters after its update reach 32,767, the most that int16 holds

// How many of the k wanted swaps a layer of n weights with nnz active ones has room for.
DSTEE_HD int64_t clip_swaps(int64_t k, int64_t nnz, int64_t n, bool regrow) {
  const int64_t inactive = n - nnz, most = regrow || nnz < inactive ? nnz : inactive;
  return k < 0 ? 0 : k < most ? k : most;
}

// How many of the k_grow wanted weights there are candidates for, where `dropped` of the nnz active ones go.
DSTEE_HD int64_t clip_growth(int64_t k_grow, int64_t dropped, int64_t nnz, int64_t n, bool regrow) {
  const int64_t most = n - nnz + (regrow ? dropped : 0);
  return k_grow < 0 ? 0 : k_grow < most ? k_grow : most;
}

// Where the weights of a part of a layer lie in the whole; their order stays.
struct Place {
  uint64_t base, run, pitch;
};
constexpr Place kWhole{0, ~uint64_t{0}, ~uint64_t{0}};
DSTEE_HD uint64_t global_index(const Place& p, uint64_t i) { return p.base + i / p.run * p.pitch + i % p.run; }

// A 32-bit finaliser with full avalanche.
template <class U>
DSTEE_HD U mix(U x) {
  x = x ^ (x >> 16);
  x = x * 0x7FEB352Du;
  x = x ^ (x >> 15);
  x = x * 0x846CA68Bu;
  return x ^ (x >> 16);
}

// The top 24 bits of a hash of (seed, index): times 2^-24 it is the random growth signal in [0, 1).
template <class U, class H>
DSTEE_HD U random24(U index_low, H index_high, uint64_t seed) {
  const H high = index_high + static_cast<uint32_t>(seed >> 32);
  return mix(mix(index_low + static_cast<uint32_t>(seed)) ^ high) >> 8;
}
constexpr float kRandomUnit = 1.0f / 16777216.0f;

// The sum of four such numbers, less its mean and times 2^-24: first as an integer in two's complement.
template <class U, class H>
DSTEE_HD U noise24(U index_low, H index_high, const int64_t* seeds) {
  U sum = random24(index_low, index_high, static_cast<uint64_t>(seeds[0]));
  for (int j = 1; j < 4; ++j) sum = sum + random24(index_low, index_high, static_cast<uint64_t>(seeds[j]));
  return sum + (0u - ((1u << 25) - 2));
}
DSTEE_HD float noise(uint64_t index, const int64_t* seeds) {
  const uint32_t sum = noise24(static_cast<uint32_t>(index), static_cast<uint32_t>(index >> 32), seeds);
  return static_cast<float>(static_cast<int32_t>(sum)) * kRandomUnit;
}

// The sample that growth_scale looks at: of each stratum of a layer's weights the one at a hashed place.
constexpr int64_t kMostStrata = 8192;
DSTEE_HD int64_t strata_of(int64_t n) { return n < kMostStrata ? n : kMostStrata; }
DSTEE_HD int64_t sampled_index(int64_t n, uint32_t stratum, int32_t round) {
  if (n <= kMostStrata) return stratum;
  const int64_t start = stratum * n / kMostStrata, length = (stratum + int64_t{1}) * n / kMostStrata - start;
  const uint64_t hash = mix(mix(stratum) ^ static_cast<uint32_t>(round));
  return start + static_cast<int64_t>(hash * static_cast<uint64_t>(length) >> 32);
}
// The place in that sample, from 1, of the k-th largest of the layer.
DSTEE_HD int64_t sampled_place(int64_t k, int64_t n, int64_t strata) {
  const int64_t place = k <= 0 ? 0 : ((k < n ? k : n) * strata + n - 1) / n;  // a k in a tensor may be any number
  return place < 1 ? 1 : place;
}

constexpr uint32_t kInfBits = 0x7F800000u;
constexpr uint32_t kMaxRank = kInfBits + 1;  // rank of +Inf

DSTEE_HD uint32_t bits_of(float x) {
  uint32_t u;
  memcpy(&u, &x, sizeof u);
  return u;
}
DSTEE_HD float float_of(uint32_t u) {
  float x;
  memcpy(&x, &u, sizeof x);
  return x;
}

// Element i of an array that may be unaligned, as tensors over the user's own memory are.
template <class T>
DSTEE_HD T read(const void* base, int64_t i = 0) {
  T x;
  memcpy(&x, static_cast<const char*>(base) + i * static_cast<int64_t>(sizeof x), sizeof x);
  return x;
}

// abs(x) as an integer that orders like the float: NaN -> 0, 0.0 -> 1, ..., +Inf -> kMaxRank.
DSTEE_HD uint32_t rank_of(float x) {
  const uint32_t u = bits_of(x) & 0x7FFFFFFFu;
  return u > kInfBits ? 0 : u + 1;
}

// x as an integer that orders like the float: NaN -> 0, -Inf -> 1, ..., -0.0 and 0.0 -> kMaxRank, ...
DSTEE_HD uint32_t signed_rank_of(float x) {
  const uint32_t rank = rank_of(x);
  return rank == 0 ? 0 : bits_of(x) >> 31 ? kMaxRank + 1 - rank : kMaxRank - 1 + rank;
}

// What growth_scale returns for the rank that it found, 0 where it found none.
DSTEE_HD float scale_of(uint32_t rank) { return float_of(rank <= 1 ? 0x00800000u : rank - 1); }

// What the drop ranks by: the smaller |x|, the larger the key, NaN above all.
DSTEE_HD uint32_t drop_key(float x) { return kMaxRank - rank_of(x); }

enum Dtype : int { kF32, kBF16, kF16, kRandom };  // kRandom: a growth signal that is a hash, not a tensor

DSTEE_HD int element_size(Dtype dtype) { return dtype == kF32 ? 4 : 2; }

// Storage types. Reading is exact; writing rounds once, to nearest even.
struct bf16 {
  uint16_t bits;
};
struct f16 {
  uint16_t bits;
};

DSTEE_HD float to_float(float x) { return x; }
DSTEE_HD float to_float(bf16 x) { return float_of(static_cast<uint32_t>(x.bits) << 16); }
DSTEE_HD float to_float(f16 x) {
  const uint32_t sign = (x.bits & 0x8000u) << 16, rest = x.bits & 0x7FFFu;
  if (rest >= 0x7C00u) return float_of(sign | kInfBits | ((rest & 0x3FFu) << 13));
  if (rest >= 0x400u) return float_of(sign | ((rest << 13) + 0x38000000u));
  return float_of(sign | bits_of(static_cast<float>(rest) * 5.9604644775390625e-8f));  // subnormal: rest * 2^-24, exact
}

DSTEE_HD void from_float(float x, float& out) { out = x; }
DSTEE_HD void from_float(float x, bf16& out) {
  const uint32_t u = bits_of(x);
  const bool nan = (u & 0x7FFFFFFFu) > kInfBits;
  out.bits = nan ? 0x7FC0 : static_cast<uint16_t>((u + 0x7FFFu + ((u >> 16) & 1u)) >> 16);
}
DSTEE_HD void from_float(float x, f16& out) {
  const uint32_t u = bits_of(x), sign = (u >> 16) & 0x8000u, a = u & 0x7FFFFFFFu;
  if (a > kInfBits) {
    out.bits = static_cast<uint16_t>(sign | 0x7E00u);
  } else if (a >= 0x477FF000u) {  // rounds to 65520 or more
    out.bits = static_cast<uint16_t>(sign | 0x7C00u);
  } else if (a < 0x38800000u) {  // subnormal: adding 0.5 lets the float adder round to a multiple of 2^-24
    out.bits = static_cast<uint16_t>(sign | (bits_of(float_of(a) + 0.5f) - 0x3F000000u));
  } else {
    out.bits = static_cast<uint16_t>(sign | ((a - 0x38000000u + 0xFFFu + ((a >> 13) & 1u)) >> 13));
  }
}

}  // namespace dstee
