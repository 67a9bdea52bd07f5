#include "names.h"

#include <cxxabi.h>

#include <cctype>
#include <cstdlib>
#include <memory>

namespace ptx {
namespace {

std::string demangled(const char* name) {
  int status = 0;
  const std::unique_ptr<char, void (*)(void*)> text(abi::__cxa_demangle(name, nullptr, nullptr, &status), &std::free);
  return status == 0 ? text.get() : name;
}

void erase_all(std::string& text, const std::string& part) {
  for (size_t at; (at = text.find(part)) != std::string::npos;) text.erase(at, part.size());
}

// "(type)5u" -> "5": what a template argument's type is, the compilers write differently.
std::string without_casts(const std::string& text) {
  std::string out;
  for (size_t i = 0; i < text.size(); ++i) {
    const size_t close = text[i] == '(' ? text.find(')', i) : std::string::npos;
    const bool is_cast = close != std::string::npos && close + 1 < text.size() &&
                         (isdigit(text[close + 1]) != 0 || text[close + 1] == '-') &&
                         text.find_first_of("<(,", i + 1) > close;
    if (is_cast) {
      i = close;
      continue;
    }
    const bool is_suffix = (text[i] == 'u' || text[i] == 'l') && !out.empty() && isdigit(out.back()) != 0 &&
                           (i + 1 == text.size() || text.find_first_of(",>lu", i) <= i + 1);
    bool of_number = is_suffix;
    for (size_t j = out.size(); of_number && j-- > 0 && out[j] != ',' && out[j] != '<' && out[j] != ' ';)
      of_number = isdigit(out[j]) != 0 || out[j] == '-';
    if (!of_number) out += text[i];
  }
  return out;
}

std::string shortened(std::string text) {
  erase_all(text, "(anonymous namespace)::");
  erase_all(text, "dstee::cuda::");
  text = without_casts(text);
  int depth = 0;
  size_t start = 0;
  for (size_t i = 0; i < text.size(); ++i) {
    depth += (text[i] == '<') - (text[i] == '>');
    if (depth != 0) continue;
    if (text[i] == ' ') start = i + 1;  // behind the return type
    if (text[i] == '(') return text.substr(start, i - start);
  }
  return text.substr(start);
}

}  // namespace

std::string canonical_name(const std::string& mangled) { return shortened(demangled(mangled.c_str())); }

std::string canonical_name_of_tag(const char* tag) {
  std::string text = demangled(tag);  // "cuda_host::KernelTag<&(void f<true>(int))>", without the parentheses in older compilers
  const size_t start = text.find('&');
  if (start == std::string::npos) return text;
  text = text.substr(start + 1, text.rfind('>') - start - 1);
  if (!text.empty() && text.front() == '(') text = text.substr(1, text.rfind(')') - 1);
  return shortened(text);
}

}  // namespace ptx
