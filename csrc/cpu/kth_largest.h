// The k-th largest of many keys that lie in several arrays.
#pragma once

#include "lists.h"

namespace dstee::cpu {

struct KthLargest {
  uint32_t key = 0;
  int64_t above = 0, equal = 0;  // keys larger than it, and as large as it
};

// Of less than 2^32 keys, 1 <= k <= their number. No memory but the stack. Usually the keys are looked at twice: to count what
// lies in a likely bracket, and to copy it.
KthLargest kth_largest(const Keys* arrays, size_t count, int64_t k);

}  // namespace dstee::cpu
