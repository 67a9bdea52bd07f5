#include "loops.h"

#include <atomic>
#include <cstring>

#if DSTEE_X86
#include <cpuid.h>
#include <xmmintrin.h>
#endif

namespace dstee::cpu {

const uint8_t kNoBits[kBlock / 8] = {};

namespace {

std::atomic<const Loops*> forced{nullptr};

const Loops* by_name(const char* name) {
  if (!strcmp(name, "scalar")) return &kScalarLoops;
#if DSTEE_X86
  if (!strcmp(name, "avx2")) return &kAvx2Loops;
  if (!strcmp(name, "avx512")) return &kAvx512Loops;
#endif
  return nullptr;
}

#if DSTEE_X86
// Clang's __builtin_cpu_supports does not know of it.
bool cpu_has_f16c() {
  unsigned a = 0, b = 0, c = 0, d = 0;
  return __get_cpuid(1, &a, &b, &c, &d) && (c & bit_F16C);
}
#endif

const Loops& widest() {
#if DSTEE_X86
  if (cpu_has("avx512")) return kAvx512Loops;
  if (cpu_has("avx2")) return kAvx2Loops;
#endif
  return kScalarLoops;
}

}  // namespace

bool cpu_has(const char* name) {
  if (!strcmp(name, "scalar")) return true;
#if DSTEE_X86
  if (!strcmp(name, "avx2"))
    return __builtin_cpu_supports("avx2") && cpu_has_f16c() && __builtin_cpu_supports("popcnt") &&
           __builtin_cpu_supports("bmi") && __builtin_cpu_supports("bmi2");
  if (!strcmp(name, "avx512"))
    return cpu_has("avx2") && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
#endif
  return false;
}

const Loops& loops() {
  static const Loops& best = widest();
  const Loops* chosen = forced.load(std::memory_order_relaxed);
  return chosen ? *chosen : best;
}

bool force_isa(const char* name) {
  if (!strcmp(name, "auto")) {
    forced = nullptr;
    return true;
  }
  const Loops* chosen = by_name(name);
  if (!chosen || !cpu_has(name)) return false;
  forced = chosen;
  return true;
}

#if DSTEE_X86
StrictFloat::StrictFloat() : saved_(_mm_getcsr()) { _mm_setcsr(0x1F80); }
StrictFloat::~StrictFloat() { _mm_setcsr(saved_); }
#else
StrictFloat::StrictFloat() = default;
StrictFloat::~StrictFloat() = default;
#endif

}  // namespace dstee::cpu
