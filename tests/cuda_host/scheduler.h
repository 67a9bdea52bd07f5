// What stands behind cuda_host.h: a grid of fibers under a seeded random schedule, and its reports.
//
// Up to `resident` blocks are alive at once. Each thread is a fiber; lanes of a warp do not run in lock-step. A thread goes on
// until it waits for others or until a random number of atomics, fences and stores is used up; then the schedule picks anyone.
// Reported as a Fault that names kernel, block and thread: a barrier or warp operation that a named thread does not reach, a
// write beyond shared memory or a workspace, and plain stores of two blocks to one address. Memory that starts undefined on
// a GPU (shared memory, workspaces) starts as poison, so that reading it early changes the result.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <stdexcept>
#include <string>

#include "fake_runtime.h"

namespace cuda_host {

struct Fault : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// Where in the source a thread waits.
struct Site {
  const char* file = "";
  int line = 0;
  static constexpr Site here(const char* file = __builtin_FILE(), int line = __builtin_LINE()) { return {file, line}; }
};

enum class Meeting : uint8_t {
  kBarrier,
  kCount,
  kOr,
  kAnd,  // of a block
  kSyncWarp,
  kBallot,
  kAny,
  kAll,
  kSum,
  kMin,
  kMax,
  kBitOr,
  kBitAnd,
  kShuffle,
  kShuffleUp,
  kShuffleDown,
  kShuffleXor,
};

// Runs the grid to its end. Throws Fault; the process and the next launch are sound afterwards.
void run(const char* kernel, dim3 grid, dim3 block, size_t dynamic_shared_bytes, const std::function<void()>& thread_body);

// --- called by threads ---------------------------------------------------------------------------------------------------

// Waits for all threads of the block, or for the lanes of the mask; the result of the operation.
int meet_block(Meeting kind, int predicate, Site site);
uint64_t meet_warp(Meeting kind, unsigned mask, uint64_t value, int source, Site site);

// A place where another thread may take over.
constexpr int kOften = 16, kSeldom = 1;
void preempt();
inline int credit = 1 << 30;
inline void point(int weight) {
  if ((credit -= weight) < 0) preempt();
}

// The block's one static object and its dynamic memory.
void* new_static_shared(size_t bytes, size_t align);
inline void* block_static = nullptr;
inline size_t block_static_bytes = 0;
inline void* static_shared(size_t bytes, size_t align) {
  return block_static != nullptr && block_static_bytes == bytes ? block_static : new_static_shared(bytes, align);
}
char* dynamic_shared();

// Notes that this block stores to these bytes of global memory.
void note_store(const void* address, size_t bytes);

// Inside a kernel: ends the launch with a Fault. Outside: the text is kept for take_report().
void report(const std::string& text);

// --- called by the host --------------------------------------------------------------------------------------------------

// Memory for a kernel's own use: poisoned, 16-byte aligned, with guards on both sides that are looked at after each launch.
void* new_workspace(size_t bytes);
void free_workspace(void* workspace);

struct Counters {
  uint64_t launches = 0, blocks = 0, barriers = 0, warp_operations = 0, switches = 0;
};
void set_seed(uint64_t seed);      // of the schedules to come; each launch has its own
void set_resident(unsigned most);  // blocks alive at once; 0: drawn for each launch
std::string last_report();
std::string take_report();  // and forgets it
Counters counters();

}  // namespace cuda_host
