// count_below on the GPU: active weights closer to zero than a layer's threshold, in one launch for nearly every model. Reads
// the mask, and weights in sectors with an active one.
#include <algorithm>
#include <cstdint>
#include <vector>

#include "../arguments.h"
#include "../layers.h"
#include "flat.cuh"
#include "group.cuh"
#include "launch.cuh"
#include "table.cuh"

namespace dstee::cuda {
namespace {

__global__ void __launch_bounds__(kThreads, 4)
    count_below_kernel(const Table table, const float* thresholds, unsigned long long* totals) {
  for_groups(table, [&](int index, const Row& row, int64_t i, int count) {
    const uint32_t active = active_lanes(row.layer, i, count);
    if (active == 0) return;
    const float threshold = thresholds[index];
    float w[kGroup];
    load_group(row.layer.w, row.layer.dtype, i, count, w);
    unsigned found = 0;
#pragma unroll
    for (int j = 0; j < kGroup; ++j) found += active >> j & 1 && float_of(bits_of(w[j]) & 0x7FFFFFFFu) < threshold;
    if (found) atomicAdd(totals + index, static_cast<unsigned long long>(found));
  });
}

}  // namespace

Tensor count_below(const Tensors& tensors, const Tensors& mask_bits, const Tensor& thresholds) {
  const std::vector<Layer> layers = read_thresholds(kDevice, tensors, mask_bits, thresholds);
  STD_TORCH_CHECK(!layers.empty(), "dstee: no layers");
  check_alignment(layers);
  const DeviceGuard guard(tensors[0]);
  const auto* limits = static_cast<const float*>(thresholds.const_data_ptr());
  Tensor out = make({static_cast<int64_t>(layers.size())}, torch::headeronly::ScalarType::Long, tensors[0]);
  auto* totals = static_cast<unsigned long long*>(out.mutable_data_ptr());
  clear(totals, 8 * layers.size(), guard.stream());
  for (size_t first = 0; first < layers.size(); first += kMaxLayers) {
    const auto begin = layers.begin() + static_cast<int64_t>(first);
    const auto count = static_cast<int64_t>(std::min<size_t>(kMaxLayers, layers.size() - first));
    for_each_launch({begin, begin + count}, tensors[0], guard.stream(), [&](const Table& table, const Gradients&) {
      launch<count_below_kernel>(grid_for<count_below_kernel>(table.tiles), kThreads, 0, guard.stream(), table, limits + first,
                                 totals + first);
    });
  }
  return out;
}

DSTEE_CUDA_LIBRARY(m) { m.impl("count_below", TORCH_BOX(&count_below)); }

}  // namespace dstee::cuda
