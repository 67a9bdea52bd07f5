// What tests take from the fast path of drop_grow_, so that small inputs reach the rare ways out of it.
#pragma once

namespace dstee {

struct TestLimits {
  double list_share = 1.0;    // of the room for lists of candidates
  bool tight_bounds = false;  // bounds from the sample that leave out weights which are selected
  double margin_share = 1.0;  // of the distance that the CPU's bounds keep from what is likely selected
};

// One a module, written by its set_test_limits() alone (bind_test_limits.h), and read once a call.
inline TestLimits& test_limits() {
  static TestLimits limits;
  return limits;
}

}  // namespace dstee
