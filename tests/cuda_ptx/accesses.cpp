// Loads, stores and atomics of a warp's lanes: what they may touch, what they move, and what is counted.
#include <cstring>

#include "../cuda_host/scheduler.h"
#include "launch.h"
#include "opcodes.h"

namespace ptx {
namespace {

constexpr uintptr_t kNull = 1 << 16;  // no memory lies below

unsigned first_of(uint32_t lanes) { return static_cast<unsigned>(__builtin_ctz(lanes)); }

template <class T>
void put(char* lanes, unsigned lane, T value) {
  memcpy(lanes + lane * sizeof(T), &value, sizeof value);
}

// A value of memory to a register, which may be wider.
void put_loaded(const Instruction& x, int i, char* registers, unsigned lane, const char* from) {
  const Operand& o = x.out[i];
  if (o.width == kNone) return;
  const unsigned bytes = bytes_of(x.type);
  uint64_t value = 0;
  memcpy(&value, from, bytes);
  if (is_signed(x.type) && bytes < 8) {
    const unsigned unused = 64 - 8 * bytes;
    value = static_cast<uint64_t>(static_cast<int64_t>(value << unused) >> unused);
  }
  memcpy(registers + o.offset + lane * o.width, &value, o.width);
}

void take_stored(const Instruction& x, const char* registers, unsigned lane, char* to) {
  const unsigned bytes = bytes_of(x.type);
  for (unsigned i = 0; i < x.vector; ++i) {
    const Operand& o = x.in[1 + i];
    memcpy(to + i * bytes, lanes_of<char>(o, registers) + lane * o.width, bytes);
  }
}

template <class T>
T updated(Atomic kind, T old, T value, T desired) {
  switch (kind) {
    case Atomic::kAdd: return static_cast<T>(static_cast<uint64_t>(old) + static_cast<uint64_t>(value));
    case Atomic::kAnd: return old & value;
    case Atomic::kOr: return old | value;
    case Atomic::kXor: return old ^ value;
    case Atomic::kMin: return value < old ? value : old;
    case Atomic::kMax: return value > old ? value : old;
    case Atomic::kExchange: return value;
    case Atomic::kCompareExchange: return old == value ? desired : old;
    case Atomic::kIncrement: return old >= value ? T{0} : static_cast<T>(old + 1);
    default: return old == 0 || old > value ? value : static_cast<T>(old - 1);
  }
}

template <class T>
void update(const Instruction& x, char* registers, unsigned lane, char* memory) {
  T old;
  memcpy(&old, memory, sizeof old);
  const T value = lanes_of<T>(x.in[1], registers)[lane], desired = x.in[2].width != kNone ? lanes_of<T>(x.in[2], registers)[lane] : T{0};
  const T next = updated(static_cast<Atomic>(x.mode), old, value, desired);
  memcpy(memory, &next, sizeof next);
  if (x.out[0].width != kNone) put(registers + x.out[0].offset, lane, old);
}

void update(const Instruction& x, char* registers, unsigned lane, char* memory) {
  if (bytes_of(x.type) == 4) return is_signed(x.type) ? update<int32_t>(x, registers, lane, memory) : update<uint32_t>(x, registers, lane, memory);
  return is_signed(x.type) ? update<int64_t>(x, registers, lane, memory) : update<uint64_t>(x, registers, lane, memory);
}

unsigned size_of(const Instruction& x) { return bytes_of(x.type) * x.vector; }

std::string hex(uintptr_t address) {
  char text[24];
  snprintf(text, sizeof text, "0x%zx", static_cast<size_t>(address));
  return text;
}

}  // namespace

// --- addresses -----------------------------------------------------------------------------------------------------------

// A generic address is that of the host's memory behind it.
uintptr_t Launch::base_of(const Warp& w, Space space, unsigned lane) const {
  if (space == Space::kShared) return reinterpret_cast<uintptr_t>(w.block->shared.data());
  if (space == Space::kLocal)
    return reinterpret_cast<uintptr_t>(w.block->local.data()) + (w.first_thread + lane) * size_t{kernel_.local_bytes};
  if (space == Space::kParam) return reinterpret_cast<uintptr_t>(parameters_);
  return 0;
}

Space Launch::space_of(const Warp& w, uintptr_t address, unsigned lane) const {
  if (address - base_of(w, Space::kShared, lane) < w.block->shared.size()) return Space::kShared;
  if (address - base_of(w, Space::kLocal, lane) < kernel_.local_bytes) return Space::kLocal;
  if (address - base_of(w, Space::kParam, lane) < kernel_.parameter_bytes) return Space::kParam;
  return Space::kGlobal;
}

void Launch::convert_address(Warp& w, const Instruction& x, uint32_t lanes) {
  for (; lanes != 0; lanes &= lanes - 1) {
    const unsigned lane = first_of(lanes);
    const uint64_t address = lanes_of<uint64_t>(x.in[0], w.registers)[lane], base = base_of(w, x.space, lane);
    if (x.kind == Kind::kIsSpace)
      set_predicate(x.out[0], w.registers, 1u << lane, space_of(w, address, lane) == x.space ? ~0u : 0);
    else
      put(w.registers + x.out[0].offset, lane, x.to ? address - base : address + base);
  }
}

void Launch::access(Warp& w, const Instruction& x, uint32_t lanes, uint32_t pc) {
  uintptr_t addresses[kLanes];
  const auto offset = static_cast<uint64_t>(x.offset);
  if (x.in[0].width == 4)
    each_lane(lanes, [&, in = lanes_of<uint32_t>(x.in[0], w.registers)](unsigned l) { addresses[l] = static_cast<uint32_t>(in[l] + offset); });
  else
    each_lane(lanes, [&, in = lanes_of<uint64_t>(x.in[0], w.registers)](unsigned l) { addresses[l] = in[l] + offset; });
  uint32_t of_space[5] = {0, 0, 0, 0, 0};
  of_space[static_cast<int>(x.space)] = lanes;
  if (x.space == Space::kGeneric) {
    of_space[0] = 0;
    for (uint32_t left = lanes; left != 0; left &= left - 1) {
      const unsigned lane = first_of(left);
      const Space space = space_of(w, addresses[lane], lane);
      of_space[static_cast<int>(space)] |= 1u << lane;
      if (space != Space::kGlobal) addresses[lane] -= base_of(w, space, lane);
    }
  }
  const auto some = [&](Space space) { return of_space[static_cast<int>(space)]; };
  if (some(Space::kShared) != 0) access_shared(w, x, some(Space::kShared), pc, addresses);
  if (some(Space::kGlobal) != 0) access_global(w, x, some(Space::kGlobal), pc, addresses);
  for (const Space space : {Space::kLocal, Space::kParam})
    if (some(space) != 0) access_private(w, x, some(space), pc, addresses, space);
}

// --- the memory of a thread, and its parameters --------------------------------------------------------------------------

void Launch::access_private(Warp& w, const Instruction& x, uint32_t lanes, uint32_t pc, const uintptr_t* addresses, Space space) {
  const unsigned bytes = size_of(x), each = bytes_of(x.type);
  const size_t limit = space == Space::kLocal ? kernel_.local_bytes : kernel_.parameter_bytes;
  const char* const what = space == Space::kLocal ? "local memory" : "the parameters";
  for (; lanes != 0; lanes &= lanes - 1) {
    const unsigned lane = first_of(lanes);
    const uint32_t thread = w.first_thread + lane;
    if (addresses[lane] > limit || limit - addresses[lane] < bytes)
      fault(*w.block, thread, pc, "out of range: byte " + std::to_string(addresses[lane]) + " of " + std::to_string(limit) + " bytes of " + what);
    if (addresses[lane] % bytes != 0) fault(*w.block, thread, pc, "a misaligned address in " + std::string(what) + ": " + hex(addresses[lane]));
    if (space == Space::kParam && x.kind != Kind::kLoad) fault(*w.block, thread, pc, "writes to the parameters");
    auto* const memory = reinterpret_cast<char*>(base_of(w, space, lane) + addresses[lane]);
    if (x.kind == Kind::kAtomic) fault(*w.block, thread, pc, "an atomic on local memory");
    if (x.kind == Kind::kStore) take_stored(x, w.registers, lane, memory);
    for (int i = 0; x.kind == Kind::kLoad && i < x.vector; ++i) put_loaded(x, i, w.registers, lane, memory + static_cast<unsigned>(i) * each);
  }
}

// --- shared memory -------------------------------------------------------------------------------------------------------

void Launch::access_shared(Warp& w, const Instruction& x, uint32_t lanes, uint32_t pc, const uintptr_t* addresses) {
  Block& b = *w.block;
  const unsigned bytes = size_of(x), each = bytes_of(x.type);
  uint32_t places[kLanes];
  for (uint32_t left = lanes; left != 0; left &= left - 1) {
    const unsigned lane = first_of(left);
    const uint32_t thread = w.first_thread + lane;
    const uintptr_t a = addresses[lane];
    const bool in_gap = a + bytes > kernel_.static_shared && a < kernel_.dynamic_base;
    if (a > b.shared.size() || b.shared.size() - a < bytes || in_gap)
      fault(b, thread, pc, "out of range: byte " + std::to_string(a) + " of shared memory, of " + std::to_string(kernel_.static_shared) +
                               " static and " + std::to_string(grid_.dynamic_bytes) + " dynamic bytes, which start at " + std::to_string(kernel_.dynamic_base));
    if (a % bytes != 0) fault(b, thread, pc, "a misaligned address in shared memory: " + hex(a));
    places[lane] = static_cast<uint32_t>(a);
    if (settings_.races) note_shared(w, x, lane, pc, places[lane], bytes);
  }
  counters_.wavefronts += wavefronts(places, lanes, bytes, x.kind == Kind::kAtomic);
  const uint32_t start = settings_.lockstep ? 0 : random_.below(kLanes);
  for (uint32_t i = 0; i < kLanes; ++i) {
    const unsigned lane = (start + i) % kLanes;
    if ((lanes >> lane & 1) == 0) continue;
    char* const memory = b.shared.data() + places[lane];
    if (x.kind == Kind::kLoad)
      for (int v = 0; v < x.vector; ++v) put_loaded(x, v, w.registers, lane, memory + static_cast<unsigned>(v) * each);
    else if (x.kind == Kind::kStore)
      take_stored(x, w.registers, lane, memory);
    else
      update(x, w.registers, lane, memory);
  }
}

void Launch::note_shared(Warp& w, const Instruction& x, unsigned lane, uint32_t pc, uint32_t first, unsigned bytes) {
  Block& b = *w.block;
  const bool partly = (w.partial_lanes >> lane & 1) != 0;
  const Ordering order{b.started, b.barrier, w.synced, partly ? w.partly_synced : 0, partly ? w.partial_lanes : 0};
  SharedAccess access{first, bytes, w.first_thread + lane, pc, x.kind != Kind::kStore, x.kind != Kind::kLoad, x.order != Order::kWeak, clock()};
  const Race race = b.races.note(access, order);
  if (race.kind == Race::Kind::kNone) return;
  const std::string byte = "byte " + std::to_string(race.byte) + " of shared memory";
  if (race.kind == Race::Kind::kUninitialised) fault(b, access.thread, pc, "reads " + byte + ", which nothing has written");
  const bool other_read = race.kind == Race::Kind::kWriteAfterRead;
  fault(b, access.thread, pc, std::string("shared-memory race: ") + (access.writes ? "writes " : "reads ") + byte + ", which thread " +
            std::to_string(race.thread) + (other_read ? " reads at " : " writes at ") + text_of(race.at) + ", and no barrier is between them");
}

// --- global memory -------------------------------------------------------------------------------------------------------

void Launch::access_global(Warp& w, const Instruction& x, uint32_t lanes, uint32_t pc, const uintptr_t* addresses) {
  Block& b = *w.block;
  Processor& processor = *b.processor;
  const unsigned bytes = size_of(x), each = bytes_of(x.type);
  for (uint32_t left = lanes; left != 0; left &= left - 1) {
    const unsigned lane = first_of(left);
    if (addresses[lane] < kNull) fault(b, w.first_thread + lane, pc, "a null pointer: address " + hex(addresses[lane]));
    if (addresses[lane] % bytes != 0) fault(b, w.first_thread + lane, pc, "a misaligned address in global memory: " + hex(addresses[lane]));
  }
  const auto kind = static_cast<int>(x.kind == Kind::kLoad ? Traffic::kLoad : x.kind == Kind::kStore ? Traffic::kStore : Traffic::kAtomic);
  counters_.sectors[kind] += sectors(addresses, lanes);
  counters_.bytes[kind] += bytes * static_cast<unsigned>(__builtin_popcount(lanes));
  if (x.kind == Kind::kStore && x.order == Order::kWeak) note_stores(w, lanes, pc, addresses, bytes);

  const bool weak = settings_.weak && x.order == Order::kWeak, around = settings_.weak && !weak;
  if (around && (x.order == Order::kRelease || x.order == Order::kBoth)) processor.publish(b.index);
  const uint32_t start = settings_.lockstep ? 0 : random_.below(kLanes);
  char value[16];
  for (uint32_t i = 0; i < kLanes; ++i) {
    const unsigned lane = (start + i) % kLanes;
    if ((lanes >> lane & 1) == 0) continue;
    auto* const memory = reinterpret_cast<char*>(addresses[lane]);
    if (around) processor.bypass(b.index, addresses[lane]);
    if (x.kind == Kind::kAtomic) {
      update(x, w.registers, lane, memory);
    } else if (x.kind == Kind::kLoad) {
      if (weak) processor.load(b.index, addresses[lane], bytes, value);
      for (int v = 0; v < x.vector; ++v)
        put_loaded(x, v, w.registers, lane, (weak ? value : memory) + static_cast<unsigned>(v) * each);
    } else {
      take_stored(x, w.registers, lane, weak ? value : memory);
      if (weak) processor.store(b.index, addresses[lane], bytes, value, random_);
    }
  }
  if (around && (x.order == Order::kAcquire || x.order == Order::kBoth)) processor.forget();
}

// Two blocks must not store to one address: neighbouring lanes at once.
void Launch::note_stores(Warp& w, uint32_t lanes, uint32_t pc, const uintptr_t* addresses, unsigned bytes) {
  while (lanes != 0) {
    const unsigned lane = first_of(lanes);
    const uintptr_t start = addresses[lane];
    uintptr_t end = start + bytes;
    for (lanes &= lanes - 1; lanes != 0 && addresses[first_of(lanes)] == end; lanes &= lanes - 1) end += bytes;
    const int other = stores_.add(start, end - start, static_cast<int>(w.block->index));
    if (other != cuda_host::StoreMap::kNone)
      fault(*w.block, w.first_thread + lane, pc, "stores to an address that block " + std::to_string(other) + " stored to in the same launch");
  }
}

}  // namespace ptx
