// For the tests: what the last update did.
#pragma once

#include <cstdint>

namespace dstee {

struct UpdateStats {
  int64_t fallback_layers, list_entries;
};
UpdateStats last_update_stats();

}  // namespace dstee
