// The first k active weights of many pieces, by whole scans: any input, no memory for lists.
#pragma once

#include <algorithm>
#include <array>
#include <vector>

#include "loops.h"
#include "pieces.h"

namespace dstee::cpu {

// Selected are the weights with a larger key, and of those with this one the first `ties` of each piece.
struct Selected {
  uint32_t key = UINT32_MAX;  // that no weight has
  std::vector<int64_t> ties;
};

// Of what the drop ranks, in the order of (key descending, place in the list of pieces, index); at most as many as there are.
Selected radix_select(const std::vector<Layer>& layers, const Piece* pieces, size_t count, Order order, int64_t k, int workers);

// body(key, index in the layer) for the active weights of a piece whose key lies in [low, high], in index order. It may change
// them.
template <class Body>
void for_active_keys(const std::vector<Layer>& layers, const Piece& piece, Order order, uint32_t low, uint32_t high,
                     const Body& body) {
  const Layer& l = layers[static_cast<size_t>(piece.layer)];
  std::array<uint32_t, kBlock + kMaxLanes> key, where;
  for (int64_t begin = piece.begin; begin < piece.begin + piece.size; begin += kBlock) {
    const int64_t n = std::min(kBlock, piece.begin + piece.size - begin);
    const size_t listed = loops().scan_keys[l.drop_dtype](at(l.drop, begin, l.drop_dtype), l.bits + begin / 8, n, order, low,
                                                          high, 0, key.data(), where.data());
    for (size_t j = 0; j < listed; ++j) body(key[j], begin + where[j]);
  }
}

}  // namespace dstee::cpu
