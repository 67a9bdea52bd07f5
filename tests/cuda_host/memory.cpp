#include "memory.h"

#include <cstring>
#include <mutex>
#include <new>
#include <utility>
#include <vector>

#include "cuda_host.h"
#include "schedule.h"
#include "state.h"
#include "stores.h"

namespace cuda_host {
namespace {

// As on a GPU: the same accesses touch the same sectors each time.
constexpr std::align_val_t kAlignment{256};

struct Workspace {
  char* memory;
  size_t bytes;
};

std::mutex mutex;  // of all that is about workspaces
std::vector<Workspace> workspaces, kept;
bool keeps = false;
uint64_t seed = 0, drawn = 0;

std::map<std::string, Traffic> by_kernel;
StoreMap stores;

// One byte over and over, as memory that was filled before, or noise; rarely anything that could pass for a fresh counter.
void poison(char* memory, size_t bytes) {
  Random random;
  random.state = (seed + 1) * 0x9E3779B97F4A7C15u ^ ++drawn * 0xD1B54A32D192ED03u;
  if (random.state == 0) random.state = 1;
  for (int i = 0; i < 4; ++i) random.next();
  const bool noise = random.coin();
  const uint64_t same = 0x0101010101010101u * ("\xA5\xFF\x5C\x01"[random.below(4)] & 0xFFu);
  for (size_t i = 0; i < bytes; i += 8) {
    const uint64_t word = noise ? random.next() : same;
    memcpy(memory + i, &word, bytes - i < 8 ? bytes - i : 8);
  }
}

void set_guards(const Workspace& w) {
  memset(w.memory - kGuard, kGuardByte, kGuard);
  memset(w.memory + w.bytes, kGuardByte, kGuard);
}

void release(const Workspace& w) { ::operator delete[](w.memory - kGuard, kAlignment); }

// Takes the workspace out of the list.
Workspace take(std::vector<Workspace>& list, size_t i) {
  const Workspace found = list[i];
  list.erase(list.begin() + static_cast<std::ptrdiff_t>(i));
  return found;
}

void note(const void* address, size_t bytes) {
  const int other = stores.add(reinterpret_cast<uintptr_t>(address), bytes, static_cast<int>(blockIdx.x));
  if (other != StoreMap::kNone)
    report("stores to an address that block " + std::to_string(other) + " stored to in the same launch");
  point(kSeldom);
}

}  // namespace

// --- workspaces ----------------------------------------------------------------------------------------------------------

void* new_workspace(size_t bytes) {
  const std::lock_guard<std::mutex> lock(mutex);
  Workspace w{nullptr, bytes};
  for (size_t i = kept.size(); w.memory == nullptr && i-- > 0;)
    if (kept[i].bytes == bytes) w = take(kept, i);
  if (w.memory == nullptr) {
    w.memory = new (kAlignment) char[bytes + 2 * kGuard] + kGuard;
    poison(w.memory, bytes);
  }
  set_guards(w);
  workspaces.push_back(w);
  return w.memory;
}

void free_workspace(void* workspace) {
  const std::lock_guard<std::mutex> lock(mutex);
  for (size_t i = 0; i < workspaces.size(); ++i) {
    if (workspaces[i].memory != workspace) continue;
    const Workspace w = take(workspaces, i);
    if (keeps)
      kept.push_back(w);
    else
      release(w);
    return;
  }
}

void keep_workspace(bool keep) {
  const std::lock_guard<std::mutex> lock(mutex);
  keeps = keep;
  if (keep) return;
  for (const Workspace& w : kept) release(w);
  kept.clear();
}

void seed_workspaces(uint64_t value) {
  const std::lock_guard<std::mutex> lock(mutex);
  seed = value;
  drawn = 0;
}

std::string broken_workspace() {
  const std::lock_guard<std::mutex> lock(mutex);
  for (const Workspace& w : workspaces) {
    const bool behind = !intact(w.memory + w.bytes, kGuard), before = !intact(w.memory - kGuard, kGuard);
    if (!behind && !before) continue;
    set_guards(w);
    return std::string("wrote ") + (behind ? "beyond the end" : "before the start") + " of a workspace of " +
           std::to_string(w.bytes) + " bytes";
  }
  return {};
}

// --- traffic -------------------------------------------------------------------------------------------------------------

void note_store(const void* address, size_t bytes) {
  if (traffic_now == nullptr) return;
  traffic_now->stored += bytes;
  note(address, bytes);
}

void note_scatter(const void* address, size_t bytes) {
  if (traffic_now == nullptr) return;
  traffic_now->scattered += sector_bytes(address, bytes);
  note(address, bytes);
}

void start_traffic(const char* kernel) {
  stores.clear();
  traffic_now = &by_kernel[kernel];
  ++traffic_now->launches;
}

void end_traffic() { traffic_now = nullptr; }

std::map<std::string, Traffic> traffic() { return by_kernel; }
void clear_traffic() { by_kernel.clear(); }

}  // namespace cuda_host
