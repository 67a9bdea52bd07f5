// Bits: logic, shifts, fields, moves.
#include <type_traits>

#include "opcodes.h"

namespace ptx {
namespace {

template <class T>
constexpr uint32_t kBits = 8 * sizeof(T);

struct And {
  template <class T>
  T operator()(T a, T b) const {
    return a & b;
  }
};
struct Or {
  template <class T>
  T operator()(T a, T b) const {
    return a | b;
  }
};
struct Xor {
  template <class T>
  T operator()(T a, T b) const {
    return a ^ b;
  }
};
struct Not {
  template <class T>
  T operator()(T a) const {
    return static_cast<T>(~a);
  }
};
struct Same {
  template <class T>
  T operator()(T a) const {
    return a;
  }
};
struct ShiftLeft {
  template <class T>
  T operator()(T a, uint32_t by) const {
    return by >= kBits<T> ? 0 : static_cast<T>(static_cast<uint64_t>(a) << by);
  }
};
struct ShiftRight {
  template <class T>
  T operator()(T a, uint32_t by) const {
    if (by >= kBits<T>) return a < 0 ? static_cast<T>(-1) : 0;
    return static_cast<T>(a >> by);
  }
};
template <bool left, bool clamp>
struct Funnel {
  uint32_t operator()(uint32_t low, uint32_t high, uint32_t by) const {
    by = clamp ? (by < 32 ? by : 32) : by & 31;
    const uint64_t both = static_cast<uint64_t>(high) << 32 | low;
    return static_cast<uint32_t>(left ? both << by >> 32 : both >> by);
  }
};
struct Population {
  template <class T>
  uint32_t operator()(T a) const {
    return static_cast<uint32_t>(__builtin_popcountll(a));
  }
};
struct LeadingZeros {
  template <class T>
  uint32_t operator()(T a) const {
    return a == 0 ? kBits<T> : static_cast<uint32_t>(__builtin_clzll(a)) - (64 - kBits<T>);
  }
};
template <bool shift_amount>
struct Leading {  // the highest bit that differs from the sign
  template <class T>
  uint32_t operator()(T a) const {
    const auto bits = static_cast<std::make_unsigned_t<T>>(a < 0 ? ~a : a);
    if (bits == 0) return ~0u;
    const uint32_t zeros = LeadingZeros{}(bits);
    return shift_amount ? zeros : kBits<T> - 1 - zeros;
  }
};
struct Reverse {
  template <class T>
  T operator()(T a) const {
    T out = 0;
    for (uint32_t i = 0; i < kBits<T>; ++i) out |= (a >> i & 1) << (kBits<T> - 1 - i);
    return out;
  }
};
template <class T>
constexpr T field(uint32_t length) {
  return length >= kBits<T> ? static_cast<T>(~T{0}) : static_cast<T>((T{1} << length) - 1);
}
struct Insert {
  template <class T>
  T operator()(T a, T b, uint32_t at, uint32_t length) const {
    at &= 255, length &= 255;
    if (at >= kBits<T>) return b;
    const T mask = static_cast<T>(field<T>(length) << at);
    return (b & ~mask) | (static_cast<T>(a << at) & mask);
  }
};
struct Extract {
  template <class T>
  T operator()(T a, uint32_t at, uint32_t length) const {
    at &= 255, length &= 255;
    using U = std::make_unsigned_t<T>;
    if (length == 0) return 0;
    const U taken = at >= kBits<T> ? 0 : static_cast<U>(a) >> at;
    if (!std::is_signed_v<T>) return static_cast<T>(taken & field<U>(length));
    const uint32_t top = at + length - 1 < kBits<T> ? at + length - 1 : kBits<T> - 1;
    const bool negative = (static_cast<U>(a) >> top & 1) != 0;
    return static_cast<T>((taken & field<U>(length)) | (negative ? ~field<U>(top < at ? 0 : top - at + 1) : U{0}));
  }
};
struct Permute {
  uint32_t operator()(uint32_t a, uint32_t b, uint32_t selectors) const {
    const uint64_t both = static_cast<uint64_t>(b) << 32 | a;
    uint32_t out = 0;
    for (int i = 0; i < 4; ++i) {
      const uint32_t s = selectors >> (4 * i) & 15, byte = both >> (8 * (s & 7)) & 255;
      out |= (s & 8 ? (byte & 128 ? 255u : 0u) : byte) << (8 * i);
    }
    return out;
  }
};
struct Lookup {
  uint32_t operator()(uint32_t a, uint32_t b, uint32_t c, uint32_t table) const {
    uint32_t out = 0;
    for (uint32_t i = 0; i < 8; ++i)
      if (table >> i & 1) out |= (i & 4 ? a : ~a) & (i & 2 ? b : ~b) & (i & 1 ? c : ~c);
    return out;
  }
};

template <class F>
void predicates(const Instruction& x, char* r, uint32_t lanes) {
  set_predicate(x.out[0], r, lanes, F{}(predicate(x.in[0], r), predicate(x.in[1], r)));
}
template <class F>
void predicates_of_one(const Instruction& x, char* r, uint32_t lanes) {
  set_predicate(x.out[0], r, lanes, F{}(predicate(x.in[0], r)));
}

template <class T>
void add_bits(Forms& forms, const std::string& bits) {
  forms["and.b" + bits] = map_form<And, T, T, T>(Group::kLogic);
  forms["or.b" + bits] = map_form<Or, T, T, T>(Group::kLogic);
  forms["xor.b" + bits] = map_form<Xor, T, T, T>(Group::kLogic);
  forms["not.b" + bits] = map_form<Not, T, T>(Group::kLogic);
  forms["shl.b" + bits] = map_form<ShiftLeft, T, T, uint32_t>(Group::kLogic);
  forms["shr.b" + bits] = forms["shr.u" + bits] = map_form<ShiftRight, T, T, uint32_t>(Group::kLogic);
  forms["shr.s" + bits] =
      map_form<ShiftRight, std::make_signed_t<T>, std::make_signed_t<T>, uint32_t>(Group::kLogic);
  for (const char* type : {"b", "u", "s"}) forms["mov." + (type + bits)] = map_form<Same, T, T>(Group::kMove);
}

template <class T>
void add_counts_and_fields(Forms& forms, const std::string& bits) {
  using S = std::make_signed_t<T>;
  forms["popc.b" + bits] = map_form<Population, uint32_t, T>(Group::kInteger);
  forms["clz.b" + bits] = map_form<LeadingZeros, uint32_t, T>(Group::kInteger);
  forms["brev.b" + bits] = map_form<Reverse, T, T>(Group::kLogic);
  forms["bfind.u" + bits] = map_form<Leading<false>, uint32_t, T>(Group::kInteger);
  forms["bfind.s" + bits] = map_form<Leading<false>, uint32_t, S>(Group::kInteger);
  forms["bfind.shiftamt.u" + bits] = map_form<Leading<true>, uint32_t, T>(Group::kInteger);
  forms["bfind.shiftamt.s" + bits] = map_form<Leading<true>, uint32_t, S>(Group::kInteger);
  forms["bfi.b" + bits] = map_form<Insert, T, T, T, uint32_t, uint32_t>(Group::kLogic);
  forms["bfe.u" + bits] = map_form<Extract, T, T, uint32_t, uint32_t>(Group::kLogic);
  forms["bfe.s" + bits] = map_form<Extract, S, S, uint32_t, uint32_t>(Group::kLogic);
}

}  // namespace

void add_logic_forms(Forms& forms) {
  add_bits<uint16_t>(forms, "16");
  add_bits<uint32_t>(forms, "32");
  add_bits<uint64_t>(forms, "64");
  add_counts_and_fields<uint32_t>(forms, "32");
  add_counts_and_fields<uint64_t>(forms, "64");
  forms["mov.f32"] = map_form<Same, uint32_t, uint32_t>(Group::kMove);
  forms["mov.f64"] = map_form<Same, uint64_t, uint64_t>(Group::kMove);
  forms["prmt.b32"] = map_form<Permute, uint32_t, uint32_t, uint32_t, uint32_t>(Group::kLogic);
  forms["lop3.b32"] = map_form<Lookup, uint32_t, uint32_t, uint32_t, uint32_t, uint32_t>(Group::kLogic);
  forms["shf.l.wrap.b32"] = map_form<Funnel<true, false>, uint32_t, uint32_t, uint32_t, uint32_t>(Group::kLogic);
  forms["shf.l.clamp.b32"] = map_form<Funnel<true, true>, uint32_t, uint32_t, uint32_t, uint32_t>(Group::kLogic);
  forms["shf.r.wrap.b32"] = map_form<Funnel<false, false>, uint32_t, uint32_t, uint32_t, uint32_t>(Group::kLogic);
  forms["shf.r.clamp.b32"] = map_form<Funnel<false, true>, uint32_t, uint32_t, uint32_t, uint32_t>(Group::kLogic);
  constexpr Form kTwo{nullptr, Group::kLogic, kPredicate, {kPredicate, kPredicate}, 0};
  constexpr Form kOne{nullptr, Group::kLogic, kPredicate, {kPredicate}, 0};
  const auto with = [](Form form, Handler handler, Group group) {
    form.execute = handler;
    form.group = group;
    return form;
  };
  forms["and.pred"] = with(kTwo, &predicates<And>, Group::kLogic);
  forms["or.pred"] = with(kTwo, &predicates<Or>, Group::kLogic);
  forms["xor.pred"] = with(kTwo, &predicates<Xor>, Group::kLogic);
  forms["not.pred"] = with(kOne, &predicates_of_one<Not>, Group::kLogic);
  forms["mov.pred"] = with(kOne, &predicates_of_one<Same>, Group::kMove);
}

}  // namespace ptx
