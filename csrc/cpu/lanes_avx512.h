// Sixteen lanes of AVX-512 (F, BW, VL, DQ). Included by loops_avx512.cpp only, after its target pragma.
#pragma once

#include <immintrin.h>

#include "loops.h"

namespace dstee::cpu {
namespace {

constexpr int W = 16;
constexpr bool kVectors = true;
typedef __m512 V;  // its operators +, -, *, / come with the compiler
typedef uint32_t U __attribute__((vector_size(64)));

DSTEE_INLINE __m512i i(U x) { return (__m512i)x; }
DSTEE_INLINE U u(__m512i x) { return (U)x; }
DSTEE_INLINE U splat(uint32_t x) { return u(_mm512_set1_epi32(static_cast<int>(x))); }

DSTEE_INLINE V load(const float* p) { return _mm512_loadu_ps(p); }
DSTEE_INLINE V load(const bf16* p) {
  const __m256i raw = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(raw), 16));
}
DSTEE_INLINE V load(const f16* p) { return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))); }

DSTEE_INLINE void store(float* p, uint32_t lanes, V x) { _mm512_mask_storeu_ps(p, static_cast<__mmask16>(lanes), x); }
DSTEE_INLINE void store(bf16* p, uint32_t lanes, V x) {
  const U b = u(_mm512_castps_si512(x));
  const __mmask16 nan = _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q);
  const U rounded = (b + 0x7FFFu + ((b >> 16) & 1u)) >> 16;
  const __m512i out = _mm512_mask_mov_epi32(i(rounded), nan, _mm512_set1_epi32(0x7FC0));
  _mm256_mask_storeu_epi16(p, static_cast<__mmask16>(lanes), _mm512_cvtepi32_epi16(out));
}
DSTEE_INLINE void store(f16* p, uint32_t lanes, V x) {
  const __m256i out = _mm512_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  _mm256_mask_storeu_epi16(p, static_cast<__mmask16>(lanes), out);
}

DSTEE_INLINE V absolute(V x) { return _mm512_castsi512_ps(i(u(_mm512_castps_si512(x)) & 0x7FFFFFFFu)); }
DSTEE_INLINE U drop_keys(V x) {
  const U key = splat(kInfBits) - (u(_mm512_castps_si512(x)) & 0x7FFFFFFFu);  // that of a NaN wraps around
  return u(_mm512_min_epu32(i(key), i(splat(kMaxRank))));
}
DSTEE_INLINE U signed_ranks(V x) {
  const U rank = splat(kMaxRank) - drop_keys(x), minus = splat(0) - (u(_mm512_castps_si512(x)) >> 31);
  return (splat(kMaxRank) + (((rank - 1u) ^ minus) - minus)) & (U)(rank != splat(0));
}
// rank_of(x), where x has no sign; number_rank: nor is NaN.
DSTEE_INLINE U number_rank(V x) { return u(_mm512_castps_si512(x)) + 1u; }
DSTEE_INLINE U rank(V x) {
  const U next = number_rank(x);
  return u(_mm512_maskz_mov_epi32(_mm512_cmple_epu32_mask(i(next), i(splat(kMaxRank))), i(next)));
}
DSTEE_INLINE V to_unit(U x) { return _mm512_cvtepi32_ps(i(x)) * kRandomUnit; }
DSTEE_INLINE U iota(uint32_t base) { return u(_mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15)) + base; }
DSTEE_INLINE U load_keys(const uint32_t* p) { return u(_mm512_loadu_si512(p)); }
DSTEE_INLINE uint32_t lanes_of(const uint8_t* bits) {
  uint16_t lanes;
  memcpy(&lanes, bits, sizeof lanes);
  return lanes;
}

// Lanes as a mask register holds them. Where a <= b, a == b; of `among` those where a <= b, a < b.
typedef __mmask16 Mask;
DSTEE_INLINE Mask less_equal(U a, U b) { return _mm512_cmple_epu32_mask(i(a), i(b)); }
DSTEE_INLINE Mask less_equal(Mask among, U a, U b) { return _mm512_mask_cmple_epu32_mask(among, i(a), i(b)); }
DSTEE_INLINE Mask less(Mask among, U a, U b) { return _mm512_mask_cmplt_epu32_mask(among, i(a), i(b)); }
DSTEE_INLINE Mask equal(U a, U b) { return _mm512_cmpeq_epi32_mask(i(a), i(b)); }
DSTEE_INLINE Mask without(Mask a, Mask b) { return _kandn_mask16(b, a); }
// Of `among` those where a > b, a >= b, neither; the last holds where one is NaN, the others do not.
DSTEE_INLINE Mask greater(Mask among, V a, V b) { return _mm512_mask_cmp_ps_mask(among, a, b, _CMP_GT_OQ); }
DSTEE_INLINE Mask at_least(Mask among, V a, V b) { return _mm512_mask_cmp_ps_mask(among, a, b, _CMP_GE_OQ); }
DSTEE_INLINE Mask not_greater(Mask among, V a, V b) { return _mm512_mask_cmp_ps_mask(among, a, b, _CMP_NGT_UQ); }
DSTEE_INLINE Mask below(Mask among, V a, V b) { return _mm512_mask_cmp_ps_mask(among, a, b, _CMP_NGE_UQ); }
DSTEE_INLINE uint32_t lanes_in(Mask mask) {
#ifdef __clang__
  return mask;
#else  // where gcc 12 widens a mask itself, it may spill two bytes of it and read back four
  uint32_t lanes;
  asm("kmovw %1, %0" : "=r"(lanes) : "k"(mask));
  return lanes;
#endif
}
DSTEE_INLINE size_t count_of(Mask mask) { return static_cast<size_t>(__builtin_popcount(lanes_in(mask))); }
// How many lanes there were in all, without taking each mask out of its register.
struct Tally {
  __m512i count;
  DSTEE_INLINE Tally() : count(_mm512_setzero_si512()) {}
  DSTEE_INLINE void add(Mask mask) { count = _mm512_mask_add_epi32(count, mask, count, _mm512_set1_epi32(1)); }
  DSTEE_INLINE size_t total() const { return static_cast<size_t>(_mm512_reduce_add_epi32(count)); }
};
DSTEE_INLINE void store_lanes(uint8_t* bits, uint32_t lanes) {
  const auto two = static_cast<uint16_t>(lanes);
  memcpy(bits, &two, sizeof two);
}

// The bits of each value, behind zeros where it has 16.
DSTEE_INLINE U load_raw(const float* p) { return u(_mm512_loadu_si512(p)); }
DSTEE_INLINE U load_raw(const bf16* p) {
  return u(_mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))));
}
DSTEE_INLINE U load_raw(const f16* p) { return load_raw(reinterpret_cast<const bf16*>(p)); }

DSTEE_INLINE V spread_value(float x) { return _mm512_set1_ps(x); }

// Stored counters; flip_count of some of them, in place.
DSTEE_INLINE __m256i raw_counts(const int16_t* p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)); }
DSTEE_INLINE U load_counts(const int16_t* p) { return u(_mm512_cvtepi16_epi32(raw_counts(p))); }
DSTEE_INLINE void flip_counts(int16_t* p, Mask lanes, int32_t round) {
  const __m256i flipped = _mm256_sub_epi16(_mm256_set1_epi16(static_cast<int16_t>(round + 1)), raw_counts(p));
  _mm256_mask_storeu_epi16(p, lanes, flipped);
}
// The same of 32.
DSTEE_INLINE void flip_turn(int16_t* p, uint32_t lanes, int32_t round) {
  const __m512i all = _mm512_set1_epi16(static_cast<int16_t>(round + 1));
  _mm512_mask_storeu_epi16(p, lanes, _mm512_sub_epi16(all, _mm512_loadu_si512(p)));
}

// What counters are worth: the entry of counter_of. Those below 32 are looked up in two registers, larger ones (rare: weights
// often active and dropped again) gathered.
struct Bonus {
  static constexpr uint32_t kNear = 32;
  const float* table;
  uint32_t last;
  V low, high;

  DSTEE_INLINE Bonus(const float* t, uint32_t size) : table(t), last(size - 1) {
    alignas(64) float head[kNear] = {};
    for (uint32_t j = 0; j < kNear && j < size; ++j) head[j] = read<float>(t, j);
    low = _mm512_load_ps(head);
    high = _mm512_load_ps(head + 16);
  }
  // For tables of at most kNear entries.
  DSTEE_INLINE V near(U counters) const {
    return _mm512_permutex2var_ps(low, _mm512_min_epu32(i(counters), i(splat(last))), high);
  }
  // Only of `lanes`, elsewhere anything.
  DSTEE_INLINE V at(U counters, Mask lanes) const {
    const __m512i N = _mm512_maskz_min_epu32(lanes, i(counters), i(splat(last)));
    const __mmask16 large = _mm512_cmpgt_epi32_mask(N, _mm512_set1_epi32(kNear - 1));
    const V near = _mm512_permutex2var_ps(low, N, high);
    return large == 0 ? near : _mm512_mask_i32gather_ps(near, large, N, table, 4);
  }
};

// Compressing in a register and storing it whole is quick on every processor; vpcompressd to memory is not.
DSTEE_INLINE void compress(uint32_t* out, U x, Mask lanes) {
  _mm512_storeu_si512(out, _mm512_maskz_compress_epi32(lanes, i(x)));
}

// The chosen lanes of x at the front, and the inverse: the front of x in the chosen lanes. The others may be anything.
DSTEE_INLINE V compress(V x, uint32_t lanes) { return _mm512_maskz_compress_ps(static_cast<__mmask16>(lanes), x); }
DSTEE_INLINE V expand(V x, uint32_t lanes) { return _mm512_maskz_expand_ps(static_cast<__mmask16>(lanes), x); }
// The others are 0.
DSTEE_INLINE U expand(U x, uint32_t lanes) { return u(_mm512_maskz_expand_epi32(static_cast<__mmask16>(lanes), i(x))); }

}  // namespace
}  // namespace dstee::cpu
