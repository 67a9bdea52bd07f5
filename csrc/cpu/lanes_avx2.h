// Eight lanes of AVX2 (with F16C). Included by loops_avx2.cpp only, after its target pragma.
#pragma once

#include <immintrin.h>

#include "loops.h"

namespace dstee::cpu {
namespace {

constexpr int W = 8;
constexpr bool kVectors = true;
typedef __m256 V;  // its operators +, -, *, / come with the compiler
typedef uint32_t U __attribute__((vector_size(32)));

DSTEE_INLINE __m256i i(U x) { return (__m256i)x; }
DSTEE_INLINE U u(__m256i x) { return (U)x; }
DSTEE_INLINE U splat(uint32_t x) { return u(_mm256_set1_epi32(static_cast<int>(x))); }
DSTEE_INLINE __m128i load16(const void* p) { return _mm_loadu_si128(static_cast<const __m128i*>(p)); }

// Lane bits <-> a vector of all-ones and all-zeros lanes.
DSTEE_INLINE __m256i spread(uint32_t lanes) {
  const __m256i bit = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
  return _mm256_cmpeq_epi32(_mm256_and_si256(_mm256_set1_epi32(static_cast<int>(lanes)), bit), bit);
}
DSTEE_INLINE uint32_t gather_bits(__m256i x) { return static_cast<uint32_t>(_mm256_movemask_ps(_mm256_castsi256_ps(x))); }

DSTEE_INLINE V load(const float* p) { return _mm256_loadu_ps(p); }
DSTEE_INLINE V load(const bf16* p) { return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(load16(p)), 16)); }
DSTEE_INLINE V load(const f16* p) { return _mm256_cvtph_ps(load16(p)); }

DSTEE_INLINE void store16(void* p, uint32_t lanes, __m128i x) {
  const __m256i wide = spread(lanes);
  const __m128i keep = _mm_packs_epi32(_mm256_castsi256_si128(wide), _mm256_extracti128_si256(wide, 1));
  _mm_storeu_si128(static_cast<__m128i*>(p), _mm_blendv_epi8(load16(p), x, keep));
}
DSTEE_INLINE void store(float* p, uint32_t lanes, V x) { _mm256_maskstore_ps(p, spread(lanes), x); }
DSTEE_INLINE void store(bf16* p, uint32_t lanes, V x) {
  const U b = u(_mm256_castps_si256(x));
  const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(x, x, _CMP_UNORD_Q));
  const U rounded = (b + 0x7FFFu + ((b >> 16) & 1u)) >> 16;
  const __m256i out = _mm256_blendv_epi8(i(rounded), _mm256_set1_epi32(0x7FC0), nan);
  store16(p, lanes, _mm_packus_epi32(_mm256_castsi256_si128(out), _mm256_extracti128_si256(out, 1)));
}
DSTEE_INLINE void store(f16* p, uint32_t lanes, V x) {
  store16(p, lanes, _mm256_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}

DSTEE_INLINE V absolute(V x) { return _mm256_castsi256_ps(i(u(_mm256_castps_si256(x)) & 0x7FFFFFFFu)); }
DSTEE_INLINE U drop_keys(V x) {
  const U key = splat(kInfBits) - (u(_mm256_castps_si256(x)) & 0x7FFFFFFFu);  // that of a NaN wraps around
  return u(_mm256_min_epu32(i(key), i(splat(kMaxRank))));
}
DSTEE_INLINE U signed_ranks(V x) {
  const U rank = splat(kMaxRank) - drop_keys(x), minus = splat(0) - (u(_mm256_castps_si256(x)) >> 31);
  return (splat(kMaxRank) + (((rank - 1u) ^ minus) - minus)) & (U)(rank != splat(0));
}
// rank_of(x), where x has no sign; number_rank: nor is NaN.
DSTEE_INLINE U number_rank(V x) { return u(_mm256_castps_si256(x)) + 1u; }
DSTEE_INLINE U rank(V x) {
  const __m256i bits = _mm256_castps_si256(x), nan = _mm256_cmpgt_epi32(bits, i(splat(kInfBits)));
  return u(_mm256_andnot_si256(nan, i(u(bits) + 1u)));
}
DSTEE_INLINE V to_unit(U x) { return _mm256_cvtepi32_ps(i(x)) * kRandomUnit; }
DSTEE_INLINE U iota(uint32_t base) { return u(_mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7)) + base; }
DSTEE_INLINE U load_keys(const uint32_t* p) { return u(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))); }
DSTEE_INLINE uint32_t lanes_of(const uint8_t* bits) { return *bits; }

typedef uint32_t Mask;
// Where a <= b, a == b; of `among` those where a <= b, a < b.
DSTEE_INLINE Mask less_equal(U a, U b) { return gather_bits(_mm256_cmpeq_epi32(_mm256_min_epu32(i(a), i(b)), i(a))); }
DSTEE_INLINE Mask less_equal(Mask among, U a, U b) { return less_equal(a, b) & among; }
DSTEE_INLINE Mask less(Mask among, U a, U b) { return among & ~less_equal(b, a); }
DSTEE_INLINE Mask equal(U a, U b) { return gather_bits(_mm256_cmpeq_epi32(i(a), i(b))); }
DSTEE_INLINE Mask without(Mask a, Mask b) { return a & ~b; }
// Of `among` those where a > b, a >= b; where not, which holds for NaN too.
DSTEE_INLINE Mask lanes_of(V compared) { return static_cast<Mask>(_mm256_movemask_ps(compared)); }
DSTEE_INLINE Mask greater(Mask among, V a, V b) { return lanes_of(_mm256_cmp_ps(a, b, _CMP_GT_OQ)) & among; }
DSTEE_INLINE Mask at_least(Mask among, V a, V b) { return lanes_of(_mm256_cmp_ps(a, b, _CMP_GE_OQ)) & among; }
DSTEE_INLINE Mask not_greater(Mask among, V a, V b) { return lanes_of(_mm256_cmp_ps(a, b, _CMP_NGT_UQ)) & among; }
DSTEE_INLINE Mask below(Mask among, V a, V b) { return lanes_of(_mm256_cmp_ps(a, b, _CMP_NGE_UQ)) & among; }
DSTEE_INLINE uint32_t lanes_in(Mask mask) { return mask; }
DSTEE_INLINE size_t count_of(Mask mask) { return static_cast<size_t>(__builtin_popcount(mask)); }
// How many lanes there were in all.
struct Tally {
  size_t count = 0;
  DSTEE_INLINE void add(Mask mask) { count += count_of(mask); }
  DSTEE_INLINE size_t total() const { return count; }
};
DSTEE_INLINE void store_lanes(uint8_t* bits, uint32_t lanes) { *bits = static_cast<uint8_t>(lanes); }

// The bits of each value, behind zeros where it has 16.
DSTEE_INLINE U load_raw(const float* p) { return u(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))); }
DSTEE_INLINE U load_raw(const bf16* p) { return u(_mm256_cvtepu16_epi32(load16(p))); }
DSTEE_INLINE U load_raw(const f16* p) { return u(_mm256_cvtepu16_epi32(load16(p))); }

DSTEE_INLINE V spread_value(float x) { return _mm256_set1_ps(x); }

// Stored counters; flip_count of some of them, in place.
DSTEE_INLINE U load_counts(const int16_t* p) { return u(_mm256_cvtepi16_epi32(load16(p))); }
DSTEE_INLINE void flip_counts(int16_t* p, Mask lanes, int32_t round) {
  if (lanes) store16(p, lanes, _mm_sub_epi16(_mm_set1_epi16(static_cast<int16_t>(round + 1)), load16(p)));
}
// The same of 32.
DSTEE_INLINE void flip_turn(int16_t* p, uint32_t lanes, int32_t round) {
  if (lanes)
    for (int k = 0; k < 32; k += W) flip_counts(p + k, lanes >> k & 0xFFu, round);
}

// What counters are worth: the entry of counter_of. Those below 8 are looked up in a register, larger ones gathered.
struct Bonus {
  static constexpr uint32_t kNear = 8;
  const float* table;
  uint32_t last;
  V low;

  DSTEE_INLINE Bonus(const float* t, uint32_t size) : table(t), last(size - 1) {
    alignas(32) float head[kNear] = {};
    for (uint32_t j = 0; j < kNear && j < size; ++j) head[j] = read<float>(t, j);
    low = _mm256_load_ps(head);
  }
  // For tables of at most kNear entries.
  DSTEE_INLINE V near(U counters) const { return _mm256_permutevar8x32_ps(low, _mm256_min_epu32(i(counters), i(splat(last)))); }
  // Only of `lanes`, elsewhere anything.
  DSTEE_INLINE V at(U counters, Mask lanes) const {
    const __m256i N = _mm256_min_epu32(_mm256_and_si256(i(counters), spread(lanes)), i(splat(last)));
    const __m256i large = _mm256_cmpgt_epi32(N, _mm256_set1_epi32(kNear - 1));
    const V near = _mm256_permutevar8x32_ps(low, N);
    if (_mm256_testz_si256(large, large)) return near;
    return _mm256_mask_i32gather_ps(near, table, N, _mm256_castsi256_ps(large), 4);
  }
};

// For each lane mask the lanes to take, in order, and the place of each lane among them, one byte each.
struct CompressTable {
  uint64_t lanes[256], places[256];
  constexpr CompressTable() : lanes(), places() {
    for (int mask = 0; mask < 256; ++mask)
      for (int lane = 0, taken = 0; lane < 8; ++lane)
        if (mask >> lane & 1) {
          lanes[mask] |= static_cast<uint64_t>(lane) << (8 * taken);
          places[mask] |= static_cast<uint64_t>(taken++) << (8 * lane);
        }
  }
};
constexpr CompressTable kCompress;

DSTEE_INLINE __m256i bytes_to_lanes(uint64_t bytes) {
  return _mm256_cvtepu8_epi32(_mm_cvtsi64_si128(static_cast<long long>(bytes)));
}

DSTEE_INLINE void compress(uint32_t* out, U x, uint32_t lanes) {
  const __m256i packed = _mm256_permutevar8x32_epi32(i(x), bytes_to_lanes(kCompress.lanes[lanes]));
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(out), packed);
}

// The chosen lanes of x at the front, and the inverse: the front of x in the chosen lanes. The others may be anything.
DSTEE_INLINE V compress(V x, uint32_t lanes) { return _mm256_permutevar8x32_ps(x, bytes_to_lanes(kCompress.lanes[lanes])); }
DSTEE_INLINE V expand(V x, uint32_t lanes) { return _mm256_permutevar8x32_ps(x, bytes_to_lanes(kCompress.places[lanes])); }
// The others are 0.
DSTEE_INLINE U expand(U x, uint32_t lanes) {
  const __m256i placed = _mm256_permutevar8x32_epi32(i(x), bytes_to_lanes(kCompress.places[lanes]));
  return u(_mm256_and_si256(placed, spread(lanes)));
}

}  // namespace
}  // namespace dstee::cpu
