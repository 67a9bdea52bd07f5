// For the tests: faults that the fast path must survive, and what the last update did.
#pragma once

#include <cstdint>

namespace dstee {

// "none", "miss" (no layer's bracket holds) or "overflow" (no list has room). False for anything else.
bool force_fault(const char* mode);

struct UpdateStats {
  int64_t fallback_layers, list_entries;
};
UpdateStats last_update_stats();

}  // namespace dstee
