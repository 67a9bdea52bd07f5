// Registers that are never alive together share a place: PTX names a new one for nearly every value, and a register file of all
// of them would not fit a cache.
#pragma once

#include "program.h"

namespace ptx {

void allocate_registers(Kernel& kernel);

}  // namespace ptx
