// count_below: active weights closer to zero than a threshold, in one pass over all layers.
#include <algorithm>
#include <array>

#include "../arguments.h"
#include "parallel.h"

namespace dstee::cpu {
namespace {

int64_t below(const Layer& l, const Piece& piece, float threshold) {
  if (!(threshold > 0)) return 0;
  // In keys: larger than that of the threshold, and not NaN, which has the largest.
  const uint32_t low = drop_key(threshold) + 1;
  std::array<uint32_t, kBlock + kMaxLanes> key, where;
  int64_t sum = 0;
  for (int64_t begin = piece.begin; begin < piece.begin + piece.size; begin += kBlock) {
    const int64_t n = std::min(kBlock, piece.begin + piece.size - begin);
    sum += static_cast<int64_t>(loops().scan_keys[l.dtype](at(l.w, begin, l.dtype), l.bits + begin / 8, n, kSmallest, low,
                                                           kMaxRank - 1, 0, key.data(), where.data()));
  }
  return sum;
}

}  // namespace

Tensor count_below(const Tensors& tensors, const Tensors& mask_bits, const Tensor& thresholds) {
  const std::vector<Layer> layers = read_thresholds(DeviceType::CPU, tensors, mask_bits, thresholds);
  const std::vector<Piece> pieces = cut_pieces(layers);
  std::vector<int64_t> found(pieces.size());
  for_tickets(worker_count(total_weights(layers)), static_cast<int64_t>(pieces.size()), [&](int, int64_t t) {
    const int layer = pieces[t].layer;
    found[t] = below(layers[layer], pieces[t], read<float>(thresholds.const_data_ptr(), layer));
  });
  Tensor out = torch::stable::empty({static_cast<int64_t>(layers.size())}, torch::headeronly::ScalarType::Long);
  auto* to = static_cast<int64_t*>(out.mutable_data_ptr());
  std::fill(to, to + layers.size(), 0);
  for (size_t t = 0; t < pieces.size(); ++t) to[pieces[t].layer] += found[t];
  return out;
}

STABLE_TORCH_LIBRARY_IMPL(dstee, CPU, m) { m.impl("count_below", TORCH_BOX(&count_below)); }

}  // namespace dstee::cpu
