// dstee._C: tells how it was built. Loading it registers the ops that the other files implement.
#include <pybind11/pybind11.h>

#include <stdexcept>
#include <string>

#include "bind_test_limits.h"
#include "cpu/loops.h"
#include "cpu/update_stats.h"
#include "layouts.h"

namespace py = pybind11;

#ifndef DSTEE_FLAGS
#define DSTEE_FLAGS ""
#endif
#ifndef DSTEE_CUDA
#define DSTEE_CUDA ""
#endif
#ifndef DSTEE_ARCHS
#define DSTEE_ARCHS ""
#endif
#ifndef DSTEE_WHY_NO_CUDA
#define DSTEE_WHY_NO_CUDA ""
#endif

namespace {

#define DSTEE_TEXT_(x) #x
#define DSTEE_TEXT(x) DSTEE_TEXT_(x)

py::dict build_info() {
  py::dict info;
#if defined(__clang__)
  info["compiler"] = "clang " __clang_version__;
#elif defined(__GNUC__)
  info["compiler"] = "gcc " __VERSION__;
#elif defined(_MSC_VER)
  info["compiler"] = "msvc " DSTEE_TEXT(_MSC_VER);
#else
  info["compiler"] = "unknown";
#endif
  info["flags"] = DSTEE_FLAGS;
  info["cuda"] = DSTEE_CUDA;
  info["archs"] = DSTEE_ARCHS;
  info["why_no_cuda"] = DSTEE_WHY_NO_CUDA;
  py::list features;
  for (const char* name : {"scalar", "avx2", "avx512"})
    if (dstee::cpu::cpu_has(name)) features.append(name);
  info["cpu_features"] = features;
  info["cpu_in_use"] = dstee::cpu::loops().name;
  return info;
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "Compiled kernels of dstee";
  m.def("build_info", &build_info, "Compiler, flags, CUDA version and architectures (or why none), CPU features found.");
  m.def(
      "force_isa",
      [](const std::string& name) {
        if (!dstee::cpu::force_isa(name.c_str()))
          throw std::invalid_argument("this processor cannot run '" + name +
                                      "': expected auto, scalar, avx2 or avx512, as available");
      },
      py::arg("name"), "Forces an instruction set for the CPU kernels; 'auto' resets. For tests and benchmarks.");
  dstee::bind_layouts(m);
  dstee::bind_test_limits(m);
  m.def(
      "last_stats",
      [] {
        const dstee::cpu::UpdateStats stats = dstee::cpu::last_update_stats();
        py::dict out;
        out["fallback_layers"] = stats.fallback_layers;
        out["list_entries"] = stats.list_entries;
        return out;
      },
      "What the last drop_grow_ call on the CPU did.");
}
