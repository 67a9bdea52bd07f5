// One instruction's text -> an Instruction.
#pragma once

#include <string>

#include "symbols.h"

namespace ptx {

// Without guard, label and semicolon. `target`: the label that a branch goes to. Throws LoadError.
Instruction decode(const std::string& text, Symbols& symbols, std::string* target);

}  // namespace ptx
