// A prefetch that is not optimised away.
#pragma once

#include "loops.h"

namespace dstee::cpu {
namespace {

// The empty statement is for gcc, to which a function that only prefetches has no effect: it leaves out calls of those around
// it.
DSTEE_INLINE void prefetch(const void* p) {
  __builtin_prefetch(p, 0, 2);
  asm volatile("");
}

}  // namespace
}  // namespace dstee::cpu
