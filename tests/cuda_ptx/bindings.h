#pragma once

#include <pybind11/pybind11.h>

namespace ptx {

void bind(pybind11::module_& m);

}  // namespace ptx
