// set_test_limits(), the same in dstee._C and in the CUDA host harness of the tests.
#pragma once

#include <pybind11/pybind11.h>

#include "test_limits.h"

namespace dstee {

inline void bind_test_limits(pybind11::module_& m) {
  m.def(
      "set_test_limits",
      [](double list_share, bool tight_bounds, double margin_share) {
        if (!(list_share >= 0.0 && list_share <= 1.0)) throw pybind11::value_error("list_share must be in 0..1");
        if (!(margin_share >= 0.0 && margin_share <= 1.0)) throw pybind11::value_error("margin_share must be in 0..1");
        test_limits() = {list_share, tight_bounds, margin_share};
      },
      pybind11::kw_only(), pybind11::arg("list_share") = 1.0, pybind11::arg("tight_bounds") = false,
      pybind11::arg("margin_share") = 1.0,
      "Takes room from drop_grow_'s lists of candidates, or lets its bounds miss, by far or (margin_share, CPU) by a little. "
      "Without arguments: no limits. For tests.");
  m.def(
      "test_limits", [] { return pybind11::make_tuple(test_limits().list_share, test_limits().tight_bounds); },
      "(list_share, tight_bounds) as they are set.");
}

}  // namespace dstee
