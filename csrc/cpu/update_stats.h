// For the tests: what the last drop_grow_ call on the CPU did.
#pragma once

#include <cstdint>

namespace dstee::cpu {

struct UpdateStats {
  int64_t fallback_layers, list_entries;
};
UpdateStats last_update_stats();

}  // namespace dstee::cpu
