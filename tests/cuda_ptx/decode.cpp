#include "decode.h"

#include <algorithm>

#include "opcodes.h"
#include "words.h"

namespace ptx {
namespace {

// --- memory --------------------------------------------------------------------------------------------------------------

void take_space(Instruction& x, Words& words) {
  const int space = words.one_of({"global", "shared", "shared::cta", "local", "param"});
  constexpr Space kSpaces[] = {Space::kGlobal, Space::kShared, Space::kShared, Space::kLocal, Space::kParam};
  x.space = space < 0 ? Space::kGeneric : kSpaces[space];
  x.group = x.space == Space::kShared  ? Group::kShared
            : x.space == Space::kLocal ? Group::kLocal
            : x.space == Space::kParam ? Group::kParam
                                       : Group::kGlobal;
}

void take_order(Instruction& x, Words& words) {
  const int order = words.one_of({"weak", "volatile", "relaxed", "acquire", "release", "acq_rel"});
  constexpr Order kOrders[] = {Order::kWeak, Order::kRelaxed, Order::kRelaxed, Order::kAcquire, Order::kRelease, Order::kBoth};
  if (order >= 0) x.order = kOrders[order];
  if (order >= 2) words.one_of({"cta", "gpu", "sys"});
}

// Hints on where lines are kept, which change no value. Those that bypass the first-level cache make an access strong.
void take_caching(Instruction& x, Words& words) {
  words.take("nc");
  const int caching = words.one_of({"ca", "cs", "lu", "wb", "cg", "cv", "wt"});
  if (caching >= 4 && x.order == Order::kWeak) x.order = Order::kRelaxed;
  words.one_of({"L1::no_allocate", "L1::evict_first", "L1::evict_last", "L1::evict_normal", "L1::evict_unchanged"});
  words.one_of({"L2::64B", "L2::128B", "L2::256B"});
}

// What loads and stores have in common: all but their operands.
void take_access(Instruction& x, Text& t) {
  take_order(x, t.words);
  take_space(x, t.words);
  take_caching(x, t.words);
  const int vector = t.words.one_of({"v2", "v4"});
  x.vector = static_cast<uint8_t>(vector < 0 ? 1 : 2 << vector);
  x.type = t.words.type();
  t.words.end();
  t.expect(2, 2);
}

void load(Instruction& x, Text& t) {
  x.kind = Kind::kLoad;
  take_access(x, t);
  const std::vector<std::string> into = vector_of(t.operands[0]);
  if (into.size() != x.vector || bytes_of(x.type) * x.vector > 16) throw LoadError("a vector of another size");
  for (size_t i = 0; i < into.size(); ++i) {
    x.out[i] = t.symbols.operand(into[i], width_of(x.type));
    if (x.out[i].width != kNone && (x.out[i].width < std::max(2u, bytes_of(x.type)) || x.out[i].constant != nullptr))
      throw LoadError(into[i] + " cannot hold what is loaded");
  }
  x.in[0] = t.symbols.address(t.operands[1], x.space, &x.offset);
}

void store(Instruction& x, Text& t) {
  x.kind = Kind::kStore;
  take_access(x, t);
  if (x.space == Space::kParam) throw LoadError("a store to a parameter");
  x.in[0] = t.symbols.address(t.operands[0], x.space, &x.offset);
  const std::vector<std::string> from = vector_of(t.operands[1]);
  if (from.size() != x.vector || bytes_of(x.type) * x.vector > 16) throw LoadError("a vector of another size");
  for (size_t i = 0; i < from.size(); ++i) {
    x.in[1 + i] = t.symbols.operand(from[i], static_cast<uint8_t>(std::max(2u, bytes_of(x.type))));
    if (x.in[1 + i].width < std::max(2u, bytes_of(x.type))) throw LoadError(from[i] + " is too narrow for what is stored");
  }
}

void atomic(Instruction& x, Text& t, bool returns) {
  x.kind = Kind::kAtomic;
  x.order = Order::kRelaxed;
  take_order(x, t.words);
  t.words.one_of({"cta", "gpu", "sys"});
  take_space(x, t.words);
  if (x.space != Space::kShared) x.group = Group::kAtomic;
  const int kind = t.words.one_of({"add", "and", "or", "xor", "min", "max", "exch", "cas", "inc", "dec"});
  if (kind < 0) t.words.unknown();
  x.mode = static_cast<uint8_t>(kind);
  x.type = t.words.type();
  t.words.end();
  if (is_float(x.type) || bytes_of(x.type) < 4 || x.space == Space::kParam || x.space == Space::kLocal) t.words.unknown();
  const size_t first = returns ? 1 : 0, values = static_cast<Atomic>(kind) == Atomic::kCompareExchange ? 2 : 1;
  t.expect(first + 1 + values, first + 1 + values);
  if (returns && t.operands[0] != "_") x.out[0] = t.symbols.operand_of(t.operands[0], width_of(x.type));
  x.in[0] = t.symbols.address(t.operands[first], x.space, &x.offset);
  for (size_t i = 0; i < values; ++i) x.in[1 + i] = t.symbols.operand_of(t.operands[first + 1 + i], width_of(x.type));
}

void fence(Instruction& x, Text& t) {
  x.kind = Kind::kFence;
  x.group = Group::kFence;
  bool of_block = false;
  if (t.words.opcode == "membar") {
    const int level = t.words.one_of({"cta", "gl", "sys"});
    if (level < 0) t.words.unknown();
    of_block = level == 0;
  } else {
    t.words.one_of({"sc", "acq_rel"});
    const int scope = t.words.one_of({"cta", "gpu", "sys"});
    if (scope < 0) t.words.unknown();
    of_block = scope == 0;
  }
  t.words.end();
  t.expect(0, 0);
  x.order = of_block ? Order::kWeak : Order::kBoth;  // the threads of a block see each other's stores anyway
}

void convert_address(Instruction& x, Text& t) {
  x.kind = Kind::kAddress;
  x.to = t.words.take("to");
  take_space(x, t.words);
  x.group = Group::kConvert;
  if (x.space == Space::kGeneric) t.words.unknown();
  x.type = t.words.type();
  t.words.end();
  if (bytes_of(x.type) != 8) t.words.unknown();
  t.expect(2, 2);
  x.out[0] = t.symbols.operand_of(t.operands[0], 8);
  x.in[0] = t.symbols.operand_of(t.operands[1], 8);
}

// --- threads -------------------------------------------------------------------------------------------------------------

void barrier(Instruction& x, Text& t) {
  x.group = Group::kBarrier;
  t.words.take("cta");
  if (t.words.take("warp")) {
    if (!t.words.take("sync")) t.words.unknown();
    t.words.end();
    t.expect(1, 1);
    x.kind = Kind::kWarpSync;
    x.group = Group::kWarp;
    x.in[0] = t.symbols.operand_of(t.operands[0], 4);
    return;
  }
  x.kind = Kind::kBarrier;
  x.mode = static_cast<uint8_t>(Vote::kPlain);
  size_t first = 0;
  if (t.words.take("red")) {
    const int kind = t.words.one_of({"or", "and", "popc"});
    constexpr Vote kKinds[] = {Vote::kAny, Vote::kAll, Vote::kCount};
    if (kind < 0) t.words.unknown();
    x.mode = static_cast<uint8_t>(kKinds[kind]);
    x.type = t.words.type();
    t.words.take("aligned");
    t.words.end();
    t.expect(3, 3);
    x.out[0] = t.symbols.operand_of(t.operands[0], kind == 2 ? 4 : kPredicate);
    x.in[0] = t.symbols.operand_of(t.operands[2], kPredicate);
    first = 1;
  } else {
    if (!t.words.take("sync")) t.words.unknown();
    t.words.take("aligned");
    t.words.end();
    t.expect(1, 1);
  }
  if (t.operands[first] != "0") throw LoadError("only barrier 0, of all threads, is simulated");
}

void shuffle(Instruction& x, Text& t) {
  x.kind = Kind::kShuffle;
  x.group = Group::kWarp;
  if (!t.words.take("sync")) t.words.unknown();
  const int mode = t.words.one_of({"up", "down", "bfly", "idx"});
  if (mode < 0 || t.words.type() != Type::kB32) t.words.unknown();
  x.mode = static_cast<uint8_t>(mode);
  t.words.end();
  t.expect(5, 5);
  const size_t bar = t.operands[0].find('|');
  x.out[0] = t.symbols.operand_of(trimmed(t.operands[0].substr(0, bar)), 4);
  if (bar != std::string::npos) x.out[1] = t.symbols.operand_of(trimmed(t.operands[0].substr(bar + 1)), kPredicate);
  x.in[0] = t.symbols.operand_of(t.operands[4], 4);  // the mask comes first in all operations of a warp
  for (size_t i = 1; i <= 3; ++i) x.in[i] = t.symbols.operand_of(t.operands[i], 4);
}

void vote(Instruction& x, Text& t) {
  x.kind = Kind::kVote;
  x.group = Group::kWarp;
  if (!t.words.take("sync")) t.words.unknown();
  const int mode = t.words.one_of({"any", "all", "uni", "ballot"});
  if (mode < 0 || t.words.type() != (mode == 3 ? Type::kB32 : Type::kPred)) t.words.unknown();
  x.mode = static_cast<uint8_t>(mode);
  t.words.end();
  t.expect(3, 3);
  x.out[0] = t.symbols.operand_of(t.operands[0], mode == 3 ? 4 : kPredicate);
  std::string p = t.operands[1];
  x.negated = false;
  if (p[0] == '!') throw LoadError("a negated operand is not simulated");
  x.in[1] = t.symbols.operand_of(p, kPredicate);
  x.in[0] = t.symbols.operand_of(t.operands[2], 4);
}

void reduce(Instruction& x, Text& t) {
  x.kind = Kind::kReduce;
  x.group = Group::kWarp;
  if (!t.words.take("sync")) t.words.unknown();
  const int kind = t.words.one_of({"add", "and", "or", "xor", "min", "max"});
  x.type = t.words.type();
  if (kind < 0 || bytes_of(x.type) != 4 || is_float(x.type)) t.words.unknown();
  x.mode = static_cast<uint8_t>(kind);
  t.words.end();
  t.expect(3, 3);
  x.out[0] = t.symbols.operand_of(t.operands[0], 4);
  x.in[1] = t.symbols.operand_of(t.operands[1], 4);
  x.in[0] = t.symbols.operand_of(t.operands[2], 4);
}

// --- registers -----------------------------------------------------------------------------------------------------------

template <class T>
void pack(const Instruction& x, char* r, uint32_t lanes) {
  const unsigned width = x.in[0].width;
  char* const out = r + x.out[0].offset;
  each_lane(lanes, [&](unsigned l) {
    for (unsigned i = 0; i < sizeof(T) / width; ++i)
      __builtin_memcpy(out + sizeof(T) * l + i * width, lanes_of<char>(x.in[i], r) + l * width, width);
  });
}
template <class T>
void unpack(const Instruction& x, char* r, uint32_t lanes) {
  const unsigned width = static_cast<unsigned>(sizeof(T)) / x.vector;
  const T* const in = lanes_of<T>(x.in[0], r);
  each_lane(lanes, [&](unsigned l) {
    const T value = in[l];
    for (unsigned i = 0; i < x.vector; ++i)
      if (x.out[i].width != kNone)
        __builtin_memcpy(r + x.out[i].offset + l * width, reinterpret_cast<const char*>(&value) + i * width, width);
  });
}

// mov between a register and a vector of its parts.
void move_parts(Instruction& x, Text& t) {
  x.group = Group::kMove;
  x.type = t.words.type();
  t.words.end();
  t.expect(2, 2);
  const bool packs = t.operands[1].front() == '{';
  const std::vector<std::string> parts = vector_of(t.operands[packs ? 1 : 0]);
  const unsigned bytes = bytes_of(x.type), each = bytes / static_cast<unsigned>(parts.size());
  if ((bytes != 4 && bytes != 8) || each < 2 || each * parts.size() != bytes) t.words.unknown();
  x.vector = static_cast<uint8_t>(parts.size());
  for (size_t i = 0; i < parts.size(); ++i) {
    if (!packs && parts[i] == "_") continue;
    (packs ? x.in : x.out)[i] = t.symbols.operand_of(parts[i], static_cast<uint8_t>(each));
  }
  (packs ? x.out : x.in)[0] = t.symbols.operand_of(t.operands[packs ? 0 : 1], static_cast<uint8_t>(bytes));
  if (bytes == 4)
    x.execute = packs ? &pack<uint32_t> : &unpack<uint32_t>;
  else
    x.execute = packs ? &pack<uint64_t> : &unpack<uint64_t>;
}

void convert(Instruction& x, Text& t) {
  x.group = Group::kConvert;
  const char* const kRoundings[] = {"rn", "rz", "rni", "rzi", "rmi", "rpi"};
  const int rounding = t.words.one_of({"rn", "rz", "rni", "rzi", "rmi", "rpi"});
  const bool saturate = t.words.take("sat");
  x.type = t.words.type();
  x.from = t.words.type();
  t.words.end();
  t.expect(2, 2);
  x.mode = rounding >= 2 ? static_cast<uint8_t>(kRoundings[rounding][1]) : 0;
  x.out[0] = t.symbols.operand(t.operands[0], width_of(x.type));
  x.in[0] = t.symbols.operand(t.operands[1], static_cast<uint8_t>(std::max(2u, bytes_of(x.from))));
  x.execute = conversion(x.type, x.from, rounding < 0 ? "" : kRoundings[rounding], saturate, x.out[0].width, x.in[0].width);
  if (x.execute == nullptr) t.words.unknown();
}

void from_table(Instruction& x, Text& t, const std::string& name) {
  const auto found = forms().find(name);
  if (found == forms().end()) t.words.unknown();
  const Form& form = found->second;
  x.execute = form.execute;
  x.group = form.group;
  x.mode = form.mode;
  size_t count = 0;
  while (count < 4 && form.in[count] != kNone) ++count;
  t.expect(count + 1, count + 1);
  const size_t bar = t.operands[0].find('|');
  x.out[0] = t.symbols.operand_of(trimmed(t.operands[0].substr(0, bar)), form.out);
  if (bar != std::string::npos && t.words.opcode != "setp") throw LoadError("two results");
  if (bar != std::string::npos) x.out[1] = t.symbols.operand_of(trimmed(t.operands[0].substr(bar + 1)), kPredicate);
  if (x.out[0].constant != nullptr || x.out[1].constant != nullptr) throw LoadError("the result is no register");
  for (size_t i = 0; i < count; ++i) x.in[i] = t.symbols.operand_of(t.operands[i + 1], form.in[i]);
}

void flow(Instruction& x, Text& t, std::string* target) {
  x.group = Group::kBranch;
  if (t.words.opcode == "bra") {
    x.kind = Kind::kBranch;
    t.words.take("uni");
    t.expect(1, 1);
    *target = t.operands[0];
  } else {
    x.kind = t.words.opcode == "trap" ? Kind::kTrap : Kind::kReturn;
    t.words.take("uni");
    t.expect(0, 0);
  }
  t.words.end();
}

}  // namespace

Instruction decode(const std::string& text, Symbols& symbols, std::string* target) {
  const size_t space = text.find_first_of(" \t");
  const std::string name = text.substr(0, space);
  Text t{Words(name), space == std::string::npos ? std::vector<std::string>{} : split(text.substr(space)), symbols};
  const std::string opcode = t.words.opcode;
  Instruction x;
  if (opcode == "ld") {
    load(x, t);
  } else if (opcode == "st") {
    store(x, t);
  } else if (opcode == "atom" || opcode == "red") {
    atomic(x, t, opcode == "atom");
  } else if (opcode == "membar" || opcode == "fence") {
    fence(x, t);
  } else if (opcode == "cvta") {
    convert_address(x, t);
  } else if (opcode == "bar" || opcode == "barrier") {
    barrier(x, t);
  } else if (opcode == "shfl") {
    shuffle(x, t);
  } else if (opcode == "vote") {
    vote(x, t);
  } else if (opcode == "redux") {
    reduce(x, t);
  } else if (opcode == "bra" || opcode == "ret" || opcode == "exit" || opcode == "trap") {
    flow(x, t, target);
  } else if (opcode == "activemask") {
    x.kind = Kind::kActiveMask;
    x.group = Group::kWarp;
    if (t.words.type() != Type::kB32) t.words.unknown();
    t.words.end();
    t.expect(1, 1);
    x.out[0] = symbols.operand_of(t.operands[0], 4);
  } else if (opcode == "cvt") {
    convert(x, t);
  } else if (opcode == "mov" && t.operands.size() == 2 && (t.operands[0].front() == '{' || t.operands[1].front() == '{')) {
    move_parts(x, t);
  } else {
    from_table(x, t, name);
  }
  return x;
}

}  // namespace ptx
