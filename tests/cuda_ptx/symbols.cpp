#include "symbols.h"

#include <cctype>
#include <cstring>

namespace ptx {
namespace {

constexpr const char* kTypeNames[] = {"pred", "b8", "b16", "b32", "b64", "u8",   "u16", "u32", "u64",
                                      "s8",   "s16", "s32", "s64", "f16", "bf16", "f32", "f64"};

uint32_t aligned(uint32_t offset, uint32_t align) { return (offset + align - 1) / align * align; }

uint8_t width_of(const std::string& type) {
  const Type t = type_named(type);
  if (t == Type::kPred) return kPredicate;
  if (bytes_of(t) == 1) throw LoadError("a register of 8 bits is not simulated");
  return static_cast<uint8_t>(bytes_of(t));
}

std::string bits_text(uint8_t width) { return width == kPredicate ? "a predicate" : std::to_string(8 * width) + " bits"; }

}  // namespace

std::string trimmed(const std::string& text) {
  const size_t first = text.find_first_not_of(" \t\r\n"), last = text.find_last_not_of(" \t\r\n");
  return first == std::string::npos ? "" : text.substr(first, last - first + 1);
}

std::vector<std::string> split(const std::string& text, char at) {
  std::vector<std::string> parts(1);
  int depth = 0;
  for (const char c : text) {
    depth += (c == '{' || c == '[') - (c == '}' || c == ']');
    if (c == at && depth == 0)
      parts.emplace_back();
    else
      parts.back() += c;
  }
  for (std::string& part : parts) part = trimmed(part);
  if (parts.back().empty()) parts.pop_back();
  return parts;
}

bool is_type(const std::string& name) {
  for (const char* known : kTypeNames)
    if (name == known) return true;
  return false;
}

Type type_named(const std::string& name) {
  for (size_t i = 0; i < std::size(kTypeNames); ++i)
    if (name == kTypeNames[i]) return static_cast<Type>(i);
  throw LoadError("unknown type ." + name);
}

long long integer_of(const std::string& text) {
  try {
    size_t used = 0;
    const std::string digits = !text.empty() && text.back() == 'U' ? text.substr(0, text.size() - 1) : text;
    const long long value = digits[0] == '-' ? std::stoll(digits, &used, 0) : static_cast<long long>(std::stoull(digits, &used, 0));
    if (used == digits.size()) return value;
  } catch (const std::logic_error&) {
  }
  throw LoadError("not an integer: " + text);
}

// --- declarations --------------------------------------------------------------------------------------------------------

void Symbols::declare_registers(const std::string& declaration) {
  const size_t dot = declaration.find('.', 1), space = declaration.find_first_of(" \t", dot);
  if (dot == std::string::npos || space == std::string::npos) throw LoadError("malformed register declaration");
  const uint8_t width = width_of(trimmed(declaration.substr(dot + 1, space - dot - 1)));
  for (const std::string& name : split(declaration.substr(space))) {
    const size_t angle = name.find('<');
    if (angle == std::string::npos)
      scopes_.back().registers[name] = new_register(width);
    else
      scopes_.back().ranges[name.substr(0, angle)] = {
          width, static_cast<unsigned>(integer_of(name.substr(angle + 1, name.size() - angle - 2)))};
  }
}

void Symbols::add_parameter(const std::string& name, uint32_t bytes, uint32_t align) {
  const uint32_t at = aligned(kernel_.parameter_bytes, align);
  parameters_[name] = at;
  kernel_.parameters.push_back({at, bytes});
  kernel_.parameter_bytes = at + bytes;
}

Operand Symbols::new_register(uint8_t width) {
  Operand o;
  o.width = width;
  const uint32_t bytes = width == kPredicate ? 4 : width * kLanes;
  o.offset = aligned(kernel_.register_bytes, width == kPredicate ? 4 : 64);
  kernel_.register_bytes = o.offset + bytes;
  return o;
}

Operand Symbols::find_register(const std::string& name) {
  const size_t digits = name.find_last_not_of("0123456789") + 1;
  for (auto scope = scopes_.rbegin(); scope != scopes_.rend(); ++scope) {
    const auto known = scope->registers.find(name);
    if (known != scope->registers.end()) return known->second;
    if (digits == name.size()) continue;
    const auto range = scope->ranges.find(name.substr(0, digits));
    if (range == scope->ranges.end() || integer_of("1" + name.substr(digits)) < 1) continue;
    if (std::stoul(name.substr(digits)) >= range->second.count) continue;
    return scope->registers[name] = new_register(range->second.width);
  }
  return {};
}

// --- operands ------------------------------------------------------------------------------------------------------------

Operand Symbols::constant(uint64_t value, uint8_t width) {
  Operand o;
  o.width = width;
  const auto [place, fresh] = constants_.insert({{value, width}, nullptr});
  if (fresh) {
    std::vector<char>& bytes = kernel_.constants.emplace_back(width == kPredicate ? 4 : width * kLanes);
    const uint32_t bits = value != 0 ? ~0u : 0;
    if (width == kPredicate) memcpy(bytes.data(), &bits, 4);
    for (size_t at = 0; width != kPredicate && at < bytes.size(); at += width) memcpy(bytes.data() + at, &value, width);
    place->second = bytes.data();
  }
  o.constant = place->second;
  return o;
}

// The address of a variable in its own space, of a parameter among the parameters.
Operand Symbols::symbol(const std::string& name, uint8_t width) {
  const auto parameter = parameters_.find(name);
  if (parameter != parameters_.end()) return constant(parameter->second, width);
  auto found = own_.find(name);
  if (found == own_.end()) {
    const auto of_module = of_module_.find(name);
    if (of_module == of_module_.end()) throw LoadError("unknown name " + name);
    found = own_.insert(*of_module).first;
  }
  const Variable& v = found->second;
  if (v.place == Variable::Place::kGlobal) {
    kernel_.variables.push_back(v.memory);
    return constant(reinterpret_cast<uintptr_t>(v.memory.get()), width);
  }
  if (v.place == Variable::Place::kDynamicShared) {
    Operand o;
    o.width = width;
    o.constant = kernel_.constants.emplace_back(width * kLanes).data();
    dynamic_.push_back(o);
    return o;
  }
  uint32_t& used = v.place == Variable::Place::kShared ? kernel_.static_shared : kernel_.local_bytes;
  const auto [place, fresh] = placed_.insert({name, 0});
  if (fresh) {
    place->second = aligned(used, v.align);
    used = place->second + static_cast<uint32_t>(v.bytes);
  }
  return constant(place->second, width);
}

Operand Symbols::operand(const std::string& text, uint8_t width) {
  if (text.empty()) throw LoadError("an operand is missing");
  if (text == "_") return {};
  const Operand known = find_register(text);
  if (known.width != kNone) return known;
  static const std::map<std::string, uint32_t> kPlaces{
      {"%tid.x", kThreadIndex}, {"%ctaid.x", kBlockIndex}, {"%ntid.x", kBlockSize}, {"%nctaid.x", kGridSize}};
  const auto place = kPlaces.find(text);
  Operand special;
  special.width = 4;
  if (place != kPlaces.end()) {
    special.offset = place->second;
    return special;
  }
  if (text == "%tid.y" || text == "%tid.z" || text == "%ctaid.y" || text == "%ctaid.z") return constant(0, 4);
  if (text == "%ntid.y" || text == "%ntid.z" || text == "%nctaid.y" || text == "%nctaid.z") return constant(1, 4);
  if (text == "WARP_SZ") return constant(32, width);
  if (text == "%laneid" || text.rfind("%lanemask_", 0) == 0) {
    const std::string which = text.substr(text.find_last_of("_%") + 1);
    auto* lanes = reinterpret_cast<uint32_t*>(kernel_.constants.emplace_back(4 * kLanes).data());
    for (uint32_t l = 0; l < kLanes; ++l) {
      const uint32_t own = 1u << l, below = own - 1;
      lanes[l] = which == "laneid" ? l : which == "eq" ? own : which == "lt" ? below : which == "le" ? below | own : which == "gt" ? ~(below | own) : ~below;
    }
    special.constant = reinterpret_cast<const char*>(lanes);
    return special;
  }
  if (text[0] == '%') throw LoadError("unknown register " + text);
  if (text.size() > 2 && text[0] == '0' && strchr("fFdD", text[1]) != nullptr) {
    if ((tolower(text[1]) == 'f') != (width == 4)) throw LoadError(text + " is not of " + bits_text(width));
    return constant(static_cast<uint64_t>(integer_of("0x" + text.substr(2))), width);
  }
  if (isdigit(text[0]) != 0 || text[0] == '-') return constant(static_cast<uint64_t>(integer_of(text)), width);
  return symbol(text, width);
}

Operand Symbols::operand_of(const std::string& text, uint8_t width) {
  const Operand o = operand(text, width);
  if (o.width != width) throw LoadError(text + " is " + (o.width == kNone ? "nothing" : bits_text(o.width)) + ", the instruction takes " + bits_text(width));
  return o;
}

Operand Symbols::address(const std::string& text, Space space, int64_t* offset) {
  if (text.size() < 2 || text.front() != '[' || text.back() != ']') throw LoadError("not an address: " + text);
  std::string base = trimmed(text.substr(1, text.size() - 2));
  const size_t plus = base.find('+');
  *offset = plus == std::string::npos ? 0 : integer_of(trimmed(base.substr(plus + 1)));
  base = trimmed(base.substr(0, plus));
  const Operand o = operand(base, 8);
  const bool narrow = space == Space::kShared || space == Space::kLocal || space == Space::kParam;
  if (o.width != 8 && !(narrow && o.width == 4)) throw LoadError(base + " cannot be an address: it is " + bits_text(o.width));
  return o;
}

void Symbols::finish() {
  kernel_.dynamic_base = aligned(kernel_.static_shared, 16);
  for (const Operand& o : dynamic_)
    for (unsigned l = 0; l < kLanes; ++l) memcpy(const_cast<char*>(o.constant) + l * o.width, &kernel_.dynamic_base, 4);
}

}  // namespace ptx
