// What the Python side of the tests calls.
#include "bindings.h"

#include <pybind11/stl.h>

#include <cstring>

#include "executor.h"

namespace py = pybind11;

namespace ptx {
namespace {

const Loaded& kernel_named(const std::string& name) {
  const auto found = loaded().find(name);
  if (found == loaded().end()) throw py::key_error("no loaded PTX has a kernel " + name + "; there are: " + names_of_loaded());
  return found->second;
}

void set_schedule(uint64_t seed, bool lockstep, unsigned resident, unsigned processors, bool weak, bool races) {
  if (resident < 1 || processors < 1) throw py::value_error("there must be 1 resident block and 1 processor at least");
  set_settings({seed, lockstep, resident, processors, weak, races});
}

py::dict counts() {
  py::dict out;
  for (const auto& [name, l] : loaded()) {
    const Counters& c = l.counters;
    if (c.launches == 0) continue;
    uint64_t warps = 0, threads = 0, of_group[static_cast<int>(Group::kCount)] = {};
    for (size_t i = 0; i < c.instructions.size(); ++i) {
      warps += c.instructions[i].warps;
      threads += c.instructions[i].threads;
      of_group[static_cast<int>(l.kernel->code[i].group)] += c.instructions[i].warps;
    }
    py::dict row, classes, sectors, bytes;
    for (int g = 0; g < static_cast<int>(Group::kCount); ++g)
      if (of_group[g] != 0) classes[kGroupNames[g]] = of_group[g];
    const char* const kinds[] = {"load", "store", "atomic"};
    for (int i = 0; i < 3; ++i) {
      sectors[kinds[i]] = c.sectors[i];
      bytes[kinds[i]] = c.bytes[i];
    }
    row["launches"] = c.launches;
    row["blocks"] = c.blocks;
    row["warp_instructions"] = warps;
    row["thread_instructions"] = threads;
    row["classes"] = classes;
    row["sectors"] = sectors;
    row["bytes"] = bytes;
    row["wavefronts"] = c.wavefronts;
    out[py::str(name)] = row;
  }
  return out;
}

std::vector<std::tuple<size_t, std::string, std::string, uint64_t, uint64_t>> profile(const std::string& name) {
  const Loaded& l = kernel_named(name);
  std::vector<std::tuple<size_t, std::string, std::string, uint64_t, uint64_t>> out;
  for (size_t i = 0; i < l.kernel->code.size(); ++i)
    out.emplace_back(i, l.kernel->texts[i], l.kernel->sources[i], l.counters.instructions[i].warps, l.counters.instructions[i].threads);
  return out;
}

// An argument as its parameter has it: integers (addresses too) and floats by the parameter's size, bytes as they are.
std::string packed(const py::handle& value, size_t bytes) {
  std::string out(bytes, '\0');
  if (py::isinstance<py::float_>(value)) {
    const auto wide = value.cast<double>();
    const auto narrow = static_cast<float>(wide);
    if (bytes != 4 && bytes != 8) throw py::value_error("a float for a parameter of " + std::to_string(bytes) + " bytes");
    memcpy(out.data(), bytes == 4 ? static_cast<const void*>(&narrow) : &wide, bytes);
  } else if (py::isinstance<py::bytes>(value)) {
    const auto given = value.cast<std::string>();
    if (given.size() != bytes) throw py::value_error(std::to_string(given.size()) + " bytes for a parameter of " + std::to_string(bytes));
    out = given;
  } else {
    if (bytes > 8) throw py::value_error("an integer for a parameter of " + std::to_string(bytes) + " bytes: give bytes");
    const py::int_ mask((uint64_t{1} << 63) - 1 + (uint64_t{1} << 63));
    const auto integer = py::int_(value & mask).cast<uint64_t>();
    memcpy(out.data(), &integer, bytes);
  }
  return out;
}

void launch(const std::string& name, unsigned blocks, unsigned threads, size_t dynamic_bytes, const py::args& args) {
  const Kernel& kernel = *kernel_named(name).kernel;
  if (args.size() != kernel.parameters.size())
    throw py::value_error("kernel " + name + " takes " + std::to_string(kernel.parameters.size()) + " arguments, got " + std::to_string(args.size()));
  std::vector<std::string> values;
  for (size_t i = 0; i < args.size(); ++i) values.push_back(packed(args[i], kernel.parameters[i].bytes));
  std::vector<cuda_host::Argument> arguments;
  for (const std::string& value : values) arguments.push_back({value.data(), value.size(), 1});
  cuda_host::run({name.c_str(), nullptr, blocks, threads, dynamic_bytes, arguments.data(), arguments.size()}, [] {});
}

}  // namespace

void bind(py::module_& m) {
  m.def("load_ptx", &load, py::arg("text"),
        "From now on kernels are executed as PTX, those of this text among them; returns their names. RuntimeError: the text "
        "holds what the executor does not know, with its line.");
  m.def("clear_ptx", &clear, "Back to the C++ bodies; forgets all kernels and their counts.");
  m.def("set_ptx_schedule", &set_schedule, py::arg("seed"), py::arg("lockstep") = true, py::arg("resident") = 8,
        py::arg("processors") = 4, py::arg("weak") = true, py::arg("races") = true,
        "lockstep: lanes of a warp go together where they can, for counts; else at random, for bugs. resident: blocks alive at "
        "once, over so many processors. weak: stale caches and late stores. races: report races on shared memory.");
  m.def("ptx_counts", &counts, "By kernel that was launched: what its launches executed and moved.");
  m.def("ptx_profile", &profile, py::arg("kernel"),
        "By instruction: its place, PTX, 'file:line' or '', how many warps and threads executed it.");
  m.def("clear_ptx_counts", [] {
    for (auto& [name, l] : loaded()) l.counters = Counters(*l.kernel);
  });
  m.def("launch_ptx", &launch, py::arg("kernel"), py::arg("blocks"), py::arg("threads"), py::arg("dynamic_bytes"),
        "Launches a loaded kernel. Arguments: integers (addresses), floats, or bytes of the parameter's size.");
}

}  // namespace ptx
