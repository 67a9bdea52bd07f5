// An instruction's text in parts, for decode.cpp.
#pragma once

#include <algorithm>
#include <initializer_list>
#include <string>
#include <vector>

#include "symbols.h"

namespace ptx {

// The parts of an opcode's name, taken one by one: what nobody takes is unknown.
class Words {
 public:
  explicit Words(const std::string& name) : name_(name) {
    for (size_t at = 0; at <= name.size();) {
      size_t dot = at;
      do dot = std::min(name.find('.', dot), name.size());
      while (dot < name.size() && name[dot - 1] == '.' && ++dot != 0);
      words_.push_back(name.substr(at, dot - at));
      at = dot + 1;
    }
    opcode = words_[0];
    words_.erase(words_.begin());
  }

  std::string opcode;

  bool take(const std::string& word) {
    const auto found = std::find(words_.begin(), words_.end(), word);
    if (found == words_.end()) return false;
    words_.erase(found);
    return true;
  }
  // The place of the one of these that there is, or -1.
  int one_of(std::initializer_list<const char*> some) {
    int i = 0;
    for (const char* word : some) {
      if (take(word)) return i;
      ++i;
    }
    return -1;
  }
  Type type() {
    const auto found = std::find_if(words_.begin(), words_.end(), is_type);
    if (found == words_.end()) throw LoadError("the type is missing: " + name_);
    const Type t = type_named(*found);
    words_.erase(found);
    return t;
  }
  void end() const {
    if (!words_.empty()) throw LoadError("unknown modifier ." + words_[0] + " of " + name_);
  }
  [[noreturn]] void unknown() const { throw LoadError("unknown form of an opcode: " + name_); }

 private:
  std::string name_;
  std::vector<std::string> words_;
};

struct Text {
  Words words;
  std::vector<std::string> operands;
  Symbols& symbols;

  void expect(size_t least, size_t most) const {
    if (operands.size() < least || operands.size() > most)
      throw LoadError("takes " + std::to_string(least) + " operands, has " + std::to_string(operands.size()));
  }
};

inline std::vector<std::string> vector_of(const std::string& text) {
  if (text.front() != '{') return {text};
  return split(text.substr(1, text.size() - 2));
}

inline uint8_t width_of(Type t) { return static_cast<uint8_t>(t == Type::kPred ? kPredicate : bytes_of(t)); }

}  // namespace ptx
