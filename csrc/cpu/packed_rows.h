// Where packed momenta are: those of a layer's active weights follow each other, a row each, in the order of the mask.
#pragma once

#include <vector>

#include "loops.h"
#include "pieces.h"

namespace dstee::cpu {

// Active weights of each piece, those of its layer before it, and all of each layer.
struct Rows {
  std::vector<int64_t> active, before, of_layer;

  void count(const std::vector<Layer>& layers, const std::vector<Piece>& pieces, int workers);
};

// The rows of weights that are asked for in ascending order.
class RowCursor {
 public:
  // `row`: that of the first weight of `bits`.
  explicit RowCursor(const uint8_t* bits, int64_t row = 0) : bits_(bits), row_(row) {}

  // Of weight i; if it is not active, of the next one that is.
  int64_t at(int64_t i) {
    row_ += loops().count_bits(bits_ + byte_, i / 8 - byte_);
    byte_ = i / 8;
    return row_ + __builtin_popcount(bits_[byte_] & ((1u << (i % 8)) - 1));
  }

 private:
  const uint8_t* bits_;
  int64_t row_, byte_ = 0;
};

}  // namespace dstee::cpu
