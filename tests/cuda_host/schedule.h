// Who runs next: all the chance there is in a launch. The same seed and number of launch draw the same schedule.
#pragma once

#include <cstdint>
#include <vector>

#include "state.h"

namespace cuda_host {

// xorshift64*
struct Random {
  uint64_t state = 1;
  uint64_t next() {
    state ^= state >> 12;
    state ^= state << 25;
    state ^= state >> 27;
    return state * 0x2545F4914F6CDD1Du;
  }
  uint32_t below(uint32_t n) { return static_cast<uint32_t>(((next() >> 32) * n) >> 32); }
  bool coin() { return next() >> 63 != 0; }
};

struct Schedule {
  Random random;
  unsigned lagging = 0;  // in how many of 8 turns some lanes of the warp are left behind

  void draw(uint64_t seed, uint64_t launch) {
    random.state = (seed * 0x9E3779B97F4A7C15u) ^ ((launch + 1) * 0xD1B54A32D192ED03u);
    if (random.state == 0) random.state = 1;
    for (int i = 0; i < 4; ++i) random.next();
    constexpr Order kOrders[] = {kPriorities, kPriorities, kPriorities, kUniform, kOldest, kNewest};
    order_ = kOrders[random.below(6)];
    credit_ = 8u << (3 * random.below(3));
    lagging = random.below(4);
  }

  // The weight of the points that a thread passes before another may take over.
  int draw_credit() { return static_cast<int>(random.below(2 * credit_ + 1)); }

  // Often one warp falls behind after a barrier until nobody else can run: only then do others, and other blocks, get as far
  // as a missing barrier lets them.
  void draw_priorities(Block& b) {
    for (Warp& w : b.warps) w.priority = draw_priority();
    if (random.coin()) b.warps[random.below(static_cast<uint32_t>(b.warps.size()))].priority = 0;
  }

  Warp& pick(const std::vector<Warp*>& runnable) {
    const auto size = static_cast<uint32_t>(runnable.size());
    // The exceptions keep loops that wait for others going.
    if (order_ == kUniform || random.below(256) == 0) return *runnable[random.below(size)];
    if (order_ == kNewest) return *runnable.back();
    if (order_ == kOldest) return *runnable.front();
    Warp* best = runnable[0];
    for (Warp* w : runnable)
      if (w->priority > best->priority) best = w;
    if (random.below(64) == 0) best->priority = draw_priority();
    return *best;
  }

 private:
  enum Order : uint8_t { kUniform, kPriorities, kOldest, kNewest };

  uint32_t draw_priority() { return static_cast<uint32_t>(random.next() >> 33) + 1; }

  Order order_ = kUniform;
  unsigned credit_ = 8;
};

}  // namespace cuda_host
