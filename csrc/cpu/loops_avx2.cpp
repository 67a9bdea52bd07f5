#include "loops.h"

#if DSTEE_X86
#include <cstring>
// Everything below is inlined here, and GCC's own intrinsics set off the second warning.
#pragma GCC diagnostic ignored "-Wpsabi"
#ifndef __clang__
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
// No header with code that the linker could share with other files may follow the pragma, only our own loops.
#ifdef __clang__
#pragma clang attribute push(__attribute__((target("avx2,f16c,popcnt,bmi,bmi2"))), apply_to = function)
#else
#pragma GCC target("avx2,f16c,popcnt,bmi,bmi2")
#endif
#include "lanes_avx2.h"
#include "loops_over_lanes.h"

namespace dstee::cpu {
const Loops kAvx2Loops = DSTEE_LOOPS("avx2");
}
#ifdef __clang__
#pragma clang attribute pop
#endif
#endif
