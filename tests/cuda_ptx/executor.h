// The kernels that are executed as PTX, and their counters.
#pragma once

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "../cuda_host/scheduler.h"
#include "counters.h"
#include "launch.h"
#include "program.h"

namespace ptx {

struct Loaded {
  explicit Loaded(std::unique_ptr<Kernel> k) : kernel(std::move(k)), counters(*kernel) {}

  std::unique_ptr<Kernel> kernel;
  Counters counters;
};

// By canonical name, see names.h.
std::map<std::string, Loaded>& loaded();

// Takes over the launches of all kernels from now on; a kernel that is not in a loaded text is a Fault. Returns the names of the
// text's kernels. Throws LoadError.
std::vector<std::string> load(const std::string& text);
void clear();

void set_settings(const Settings& settings);

// What cuda_host::run calls.
void execute(const cuda_host::Call& call, uint64_t seed);

// "a, b": for messages.
std::string names_of_loaded();

}  // namespace ptx
