#include "counters.h"

#include <algorithm>

namespace ptx {

unsigned wavefronts(const uint32_t* addresses, uint32_t lanes, unsigned bytes, bool atomic) {
  uint32_t words[kLanes * 4];  // that are moved, each once
  uint8_t ways[kLanes] = {};   // by bank
  unsigned count = 0;
  unsigned most = 1;
  uint8_t lanes_of_word[kLanes * 4];
  for (; lanes != 0; lanes &= lanes - 1) {
    const uint32_t a = addresses[__builtin_ctz(lanes)];
    for (uint32_t w = a / 4; w <= (a + bytes - 1) / 4; ++w) {
      unsigned i = count;
      if (count > 0 && words[count - 1] == w)
        i = count - 1;
      else if (ways[w % kLanes] != 0)
        i = static_cast<unsigned>(std::find(words, words + count, w) - words);
      if (i == count) {
        words[count] = w;
        lanes_of_word[count++] = 0;
        most = std::max<unsigned>(most, ++ways[w % kLanes]);
      }
      if (atomic) most = std::max<unsigned>(most, ++lanes_of_word[i]);
    }
  }
  return most;
}

unsigned sectors(const uintptr_t* addresses, uint32_t lanes) {
  uintptr_t seen[kLanes];
  unsigned count = 0;
  for (; lanes != 0; lanes &= lanes - 1) {
    const uintptr_t sector = addresses[__builtin_ctz(lanes)] / 32;
    if (count > 0 && seen[count - 1] == sector) continue;
    if (std::find(seen, seen + count, sector) == seen + count) seen[count++] = sector;
  }
  return count;
}

}  // namespace ptx
