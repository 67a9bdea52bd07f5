// hashed_noise_ on the GPU: a launch a tensor.
#include <cstdint>
#include <vector>

#include "../arguments.h"
#include "../layers.h"
#include "../rules.h"
#include "flat.cuh"
#include "launch.cuh"
#include "table.cuh"

namespace dstee::cuda {
namespace {

struct Seeds {
  int64_t of[4];
};

__global__ void __launch_bounds__(kFlatThreads)
    hashed_noise_kernel(float* out, int64_t n, const Seeds seeds, bool whole, const Place place) {
  for_flat(n, [&](int64_t i) {
    const auto at = static_cast<uint64_t>(i);
    store(&out[i], noise(whole ? at : global_index(place, at), seeds.of));
  });
}

}  // namespace

void hashed_noise_(const Tensors& out, const std::vector<int64_t>& seeds, const std::vector<int64_t>& where) {
  const std::vector<Layer> layers = read_noise(kDevice, out, seeds, where);
  if (layers.empty()) return;
  check_alignment(layers);
  const std::vector<Place> places = places_of(where);
  const DeviceGuard guard(out[0]);
  for (size_t i = 0; i < layers.size(); ++i) {
    const int64_t* s = seeds.data() + 4 * i;
    launch_flat<hashed_noise_kernel>(layers[i].n, guard.stream(), static_cast<float*>(layers[i].w), layers[i].n,
                                     Seeds{{s[0], s[1], s[2], s[3]}}, places.empty(), places.empty() ? Place{} : places[i]);
  }
}

DSTEE_CUDA_LIBRARY(m) { m.impl("hashed_noise_", TORCH_BOX(&hashed_noise_)); }

}  // namespace dstee::cuda
