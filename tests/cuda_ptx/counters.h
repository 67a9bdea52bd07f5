// What the launches of a kernel cost.
#pragma once

#include <cstdint>
#include <vector>

#include "program.h"

namespace ptx {

struct Count {
  uint64_t warps = 0, threads = 0;  // that executed an instruction; threads whose guard is false included
};

enum class Traffic : uint8_t { kLoad, kStore, kAtomic };

struct Counters {
  uint64_t launches = 0, blocks = 0;
  std::vector<Count> instructions;  // by place in the code
  uint64_t sectors[3] = {0, 0, 0};  // of global memory, 32 bytes each, by Traffic: what each warp's access touches
  uint64_t bytes[3] = {0, 0, 0};    // that the lanes asked for
  uint64_t wavefronts = 0;          // of shared memory

  explicit Counters(const Kernel& kernel) : instructions(kernel.code.size()) {}
};

// How often a warp's access must go to shared memory until no bank serves two words at a time; with `atomic`, one lane after
// another where they have one address.
unsigned wavefronts(const uint32_t* addresses, uint32_t lanes, unsigned bytes, bool atomic);

// The 32-byte sectors that the lanes' accesses touch. No access crosses one.
unsigned sectors(const uintptr_t* addresses, uint32_t lanes);

}  // namespace ptx
