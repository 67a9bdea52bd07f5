// Integer arithmetic. Signed types wrap as unsigned ones do; what C++ leaves undefined is as PTX has it.
#include <algorithm>
#include <type_traits>

#include "opcodes.h"

namespace ptx {
namespace {

template <class T>
using Wide = std::conditional_t<sizeof(T) == 2, std::conditional_t<std::is_signed_v<T>, int32_t, uint32_t>,
                                std::conditional_t<sizeof(T) == 4, std::conditional_t<std::is_signed_v<T>, int64_t, uint64_t>,
                                                   std::conditional_t<std::is_signed_v<T>, __int128, unsigned __int128>>>;

struct Add {
  template <class T>
  T operator()(T a, T b) const {
    return static_cast<T>(static_cast<uint64_t>(a) + static_cast<uint64_t>(b));
  }
};
struct Subtract {
  template <class T>
  T operator()(T a, T b) const {
    return static_cast<T>(static_cast<uint64_t>(a) - static_cast<uint64_t>(b));
  }
};
struct MultiplyLow {
  template <class T>
  T operator()(T a, T b) const {
    return static_cast<T>(static_cast<uint64_t>(a) * static_cast<uint64_t>(b));
  }
};
struct MultiplyHigh {
  template <class T>
  T operator()(T a, T b) const {
    return static_cast<T>((static_cast<Wide<T>>(a) * static_cast<Wide<T>>(b)) >> (8 * sizeof(T)));
  }
};
struct MultiplyWide {
  template <class T>
  Wide<T> operator()(T a, T b) const {
    return static_cast<Wide<T>>(static_cast<Wide<T>>(a) * static_cast<Wide<T>>(b));
  }
};
struct MultiplyAddLow {
  template <class T>
  T operator()(T a, T b, T c) const {
    return Add{}(MultiplyLow{}(a, b), c);
  }
};
struct MultiplyAddHigh {
  template <class T>
  T operator()(T a, T b, T c) const {
    return Add{}(MultiplyHigh{}(a, b), c);
  }
};
struct MultiplyAddWide {
  template <class T>
  Wide<T> operator()(T a, T b, Wide<T> c) const {
    return Add{}(MultiplyWide{}(a, b), c);
  }
};
struct Divide {
  template <class T>
  T operator()(T a, T b) const {
    if (b == 0) return static_cast<T>(~T{0});
    if (std::is_signed_v<T> && b == static_cast<T>(-1)) return Subtract{}(T{0}, a);
    return static_cast<T>(a / b);
  }
};
struct Remainder {
  template <class T>
  T operator()(T a, T b) const {
    if (b == 0) return a;
    if (std::is_signed_v<T> && b == static_cast<T>(-1)) return 0;
    return static_cast<T>(a % b);
  }
};
struct Least {
  template <class T>
  T operator()(T a, T b) const {
    return std::min(a, b);
  }
};
struct Most {
  template <class T>
  T operator()(T a, T b) const {
    return std::max(a, b);
  }
};
struct Negate {
  template <class T>
  T operator()(T a) const {
    return Subtract{}(T{0}, a);
  }
};
struct Absolute {
  template <class T>
  T operator()(T a) const {
    return a < 0 ? Negate{}(a) : a;
  }
};

template <class T>
void add_type(Forms& forms, const std::string& type) {
  constexpr Group kGroup = Group::kInteger;
  forms["add." + type] = map_form<Add, T, T, T>(kGroup);
  forms["sub." + type] = map_form<Subtract, T, T, T>(kGroup);
  forms["mul.lo." + type] = map_form<MultiplyLow, T, T, T>(kGroup);
  forms["mul.hi." + type] = map_form<MultiplyHigh, T, T, T>(kGroup);
  forms["mad.lo." + type] = map_form<MultiplyAddLow, T, T, T, T>(kGroup);
  forms["mad.hi." + type] = map_form<MultiplyAddHigh, T, T, T, T>(kGroup);
  forms["div." + type] = map_form<Divide, T, T, T>(kGroup);
  forms["rem." + type] = map_form<Remainder, T, T, T>(kGroup);
  forms["min." + type] = map_form<Least, T, T, T>(kGroup);
  forms["max." + type] = map_form<Most, T, T, T>(kGroup);
  if constexpr (sizeof(T) < 8) {
    forms["mul.wide." + type] = map_form<MultiplyWide, Wide<T>, T, T>(kGroup);
    forms["mad.wide." + type] = map_form<MultiplyAddWide, Wide<T>, T, T, Wide<T>>(kGroup);
  }
  if constexpr (std::is_signed_v<T>) {
    forms["neg." + type] = map_form<Negate, T, T>(kGroup);
    forms["abs." + type] = map_form<Absolute, T, T>(kGroup);
  }
}

}  // namespace

void add_integer_forms(Forms& forms) {
  add_type<uint16_t>(forms, "u16");
  add_type<uint32_t>(forms, "u32");
  add_type<uint64_t>(forms, "u64");
  add_type<int16_t>(forms, "s16");
  add_type<int32_t>(forms, "s32");
  add_type<int64_t>(forms, "s64");
}

}  // namespace ptx
