// The loops over weights, once per instruction set, and the choice among them at run time.
//
// A loop sees one block: n consecutive weights of a layer whose first weight starts a byte of the bit mask. `bits` always
// points at that byte. Pointers to weights may be unaligned.
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

// Growth candidates: inactive weights whose (rank of score, rank of |signal|) is at least (low_score, low_signal).
struct GrowScan {
  const void* signal = nullptr;     // null for kRandom
  const int16_t* counts = nullptr;  // null: no bonus
  const float* bonus = nullptr;
  uint32_t bonus_size = 0;
  uint64_t seed = 0;             // kRandom
  uint64_t first_index = 0;      // of the block in its layer, kRandom
  const Place* place = nullptr;  // of the layer in its whole, kRandom; null: it is the whole
  uint32_t low_score = 1, low_signal = 0;
  // Weights and momenta (or null) that the loop after this one reads: their active groups are prefetched on the way, which
  // hides the latency of what is too sparse to stream.
  const char *next_w = nullptr, *next_m = nullptr;
  int64_t next_size = 0;  // of an element
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
  // Appends (rank of score, index) of the candidates to the lists and returns how many; by dtype of the signal.
  size_t (*scan_grow[4])(const GrowScan& scan, const uint8_t* bits, int64_t n, uint32_t index, uint32_t* score,
                         uint32_t* where);
  // Appends (drop_key(x), index) of the active weights with a key >= low; by dtype of x.
  size_t (*scan_drop[3])(const void* x, const uint8_t* bits, int64_t n, uint32_t low, uint32_t index, uint32_t* key,
                         uint32_t* where);
  // Appends (key in that order, index) of the active weights with low <= key <= high; by dtype of x.
  size_t (*scan_keys[3])(const void* x, const uint8_t* bits, int64_t n, Order order, uint32_t low, uint32_t high,
                         uint32_t index, uint32_t* key, uint32_t* where);
  // The noise of hashed_noise_ at n indices of a layer, from `first` on; four seeds.
  void (*noise)(float* out, int64_t n, uint64_t first, const Place& place, const int64_t* seeds);
  // Of list arrays: keeps, in order and in place, the entries of a (and b, unless null) whose key lies in [low, high];
  // returns how many. copy_between collects the keys themselves; `out` needs slack.
  size_t (*keep_between)(const uint32_t* key, size_t count, uint32_t low, uint32_t high, uint32_t* a, uint32_t* b);
  size_t (*copy_between)(const uint32_t* key, size_t count, uint32_t low, uint32_t high, uint32_t* out);
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
