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
    used_ = 0;
  }

  // Another block that stored to one of these bytes, or kNone.
  int add(uintptr_t address, size_t bytes, int block) {
    int other = kNone;
    while (bytes != 0) {
      const size_t at = address % kLine, count = bytes < kLine - at ? bytes : kLine - at;
      const int found = add_to_line(address / kLine, static_cast<uint32_t>(((uint64_t{1} << count) - 1) << at), block);
      other = found != kNone ? found : other;
      address += count;
      bytes -= count;
    }
    return other;
  }

 private:
  static constexpr uintptr_t kLine = 32;
  struct Part {  // what one block stored to of a line
    uintptr_t line = 0;
    uint64_t epoch = 0;
    int block = 0;
    uint32_t bytes = 0;
  };

  int add_to_line(uintptr_t line, uint32_t bytes, int block) {
    if (2 * (used_ + 1) > table_.size()) grow();
    int other = kNone;
    Part* own = nullptr;
    Part* part = first(line);
    for (; part->epoch == epoch_; part = next(part)) {  // all blocks' parts of the line lie before the first free place
      if (part->line != line) continue;
      if (part->block == block)
        own = part;
      else if ((part->bytes & bytes) != 0)
        other = part->block;
    }
    if (own != nullptr) {
      own->bytes |= bytes;
    } else {
      *part = {line, epoch_, block, bytes};
      ++used_;
    }
    return other;
  }

  Part* first(uintptr_t line) { return &table_[((line * 0x9E3779B97F4A7C15u) >> 20) & (table_.size() - 1)]; }
  Part* next(Part* part) { return ++part == table_.data() + table_.size() ? table_.data() : part; }

  void grow() {
    std::vector<Part> old(table_.empty() ? 4096 : 2 * table_.size());
    old.swap(table_);
    for (const Part& part : old) {
      if (part.epoch != epoch_) continue;
      Part* place = first(part.line);
      while (place->epoch == epoch_) place = next(place);
      *place = part;
    }
  }

  std::vector<Part> table_;
  size_t used_ = 0;
  uint64_t epoch_ = 1;
};

}  // namespace cuda_host
