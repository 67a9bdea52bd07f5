#if defined(__GNUC__) && defined(__x86_64__)
#include <immintrin.h>

#include <cstddef>
#include <cstdint>
#include <cstring>
// Everything below is inlined here, and GCC's own intrinsics set off the others.
#pragma GCC diagnostic ignored "-Wpsabi"
#ifndef __clang__
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"
#endif
// Below come our own headers only: code of others that the linker shares between files would need this processor everywhere.
// Also rules.h, whose templates take our vectors as arguments, which Clang passes as the target says where they are declared.
#ifdef __clang__
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx2,f16c,popcnt,bmi,bmi2"))), \
                             apply_to = function)
#else
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,avx2,f16c,popcnt,bmi,bmi2")
#endif
#include "lanes_avx512.h"
#include "loops_over_lanes.h"

namespace dstee::cpu {
const Loops kAvx512Loops = DSTEE_LOOPS("avx512");
}
#ifdef __clang__
#pragma clang attribute pop
#endif
#endif
