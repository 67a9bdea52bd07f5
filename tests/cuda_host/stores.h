// Which block stored where during a launch, byte by byte: two blocks must not store to one address, since a GPU would leave
// either value.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace cuda_host {

class StoreMap {
 public:
  static constexpr int kNone = -1;

  void clear() {
    ++epoch_;
    lines_ = 0;
    last_ = nullptr;
  }

  // The other block that stored to one of these bytes, or kNone. `block` is at most 2^31 - 2.
  int add(uintptr_t address, size_t bytes, int block) {
    int other = kNone;
    for (size_t i = 0; i < bytes; ++i) {
      Line& line = find((address + i) / kLine);
      int& owner = line.owner[(address + i) % kLine];
      if (owner != 0 && owner != block + 1) other = owner - 1;
      owner = block + 1;
    }
    return other;
  }

 private:
  static constexpr uintptr_t kLine = 32;
  struct Line {
    uintptr_t number = 0;
    uint64_t epoch = 0;
    int owner[kLine];  // block + 1, or 0
  };

  Line& find(uintptr_t number) {
    if (last_ != nullptr && last_->number == number) return *last_;
    if (2 * (lines_ + 1) > table_.size()) grow();
    last_ = &probe(number);
    return *last_;
  }

  Line& probe(uintptr_t number) {
    const size_t mask = table_.size() - 1;
    for (size_t i = (number * 0x9E3779B97F4A7C15u) >> 20;; ++i) {
      Line& line = table_[i & mask];
      if (line.epoch != epoch_) {
        line = {};
        line.number = number;
        line.epoch = epoch_;
        for (int& owner : line.owner) owner = 0;
        ++lines_;
        return line;
      }
      if (line.number == number) return line;
    }
  }

  void grow() {
    std::vector<Line> old(table_.empty() ? 1024 : 2 * table_.size());
    old.swap(table_);
    lines_ = 0;
    for (const Line& line : old)
      if (line.epoch == epoch_) probe(line.number) = line;
  }

  std::vector<Line> table_;
  size_t lines_ = 0;
  uint64_t epoch_ = 1;
  Line* last_ = nullptr;
};

}  // namespace cuda_host
