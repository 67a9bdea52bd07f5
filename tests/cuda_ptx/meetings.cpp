// Where threads meet: barriers of a block, operations of a warp, and what it means when somebody does not come.
#include <cstring>

#include "../cuda_host/scheduler.h"
#include "launch.h"
#include "opcodes.h"

namespace ptx {
namespace {

uint32_t word(const Operand& o, const Warp& w, unsigned lane) { return lanes_of<uint32_t>(o, w.registers)[lane]; }
unsigned first_of(uint32_t lanes) { return static_cast<unsigned>(__builtin_ctz(lanes)); }

}  // namespace

// --- barriers ------------------------------------------------------------------------------------------------------------

void Launch::arrive_at_barrier(Warp& w, uint32_t lanes, uint32_t pc) {
  Block& b = *w.block;
  const uint32_t thread = w.first_thread + first_of(lanes);
  if (b.exited != 0) fault(b, thread, pc, "waits, but threads of the block have returned");
  if (b.arrived == 0) {
    b.barrier_pc = pc;
    b.first_arrived = thread;
    b.votes = 0;
  } else if (b.barrier_pc != pc) {
    fault(b, thread, pc, "arrives while thread " + std::to_string(b.first_arrived) + " waits at " + text_of(b.barrier_pc));
  }
  const Instruction& x = kernel_.code[pc];
  if (static_cast<Vote>(x.mode) != Vote::kPlain)
    b.votes += static_cast<uint32_t>(__builtin_popcount(predicate(x.in[0], w.registers) & lanes));
  w.ready &= ~lanes;
  w.at_barrier |= lanes;
  b.arrived += static_cast<uint32_t>(__builtin_popcount(lanes));
  if (b.arrived != grid_.threads) return;
  b.arrived = 0;
  b.barrier = ++clock();
  for (Warp& other : b.warps) {
    const uint32_t all = other.at_barrier;
    if (static_cast<Vote>(x.mode) == Vote::kCount)
      for (uint32_t left = all; left != 0; left &= left - 1)
        written_lanes<uint32_t>(x.out[0], other.registers)[first_of(left)] = b.votes;
    else if (static_cast<Vote>(x.mode) != Vote::kPlain)
      set_predicate(x.out[0], other.registers, all,
                    (static_cast<Vote>(x.mode) == Vote::kAny ? b.votes != 0 : b.votes == grid_.threads) ? ~0u : 0);
    other.ready |= all;
    other.at_barrier = 0;
    other.priority = static_cast<uint32_t>(random_.next() >> 33) + 1;
    make_runnable(other);
  }
  if (random_.coin()) b.warps[random_.below(static_cast<uint32_t>(b.warps.size()))].priority = 0;
}

// --- warps ---------------------------------------------------------------------------------------------------------------

bool Launch::operate(Warp& w, uint32_t lanes, uint32_t pc) {
  Block& b = *w.block;
  const Instruction& x = kernel_.code[pc];
  bool together = w.in_operation == 0;
  for (uint32_t left = lanes; left != 0; left &= left - 1) {
    const unsigned lane = first_of(left);
    const uint32_t mask = word(x.in[0], w, lane), thread = w.first_thread + lane;
    if ((mask >> lane & 1) == 0) fault(b, thread, pc, "the mask does not name the calling lane");
    if ((mask & ~w.all) != 0) fault(b, thread, pc, "the mask names lanes that the block does not have");
    if ((mask & w.exited) != 0)
      fault(b, thread, pc, "waits, but thread " + std::to_string(w.first_thread + first_of(mask & w.exited)) + " has returned");
    w.mask[lane] = mask;
    w.pc[lane] = pc;
    together = together && mask == lanes;
  }
  if (together) {
    combine(w, x, lanes, pc);
    return true;
  }
  w.in_operation |= lanes;
  w.ready &= ~lanes;
  for (uint32_t left = lanes; left != 0; left &= left - 1) {
    const uint32_t mask = w.mask[first_of(left)];
    bool complete = (mask & ~w.in_operation) == 0;
    for (uint32_t others = mask; complete && others != 0; others &= others - 1) {
      const unsigned other = first_of(others);
      complete = w.pc[other] == pc && w.mask[other] == mask;
    }
    if (!complete) continue;
    combine(w, x, mask, pc);
    w.in_operation &= ~mask;
    w.ready |= mask;
    for (uint32_t others = mask; others != 0; others &= others - 1) w.pc[first_of(others)] = pc + 1;
    left &= ~mask | (1u << first_of(left));
  }
  return false;
}

void Launch::synchronise(Warp& w, uint32_t lanes) {
  if (lanes == (w.all & ~w.exited)) {
    w.synced = ++clock();
  } else {
    w.partly_synced = ++clock();
    w.partial_lanes = lanes;
  }
}

void Launch::combine(Warp& w, const Instruction& x, uint32_t lanes, uint32_t pc) {
  if (x.kind == Kind::kWarpSync) return synchronise(w, lanes);
  if (x.kind == Kind::kShuffle) return shuffle(w, x, lanes, pc);
  if (x.kind == Kind::kVote) {
    const uint32_t votes = predicate(x.in[1], w.registers) & lanes;
    const bool all = votes == lanes, any = votes != 0;
    const auto mode = static_cast<Vote>(x.mode);
    if (mode == Vote::kBallot)
      for (uint32_t left = lanes; left != 0; left &= left - 1)
        written_lanes<uint32_t>(x.out[0], w.registers)[first_of(left)] = votes;
    else
      set_predicate(x.out[0], w.registers, lanes,
                    (mode == Vote::kAny ? any : mode == Vote::kAll ? all : all || !any) ? ~0u : 0);
    return;
  }
  uint32_t result = word(x.in[1], w, first_of(lanes));
  for (uint32_t left = lanes & (lanes - 1); left != 0; left &= left - 1) {
    const uint32_t value = word(x.in[1], w, first_of(left));
    const bool less = is_signed(x.type) ? static_cast<int32_t>(value) < static_cast<int32_t>(result) : value < result;
    switch (static_cast<Atomic>(x.mode)) {
      case Atomic::kAdd: result += value; break;
      case Atomic::kAnd: result &= value; break;
      case Atomic::kOr: result |= value; break;
      case Atomic::kXor: result ^= value; break;
      case Atomic::kMin: result = less ? value : result; break;
      default: result = less ? result : value; break;
    }
  }
  for (uint32_t left = lanes; left != 0; left &= left - 1)
    written_lanes<uint32_t>(x.out[0], w.registers)[first_of(left)] = result;
}

void Launch::shuffle(Warp& w, const Instruction& x, uint32_t lanes, uint32_t pc) {
  uint32_t values[kLanes];
  memcpy(values, lanes_of<uint32_t>(x.in[1], w.registers), sizeof values);
  uint32_t inside = 0, results[kLanes];
  for (uint32_t left = lanes; left != 0; left &= left - 1) {
    const auto lane = static_cast<int>(first_of(left));
    const uint32_t control = word(x.in[3], w, static_cast<unsigned>(lane));
    const int by = static_cast<int>(word(x.in[2], w, static_cast<unsigned>(lane)) & 31);
    const int segment = static_cast<int>(control >> 8 & 31), clamp = static_cast<int>(control & 31);
    const int last = (lane & segment) | (clamp & ~segment);
    int from = lane;
    switch (static_cast<Shuffle>(x.mode)) {
      case Shuffle::kUp: from = lane - by; break;
      case Shuffle::kDown: from = lane + by; break;
      case Shuffle::kXor: from = lane ^ by; break;
      case Shuffle::kIndex: from = (lane & segment) | (by & ~segment); break;
    }
    const bool within = static_cast<Shuffle>(x.mode) == Shuffle::kUp ? from >= last : from <= last;
    if (within) inside |= 1u << lane;
    const int source = within ? from : lane;
    if ((lanes >> source & 1) == 0)
      fault(*w.block, w.first_thread + static_cast<uint32_t>(lane), pc, "reads lane " + std::to_string(source) + ", which the mask does not name");
    results[lane] = values[source];
  }
  for (uint32_t left = lanes; left != 0; left &= left - 1)
    written_lanes<uint32_t>(x.out[0], w.registers)[first_of(left)] = results[first_of(left)];
  if (x.out[1].width != kNone) set_predicate(x.out[1], w.registers, lanes, inside);
}

// --- nobody can go on ----------------------------------------------------------------------------------------------------

std::string Launch::instead(const Block& b, uint32_t thread) const {
  const Warp& w = b.warps[thread / kLanes];
  const unsigned lane = thread % kLanes;
  const std::string who = "thread " + std::to_string(thread);
  if ((w.exited >> lane & 1) != 0) return who + " has returned";
  return who + " waits at " + text_of((w.at_barrier >> lane & 1) != 0 ? w.pc[lane] - 1 : w.pc[lane]);
}

void Launch::report_deadlock(const std::vector<const Block*>& alive) {
  for (const Block* b : alive)
    for (const Warp& w : b->warps)
      for (uint32_t left = w.in_operation; left != 0; left &= left - 1) {
        const unsigned lane = first_of(left);
        for (uint32_t others = w.mask[lane]; others != 0; others &= others - 1) {
          const unsigned other = first_of(others);
          const bool meets = (w.in_operation >> other & 1) != 0 && w.pc[other] == w.pc[lane] && w.mask[other] == w.mask[lane];
          if (!meets) fault(*b, w.first_thread + lane, w.pc[lane], "waits, but " + instead(*b, w.first_thread + other));
        }
      }
  for (const Block* b : alive)
    for (uint32_t t = 0; t < grid_.threads; ++t)
      if (b->arrived != 0 && (b->warps[t / kLanes].at_barrier >> t % kLanes & 1) == 0)
        fault(*b, b->first_arrived, b->barrier_pc, "waits, but " + instead(*b, t));
  throw cuda_host::Fault("kernel " + std::string(name_) + ": no thread can go on");
}

}  // namespace ptx
