// The scheduler's view of a launch: fibers, warps, blocks. Private to the harness.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "fiber.h"
#include "scheduler.h"

namespace cuda_host {

constexpr size_t kStack = 64 << 10;  // a kernel has next to no stack; reports of faults need some
constexpr size_t kGuard = 1024;      // bytes on both sides of a block's shared memory
constexpr char kGuardByte = '\xD7';
constexpr size_t kMostShared = 227 << 10;
constexpr unsigned kMostFibers = 4096;  // two mappings each, of the 65530 that a Linux process may have

struct Fiber {
  Context context{};
  char* stack = nullptr;
  uint64_t value = 0, result = 0;  // of a warp operation
  int source = 0;
  unsigned mask = 0;
  Meeting kind{};
  Site site;
};

struct Block;

struct Warp {
  Block* block = nullptr;
  Fiber* fibers = nullptr;
  unsigned first_thread = 0;
  uint32_t all = 0, ready = 0, at_barrier = 0, in_operation = 0, exited = 0;  // lanes
  uint32_t priority = 0;
  int place = -1;  // in the list of those that can run
};

// A slot for a resident block, used again for the next one.
struct Block {
  unsigned slot = 0;
  unsigned index = 0;
  std::vector<Fiber*> fibers;
  std::vector<Warp> warps;
  unsigned arrived = 0, exited = 0, generation = 0;
  Meeting kind{};  // of the barrier that threads have arrived at
  Site site;
  unsigned first_arrived = 0;
  int count = 0, result[2] = {0, 0};
  std::unique_ptr<char[]> memory;  // guard, static, guard, dynamic, guard
  uint64_t poison = 0;
  size_t memory_bytes = 0, static_bytes = 0, dynamic_bytes = 0;
  char *static_shared = nullptr, *dynamic_shared = nullptr;
};

bool intact(const char* guard, size_t bytes);
const char* name_of(Meeting kind);
std::string text_of(Site site);

}  // namespace cuda_host
