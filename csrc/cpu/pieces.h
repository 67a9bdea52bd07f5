// The layers cut into pieces for the threads, and the arguments that lie in CPU tensors.
#pragma once

#include "../arguments.h"
#include "isa.h"

namespace dstee {

// A one-element floating-point CPU tensor.
double read_scalar(const Tensor& t);
bool is_set(const std::optional<Tensor>& flag);

// A run of weights of one layer that one thread handles. Starts at a multiple of 64 weights.
struct Piece {
  int layer;
  int64_t begin, size;
};
constexpr int64_t kPiece = 1 << 16;
std::vector<Piece> cut_pieces(const std::vector<Layer>& layers);
int64_t total_weights(const std::vector<Layer>& layers);

}  // namespace dstee
