// One form for a kernel's name, whoever wrote it.
#pragma once

#include <string>

namespace ptx {

// A mangled function name -> what stands in the source, without the namespaces dstee::cuda and {anonymous}, return type and
// arguments; values of enumerations are numbers: "sweep_kernel<true, 0>". Names that are not mangled stay as they are.
std::string canonical_name(const std::string& mangled);

// The same of typeid(cuda_host::KernelTag<&function>).name().
std::string canonical_name_of_tag(const char* tag);

}  // namespace ptx
