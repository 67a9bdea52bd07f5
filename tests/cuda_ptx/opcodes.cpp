#include "opcodes.h"

namespace ptx {

const Forms& forms() {
  static const Forms all = [] {
    Forms table;
    add_integer_forms(table);
    add_logic_forms(table);
    add_float_forms(table);
    add_compare_forms(table);
    return table;
  }();
  return all;
}

}  // namespace ptx
