#include "blocks.h"

#include <cstring>

namespace cuda_host {
namespace {

constexpr size_t kStaticRoom = (48 << 10) + 64;

// What the thread that is waited for does.
std::string instead(const Block& b, unsigned thread) {
  const Warp& w = b.warps[thread / 32];
  const uint32_t lane = 1u << thread % 32;
  const std::string who = "thread " + std::to_string(thread);
  if ((w.exited & lane) != 0) return who + " has returned";
  const Fiber& f = *b.fibers[thread];
  return who + " waits at " + name_of(f.kind) + text_of(f.site);
}

}  // namespace

bool intact(const char* guard, size_t bytes) {
  for (size_t i = 0; i < bytes; ++i)
    if (guard[i] != kGuardByte) return false;
  return true;
}

const char* name_of(Meeting kind) {
  static const char* const names[] = {"__syncthreads",     "__syncthreads_count", "__syncthreads_or",  "__syncthreads_and",
                                      "__syncwarp",        "__ballot_sync",       "__any_sync",        "__all_sync",
                                      "__reduce_add_sync", "__reduce_min_sync",   "__reduce_max_sync", "__reduce_or_sync",
                                      "__shfl_sync",       "__shfl_up_sync",      "__shfl_down_sync",  "__shfl_xor_sync"};
  return names[static_cast<int>(kind)];
}

std::string text_of(Site site) {
  const char* slash = strrchr(site.file, '/');
  return std::string(" (") + (slash != nullptr ? slash + 1 : site.file) + ":" + std::to_string(site.line) + ")";
}

// --- memory --------------------------------------------------------------------------------------------------------------

void start_block(Block& b, unsigned index, unsigned threads, size_t dynamic_bytes, uint64_t poison) {
  b.index = index;
  b.arrived = b.exited = b.generation = 0;
  b.warps.resize((threads + 31) / 32);
  for (unsigned i = 0; i < b.warps.size(); ++i) {
    Warp& w = b.warps[i];
    const unsigned lanes = threads - 32 * i;
    w = {};
    w.block = &b;
    w.first_thread = 32 * i;
    w.all = w.ready = lanes >= 32 ? ~0u : (1u << lanes) - 1;
  }
  const size_t needed = 3 * kGuard + kStaticRoom + dynamic_bytes + 64;
  if (b.memory_bytes < needed) {
    b.memory.reset(new char[needed]);
    b.memory_bytes = needed;
  }
  b.poison = poison;
  b.static_shared = nullptr;
  b.static_bytes = 0;
  const auto start = reinterpret_cast<uintptr_t>(b.memory.get()) + 2 * kGuard + kStaticRoom;
  b.dynamic_shared = reinterpret_cast<char*>((start + 15) & ~uintptr_t{15});
  b.dynamic_bytes = dynamic_bytes;
  memset(b.dynamic_shared, static_cast<int>(poison & 0xFF), dynamic_bytes);
  memset(b.dynamic_shared - kGuard, kGuardByte, kGuard);
  memset(b.dynamic_shared + dynamic_bytes, kGuardByte, kGuard - 64);
}

void place_static(Block& b, size_t bytes, size_t align) {
  const size_t room = bytes < kStaticRoom ? bytes : kStaticRoom - 64;
  const auto start = reinterpret_cast<uintptr_t>(b.memory.get()) + kGuard;
  b.static_shared = reinterpret_cast<char*>((start + align - 1) & ~(uintptr_t{align} - 1));
  b.static_bytes = bytes;
  memset(b.static_shared, static_cast<int>(b.poison & 0xFF), room);
  memset(b.static_shared - (kGuard - 64), kGuardByte, kGuard - 64);
  memset(b.static_shared + room, kGuardByte, kGuard - 64);
}

std::string broken_guard(const Block& b) {
  if (b.static_shared != nullptr) {
    if (!intact(b.static_shared + b.static_bytes, kGuard - 64)) return "wrote beyond the end of its static shared memory";
    if (!intact(b.static_shared - (kGuard - 64), kGuard - 64)) return "wrote before the start of its static shared memory";
  }
  if (!intact(b.dynamic_shared + b.dynamic_bytes, kGuard - 64)) return "wrote beyond the end of its dynamic shared memory";
  if (!intact(b.dynamic_shared - (kGuard - 64), kGuard - 64)) return "wrote before the start of its dynamic shared memory";
  return {};
}

// --- warp operations -----------------------------------------------------------------------------------------------------

void combine(Meeting kind, unsigned mask, Fiber* const* lanes) {
  if (kind >= Meeting::kShuffle) {
    for (unsigned left = mask; left != 0; left &= left - 1) {
      Fiber& f = *lanes[__builtin_ctz(left)];
      const bool named = (mask >> f.source & 1u) != 0;
      f.result = named ? lanes[f.source]->value : 0xA5A5A5A5A5A5A5A5u;  // CUDA leaves it undefined
    }
    return;
  }
  uint64_t sum = 0, least = ~uint64_t{0}, most = 0, any = 0, all = ~uint64_t{0}, ballot = 0;
  for (unsigned left = mask; left != 0; left &= left - 1) {
    const int lane = __builtin_ctz(left);
    const uint64_t value = lanes[lane]->value;
    sum += value;
    least = value < least ? value : least;
    most = value > most ? value : most;
    any |= value;
    all &= value;
    ballot |= (value & 1u) << lane;
  }
  const uint64_t result = kind == Meeting::kSum                              ? sum
                          : kind == Meeting::kMin                            ? least
                          : kind == Meeting::kMax                            ? most
                          : kind == Meeting::kBallot                         ? ballot
                          : kind == Meeting::kAny || kind == Meeting::kBitOr ? any
                                                                             : all;
  for (unsigned left = mask; left != 0; left &= left - 1) lanes[__builtin_ctz(left)]->result = result;
}

// --- a launch that is stuck ----------------------------------------------------------------------------------------------

std::string deadlock(const Block& b) {
  const auto threads = static_cast<unsigned>(b.fibers.size());
  const std::string block = "block " + std::to_string(b.index) + ", ";
  for (unsigned t = 0; t < threads; ++t) {
    const Warp& w = b.warps[t / 32];
    const Fiber& f = *b.fibers[t];
    if ((w.in_operation >> t % 32 & 1u) == 0) continue;
    for (unsigned lane = 0; lane < 32; ++lane) {
      const unsigned other = w.first_thread + lane;
      const bool meets = (w.in_operation >> lane & 1u) != 0 && b.fibers[other]->mask == f.mask;
      if ((f.mask >> lane & 1u) != 0 && !meets)
        return block + "thread " + std::to_string(t) + ": waits at " + name_of(f.kind) + text_of(f.site) + ", but " +
               instead(b, other);
    }
  }
  for (unsigned t = 0; t < threads; ++t)
    if (b.arrived != 0 && (b.warps[t / 32].at_barrier >> t % 32 & 1u) == 0)
      return block + "thread " + std::to_string(b.first_arrived) + ": waits at " + name_of(b.kind) + text_of(b.site) +
             ", but " + instead(b, t);
  return {};
}

}  // namespace cuda_host
