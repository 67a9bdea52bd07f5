// layouts(): how Python's tensors lie in memory, told without a Python call for each.
#pragma once

#include <pybind11/pybind11.h>

namespace dstee {

void bind_layouts(pybind11::module_& m);

}  // namespace dstee
