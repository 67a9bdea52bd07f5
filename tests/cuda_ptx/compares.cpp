// setp and selp.
#include <type_traits>

#include "opcodes.h"

namespace ptx {
namespace {

enum Combine : uint8_t { kAlone, kAnd, kOr, kXor };

struct Equal {
  template <class T>
  bool operator()(T a, T b) const {
    return a == b;
  }
};
struct Unequal {
  template <class T>
  bool operator()(T a, T b) const {
    return a < b || a > b;  // not of NaNs
  }
};
struct Less {
  template <class T>
  bool operator()(T a, T b) const {
    return a < b;
  }
};
struct LessEqual {
  template <class T>
  bool operator()(T a, T b) const {
    return a <= b;
  }
};
struct Greater {
  template <class T>
  bool operator()(T a, T b) const {
    return a > b;
  }
};
struct GreaterEqual {
  template <class T>
  bool operator()(T a, T b) const {
    return a >= b;
  }
};
template <class F>
struct OrNan {
  template <class T>
  bool operator()(T a, T b) const {
    return a != a || b != b || F{}(a, b);
  }
};
struct Numbers {
  template <class T>
  bool operator()(T a, T b) const {
    return a == a && b == b;
  }
};
struct Nan {
  template <class T>
  bool operator()(T a, T b) const {
    return a != a || b != b;
  }
};

template <class F, class T>
void compare(const Instruction& x, char* r, uint32_t lanes) {
  const T *const a = lanes_of<T>(x.in[0], r), *const b = lanes_of<T>(x.in[1], r);
  uint32_t result = 0;
  each_lane(lanes, [&](unsigned l) { result |= static_cast<uint32_t>(F{}(a[l], b[l])) << l; });
  const uint32_t other = x.mode != kAlone ? predicate(x.in[2], r) : 0;
  const auto combined = [&](uint32_t p) { return x.mode == kAnd ? p & other : x.mode == kOr ? p | other : p ^ other; };
  if (x.out[1].width != kNone) set_predicate(x.out[1], r, lanes, combined(~result));
  set_predicate(x.out[0], r, lanes, combined(result));
}

template <class F, class T>
void add_compare(Forms& forms, const std::string& name, const std::string& type) {
  Form form{&compare<F, T>, Group::kCompare, kPredicate, {sizeof(T), sizeof(T)}, kAlone};
  forms["setp." + name + "." + type] = form;
  form.in[2] = kPredicate;
  const char* const combinations[] = {".and.", ".or.", ".xor."};
  for (uint8_t i = 0; i < 3; ++i) {
    form.mode = static_cast<uint8_t>(i + kAnd);
    forms["setp." + name + combinations[i] + type] = form;
  }
}

template <class T>
void add_equal(Forms& forms, const std::string& type) {
  add_compare<Equal, T>(forms, "eq", type);
  add_compare<Unequal, T>(forms, "ne", type);
}
template <class T>
void add_ordered(Forms& forms, const std::string& type) {
  add_equal<T>(forms, type);
  add_compare<Less, T>(forms, "lt", type);
  add_compare<LessEqual, T>(forms, "le", type);
  add_compare<Greater, T>(forms, "gt", type);
  add_compare<GreaterEqual, T>(forms, "ge", type);
}
template <class T>
void add_unsigned(Forms& forms, const std::string& type) {
  add_ordered<T>(forms, type);
  add_compare<Less, T>(forms, "lo", type);
  add_compare<LessEqual, T>(forms, "ls", type);
  add_compare<Greater, T>(forms, "hi", type);
  add_compare<GreaterEqual, T>(forms, "hs", type);
}
template <class T>
void add_float(Forms& forms, const std::string& type) {
  add_ordered<T>(forms, type);
  add_compare<OrNan<Equal>, T>(forms, "equ", type);
  add_compare<OrNan<Unequal>, T>(forms, "neu", type);
  add_compare<OrNan<Less>, T>(forms, "ltu", type);
  add_compare<OrNan<LessEqual>, T>(forms, "leu", type);
  add_compare<OrNan<Greater>, T>(forms, "gtu", type);
  add_compare<OrNan<GreaterEqual>, T>(forms, "geu", type);
  add_compare<Numbers, T>(forms, "num", type);
  add_compare<Nan, T>(forms, "nan", type);
}

template <class T>
void select(const Instruction& x, char* r, uint32_t lanes) {
  const T *const a = lanes_of<T>(x.in[0], r), *const b = lanes_of<T>(x.in[1], r);
  T* const out = written_lanes<T>(x.out[0], r);
  const uint32_t chosen = predicate(x.in[2], r);
  each_lane(lanes, [&](unsigned l) { out[l] = (chosen >> l & 1) != 0 ? a[l] : b[l]; });
}
template <class T>
void add_select(Forms& forms, std::initializer_list<const char*> types) {
  for (const char* type : types)
    forms[std::string("selp.") + type] = {&select<T>, Group::kCompare, sizeof(T), {sizeof(T), sizeof(T), kPredicate}, 0};
}

}  // namespace

void add_compare_forms(Forms& forms) {
  add_equal<uint16_t>(forms, "b16");
  add_equal<uint32_t>(forms, "b32");
  add_equal<uint64_t>(forms, "b64");
  add_unsigned<uint16_t>(forms, "u16");
  add_unsigned<uint32_t>(forms, "u32");
  add_unsigned<uint64_t>(forms, "u64");
  add_ordered<int16_t>(forms, "s16");
  add_ordered<int32_t>(forms, "s32");
  add_ordered<int64_t>(forms, "s64");
  add_float<float>(forms, "f32");
  add_float<double>(forms, "f64");
  add_select<uint16_t>(forms, {"b16", "u16", "s16"});
  add_select<uint32_t>(forms, {"b32", "u32", "s32", "f32"});
  add_select<uint64_t>(forms, {"b64", "u64", "s64", "f64"});
}

}  // namespace ptx
