// Who goes on next, and the walk of a warp's lanes through the code.
#include <algorithm>
#include <cstring>

#include "../cuda_host/scheduler.h"
#include "launch.h"

namespace ptx {
namespace {

constexpr uint32_t kEnd = ~0u;
constexpr uint64_t kMostSteps = 1u << 30;  // instructions of warps in one launch; a loop that nobody ends takes a minute to reach it

// Kept from launch to launch: their memory is large.
std::vector<std::unique_ptr<Block>>& blocks() {
  static std::vector<std::unique_ptr<Block>> pool;
  return pool;
}
std::vector<Processor>& processors() {
  static std::vector<Processor> pool;
  return pool;
}

}  // namespace

Launch::Launch(const Kernel& kernel, const char* name, const Settings& settings, Grid grid, const char* parameters,
               uint64_t seed, Counters& counters)
    : kernel_(kernel), name_(name), settings_(settings), grid_(grid), parameters_(parameters), counters_(counters) {
  random_.state = (seed + 1) * 0x9E3779B97F4A7C15u ^ (settings.seed + 1) * 0xD1B54A32D192ED03u;
  if (random_.state == 0) random_.state = 1;
  for (int i = 0; i < 4; ++i) random_.next();
}

std::string Launch::text_of(uint32_t pc) const {
  const std::string& source = kernel_.sources[pc];
  return "`" + kernel_.texts[pc] + "`" + (source.empty() ? "" : " (" + source + ")");
}

void Launch::fault(const Block& b, uint32_t thread, uint32_t pc, const std::string& what) const {
  throw cuda_host::Fault("kernel " + std::string(name_) + ", block " + std::to_string(b.index) + ", thread " +
                         std::to_string(thread) + ": " + text_of(pc) + ": " + what);
}

// --- blocks --------------------------------------------------------------------------------------------------------------

void Launch::start(Block& b, uint32_t index) {
  const unsigned warps = (grid_.threads + kLanes - 1) / kLanes;
  const size_t shared = kernel_.dynamic_base + grid_.dynamic_bytes;
  b.index = index;
  b.processor = &processors()[random_.below(settings_.processors)];
  b.arrived = b.exited = b.votes = 0;
  const size_t stride = (kernel_.register_bytes + 63) / 64 * 64 + 64;  // else the same register of all warps fell into one set of the cache
  if (b.registers.size() < warps * stride + 64) b.registers.resize(warps * stride + 64);
  b.shared.assign(shared, "\xA5\xFF\x5C\xC3"[random_.below(4)]);
  b.local.assign(static_cast<size_t>(kernel_.local_bytes) * grid_.threads, '\xA5');
  if (settings_.races) b.races.reset(shared, kernel_.touches_shared_bytes);
  b.started = b.barrier = ++clock();
  b.warps.resize(warps);
  char* const registers = b.registers.data() + (64 - reinterpret_cast<uintptr_t>(b.registers.data()) % 64);
  for (unsigned i = 0; i < warps; ++i) {
    Warp& w = b.warps[i];
    w = {};
    w.block = &b;
    w.registers = registers + i * stride;
    w.first_thread = i * kLanes;
    const unsigned lanes = grid_.threads - w.first_thread;
    w.all = w.ready = lanes >= kLanes ? ~0u : (1u << lanes) - 1;
    w.priority = static_cast<uint32_t>(random_.next() >> 33) + 1;
    for (uint32_t l = 0; l < kLanes; ++l) {
      const uint32_t values[] = {w.first_thread + l, index, grid_.threads, grid_.blocks};
      constexpr uint32_t kPlaces[] = {kThreadIndex, kBlockIndex, kBlockSize, kGridSize};
      for (int v = 0; v < 4; ++v) memcpy(w.registers + kPlaces[v] + 4 * l, &values[v], 4);
    }
    make_runnable(w);
  }
  ++counters_.blocks;
}

void Launch::run() {
  ++counters_.launches;
  by_priority_ = random_.below(3) != 0;
  if (processors().size() < settings_.processors) processors().resize(settings_.processors);
  for (Processor& p : processors()) p.start();
  std::vector<uint32_t> waiting(grid_.blocks);
  for (uint32_t i = 0; i < grid_.blocks; ++i) waiting[i] = grid_.blocks - 1 - i;
  if (!settings_.lockstep)
    for (uint32_t i = grid_.blocks; i > 1; --i) std::swap(waiting[i - 1], waiting[random_.below(i)]);
  std::vector<const Block*> alive;
  for (unsigned slot = 0; slot < settings_.resident && !waiting.empty(); ++slot) {
    if (blocks().size() == slot) blocks().push_back(std::make_unique<Block>());
    start(*blocks()[slot], waiting.back());
    alive.push_back(blocks()[slot].get());
    waiting.pop_back();
  }
  while (!runnable_.empty()) {
    Warp& w = pick();
    turn(w);
    Block& b = *w.block;
    if (w.ready == 0 && w.place >= 0) unlist(w);
    if (b.exited != grid_.threads || w.exited != w.all) continue;
    b.exited = 0;
    if (waiting.empty()) {
      alive.erase(std::find(alive.begin(), alive.end(), &b));
    } else {
      start(b, waiting.back());
      waiting.pop_back();
    }
  }
  if (!alive.empty()) report_deadlock(alive);
  for (Processor& p : processors()) p.publish_all();
}

// --- warps ---------------------------------------------------------------------------------------------------------------

void Launch::make_runnable(Warp& w) {
  if (w.place >= 0 || w.ready == 0) return;
  w.place = static_cast<int>(runnable_.size());
  runnable_.push_back(&w);
}

void Launch::unlist(Warp& w) {
  Warp* const last = runnable_.back();
  runnable_[static_cast<size_t>(w.place)] = last;
  last->place = w.place;
  w.place = -1;
  runnable_.pop_back();
}

// By priorities one warp may fall behind until nobody else can go on; now and then anyone goes, for loops that wait for others.
Warp& Launch::pick() {
  const auto size = static_cast<uint32_t>(runnable_.size());
  if (!by_priority_ || settings_.lockstep || random_.below(64) == 0) return *runnable_[random_.below(size)];
  Warp* best = runnable_[0];
  for (Warp* w : runnable_)
    if (w->priority > best->priority) best = w;
  if (random_.below(32) == 0) best->priority = static_cast<uint32_t>(random_.next() >> 33) + 1;
  return *best;
}

void Launch::turn(Warp& w) {
  int budget = static_cast<int>(settings_.lockstep ? 200 + random_.below(400) : 1 + random_.below(80));
  uint32_t only = settings_.lockstep || random_.coin() ? ~0u : static_cast<uint32_t>(random_.next() >> 32);
  while (budget > 0 && w.ready != 0) {
    if ((w.ready & only) == 0) only = ~0u;
    const uint32_t candidates = w.ready & only;
    uint32_t pc = kEnd, stop = kEnd, lanes = 0;
    if (!settings_.lockstep && random_.below(8) == 0) {
      uint32_t left = candidates;
      for (uint32_t skip = random_.below(static_cast<uint32_t>(__builtin_popcount(left))); skip > 0; --skip) left &= left - 1;
      pc = w.pc[__builtin_ctz(left)];
    } else {
      for (uint32_t left = candidates; left != 0; left &= left - 1) pc = std::min(pc, w.pc[__builtin_ctz(left)]);
    }
    for (uint32_t left = candidates; left != 0; left &= left - 1) {
      const unsigned lane = static_cast<unsigned>(__builtin_ctz(left));
      if (w.pc[lane] == pc)
        lanes |= 1u << lane;
      else if (w.pc[lane] > pc)
        stop = std::min(stop, w.pc[lane]);  // where they may be joined
    }
    run_lanes(w, lanes, pc, stop, budget);
    if (w.block->exited == grid_.threads) return;
  }
}

// Lanes that are at one place go on together until they part, wait, reach others, or have used up the budget.
void Launch::run_lanes(Warp& w, uint32_t lanes, uint32_t pc, uint32_t stop, int& budget) {
  const Instruction* const code = kernel_.code.data();
  Count* const counts = counters_.instructions.data();
  const auto leave_at = [&w](uint32_t some, uint32_t where) {
    for (; some != 0; some &= some - 1) w.pc[__builtin_ctz(some)] = where;
  };
  do {
    const Instruction& x = code[pc];
    uint32_t active = lanes;
    if (x.guard >= 0) {
      uint32_t guard;
      memcpy(&guard, w.registers + x.guard, 4);
      active &= x.negated ? ~guard : guard;
    }
    ++counts[pc].warps;
    counts[pc].threads += static_cast<unsigned>(__builtin_popcount(lanes));
    --budget;
    ++steps_;
    if (x.kind == Kind::kBranch) {
      if (active == lanes) {
        pc = x.target;
      } else if (active == 0) {
        ++pc;
      } else {
        leave_at(active, x.target);
        leave_at(lanes & ~active, pc + 1);
        return;
      }
      if (steps_ > kMostSteps) fault(*w.block, w.first_thread + static_cast<uint32_t>(__builtin_ctz(lanes)), pc, "the launch does not end: a loop waits for what never happens");
      continue;
    }
    if (active == 0) {
      ++pc;
      continue;
    }
    switch (x.kind) {
      case Kind::kArithmetic:
        x.execute(x, w.registers, active);
        break;
      case Kind::kLoad:
      case Kind::kStore:
      case Kind::kAtomic:
        access(w, x, active, pc);
        break;
      case Kind::kFence:
        if (settings_.weak && x.order == Order::kBoth) w.block->processor->publish(w.block->index);
        break;
      case Kind::kAddress:
      case Kind::kIsSpace:
        convert_address(w, x, active);
        break;
      case Kind::kActiveMask:
        for (uint32_t left = active; left != 0; left &= left - 1)
          memcpy(w.registers + x.out[0].offset + 4 * __builtin_ctz(left), &active, 4);
        break;
      case Kind::kTrap:
        fault(*w.block, w.first_thread + static_cast<uint32_t>(__builtin_ctz(active)), pc, "a trap");
      case Kind::kReturn:
        leave_at(lanes & ~active, pc + 1);
        exit_lanes(w, active, pc);
        return;
      case Kind::kBarrier:
        leave_at(lanes, pc + 1);
        arrive_at_barrier(w, active, pc);
        return;
      default:
        if (!operate(w, active, pc)) {
          leave_at(lanes & ~active, pc + 1);
          return;
        }
    }
    ++pc;
  } while (budget > 0 && pc < stop);
  leave_at(lanes, pc);
}

void Launch::exit_lanes(Warp& w, uint32_t lanes, uint32_t pc) {
  Block& b = *w.block;
  if (b.arrived != 0)
    fault(b, w.first_thread + static_cast<uint32_t>(__builtin_ctz(lanes)), pc,
          "returns while thread " + std::to_string(b.first_arrived) + " waits at " + text_of(b.barrier_pc));
  w.ready &= ~lanes;
  w.exited |= lanes;
  b.exited += static_cast<unsigned>(__builtin_popcount(lanes));
}

}  // namespace ptx
