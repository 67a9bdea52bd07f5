// The implementation behind cuda_host.h: a grid of fibers under a seeded random schedule, and its reports.
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
#include <map>
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
  kShuffle,
  kShuffleUp,
  kShuffleDown,
  kShuffleXor,
};

// An argument of a kernel, converted to its parameter's type.
struct Argument {
  const void* address;
  size_t bytes, align;
};

struct Call {
  const char* kernel;  // its name in reports
  const char* tag;     // the mangled name of KernelTag<kernel>
  unsigned blocks, threads;
  size_t dynamic_bytes;
  const Argument* arguments;
  size_t count;
};

// Runs the grid to its end. Throws Fault; the next launch is not affected by it.
void run(const Call& call, const std::function<void()>& thread_body);

// Where there is one, it takes the launches in place of the kernels' C++ bodies; what is done around a launch stays.
using Executor = void (*)(const Call& call, uint64_t seed);
inline Executor executor = nullptr;

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

// What a kernel moves between global memory and its blocks, over all its launches.
struct Traffic {
  uint64_t launches = 0;
  uint64_t loaded = 0, stored = 0;       // bytes that neighbouring threads stream
  uint64_t gathered = 0, scattered = 0;  // bytes of all the sectors that scattered accesses touch
  uint64_t atomics = 0;                  // number of those on global memory
};
inline Traffic* traffic_now = nullptr;  // of the kernel that runs

constexpr uintptr_t kSector = 32;
inline uint64_t sector_bytes(const void* address, size_t bytes) {
  const auto first = reinterpret_cast<uintptr_t>(address);
  return bytes == 0 ? 0 : kSector * ((first + bytes - 1) / kSector - first / kSector + 1);
}

// What this thread does to these bytes of global memory. A store also marks them as this block's. Outside of a launch nothing
// is noted.
inline void note_load(const void*, size_t bytes) {
  if (traffic_now == nullptr) return;
  traffic_now->loaded += bytes;
  point(kSeldom);
}
inline void note_gather(const void* address, size_t bytes) {
  if (traffic_now == nullptr) return;
  traffic_now->gathered += sector_bytes(address, bytes);
  point(kSeldom);
}
void note_store(const void* address, size_t bytes);
void note_scatter(const void* address, size_t bytes);

// Atomics on shared memory are no traffic.
inline const char* block_memory = nullptr;
inline size_t block_memory_bytes = 0;
inline void note_atomic(const void* address) {
  const bool is_shared = reinterpret_cast<uintptr_t>(address) - reinterpret_cast<uintptr_t>(block_memory) < block_memory_bytes;
  if (traffic_now != nullptr && !is_shared) ++traffic_now->atomics;
  point(kOften);
}

// Inside a kernel: ends the launch with a Fault. Outside: the text is kept for take_report().
void report(const std::string& text);

// --- called by the host --------------------------------------------------------------------------------------------------

// Memory for a kernel's own use: poisoned as the seed will have it, 16-byte aligned, with guards on both sides that are looked
// at after each launch.
void* new_workspace(size_t bytes);
void free_workspace(void* workspace);
// While on, what is freed serves the next request of its size as it was left.
void keep_workspace(bool keep);

std::map<std::string, Traffic> traffic();  // by kernel
void clear_traffic();

struct Counters {
  uint64_t launches = 0, blocks = 0, barriers = 0, warp_operations = 0, switches = 0;
};
void set_seed(uint64_t seed);      // of the schedules to come; each launch has its own
void set_resident(unsigned most);  // blocks alive at once; 0: drawn for each launch
void abort_after(int launches);    // that many more end well, the next one is a Fault, once; negative: never
std::string last_report();
std::string take_report();  // and forgets it
Counters counters();

}  // namespace cuda_host
