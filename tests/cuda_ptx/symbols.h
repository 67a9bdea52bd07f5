// What a name in a kernel stands for while its text is parsed: registers by scope, variables, parameters, labels.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "program.h"

namespace ptx {

// A variable of the module or the kernel.
struct Variable {
  enum class Place { kShared, kDynamicShared, kLocal, kGlobal } place = Place::kShared;
  uint32_t align = 1;
  size_t bytes = 0;
  std::shared_ptr<char[]> memory;  // of a global one
};
using Variables = std::map<std::string, Variable>;

std::string trimmed(const std::string& text);
// At the commas outside of braces and brackets.
std::vector<std::string> split(const std::string& text, char at = ',');
Type type_named(const std::string& name);
bool is_type(const std::string& name);
long long integer_of(const std::string& text);

class Symbols {
 public:
  Symbols(Kernel& kernel, const Variables& of_module) : kernel_(kernel), of_module_(of_module), scopes_(1) {
    kernel.register_bytes = kFirstRegister;
  }

  void push() { scopes_.emplace_back(); }
  void pop() { scopes_.pop_back(); }
  void declare_registers(const std::string& declaration);  // ".reg .b32 %r<9>", ".reg .pred p, q"
  void declare(const std::string& name, Variable variable) { own_[name] = std::move(variable); }
  void add_parameter(const std::string& name, uint32_t bytes, uint32_t align);

  // What the text of an operand stands for; `width` is that of an immediate. Throws LoadError.
  Operand operand(const std::string& text, uint8_t width);
  // As above, where the instruction takes just this width.
  Operand operand_of(const std::string& text, uint8_t width);
  // "[name+4]": the operand that is the address, and the offset.
  Operand address(const std::string& text, Space space, int64_t* offset);
  // Fills in what is known at the end of a kernel only.
  void finish();

 private:
  struct Range {
    uint8_t width;
    unsigned count;
  };
  struct Scope {
    std::map<std::string, Range> ranges;  // by prefix
    std::map<std::string, Operand> registers;
  };

  Operand find_register(const std::string& name);
  Operand constant(uint64_t value, uint8_t width);
  Operand symbol(const std::string& name, uint8_t width);
  Operand new_register(uint8_t width);

  Kernel& kernel_;
  const Variables& of_module_;
  Variables own_;
  std::vector<Scope> scopes_;
  std::map<std::pair<uint64_t, uint8_t>, const char*> constants_;
  std::map<std::string, uint32_t> placed_, parameters_;  // offsets
  std::vector<Operand> dynamic_;                         // that hold the start of dynamic shared memory
};

}  // namespace ptx
