// Races on the shared memory of a block, down to bytes: two accesses, one of them a write, by threads that neither a barrier nor
// a bar.warp.sync orders. Atomics and volatile accesses do not race with each other. Also reads of what nobody wrote.
//
// Order is a clock that goes on at each barrier and warp synchronisation of any block, so that nothing is cleared in between.
#pragma once

#include <cstdint>
#include <vector>

#include "program.h"

namespace ptx {

using Time = uint64_t;

// What orders the accesses of a thread: the latest barrier of its block, synchronisation of its whole warp, and of some lanes.
struct Ordering {
  Time block_start = 0, barrier = 0, warp = 0, partial = 0;
  uint32_t partial_lanes = 0;  // 0 where the thread is not among them
};

struct SharedAccess {
  uint32_t first = 0, bytes = 0;
  uint32_t thread = 0, at = 0;  // at: the instruction
  bool reads = false, writes = false, strong = false;
  Time now = 0;
};

struct Race {
  enum class Kind { kNone, kWriteWrite, kReadAfterWrite, kWriteAfterRead, kUninitialised } kind = Kind::kNone;
  uint32_t byte = 0;            // offset in shared memory
  uint32_t thread = 0, at = 0;  // the other access
};

class SharedRaces {
 public:
  // bytes: whether there may be accesses of less than a word.
  void reset(size_t shared_bytes, bool bytes);
  Race note(const SharedAccess& access, const Ordering& order);

 private:
  struct Reads {
    Time time = 0;
    uint32_t lanes = 0, warp = 0, at = 0;
    bool strong = false;
  };
  struct Record {
    Time write_time = 0;
    uint32_t write_thread = 0, write_at = 0;
    bool write_strong = false;
    Reads reads[2];  // the latest, and the latest of another warp
    Time part_time = 0;  // of a word: the latest access to a part of it
  };

  static bool concurrent(Time time, uint32_t warp, uint32_t lane_bit, const SharedAccess& a, const Ordering& o);
  static Race check(const Record& r, const SharedAccess& a, const Ordering& o);
  static void update(Record& r, const SharedAccess& a, const Ordering& o);

  std::vector<Record> words_, bytes_;
};

}  // namespace ptx
