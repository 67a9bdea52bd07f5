#include "registers.h"

#include <algorithm>
#include <map>
#include <set>

namespace ptx {
namespace {

bool is_register(const Operand& o) { return o.width != kNone && o.constant == nullptr && o.offset >= kFirstRegister; }

// A predicate's bits of other lanes stay, and so do the values of lanes that do not execute: what counts is the thread, and for
// a thread a guarded write leaves the old value alive.
struct Use {
  std::vector<uint32_t> read, written;
};

class Bits {
 public:
  explicit Bits(size_t n) : words_((n + 63) / 64) {}
  bool has(size_t i) const { return (words_[i / 64] >> i % 64 & 1) != 0; }
  void set(size_t i) { words_[i / 64] |= uint64_t{1} << i % 64; }
  void clear(size_t i) { words_[i / 64] &= ~(uint64_t{1} << i % 64); }
  bool add(const Bits& other) {
    bool changed = false;
    for (size_t w = 0; w < words_.size(); ++w) {
      const uint64_t next = words_[w] | other.words_[w];
      changed |= next != words_[w];
      words_[w] = next;
    }
    return changed;
  }
  template <class Body>
  void each(Body body) const {
    for (size_t w = 0; w < words_.size(); ++w)
      for (uint64_t left = words_[w]; left != 0; left &= left - 1) body(64 * w + static_cast<size_t>(__builtin_ctzll(left)));
  }

 private:
  std::vector<uint64_t> words_;
};

class Allocation {
 public:
  explicit Allocation(Kernel& kernel) : kernel_(kernel) {
    number_registers();
    find_blocks();
    find_live();
    place();
  }

 private:
  struct Interval {
    size_t first = ~size_t{0}, last = 0;
    uint8_t width = kNone;
  };
  struct Stretch {  // of code without branches
    size_t first, last;
    std::vector<size_t> next;
    Bits alive;  // at its start
  };

  void number_registers() {
    const auto number = [this](const Operand& o) {
      const auto [place, fresh] = numbers_.insert({o.offset, intervals_.size()});
      if (fresh) {
        intervals_.emplace_back();
        intervals_.back().width = o.width;
      }
      return static_cast<uint32_t>(place->second);
    };
    for (const Instruction& x : kernel_.code) {
      Use& use = uses_.emplace_back();
      for (const Operand& o : x.in)
        if (is_register(o)) use.read.push_back(number(o));
      if (x.guard >= 0) {
        Operand guard;
        guard.offset = static_cast<uint32_t>(x.guard);
        guard.width = kPredicate;
        use.read.push_back(number(guard));
      }
      for (const Operand& o : x.out)
        if (is_register(o)) (x.guard >= 0 ? use.read : use.written).push_back(number(o));
    }
  }

  void find_blocks() {
    const size_t n = kernel_.code.size();
    std::set<size_t> starts{0};
    for (size_t i = 0; i < n; ++i) {
      const Kind kind = kernel_.code[i].kind;
      if (kind == Kind::kBranch) starts.insert(kernel_.code[i].target);
      if ((kind == Kind::kBranch || kind == Kind::kReturn) && i + 1 < n) starts.insert(i + 1);
    }
    std::map<size_t, size_t> place;
    for (auto s = starts.begin(); s != starts.end(); ++s) {
      place[*s] = stretches_.size();
      const auto after = std::next(s);
      stretches_.push_back({*s, (after == starts.end() ? n : *after) - 1, {}, Bits(intervals_.size())});
    }
    for (Stretch& s : stretches_) {
      const Instruction& x = kernel_.code[s.last];
      if (x.kind == Kind::kBranch) s.next.push_back(place[x.target]);
      const bool goes_on = x.guard >= 0 || (x.kind != Kind::kBranch && x.kind != Kind::kReturn);
      if (goes_on && s.last + 1 < n) s.next.push_back(place[s.last + 1]);
    }
  }

  Bits alive_after(const Stretch& s) const {
    Bits alive(intervals_.size());
    for (const size_t next : s.next) alive.add(stretches_[next].alive);
    return alive;
  }

  void find_live() {
    for (bool changed = true; changed;) {
      changed = false;
      for (size_t b = stretches_.size(); b-- > 0;) {
        Stretch& s = stretches_[b];
        Bits alive = alive_after(s);
        for (size_t i = s.last + 1; i-- > s.first;) {
          for (const uint32_t r : uses_[i].written) alive.clear(r);
          for (const uint32_t r : uses_[i].read) alive.set(r);
        }
        changed |= s.alive.add(alive);
      }
    }
    const auto extend = [this](size_t r, size_t at) {
      intervals_[r].first = std::min(intervals_[r].first, at);
      intervals_[r].last = std::max(intervals_[r].last, at);
    };
    for (const Stretch& s : stretches_) {
      s.alive.each([&](size_t r) { extend(r, s.first); });
      alive_after(s).each([&](size_t r) { extend(r, s.last); });
      for (size_t i = s.first; i <= s.last; ++i) {
        for (const uint32_t r : uses_[i].written) extend(r, i);
        for (const uint32_t r : uses_[i].read) extend(r, i);
      }
    }
  }

  // Linear scan: a place is free again once the code is behind the interval's last instruction.
  void place() {
    std::vector<size_t> order(intervals_.size());
    for (size_t i = 0; i < order.size(); ++i) order[i] = i;
    std::sort(order.begin(), order.end(), [this](size_t a, size_t b) { return intervals_[a].first < intervals_[b].first; });
    std::vector<uint32_t> offsets(intervals_.size());
    std::map<uint8_t, std::vector<uint32_t>> free;  // by width
    std::multimap<size_t, size_t> busy;             // by the end
    uint32_t used = kFirstRegister;
    for (const size_t r : order) {
      while (!busy.empty() && busy.begin()->first < intervals_[r].first) {
        const size_t done = busy.begin()->second;
        free[intervals_[done].width].push_back(offsets[done]);
        busy.erase(busy.begin());
      }
      std::vector<uint32_t>& places = free[intervals_[r].width];
      if (places.empty()) {
        const uint32_t bytes = intervals_[r].width == kPredicate ? 4 : kLanes * intervals_[r].width;
        if (bytes > 4) used = (used + 63) / 64 * 64;
        places.push_back(used);
        used += bytes;
      }
      offsets[r] = places.back();
      places.pop_back();
      busy.insert({intervals_[r].last, r});
    }
    for (Instruction& x : kernel_.code) {
      for (Operand& o : x.in)
        if (is_register(o)) o.offset = offsets[numbers_.at(o.offset)];
      for (Operand& o : x.out)
        if (is_register(o)) o.offset = offsets[numbers_.at(o.offset)];
      if (x.guard >= 0) x.guard = static_cast<int32_t>(offsets[numbers_.at(static_cast<uint32_t>(x.guard))]);
    }
    kernel_.register_bytes = used;
  }

  Kernel& kernel_;
  std::vector<Use> uses_;
  std::map<uint32_t, size_t> numbers_;  // by offset before
  std::vector<Interval> intervals_;
  std::vector<Stretch> stretches_;
};

}  // namespace

void allocate_registers(Kernel& kernel) { Allocation{kernel}; }

}  // namespace ptx
