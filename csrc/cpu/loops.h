// The loops over weights, once per instruction set, and the choice among them at run time.
//
// A loop sees one block: n consecutive weights of a layer whose first weight starts a byte of the bit mask. `bits` always
// points at that byte. Pointers to weights and counters may be unaligned.
#pragma once

#include <cstddef>
#include <cstdint>

#include "../rules.h"

#if defined(__GNUC__)
#define DSTEE_INLINE __attribute__((always_inline)) inline
#else
#define DSTEE_INLINE inline
#endif

namespace dstee::cpu {

constexpr int kMaxLanes = 16;  // list arrays need this much slack behind their last entry

constexpr int64_t kBlock = 1 << 12;  // most weights of a block: with what goes with them they stay in the first cache
extern const uint8_t kNoBits[kBlock / 8];
constexpr size_t kMostGroups = kBlock / 8;
constexpr float kInfinity = __builtin_inff();
// The number with this rank; below all numbers for that of NaN.
inline float number_of(uint32_t rank) { return rank == 0 ? -1.0f : float_of(rank - 1); }

// Growth candidates: inactive weights whose (rank of score, rank of |signal|) is at least (low_score, low_signal). Those with a
// score above high_score are grown at once.
struct GrowScan {
  const uint8_t* before = nullptr;  // the mask
  uint8_t* bits = nullptr;          // the mask that is changed
  const void* signal = nullptr;     // null for kRandom
  int16_t* counts = nullptr;        // null: no counters
  const float* bonus = nullptr;
  uint32_t bonus_size = 0;
  int32_t round = 0;
  uint64_t seed = 0;             // kRandom
  uint64_t first_index = 0;      // of the block in its layer, kRandom
  const Place* place = nullptr;  // of the layer in its whole, kRandom; null: it is the whole
  uint32_t low_score = 1, low_signal = 0;
  float high_score = kInfinity;
  float* signal_out = nullptr;  // |signal| as scan_drop reads it, or null
  // Of the next block, if it is as large: which groups it has, for scan_drop; half of its signal is prefetched on the way.
  const uint8_t* next_bits = kNoBits;
  const void* next_signal = kNoBits;
};
// `plane`: whole words of 4 bytes.
struct GrowLists {
  uint32_t* key;          // ranks of scores, 0 for NaN
  uint8_t* plane;         // which weights they are of
  uint16_t* next_groups;  // room for kMostGroups: the first weights of the next block's groups with an active one
};
struct Found {
  size_t listed = 0, sure = 0, next_groups = 0;  // sure: grown at once
};

// Active weights x with |x| <= most, or NaN. Where `w` is given (it is x then), those below sure_below are surely dropped: and
// surely not grown again with a score below low_score (they go at once), or surely so above high_score (they stay). The others
// of them are listed.
struct DropScan {
  const uint8_t* before = nullptr;
  uint8_t* bits = nullptr;
  const void* x = nullptr;
  void *w = nullptr, *m = nullptr;  // that become 0; m may be null
  bool m_is_near = false;           // the step has just read it
  const float* signal = nullptr;    // any sign
  int16_t* counts = nullptr;
  const float* bonus = nullptr;
  uint32_t bonus_size = 0;
  int32_t round = 0;
  float most = kInfinity, sure_below = 0, low_score = kInfinity, high_score = kInfinity;
  const uint16_t* groups = nullptr;  // first weights of those with an active one, as the block before or active_groups found
  size_t group_count = 0;
  // Of the next block, prefetched on the way: hardware does not follow what is too sparse to stream. The other half of the
  // signal; weights and momenta (or null) of its groups, of which there are kMostGroups, whatever the last ones hold.
  const void* next_signal = kNoBits;
  size_t next_bytes = 0;
  const uint16_t* next_groups = nullptr;
  size_t next_count = 0;
  const void *next_w = kNoBits, *next_m = nullptr;
  int64_t next_size = 0;  // of an element
};
struct DropLists {
  uint32_t *key, *regrow_key;  // drop_key(x), rank of the score
  uint32_t *undo_w, *undo_m;   // the bits of what became 0
  uint8_t* plane;
};
struct Dropped {
  size_t listed = 0, gone = 0, back = 0;  // of the sure ones some are gone at once, some back at once
};

// What comes first, and the key that is largest there: the largest |x| (rank_of), the largest x (signed_rank_of), the smallest
// |x| (drop_key).
enum Order : int { kLargest, kLargestSigned, kSmallest };

struct Loops {
  const char* name;
  // Masked SGD, by dtype of the parameters; m is null without momentum.
  void (*step[3])(void* w, const void* g, void* m, const uint8_t* bits, int64_t n, const SgdRule& rule);
  // The same with the momenta of the n weights' active ones alone, which follow each other; the rule has a momentum.
  void (*step_packed[3])(void* w, const void* g, void* m, int64_t active, const uint8_t* bits, int64_t n, const SgdRule& rule);
  // From the `count` packed momenta of n weights' mask `before` to those of `now`, as raw bits behind zeros where they have 16;
  // 0 for weights that were not active. `out` needs slack.
  void (*repack[3])(const void* rows, int64_t count, const uint8_t* before, const uint8_t* now, int64_t n, uint32_t* out);
  // Writes the first weights of the groups that have an active one, as many weights as the processor takes at a time; of
  // multiples of 32. Returns how many groups there are.
  size_t (*active_groups)(const uint8_t* bits, int64_t n, uint16_t* groups);
  // Of one block each, which scan_grow sees first. By dtype of the signal; of x.
  Found (*scan_grow[4])(const GrowScan& scan, int64_t n, const GrowLists& out);
  Dropped (*scan_drop[3])(const DropScan& scan, int64_t n, const DropLists& out);
  // Writes `first` plus the place of each bit; returns how many.
  size_t (*places_of)(const uint8_t* plane, int64_t n, uint32_t first, uint32_t* where);
  // Appends (key in that order, index) of the active weights with low <= key <= high; by dtype of x.
  size_t (*scan_keys[3])(const void* x, const uint8_t* bits, int64_t n, Order order, uint32_t low, uint32_t high,
                         uint32_t index, uint32_t* key, uint32_t* where);
  // The noise of hashed_noise_ at n indices of a layer, from `first` on; four seeds.
  void (*noise)(float* out, int64_t n, uint64_t first, const Place& place, const int64_t* seeds);
  // Of list arrays: keeps, in order and in place, the entries of a and b (which may be the keys) whose key lies in [low, high],
  // low <= high; returns how many. copy_between copies such entries of `from`; `out` needs slack.
  size_t (*keep_between)(const uint32_t* key, size_t count, uint32_t low, uint32_t high, uint32_t* a, uint32_t* b);
  size_t (*copy_between)(const uint32_t* key, size_t count, uint32_t low, uint32_t high, const uint32_t* from, uint32_t* out);
  size_t (*count_between)(const uint32_t* key, size_t count, uint32_t low, uint32_t high);
  // Of the keys in [low, high]: one more in bins[(key - low) >> shift].
  void (*count_bins)(const uint32_t* key, size_t count, uint32_t low, uint32_t high, int shift, uint32_t* bins);
  // Lowers *low and raises *high to the smallest and largest key.
  void (*min_max)(const uint32_t* key, size_t count, uint32_t* low, uint32_t* high);
  int64_t (*count_bits)(const uint8_t* bits, int64_t bytes);
};

extern const Loops kScalarLoops;
#if defined(__GNUC__) && defined(__x86_64__)
#define DSTEE_X86 1
extern const Loops kAvx2Loops, kAvx512Loops;
#else
#define DSTEE_X86 0
#endif

// The loops in force: the widest that the processor has, or the one forced.
const Loops& loops();
// Forces "scalar", "avx2" or "avx512"; "auto" resets. False when the processor lacks it or the name is unknown.
bool force_isa(const char* name);
bool cpu_has(const char* name);

// Rounding to nearest with gradual underflow on the calling thread, whatever the caller set (torch.set_flush_denormal).
class StrictFloat {
 public:
  StrictFloat();
  ~StrictFloat();
  StrictFloat(const StrictFloat&) = delete;
  StrictFloat& operator=(const StrictFloat&) = delete;

 private:
  unsigned saved_ = 0;
};

}  // namespace dstee::cpu
