// The Python face of a build of the harness: the schedule, its reports and, in the harness's own tests, the planted kernels.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <string>
#include <vector>

#include "scheduler.h"

namespace py = pybind11;

#if defined(CUDA_HOST_PLANTED)
namespace planted {
std::vector<unsigned> run(const std::string& name, bool fixed);
std::vector<unsigned> run_all_operations();
unsigned busy(unsigned blocks, unsigned threads, int barriers);
}  // namespace planted
#endif

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
#if defined(CUDA_HOST_PLANTED)
  m.def("planted", &planted::run);
  m.def("all_operations", &planted::run_all_operations);
  m.def("busy", &planted::busy);
#endif
}
