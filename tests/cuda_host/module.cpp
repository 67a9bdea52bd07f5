// Python bindings of a build of the harness: the schedule, its reports and, in the harness's own tests, the planted kernels.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <string>
#include <utility>
#include <vector>

#include "../../csrc/bind_test_limits.h"
#include "scheduler.h"
#if defined(CUDA_HOST_PTX)
#include "../cuda_ptx/bindings.h"
#endif

namespace py = pybind11;

#if defined(CUDA_HOST_PLANTED)
namespace planted {
std::vector<unsigned> run(const std::string& name, bool correct);
std::vector<unsigned> run_all_operations();
unsigned busy(unsigned blocks, unsigned threads, int barriers);
std::vector<unsigned> churn(unsigned blocks, unsigned threads, int rounds);
std::vector<unsigned> use_workspace(size_t words, unsigned left_behind);
void move(unsigned blocks);
int processors();
}  // namespace planted
#endif

namespace {

void set_processors(int count) {
  if (count < 0) throw py::value_error("a GPU has 1 or more processors, or 0 for the default; got " + std::to_string(count));
  cuda_host::processors = count != 0 ? count : cuda_host::kProcessors;
}

py::dict traffic() {
  py::dict out;
  for (const auto& [kernel, t] : cuda_host::traffic()) {
    py::dict row;
    row["launches"] = t.launches;
    row["loaded"] = t.loaded;
    row["stored"] = t.stored;
    row["gathered"] = t.gathered;
    row["scattered"] = t.scattered;
    row["atomics"] = t.atomics;
    out[py::str(kernel)] = row;
  }
  return out;
}

}  // namespace

PYBIND11_MODULE(CUDA_HOST_MODULE, m) {
  m.def("set_seed", &cuda_host::set_seed, "Starts the sequence of schedules of this seed: the next launch is its first.");
  m.def("set_resident", &cuda_host::set_resident, "How many blocks are alive at once at most; 0 draws it for each launch.");
  m.def("last_report", &cuda_host::last_report, "The latest fault, or an empty text.");
  m.def("take_report", &cuda_host::take_report, "The latest fault, which is then forgotten.");
  m.def("counters", [] {
    const cuda_host::Counters c = cuda_host::counters();
    py::dict out;
    out["launches"] = c.launches;
    out["blocks"] = c.blocks;
    out["barriers"] = c.barriers;
    out["warp_operations"] = c.warp_operations;
    out["switches"] = c.switches;
    return out;
  });
  m.def("set_processors", &set_processors, py::arg("count") = 0, "Of the pretended GPU; 0 is the default.");
  dstee::bind_test_limits(m);
  m.def("abort_after", &cuda_host::abort_after, py::arg("launches") = -1,
        "Lets that many launches end well and the next one fail, once; -1: never.");
  m.def("keep_workspace", &cuda_host::keep_workspace, py::arg("keep"),
        "Whether freed workspaces are kept, and serve the next request of their size as they were left.");
  m.def("set_capturing", [](bool capturing) { cuda_host::capturing = capturing; }, "Whether streams say that they are captured.");
  m.def("note_calls", [](bool wanted) { cuda_host::calls_wanted = wanted; }, "Whether calls of the CUDA runtime are noted.");
  m.def("take_calls", [] { return std::exchange(cuda_host::calls, {}); }, "What was noted, in order, which is then forgotten.");
  m.def("traffic", &traffic, "By kernel: launches, bytes loaded, stored, gathered and scattered, global atomics.");
  m.def("clear_traffic", &cuda_host::clear_traffic);
#if defined(CUDA_HOST_PTX)
  ptx::bind(m);
#endif
#if defined(CUDA_HOST_PLANTED)
  m.def("planted", &planted::run);
  m.def("all_operations", &planted::run_all_operations);
  m.def("busy", &planted::busy);
  m.def("churn", &planted::churn);
  m.def("use_workspace", &planted::use_workspace);
  m.def("move", &planted::move);
  m.def("processors", &planted::processors);
#endif
}
