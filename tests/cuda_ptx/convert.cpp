// cvt, in two steps over the lanes: what is read becomes a 64-bit integer or a double, then what is written.
#include <cmath>
#include <cstring>

#include "opcodes.h"

namespace ptx {
namespace {

float from_half(uint16_t h) {
  const uint32_t sign = (h & 0x8000u) << 16, exponent = h >> 10 & 31, fraction = h & 1023;
  if (exponent == 0) {
    const float x = std::ldexp(static_cast<float>(fraction), -24);
    return sign != 0 ? -x : x;
  }
  const uint32_t bits = sign | (exponent == 31 ? 0x7F800000u | fraction << 13 : (exponent + 112) << 23 | fraction << 13);
  float x;
  memcpy(&x, &bits, sizeof x);
  return x;
}
float from_bfloat(uint16_t b) {
  const uint32_t bits = static_cast<uint32_t>(b) << 16;
  float x;
  memcpy(&x, &bits, sizeof x);
  return x;
}

// To nearest even, of `fraction` stored bits and the least exponent; exact in double.
uint16_t rounded(double x, int fraction, int least_exponent, uint16_t infinity) {
  const uint16_t sign = std::signbit(x) ? 0x8000 : 0;
  if (x != x) return 0x7FFF;
  x = std::fabs(x);
  if (std::isinf(x)) return static_cast<uint16_t>(sign | infinity);
  int exponent = 0;
  std::frexp(x, &exponent);
  exponent = x == 0.0 || exponent - 1 < least_exponent ? least_exponent : exponent - 1;
  const double units = std::nearbyint(std::ldexp(x, fraction - exponent));  // of the last place
  const double bits = units + std::ldexp(static_cast<double>(exponent - least_exponent), fraction);
  return static_cast<uint16_t>(sign | (bits >= infinity ? infinity : static_cast<uint16_t>(bits)));
}

template <class Register, class T>
void read_integers(const Operand& o, const char* r, uint32_t lanes, int64_t* out) {
  const Register* const in = lanes_of<Register>(o, r);
  each_lane(lanes, [&](unsigned l) { out[l] = static_cast<int64_t>(static_cast<T>(in[l])); });
}
template <class T>
void read_integers(const Operand& o, const char* r, uint32_t lanes, int64_t* out) {
  if (o.width == 2) return read_integers<uint16_t, T>(o, r, lanes, out);
  if (o.width == 4) return read_integers<uint32_t, T>(o, r, lanes, out);
  read_integers<uint64_t, T>(o, r, lanes, out);
}

template <class T>
void write_integers(const Operand& o, char* r, uint32_t lanes, const int64_t* in) {
  if (o.width == 2) each_lane(lanes, [&, out = written_lanes<uint16_t>(o, r)](unsigned l) { out[l] = static_cast<uint16_t>(static_cast<T>(in[l])); });
  if (o.width == 4) each_lane(lanes, [&, out = written_lanes<uint32_t>(o, r)](unsigned l) { out[l] = static_cast<uint32_t>(static_cast<T>(in[l])); });
  if (o.width == 8) each_lane(lanes, [&, out = written_lanes<uint64_t>(o, r)](unsigned l) { out[l] = static_cast<uint64_t>(static_cast<T>(in[l])); });
}

void read_floats(Type from, const Operand& o, const char* r, uint32_t lanes, double* out) {
  if (from == Type::kF16) each_lane(lanes, [&, in = lanes_of<uint16_t>(o, r)](unsigned l) { out[l] = from_half(in[l]); });
  if (from == Type::kBF16) each_lane(lanes, [&, in = lanes_of<uint16_t>(o, r)](unsigned l) { out[l] = from_bfloat(in[l]); });
  if (from == Type::kF32) each_lane(lanes, [&, in = lanes_of<float>(o, r)](unsigned l) { out[l] = in[l]; });
  if (from == Type::kF64) each_lane(lanes, [&, in = lanes_of<double>(o, r)](unsigned l) { out[l] = in[l]; });
}

void write_float(Type to, const Operand& o, char* r, unsigned lane, double x) {
  if (to == Type::kF64) {
    written_lanes<double>(o, r)[lane] = x;
  } else if (to == Type::kF32) {
    const uint32_t nan = 0x7FFFFFFFu;
    const auto single = static_cast<float>(x);
    memcpy(written_lanes<float>(o, r) + lane, x == x ? static_cast<const void*>(&single) : &nan, sizeof nan);
  } else {
    written_lanes<uint16_t>(o, r)[lane] = to == Type::kF16 ? rounded(x, 10, -14, 0x7C00) : rounded(x, 7, -126, 0x7F80);
  }
}

// The lanes as integers.
void read_lanes(const Instruction& x, const char* r, uint32_t lanes, int64_t* out) {
  const Operand& o = x.in[0];
  switch (bytes_of(x.from) * (is_signed(x.from) ? 16 : 1)) {
    case 1: return read_integers<uint8_t>(o, r, lanes, out);
    case 2: return read_integers<uint16_t>(o, r, lanes, out);
    case 4: return read_integers<uint32_t>(o, r, lanes, out);
    case 16: return read_integers<int8_t>(o, r, lanes, out);
    case 32: return read_integers<int16_t>(o, r, lanes, out);
    case 64: return read_integers<int32_t>(o, r, lanes, out);
    default: return read_integers<uint64_t>(o, r, lanes, out);
  }
}

void write_lanes(const Instruction& x, char* r, uint32_t lanes, const int64_t* in) {
  const Operand& o = x.out[0];
  switch (bytes_of(x.type) * (is_signed(x.type) ? 16 : 1)) {
    case 1: return write_integers<uint8_t>(o, r, lanes, in);
    case 2: return write_integers<uint16_t>(o, r, lanes, in);
    case 4: return write_integers<uint32_t>(o, r, lanes, in);
    case 16: return write_integers<int8_t>(o, r, lanes, in);
    case 32: return write_integers<int16_t>(o, r, lanes, in);
    case 64: return write_integers<int32_t>(o, r, lanes, in);
    default: return write_integers<uint64_t>(o, r, lanes, in);
  }
}

void integer_to_integer(const Instruction& x, char* r, uint32_t lanes) {
  int64_t values[kLanes];
  read_lanes(x, r, lanes, values);
  write_lanes(x, r, lanes, values);
}

void integer_to_float(const Instruction& x, char* r, uint32_t lanes) {
  int64_t values[kLanes];
  read_lanes(x, r, lanes, values);
  const bool is_unsigned = !is_signed(x.from);
  const auto convert = [&](auto zero, unsigned l) {  // at once: by way of double would round twice
    using F = decltype(zero);
    return is_unsigned ? static_cast<F>(static_cast<uint64_t>(values[l])) : static_cast<F>(values[l]);
  };
  if (x.type == Type::kF32) {
    float* const out = written_lanes<float>(x.out[0], r);
    each_lane(lanes, [&](unsigned l) { out[l] = convert(0.0f, l); });
  } else {
    double* const out = written_lanes<double>(x.out[0], r);
    each_lane(lanes, [&](unsigned l) { out[l] = convert(0.0, l); });
  }
}

double rounded_to_integer(double x, char rounding) {
  switch (rounding) {
    case 'z': return std::trunc(x);
    case 'm': return std::floor(x);
    case 'p': return std::ceil(x);
    default: return std::nearbyint(x);
  }
}

// Out of range: the nearest; a NaN: 0.
void float_to_integer(const Instruction& x, char* r, uint32_t lanes) {
  double values[kLanes];
  int64_t integers[kLanes];
  read_floats(x.from, x.in[0], r, lanes, values);
  const int bits = static_cast<int>(8 * bytes_of(x.type)) - (is_signed(x.type) ? 1 : 0);
  const double limit = std::ldexp(1.0, bits), least = is_signed(x.type) ? -limit : 0.0;
  const auto most = static_cast<int64_t>(bits == 64 ? ~uint64_t{0} : (uint64_t{1} << bits) - 1);
  each_lane(lanes, [&](unsigned l) {
    const double value = rounded_to_integer(values[l], static_cast<char>(x.mode));
    integers[l] = value != value    ? 0
                  : value >= limit  ? most
                  : value <= least  ? static_cast<int64_t>(least)
                  : value >= 0x1p63 ? static_cast<int64_t>(static_cast<uint64_t>(value))
                                    : static_cast<int64_t>(value);
  });
  write_lanes(x, r, lanes, integers);
}

void float_to_float(const Instruction& x, char* r, uint32_t lanes) {
  double values[kLanes];
  read_floats(x.from, x.in[0], r, lanes, values);
  each_lane(lanes, [&](unsigned l) {
    const double value = x.mode == 0 ? values[l] : rounded_to_integer(values[l], static_cast<char>(x.mode));
    write_float(x.type, x.out[0], r, l, value);
  });
}

}  // namespace

Handler conversion(Type to, Type from, const std::string& rounding, bool saturate, uint8_t out_width, uint8_t in_width) {
  const bool fits = out_width >= bytes_of(to) && in_width >= bytes_of(from) && out_width >= 2 && in_width >= 2;
  const bool exact = (!is_float(to) || out_width == bytes_of(to)) && (!is_float(from) || in_width == bytes_of(from));
  if (!fits || !exact || saturate || to == Type::kPred || from == Type::kPred) return nullptr;
  const bool to_integer = rounding == "rni" || rounding == "rzi" || rounding == "rmi" || rounding == "rpi";
  if (!is_float(to) && !is_float(from)) return rounding.empty() ? &integer_to_integer : nullptr;
  if (!is_float(to)) return to_integer ? &float_to_integer : nullptr;
  if (!is_float(from)) return rounding == "rn" && bytes_of(to) >= 4 ? &integer_to_float : nullptr;
  if (to == from) return to_integer && bytes_of(to) >= 4 ? &float_to_float : nullptr;
  return rounding == (bytes_of(to) < bytes_of(from) ? "rn" : "") ? &float_to_float : nullptr;
}

}  // namespace ptx
