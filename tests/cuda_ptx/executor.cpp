#include "executor.h"

#include <cstring>

#include "names.h"
#include "registers.h"

namespace ptx {
namespace {

Settings settings;

// The arguments as the PTX lays them out.
std::vector<char> parameters_of(const Kernel& kernel, const cuda_host::Call& call) {
  const auto fail = [&](const std::string& what) {
    throw cuda_host::Fault("kernel " + std::string(call.kernel) + ": " + what + ": the PTX is of other sources than the launch");
  };
  if (call.count != kernel.parameters.size())
    fail(std::to_string(call.count) + " arguments for " + std::to_string(kernel.parameters.size()) + " parameters");
  std::vector<char> bytes(kernel.parameter_bytes + 16);
  for (size_t i = 0; i < call.count; ++i) {
    const Parameter& p = kernel.parameters[i];
    const cuda_host::Argument& a = call.arguments[i];
    if (a.bytes != p.bytes || p.offset % a.align != 0)
      fail("argument " + std::to_string(i) + " has " + std::to_string(a.bytes) + " bytes, the parameter " + std::to_string(p.bytes));
    memcpy(bytes.data() + p.offset, a.address, a.bytes);
  }
  return bytes;
}

}  // namespace

std::map<std::string, Loaded>& loaded() {
  static std::map<std::string, Loaded> all;
  return all;
}

std::vector<std::string> load(const std::string& text) {
  std::vector<std::unique_ptr<Kernel>> kernels = parse(text);
  std::vector<std::string> names;
  for (std::unique_ptr<Kernel>& kernel : kernels) {
    allocate_registers(*kernel);
    names.push_back(kernel->name);
    loaded().erase(names.back());
    loaded().emplace(names.back(), std::move(kernel));
  }
  cuda_host::executor = &execute;
  return names;
}

void clear() {
  cuda_host::executor = nullptr;
  loaded().clear();
}

void set_settings(const Settings& value) { settings = value; }

std::string names_of_loaded() {
  std::string names;
  for (const auto& [name, kernel] : loaded()) names += (names.empty() ? "" : ", ") + name;
  return names;
}

void execute(const cuda_host::Call& call, uint64_t seed) {
  const std::string name = call.tag != nullptr ? canonical_name_of_tag(call.tag) : call.kernel;
  const auto found = loaded().find(name);
  if (found == loaded().end())
    throw cuda_host::Fault("kernel " + name + ": no loaded PTX has it; there are: " + names_of_loaded());
  const Kernel& kernel = *found->second.kernel;
  const std::vector<char> parameters = parameters_of(kernel, call);
  Launch(kernel, call.kernel, settings, {call.blocks, call.threads, call.dynamic_bytes}, parameters.data(), seed,
         found->second.counters)
      .run();
}

}  // namespace ptx
