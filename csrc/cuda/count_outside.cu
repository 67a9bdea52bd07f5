// count_outside on the GPU: weights outside the masks that are not 0, in one launch for nearly every model. Reads all weights
// once; while the invariant holds nothing is written.
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

__global__ void __launch_bounds__(kThreads, 4) count_outside_kernel(const Table table, unsigned long long* totals) {
  for_groups(table, [&](int index, const Row& row, int64_t i, int count) {
    float w[kGroup];
    load_group(row.layer.w, row.layer.dtype, i, count, w);
    const uint32_t active = active_lanes(row.layer, i, count);
    unsigned found = 0;
#pragma unroll
    for (int j = 0; j < kGroup; ++j) found += j < count && !(active >> j & 1) && !(w[j] == 0.0f);
    if (found) atomicAdd(totals + index, static_cast<unsigned long long>(found));
  });
}

}  // namespace

Tensor count_outside(const Tensors& params, const Tensors& mask_bits) {
  const std::vector<Layer> layers = read_masked(kDevice, params, mask_bits);
  STD_TORCH_CHECK(!layers.empty(), "dstee: no layers");
  check_alignment(layers);
  const DeviceGuard guard(params[0]);
  Tensor out = make({static_cast<int64_t>(layers.size())}, torch::headeronly::ScalarType::Long, params[0]);
  clear(out.mutable_data_ptr(), 8 * layers.size(), guard.stream());
  auto* totals = static_cast<unsigned long long*>(out.mutable_data_ptr());
  for (size_t first = 0; first < layers.size(); first += kMaxLayers) {
    const auto begin = layers.begin() + static_cast<int64_t>(first);
    const auto count = static_cast<int64_t>(std::min<size_t>(kMaxLayers, layers.size() - first));
    for_each_launch({begin, begin + count}, params[0], guard.stream(), [&](const Table& table, const Gradients&) {
      launch<count_outside_kernel>(grid_for<count_outside_kernel>(table.tiles), kThreads, 0, guard.stream(), table,
                                   totals + first);
    });
  }
  return out;
}

DSTEE_CUDA_LIBRARY(m) { m.impl("count_outside", TORCH_BOX(&count_outside)); }

}  // namespace dstee::cuda
