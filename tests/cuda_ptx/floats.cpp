// Float32 and float64, each rounded to nearest even. Every NaN that is computed is the GPU's canonical one.
#include <cmath>
#include <cstring>

#include "opcodes.h"

namespace ptx {
namespace {

template <class T>
T canonical(T x) {
  if (x == x) return x;
  T nan;
  if constexpr (sizeof(T) == 4) {
    const uint32_t bits = 0x7FFFFFFFu;
    memcpy(&nan, &bits, sizeof nan);
  } else {
    const uint64_t bits = 0x7FFFFFFFFFFFFFFFu;
    memcpy(&nan, &bits, sizeof nan);
  }
  return nan;
}

struct Add {
  template <class T>
  T operator()(T a, T b) const {
    return canonical(a + b);
  }
};
struct Subtract {
  template <class T>
  T operator()(T a, T b) const {
    return canonical(a - b);
  }
};
struct Multiply {
  template <class T>
  T operator()(T a, T b) const {
    return canonical(a * b);
  }
};
struct Divide {
  template <class T>
  T operator()(T a, T b) const {
    return canonical(a / b);
  }
};
struct MultiplyAdd {
  template <class T>
  T operator()(T a, T b, T c) const {
    return canonical(std::fma(a, b, c));
  }
};
struct Root {
  template <class T>
  T operator()(T a) const {
    return canonical(std::sqrt(a));
  }
};
struct Reciprocal {
  template <class T>
  T operator()(T a) const {
    return canonical(T{1} / a);
  }
};
// The number where the other is a NaN; -0 is less than +0.
struct Least {
  template <class T>
  T operator()(T a, T b) const {
    if (a != a) return canonical(b);
    if (b != b || a < b || (a == b && std::signbit(a))) return a;
    return b;
  }
};
struct Most {
  template <class T>
  T operator()(T a, T b) const {
    if (a != a) return canonical(b);
    if (b != b || a > b || (a == b && !std::signbit(a))) return a;
    return b;
  }
};
struct Negate {
  template <class T>
  T operator()(T a) const {
    return -a;
  }
};
struct Absolute {
  template <class T>
  T operator()(T a) const {
    return std::fabs(a);
  }
};

template <class T>
void add_type(Forms& forms, const std::string& type) {
  constexpr Group kGroup = Group::kFloat;
  forms["add." + type] = forms["add.rn." + type] = map_form<Add, T, T, T>(kGroup);
  forms["sub." + type] = forms["sub.rn." + type] = map_form<Subtract, T, T, T>(kGroup);
  forms["mul." + type] = forms["mul.rn." + type] = map_form<Multiply, T, T, T>(kGroup);
  forms["div.rn." + type] = map_form<Divide, T, T, T>(kGroup);
  forms["rcp.rn." + type] = map_form<Reciprocal, T, T>(kGroup);
  forms["sqrt.rn." + type] = map_form<Root, T, T>(kGroup);
  forms["fma.rn." + type] = forms["mad.rn." + type] = map_form<MultiplyAdd, T, T, T, T>(kGroup);
  forms["min." + type] = map_form<Least, T, T, T>(kGroup);
  forms["max." + type] = map_form<Most, T, T, T>(kGroup);
  forms["neg." + type] = map_form<Negate, T, T>(kGroup);
  forms["abs." + type] = map_form<Absolute, T, T>(kGroup);
}

}  // namespace

void add_float_forms(Forms& forms) {
  add_type<float>(forms, "f32");
  add_type<double>(forms, "f64");
}

}  // namespace ptx
