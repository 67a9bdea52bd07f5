// A PTX program as it is executed: every instruction decoded once, operands as places in a warp's register file.
//
// The register file of a warp holds a value for each of its 32 lanes after the other, register by register: 2, 4 or 8 bytes a
// lane, and one bit a lane for a predicate. An immediate is 32 equal values, so that no handler needs to tell them apart.
#pragma once

#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

namespace ptx {

constexpr unsigned kLanes = 32;

// The text is refused: unknown, malformed, or more than is simulated.
struct LoadError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

enum class Type : uint8_t { kPred, kB8, kB16, kB32, kB64, kU8, kU16, kU32, kU64, kS8, kS16, kS32, kS64, kF16, kBF16, kF32, kF64 };

constexpr unsigned bytes_of(Type t) {
  constexpr unsigned kBytes[] = {1, 1, 2, 4, 8, 1, 2, 4, 8, 1, 2, 4, 8, 2, 2, 4, 8};
  return kBytes[static_cast<int>(t)];
}
constexpr bool is_signed(Type t) { return t >= Type::kS8 && t <= Type::kS64; }
constexpr bool is_float(Type t) { return t >= Type::kF16; }

// Widths of a register's lane: bytes, or these.
constexpr uint8_t kNone = 0, kPredicate = 1;

struct Operand {
  const char* constant = nullptr;  // the lanes of an immediate
  uint32_t offset = 0;             // else of the lanes in the register file
  uint8_t width = kNone;
};

enum class Space : uint8_t { kGeneric, kGlobal, kShared, kLocal, kParam };

// How an access to global memory is ordered with others. kWeak may be served by a stale cache, or be late.
enum class Order : uint8_t { kWeak, kRelaxed, kAcquire, kRelease, kBoth };

enum class Kind : uint8_t {
  kArithmetic,  // lane by lane, by `execute`
  kLoad,
  kStore,
  kAtomic,
  kFence,
  kAddress,  // cvta: `to` a space or from it
  kIsSpace,
  kBranch,
  kReturn,
  kBarrier,
  kWarpSync,
  kShuffle,
  kVote,
  kReduce,
  kActiveMask,
  kTrap,
};

enum class Group : uint8_t {  // by which instructions are counted
  kInteger,
  kLogic,
  kFloat,
  kCompare,
  kConvert,
  kMove,
  kGlobal,
  kShared,
  kLocal,
  kParam,
  kAtomic,
  kFence,
  kBranch,
  kBarrier,
  kWarp,
  kCount,
};
constexpr const char* kGroupNames[] = {"integer", "logic", "float", "compare", "convert", "move", "global", "shared",
                                       "local", "param", "atomic", "fence", "branch", "barrier", "warp"};

enum class Atomic : uint8_t { kAdd, kAnd, kOr, kXor, kMin, kMax, kExchange, kCompareExchange, kIncrement, kDecrement };
enum class Shuffle : uint8_t { kUp, kDown, kXor, kIndex };
enum class Vote : uint8_t { kAny, kAll, kUniform, kBallot, kCount, kPlain };  // of warps and barriers; kPlain: only waits

struct Instruction;
using Handler = void (*)(const Instruction&, char* registers, uint32_t lanes);

struct Instruction {
  Handler execute = nullptr;
  Kind kind = Kind::kArithmetic;
  Group group = Group::kInteger;
  Type type = Type::kB32, from = Type::kB32;  // from: what cvt reads
  Space space = Space::kGeneric;
  Order order = Order::kWeak;
  uint8_t vector = 1;  // values of one load or store
  uint8_t mode = 0;    // an Atomic, Shuffle, Vote, or what a handler makes of it
  bool to = false;
  bool negated = false;
  int32_t guard = -1;   // offset of the predicate
  uint32_t target = 0;  // of a branch
  int64_t offset = 0;   // added to the address in in[0]
  Operand out[4], in[6];
};

struct Parameter {
  uint32_t offset = 0, bytes = 0;
};

struct Kernel {
  std::string name;  // canonical, see names.h
  std::vector<Instruction> code;
  std::vector<std::string> texts, sources;  // of the instructions: PTX, and "file:line" or empty
  uint32_t register_bytes = 0;
  std::vector<Parameter> parameters;
  uint32_t parameter_bytes = 0;
  uint32_t static_shared = 0, dynamic_base = 0;
  uint32_t local_bytes = 0;
  bool touches_shared_bytes = false;               // by accesses of less than 4 bytes
  std::deque<std::vector<char>> constants;         // where operands point to
  std::vector<std::shared_ptr<char[]>> variables;  // of the module, whose addresses are in the constants
};

// Places in the register file that each warp starts with, 4 bytes a lane.
constexpr uint32_t kThreadIndex = 0, kBlockIndex = 128, kBlockSize = 256, kGridSize = 384, kFirstRegister = 512;

// The kernels of a text, as nvcc -ptx writes it. Throws LoadError, which names the line.
std::vector<std::unique_ptr<Kernel>> parse(const std::string& text);

}  // namespace ptx
