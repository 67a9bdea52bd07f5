// set_test_limits(), the same in dstee._C and in the CUDA host harness of the tests.
#pragma once

#include <pybind11/pybind11.h>

#include "test_limits.h"

namespace dstee {

inline void bind_test_limits(pybind11::module_& m) {
  m.def(
      "set_test_limits",
      [](double list_share, bool tight_bounds) {
        if (!(list_share >= 0.0 && list_share <= 1.0)) throw pybind11::value_error("list_share must be in 0..1");
        test_limits() = {list_share, tight_bounds};
      },
      pybind11::kw_only(), pybind11::arg("list_share") = 1.0, pybind11::arg("tight_bounds") = false,
      "Takes room from drop_grow_'s lists of candidates, or lets its bounds miss. Without arguments: no limits. For tests.");
  m.def(
      "test_limits", [] { return pybind11::make_tuple(test_limits().list_share, test_limits().tight_bounds); },
      "(list_share, tight_bounds) as they are set.");
}

}  // namespace dstee
