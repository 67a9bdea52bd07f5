// The opcodes that work lane by lane on registers, each form of name and types with its handler. A form that is not in the
// table does not exist for the executor: there is no modifier that it could overlook.
#pragma once

#include <string>
#include <tuple>
#include <unordered_map>
#include <utility>

#include "program.h"

namespace ptx {

struct Form {
  Handler execute = nullptr;
  Group group = Group::kInteger;
  uint8_t out = kNone;
  uint8_t in[4] = {kNone, kNone, kNone, kNone};
  uint8_t mode = 0;
};
using Forms = std::unordered_map<std::string, Form>;

// By full name: "add.s32", "setp.lt.and.u64".
const Forms& forms();

void add_integer_forms(Forms& forms);
void add_logic_forms(Forms& forms);
void add_float_forms(Forms& forms);
void add_compare_forms(Forms& forms);

// What cvt does between two types, with registers of these widths. Rounding: "", "rn", "rz", "rni", "rzi", "rmi", "rpi".
// Null where there is no such form.
Handler conversion(Type to, Type from, const std::string& rounding, bool saturate, uint8_t out_width, uint8_t in_width);

// --- for handlers --------------------------------------------------------------------------------------------------------

template <class T>
const T* lanes_of(const Operand& o, const char* registers) {
  return reinterpret_cast<const T*>(o.constant != nullptr ? o.constant : registers + o.offset);
}
template <class T>
T* written_lanes(const Operand& o, char* registers) {
  return reinterpret_cast<T*>(registers + o.offset);
}
inline uint32_t predicate(const Operand& o, const char* registers) { return *lanes_of<uint32_t>(o, registers); }
inline void set_predicate(const Operand& o, char* registers, uint32_t lanes, uint32_t value) {
  uint32_t& bits = *written_lanes<uint32_t>(o, registers);
  bits = (bits & ~lanes) | (value & lanes);
}

template <class Body>
inline __attribute__((always_inline)) void each_lane(uint32_t lanes, Body body) {
  if (lanes == ~0u) {
#pragma GCC ivdep
    for (unsigned l = 0; l < kLanes; ++l) body(l);
  } else {
    for (; lanes != 0; lanes &= lanes - 1) body(static_cast<unsigned>(__builtin_ctz(lanes)));
  }
}

template <class F, class D, class... A, size_t... I>
inline __attribute__((always_inline)) void map_lanes(const Instruction& x, char* r, uint32_t lanes, std::index_sequence<I...>) {
  D* const out = written_lanes<D>(x.out[0], r);
  const std::tuple<const A*...> in{lanes_of<A>(x.in[I], r)...};
  each_lane(lanes, [&](unsigned l) { out[l] = static_cast<D>(F{}(std::get<I>(in)[l]...)); });
}
template <class F, class D, class... A>
void map(const Instruction& x, char* r, uint32_t lanes) {
  map_lanes<F, D, A...>(x, r, lanes, std::index_sequence_for<A...>{});
}
template <class F, class D, class... A>
Form map_form(Group group) {
  return {&map<F, D, A...>, group, sizeof(D), {sizeof(A)...}, 0};
}

}  // namespace ptx
