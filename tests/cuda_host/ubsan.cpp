// What -fsanitize=undefined calls, instead of its own library: a report that names kernel, block and thread rather than a line
// on stderr. Outside of kernels the text is kept for take_report().
#include <cstdint>
#include <string>

#include "scheduler.h"

namespace {

struct Place {  // every handler's data starts with it
  const char* file;
  uint32_t line, column;
};

void undefined(const void* data, const char* what) {
  const auto* place = static_cast<const Place*>(data);
  const std::string file = place->file != nullptr ? place->file : "?";
  cuda_host::report("undefined behaviour: " + std::string(what) + " (" + file.substr(file.rfind('/') + 1) + ":" +
                    std::to_string(place->line) + ")");
}

}  // namespace

// Arguments after the data are values or addresses that the report does without.
#define HANDLER(name, what) \
  extern "C" __attribute__((visibility("hidden"))) void __ubsan_handle_##name(void* data) { undefined(data, what); }
HANDLER(type_mismatch_v1, "an address that is null, misaligned or too small for its type")
HANDLER(pointer_overflow, "pointer arithmetic beyond the address space")
HANDLER(out_of_bounds, "an index beyond its array")
HANDLER(shift_out_of_bounds, "a shift by too much, or of a negative number")
HANDLER(add_overflow, "signed overflow of +")
HANDLER(sub_overflow, "signed overflow of -")
HANDLER(mul_overflow, "signed overflow of *")
HANDLER(negate_overflow, "signed overflow of unary -")
HANDLER(divrem_overflow, "division by zero or overflow of /")
HANDLER(float_cast_overflow, "a float beyond the integer's range")
HANDLER(load_invalid_value, "a bool or enum of no value")
HANDLER(builtin_unreachable, "unreachable code was reached")
HANDLER(missing_return, "a function ends without a result")
HANDLER(vla_bound_not_positive, "an array of negative size")
HANDLER(nonnull_arg, "a null argument where none is allowed")
HANDLER(nonnull_return_v1, "a null result where none is allowed")
HANDLER(invalid_builtin, "__builtin_clz or __builtin_ctz of 0")
