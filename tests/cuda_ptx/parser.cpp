// The text of a module: its declarations, and the statements of its kernels.
#include <algorithm>
#include <cstring>
#include <sstream>

#include "decode.h"
#include "names.h"
#include "program.h"
#include "symbols.h"

namespace ptx {
namespace {

bool starts(const std::string& text, const char* with) { return text.rfind(with, 0) == 0; }

// Words between blanks; "name[4]" stays one.
std::vector<std::string> words_of(const std::string& text) {
  std::istringstream in(text);
  std::vector<std::string> out;
  for (std::string word; in >> word;) out.push_back(word);
  return out;
}

struct Declared {
  std::string name;
  size_t bytes = 0;
  uint32_t align = 1;
};

// ".align 8 .b8 name[24]", ".u64 name", with anything before.
Declared declared(const std::string& text) {
  Declared d;
  size_t element = 0;
  const std::vector<std::string> words = words_of(text);
  for (size_t i = 0; i + 1 < words.size(); ++i) {
    if (words[i] == ".align") d.align = static_cast<uint32_t>(integer_of(words[i + 1]));
    if (words[i][0] == '.' && is_type(words[i].substr(1))) element = bytes_of(type_named(words[i].substr(1)));
  }
  if (element == 0 || words.back().empty()) throw LoadError("malformed declaration: " + text);
  d.name = words.back();
  d.bytes = element;
  d.align = std::max(d.align, static_cast<uint32_t>(element));
  const size_t bracket = d.name.find('[');
  if (bracket == std::string::npos) return d;
  const std::string count = d.name.substr(bracket + 1, d.name.find(']') - bracket - 1);
  d.bytes = count.empty() ? 0 : element * static_cast<size_t>(integer_of(count));
  d.name = d.name.substr(0, bracket);
  return d;
}

class Parser {
 public:
  explicit Parser(const std::string& text) {
    std::istringstream in(text);
    for (std::string line; std::getline(in, line);) {
      const size_t comment = line.find('"') == std::string::npos ? line.find("//") : std::string::npos;
      lines_.push_back(trimmed(line.substr(0, comment)));
      if (starts(lines_.back(), ".file")) name_file(lines_.back());
    }
  }

  std::vector<std::unique_ptr<Kernel>> parse() {
    try {
      for (; at_ < lines_.size(); ++at_) module_line(lines_[at_]);
    } catch (const LoadError& error) {
      const std::string text = at_ < lines_.size() ? lines_[at_] : "";
      throw LoadError("PTX line " + std::to_string(at_ + 1) + ": " + error.what() + ": `" + text + "`");
    }
    return std::move(kernels_);
  }

 private:
  void name_file(const std::string& line) {  // .file 3 "path"
    const size_t quote = line.find('"'), end = line.rfind('"'), slash = line.rfind('/', end);
    const size_t start = slash == std::string::npos || slash < quote ? quote + 1 : slash + 1;
    files_[words_of(line)[1]] = line.substr(start, end - start);
  }

  void module_line(const std::string& line) {
    if (line.empty() || starts(line, ".version") || starts(line, ".target") || starts(line, ".file")) return;
    if (starts(line, ".address_size")) {
      if (words_of(line).back() != "64") throw LoadError("only addresses of 64 bits are simulated");
    } else if (starts(line, ".section")) {
      skip_section();
    } else if (line.find(".entry") != std::string::npos) {
      kernel();
    } else if (line.find(".shared") != std::string::npos) {
      declare_shared(collected(';'), variables_);
    } else if (line.find(".global") != std::string::npos || line.find(".const") != std::string::npos) {
      declare_global(collected(';'));
    } else {
      throw LoadError("unknown directive");
    }
  }

  // From this line up to the one with the end, which is left out.
  std::string collected(char end) {
    std::string text = lines_[at_];
    while (text.find(end) == std::string::npos) {
      if (++at_ >= lines_.size()) throw LoadError(std::string("the text ends before '") + end + "'");
      text += ' ' + lines_[at_];
    }
    return text.substr(0, text.find(end));
  }

  void skip_section() {
    int depth = 0;
    bool entered = false;
    for (; at_ < lines_.size(); ++at_) {
      for (const char c : lines_[at_]) {
        depth += (c == '{') - (c == '}');
        entered |= c == '{';
      }
      if (entered && depth == 0) return;
    }
    throw LoadError("the text ends inside a section");
  }

  static void declare_shared(const std::string& text, Variables& into) { into.insert(shared(text)); }
  static std::pair<std::string, Variable> shared(const std::string& text) {
    const Declared d = declared(text);
    const bool dynamic = starts(text, ".extern");
    return {d.name, {dynamic ? Variable::Place::kDynamicShared : Variable::Place::kShared, d.align, d.bytes, nullptr}};
  }

  // Starts as zeros; a list of integers may say otherwise.
  void declare_global(const std::string& text) {
    const size_t equals = text.find('=');
    const Declared d = declared(trimmed(text.substr(0, equals)));
    Variable v{Variable::Place::kGlobal, d.align, d.bytes, std::shared_ptr<char[]>(new char[d.bytes + 16]())};
    if (equals != std::string::npos) {
      const size_t type = text.find(".b8");
      if (type == std::string::npos) throw LoadError("only bytes can be initialised");
      std::string list = trimmed(text.substr(equals + 1));
      if (list.front() == '{') list = list.substr(1, list.rfind('}') - 1);
      size_t at = 0;
      for (const std::string& byte : split(list)) {
        if (at == d.bytes) throw LoadError("more values than the variable has room for");
        v.memory[at++] = static_cast<char>(integer_of(byte));
      }
    }
    variables_[d.name] = std::move(v);
  }

  // --- a kernel ----------------------------------------------------------------------------------------------------------

  void kernel() {
    const std::string head = collected(')');
    const size_t open = head.find('('), name = head.find(".entry") + 6;
    kernels_.push_back(std::make_unique<Kernel>());
    Kernel& k = *kernels_.back();
    k.name = canonical_name(trimmed(head.substr(name, open - name)));
    Symbols symbols(k, variables_);
    for (const std::string& parameter : split(head.substr(open + 1))) {
      const Declared d = declared(parameter);
      symbols.add_parameter(d.name, static_cast<uint32_t>(d.bytes), d.align);
    }
    for (++at_; at_ < lines_.size() && lines_[at_] != "{"; ++at_) {
      const std::string& line = lines_[at_];
      if (!line.empty() && !starts(line, ".maxntid") && !starts(line, ".reqntid") && !starts(line, ".minnctapersm") &&
          !starts(line, ".maxnreg"))
        throw LoadError("unknown directive of a kernel");
    }
    body(k, symbols);
  }

  void body(Kernel& k, Symbols& symbols) {
    labels_.clear();
    branches_.clear();
    source_.clear();
    int depth = 0;
    std::string statement;
    size_t first_line = at_;
    for (; at_ < lines_.size(); ++at_) {
      if (trimmed(statement).empty() && starts(lines_[at_], ".loc")) {
        set_source(lines_[at_]);
        continue;
      }
      for (const char c : lines_[at_] + ' ') {
        const bool fresh = trimmed(statement).empty();
        if (fresh) first_line = at_;
        if (fresh && c == '{') {
          if (depth++ > 0) symbols.push();
        } else if (fresh && c == '}') {
          if (--depth > 0) symbols.pop();
        } else if (c == ';') {
          std::swap(at_, first_line);  // where an error is
          one_statement(k, symbols, trimmed(statement));
          std::swap(at_, first_line);
          statement.clear();
        } else if (c == ':' && is_label(trimmed(statement))) {
          labels_[trimmed(statement)] = static_cast<uint32_t>(k.code.size());
          statement.clear();
        } else {
          statement += c == '\t' ? ' ' : c;
        }
      }
      if (depth == 0) break;
    }
    if (depth != 0) throw LoadError("the text ends inside a kernel");
    finish(k, symbols);
  }

  static bool is_label(const std::string& text) {
    return !text.empty() && std::all_of(text.begin(), text.end(), [](char c) { return isalnum(c) != 0 || strchr("_$%", c) != nullptr; });
  }

  void set_source(const std::string& line) {  // .loc 3 16 5[, function_name ..., inlined_at ...]
    const std::vector<std::string> words = words_of(line);
    const auto file = files_.find(words.at(1));
    source_ = file == files_.end() ? "" : file->second + ":" + words.at(2);
  }

  void one_statement(Kernel& k, Symbols& symbols, const std::string& text) {
    if (text.empty()) return;
    if (text[0] == '.') {
      if (starts(text, ".reg")) {
        symbols.declare_registers(text);
      } else if (starts(text, ".shared")) {
        const auto [name, variable] = shared(text);
        symbols.declare(name, variable);
      } else if (starts(text, ".local")) {
        const Declared d = declared(text);
        symbols.declare(d.name, {Variable::Place::kLocal, d.align, d.bytes, nullptr});
      } else if (!starts(text, ".pragma")) {
        throw LoadError("unknown directive");
      }
      return;
    }
    std::string rest = text;
    Operand guard;
    bool negated = false;
    if (rest[0] == '@') {
      negated = rest[1] == '!';
      const size_t blank = rest.find(' ');
      guard = symbols.operand_of(rest.substr(negated ? 2 : 1, blank - (negated ? 2 : 1)), kPredicate);
      rest = trimmed(rest.substr(blank));
    }
    std::string target;
    Instruction x = decode(rest, symbols, &target);
    if (guard.width != kNone) x.guard = static_cast<int32_t>(guard.offset);
    x.negated = negated;
    if (!target.empty()) branches_.push_back({k.code.size(), target, at_});
    k.touches_shared_bytes |= (x.kind == Kind::kLoad || x.kind == Kind::kStore) && bytes_of(x.type) * x.vector < 4 &&
                              (x.space == Space::kShared || x.space == Space::kGeneric);
    add(k, x, text);
  }

  void add(Kernel& k, const Instruction& x, const std::string& text) {
    std::string plain;
    for (const char c : text)
      if (c != ' ' || plain.empty() || plain.back() != ' ') plain += c;
    k.code.push_back(x);
    k.texts.push_back(plain);
    k.sources.push_back(source_);
  }

  void finish(Kernel& k, Symbols& symbols) {
    for (const Branch& b : branches_) {
      const auto label = labels_.find(b.label);
      if (label == labels_.end()) {
        at_ = b.line;
        throw LoadError("unknown label " + b.label);
      }
      k.code[b.at].target = label->second;
    }
    Instruction end;
    end.kind = Kind::kReturn;
    end.group = Group::kBranch;
    add(k, end, "ret");  // a body may end without one
    symbols.finish();
  }

  struct Branch {
    size_t at;
    std::string label;
    size_t line;
  };
  std::vector<std::string> lines_;
  size_t at_ = 0;
  std::map<std::string, std::string> files_;
  Variables variables_;
  std::vector<std::unique_ptr<Kernel>> kernels_;
  std::map<std::string, uint32_t> labels_;
  std::vector<Branch> branches_;
  std::string source_;
};

}  // namespace

std::vector<std::unique_ptr<Kernel>> parse(const std::string& text) { return Parser(text).parse(); }

}  // namespace ptx
