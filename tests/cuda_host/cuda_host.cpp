// The scheduler: who runs when, and what that costs. See scheduler.h.
#include "cuda_host.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <mutex>
#include <new>
#include <utility>

#include "blocks.h"
#include "memory.h"
#include "schedule.h"

namespace cuda_host {
namespace {

struct Launch {
  const char* kernel = "";
  const std::function<void()>* body = nullptr;
  std::vector<Warp*> runnable;
  Schedule schedule;
  bool running = false;
};

std::mutex one_launch;  // of all OS threads: there is one set of fibers
Launch launch;
Context host;
std::vector<Fiber*> pool;
std::vector<std::unique_ptr<Block>> slots;
std::string failure, kept_report;
uint64_t seed = 0;
unsigned most_resident = 0;
int launches_left = -1;
Counters counted;

// The thread that runs now.
Warp* warp = nullptr;
Fiber* fiber = nullptr;
int lane_now = 0;
bool preempted = false;

void set_credit() { credit = launch.schedule.draw_credit(); }

void back_to_scheduler() {
  ++counted.switches;
  switch_context(fiber->context, host);
}

void make_runnable(Warp& w) {
  if (w.place >= 0 || w.ready == 0) return;
  w.place = static_cast<int>(launch.runnable.size());
  launch.runnable.push_back(&w);
}

void unlist(Warp& w) {
  Warp* last = launch.runnable.back();
  launch.runnable[static_cast<size_t>(w.place)] = last;
  last->place = w.place;
  w.place = -1;
  launch.runnable.pop_back();
}

std::string where() {
  return "kernel " + std::string(launch.kernel) + ", block " + std::to_string(blockIdx.x) + ", thread " +
         std::to_string(threadIdx.x) + ": ";
}

// --- threads -------------------------------------------------------------------------------------------------------------

void run_threads() {  // the bottom of every fiber's stack: one thread after another
  for (;;) {
    try {
      (*launch.body)();
    } catch (const std::exception& error) {
      report(error.what());
    }
    Block& b = *warp->block;
    warp->ready &= ~(1u << lane_now);
    warp->exited |= 1u << lane_now;
    ++b.exited;
    if (b.arrived != 0)
      report("returns while thread " + std::to_string(b.first_arrived) + " waits at " + name_of(b.kind) + text_of(b.site));
    back_to_scheduler();
  }
}

void start_stack(Fiber& f) { make_context(f.context, f.stack, kStack, &run_threads); }

Fiber* new_fiber() {
  const size_t page = static_cast<size_t>(sysconf(_SC_PAGESIZE)), bytes = kStack + page + 4096;
  void* memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) throw std::bad_alloc();
  mprotect(memory, page, PROT_NONE);  // an overflow crashes instead of reaching the next stack
  auto* f = new Fiber;
  // Else the tops of all stacks would fall into the same few sets of the cache.
  f->stack = static_cast<char*>(memory) + page + pool.size() * 7 % 32 * 128;
  start_stack(*f);
  return f;
}

void take_fibers(Block& b, unsigned slot, unsigned threads) {
  const size_t first = static_cast<size_t>(slot) * threads;
  while (pool.size() < first + threads) pool.push_back(new_fiber());
  b.fibers.assign(pool.begin() + static_cast<std::ptrdiff_t>(first),
                  pool.begin() + static_cast<std::ptrdiff_t>(first + threads));
}

// --- the schedule --------------------------------------------------------------------------------------------------------

void resume(Warp& w, unsigned lane) {
  warp = &w;
  lane_now = static_cast<int>(lane);
  fiber = w.block->fibers[w.first_thread + lane];
  threadIdx.x = w.first_thread + lane;
  preempted = false;
  switch_context(host, fiber->context);
}

// A turn: the lanes that can run, in some order, each until it has to wait.
void run_warp(Warp& w) {
  Block& b = *w.block;
  blockIdx.x = b.index;
  block_static = b.static_shared;
  block_static_bytes = b.static_bytes;
  block_memory = b.memory.get();
  block_memory_bytes = b.memory_bytes;
  const uint64_t dice = launch.schedule.random.next();
  uint32_t lanes = w.ready;
  if ((dice & 7) < launch.schedule.lagging && (lanes & static_cast<uint32_t>(dice >> 32)) != 0)
    lanes &= static_cast<uint32_t>(dice >> 32);
  const auto start = static_cast<unsigned>(dice >> 8), stride = static_cast<unsigned>(dice >> 16) | 1u;
  for (unsigned i = 0; i < 32; ++i) {
    const unsigned lane = (start + i * stride) & 31u;
    if (((lanes & w.ready) >> lane & 1u) == 0) continue;
    resume(w, lane);
    if (!failure.empty()) return;
    if (preempted && launch.schedule.random.coin()) return;
  }
}

[[noreturn]] void stop() {
  for (Fiber* f : pool) start_stack(*f);  // their threads end here; nothing on their stacks needs a destructor
  kept_report = failure;
  throw Fault(failure);
}

void check_shape(const Call& call) {
  if (call.blocks == 0 || call.threads == 0 || call.threads > 1024 || call.dynamic_bytes > kMostShared)
    throw Fault("kernel " + std::string(call.kernel) + ": invalid configuration: " + std::to_string(call.blocks) +
                " blocks of " + std::to_string(call.threads) + " threads with " + std::to_string(call.dynamic_bytes) + " bytes");
}

void execute(const Call& call) {
  counted.blocks += call.blocks;
  try {
    executor(call, launch.schedule.random.next());
  } catch (const Fault& fault) {
    kept_report = fault.what();
    throw;
  }
}

uint64_t poison() { return 0x0101010101010101u * ("\xA5\xFF\x5C\xC3"[launch.schedule.random.below(4)] & 0xFFu); }

void run_blocks(unsigned blocks, unsigned threads, size_t dynamic_bytes) {
  const unsigned drawn = launch.schedule.random.below(4) != 0 ? blocks : 1 + launch.schedule.random.below(blocks);
  unsigned resident = std::min({blocks, kMostFibers / threads, most_resident != 0 ? most_resident : drawn});
  std::vector<unsigned> waiting(blocks);
  for (unsigned i = 0; i < blocks; ++i) waiting[i] = i;
  for (unsigned i = blocks; i > 1; --i) std::swap(waiting[i - 1], waiting[launch.schedule.random.below(i)]);

  const auto start = [&](unsigned slot) {
    Block& b = *slots[slot];
    start_block(b, waiting.back(), threads, dynamic_bytes, poison());
    waiting.pop_back();
    ++counted.blocks;
    launch.schedule.draw_priorities(b);
    for (Warp& w : b.warps) make_runnable(w);
  };
  for (unsigned slot = 0; slot < resident; ++slot) {
    if (slots.size() == slot) slots.push_back(std::make_unique<Block>());
    slots[slot]->slot = slot;
    take_fibers(*slots[slot], slot, threads);
    start(slot);
  }

  while (!launch.runnable.empty()) {
    Warp& w = launch.schedule.pick(launch.runnable);
    run_warp(w);
    if (!failure.empty()) stop();
    if (w.ready == 0) unlist(w);
    Block& b = *w.block;
    if (b.exited != threads || w.place >= 0) continue;
    failure = broken_guard(b);
    if (!failure.empty()) {
      failure = "kernel " + std::string(launch.kernel) + ", block " + std::to_string(b.index) + ": " + failure;
      stop();
    }
    b.exited = 0;
    if (!waiting.empty())
      start(b.slot);
    else
      --resident;
  }
  if (resident == 0) return;
  for (const auto& slot : slots) {
    failure = deadlock(*slot);
    if (!failure.empty()) break;
  }
  failure = "kernel " + std::string(launch.kernel) + ", " + failure;
  stop();
}

}  // namespace

// --- declared in scheduler.h ---------------------------------------------------------------------------------------------

void run(const Call& call, const std::function<void()>& body) {
  const std::lock_guard<std::mutex> lock(one_launch);
  struct End {
    ~End() {
      launch.running = false;
      end_traffic();
      launch.runnable.clear();
      failure.clear();
      credit = 1 << 30;
    }
  } end;
  launch.kernel = call.kernel;
  note_call(std::string("launch of ") + call.kernel);
  check_shape(call);
  if (launches_left == 0) {
    launches_left = -1;
    throw Fault("kernel " + std::string(call.kernel) + ": aborted by the test");
  }
  launch.body = &body;
  launch.running = true;
  launch.schedule.draw(seed, counted.launches++);
  start_traffic(call.kernel);
  gridDim = call.blocks;
  blockDim = call.threads;
  if (executor != nullptr) {
    execute(call);
  } else {
    set_credit();
    run_blocks(call.blocks, call.threads, call.dynamic_bytes);
  }
  failure = broken_workspace();
  if (!failure.empty()) {
    failure = "kernel " + std::string(call.kernel) + ": " + failure;
    stop();
  }
  if (launches_left > 0) --launches_left;
}

void preempt() {
  if (!launch.running) {
    credit = 1 << 30;
    return;
  }
  set_credit();
  preempted = true;
  back_to_scheduler();
}

int meet_block(Meeting kind, int predicate, Site site) {
  Block& b = *warp->block;
  fiber->kind = kind;
  fiber->site = site;
  if (b.arrived == 0) {
    b.kind = kind;
    b.site = site;
    b.first_arrived = threadIdx.x;
    b.count = 0;
  } else if (b.kind != kind || b.site.line != site.line) {
    report("arrives at " + std::string(name_of(kind)) + text_of(site) + " while thread " + std::to_string(b.first_arrived) +
           " waits at " + name_of(b.kind) + text_of(b.site));
  }
  const unsigned generation = b.generation & 1u, lane = 1u << lane_now;
  b.count += predicate != 0;
  if (b.exited != 0)
    report("waits at " + std::string(name_of(kind)) + text_of(site) + ", but threads of the block have returned");
  warp->ready &= ~lane;
  warp->at_barrier |= lane;
  if (++b.arrived == blockDim.x) {
    ++counted.barriers;
    const int all = b.count == static_cast<int>(blockDim.x);
    b.result[generation] = kind == Meeting::kCount ? b.count : kind == Meeting::kOr ? b.count != 0 : all;
    b.arrived = 0;
    ++b.generation;
    for (Warp& w : b.warps) {
      w.ready |= w.at_barrier;
      w.at_barrier = 0;
      make_runnable(w);
    }
    launch.schedule.draw_priorities(b);
    preempted = true;
  }
  back_to_scheduler();
  return b.result[generation];
}

uint64_t meet_warp(Meeting kind, unsigned mask, uint64_t value, int source, Site site) {
  Warp& w = *warp;
  Fiber& self = *fiber;
  const unsigned lane = 1u << lane_now;
  self.kind = kind;
  self.site = site;
  self.mask = mask;
  self.value = value;
  self.source = source;
  if ((mask & lane) == 0)
    report("the mask of " + std::string(name_of(kind)) + text_of(site) + " does not name the calling lane");
  if ((mask & ~w.all) != 0)
    report("the mask of " + std::string(name_of(kind)) + text_of(site) + " names lanes that the block does not have");
  w.ready &= ~lane;
  w.in_operation |= lane;
  Fiber* const* lanes = w.block->fibers.data() + w.first_thread;
  bool complete = (mask & ~w.in_operation) == 0;
  for (unsigned left = mask; complete && left != 0; left &= left - 1) complete = lanes[__builtin_ctz(left)]->mask == mask;
  if (complete) {
    for (unsigned left = mask; left != 0; left &= left - 1) {
      const Fiber& f = *lanes[__builtin_ctz(left)];
      if (f.kind != kind || f.site.line != site.line)
        report("arrives at " + std::string(name_of(kind)) + text_of(site) + " while another lane of the mask waits at " +
               name_of(f.kind) + text_of(f.site));
    }
    ++counted.warp_operations;
    combine(kind, mask, lanes);
    w.in_operation &= ~mask;
    w.ready |= mask;
    if (launch.schedule.random.coin()) return self.result;
    preempted = true;
  }
  back_to_scheduler();
  return self.result;
}

void* new_static_shared(size_t bytes, size_t align) {
  Block& b = *warp->block;
  if (b.static_shared != nullptr && b.static_bytes != bytes)
    report("a kernel has one static storage struct, but asks for another");
  if (b.static_shared == nullptr) place_static(b, bytes, align);
  if (bytes > 48 << 10) report("more than 48 KiB of static shared memory");
  block_static = b.static_shared;
  block_static_bytes = bytes;
  return block_static;
}

char* dynamic_shared() { return warp->block->dynamic_shared; }

void report(const std::string& text) {
  if (!launch.running) {
    kept_report = text;
    return;
  }
  failure = where() + text;
  back_to_scheduler();  // for good: the launch ends
}

void set_seed(uint64_t value) {
  const std::lock_guard<std::mutex> lock(one_launch);
  seed = value;
  seed_workspaces(value);
  counted.launches = 0;
}
void set_resident(unsigned most) { most_resident = most; }
void abort_after(int launches) { launches_left = launches; }
std::string last_report() { return kept_report; }
std::string take_report() { return std::exchange(kept_report, {}); }
Counters counters() { return counted; }

}  // namespace cuda_host
