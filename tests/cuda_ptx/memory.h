// Global memory as weakly ordered as a GPU's: each multiprocessor has a first-level cache that may be stale, and stores that
// others do not see yet. Only a fence of the same block, or an access that is ordered, changes that.
//
// A store that waits belongs to its block, whose threads see it. It gets through at any time, in any order, at the latest with
// the launch's end. Atomics and volatile accesses go to the memory itself and say nothing about others.
#pragma once

#include <cstdint>
#include <vector>

#include "../cuda_host/schedule.h"

namespace ptx {

constexpr uintptr_t kSector = 32;

class Processor {
 public:
  void start();  // of a launch

  void load(uint32_t block, uintptr_t address, unsigned bytes, void* out);
  void store(uint32_t block, uintptr_t address, unsigned bytes, const void* value, cuda_host::Random& random);

  // Around an access of the memory itself.
  void bypass(uint32_t block, uintptr_t address);
  // Makes the block's stores visible, and forgets what may be stale.
  void publish(uint32_t block);
  void forget() { ++epoch_; }
  void publish_all();

 private:
  struct Line {
    uintptr_t sector = 0;
    uint64_t epoch = 0;
    char bytes[kSector];
  };
  struct Waiting {
    uintptr_t sector;
    uint32_t block, mask;  // of the bytes
    int next;
    char bytes[kSector];
  };
  static constexpr size_t kLines = 4096, kHeads = 512, kMostWaiting = 256;

  static size_t hash(uintptr_t sector) { return (sector * 0x9E3779B97F4A7C15u) >> 40; }
  int find(uintptr_t sector, uint32_t block) const;
  void complete(size_t i);  // the waiting store i

  std::vector<Line> lines_;
  std::vector<Waiting> waiting_;
  std::vector<int> heads_;
  uint64_t epoch_ = 0;
};

}  // namespace ptx
