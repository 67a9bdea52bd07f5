// The layers cut into pieces for the threads.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "../layers.h"

namespace dstee::cpu {

// A range of weights of one layer that one thread handles. Starts at a multiple of 64 weights.
struct Piece {
  int layer;
  int64_t begin, size;
};
constexpr int64_t kPiece = 1 << 16;

inline std::vector<Piece> cut_pieces(const std::vector<Layer>& layers) {
  std::vector<Piece> pieces;
  for (size_t i = 0; i < layers.size(); ++i)
    for (int64_t begin = 0; begin < layers[i].n; begin += kPiece)
      pieces.push_back({static_cast<int>(i), begin, std::min(kPiece, layers[i].n - begin)});
  return pieces;
}

inline int64_t total_weights(const std::vector<Layer>& layers) {
  int64_t total = 0;
  for (const Layer& l : layers) total += l.n;
  return total;
}

}  // namespace dstee::cpu
