// One launch: blocks, warps and threads as they stand, and who goes on next.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "../cuda_host/schedule.h"
#include "../cuda_host/stores.h"
#include "counters.h"
#include "memory.h"
#include "program.h"
#include "races.h"

namespace ptx {

struct Settings {
  uint64_t seed = 0;
  bool lockstep = true;     // lanes of a warp go together where they can: the least place in the code first; else at random
  unsigned resident = 8;    // blocks alive at once
  unsigned processors = 4;  // that they are spread over
  bool weak = true;         // stale caches and late stores
  bool races = true;        // report races and uninitialised reads of shared memory
};

struct Block;

struct Warp {
  Block* block = nullptr;
  char* registers = nullptr;
  uint32_t first_thread = 0;
  uint32_t all = 0, ready = 0, at_barrier = 0, in_operation = 0, exited = 0;  // lanes
  uint32_t priority = 0;
  int place = -1;              // in the list of those that can go on
  uint32_t pc[kLanes] = {};    // of lanes that are not running
  uint32_t mask[kLanes] = {};  // of the operation that a lane waits in
  Time synced = 0, partly_synced = 0;
  uint32_t partial_lanes = 0;
};

struct Block {
  uint32_t index = 0;
  Processor* processor = nullptr;
  std::vector<Warp> warps;
  std::vector<char> registers, shared, local;
  SharedRaces races;
  Time started = 0, barrier = 0;
  uint32_t arrived = 0, exited = 0, barrier_pc = 0, first_arrived = 0;
  uint32_t votes = 0;  // of a barrier that reduces
};

// The clock of races.h.
inline Time& clock() {
  static Time now = 1;
  return now;
}

struct Grid {
  unsigned blocks = 0, threads = 0;
  size_t dynamic_bytes = 0;
};

class Launch {
 public:
  // name: what reports call the kernel. parameters: as many bytes as the kernel has.
  Launch(const Kernel& kernel, const char* name, const Settings& settings, Grid grid, const char* parameters, uint64_t seed,
         Counters& counters);

  // To the end of all blocks. Throws cuda_host::Fault.
  void run();

 private:
  // scheduler.cpp
  void start(Block& b, uint32_t index);
  void turn(Warp& w);
  void run_lanes(Warp& w, uint32_t lanes, uint32_t pc, uint32_t stop, int& budget);
  Warp& pick();
  void make_runnable(Warp& w);
  void unlist(Warp& w);
  void exit_lanes(Warp& w, uint32_t lanes, uint32_t pc);

  // meetings.cpp
  void arrive_at_barrier(Warp& w, uint32_t lanes, uint32_t pc);
  // True when the lanes' operation is done; else they wait, or others have gone on with them.
  bool operate(Warp& w, uint32_t lanes, uint32_t pc);
  void combine(Warp& w, const Instruction& x, uint32_t lanes, uint32_t pc);
  void shuffle(Warp& w, const Instruction& x, uint32_t lanes, uint32_t pc);
  void synchronise(Warp& w, uint32_t lanes);
  [[noreturn]] void report_deadlock(const std::vector<const Block*>& alive);
  std::string instead(const Block& b, uint32_t thread) const;

  // accesses.cpp
  void access(Warp& w, const Instruction& x, uint32_t lanes, uint32_t pc);
  void access_shared(Warp& w, const Instruction& x, uint32_t lanes, uint32_t pc, const uintptr_t* addresses);
  void access_global(Warp& w, const Instruction& x, uint32_t lanes, uint32_t pc, const uintptr_t* addresses);
  void access_private(Warp& w, const Instruction& x, uint32_t lanes, uint32_t pc, const uintptr_t* addresses, Space space);
  void note_shared(Warp& w, const Instruction& x, unsigned lane, uint32_t pc, uint32_t first, unsigned bytes);
  void note_stores(Warp& w, uint32_t lanes, uint32_t pc, const uintptr_t* addresses, unsigned bytes);
  void convert_address(Warp& w, const Instruction& x, uint32_t lanes);
  uintptr_t base_of(const Warp& w, Space space, unsigned lane) const;
  Space space_of(const Warp& w, uintptr_t address, unsigned lane) const;

  [[noreturn]] void fault(const Block& b, uint32_t thread, uint32_t pc, const std::string& what) const;
  std::string text_of(uint32_t pc) const;

  const Kernel& kernel_;
  const char* name_;
  const Settings& settings_;
  const Grid grid_;
  const char* parameters_;
  Counters& counters_;
  cuda_host::Random random_;
  bool by_priority_ = false;
  std::vector<Warp*> runnable_;
  cuda_host::StoreMap stores_;
  uint64_t steps_ = 0;
};

}  // namespace ptx
