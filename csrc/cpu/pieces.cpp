#include "pieces.h"

#include <algorithm>

namespace dstee {

using torch::headeronly::ScalarType;

double read_scalar(const Tensor& t) {
  STD_TORCH_CHECK(t.is_cpu() && t.numel() == 1, "dstee: a scalar argument is not a one-element CPU tensor");
  const void* p = t.const_data_ptr();
  switch (t.scalar_type()) {
    case ScalarType::Float:
      return *static_cast<const float*>(p);
    case ScalarType::Double:
      return *static_cast<const double*>(p);
    case ScalarType::Half:
      return to_float(*static_cast<const f16*>(p));
    case ScalarType::BFloat16:
      return to_float(*static_cast<const bf16*>(p));
    default:
      STD_TORCH_CHECK(false, "dstee: a scalar argument is not floating-point");
  }
  return 0;
}

bool is_set(const std::optional<Tensor>& flag) { return flag && read_scalar(*flag) != 0; }

std::vector<Piece> cut_pieces(const std::vector<Layer>& layers) {
  std::vector<Piece> pieces;
  for (size_t i = 0; i < layers.size(); ++i)
    for (int64_t begin = 0; begin < layers[i].n; begin += kPiece)
      pieces.push_back({static_cast<int>(i), begin, std::min(kPiece, layers[i].n - begin)});
  return pieces;
}

int64_t total_weights(const std::vector<Layer>& layers) {
  int64_t total = 0;
  for (const Layer& l : layers) total += l.n;
  return total;
}

}  // namespace dstee
