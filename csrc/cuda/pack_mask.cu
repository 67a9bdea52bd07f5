// pack_mask, unpack_mask on the GPU: bool [n] in storage order <-> one bit a weight, lowest bit first, padding bits 0.
#include <cstdint>
#include <vector>

#include "../arguments.h"
#include "flat.cuh"
#include "launch.cuh"

namespace dstee::cuda {
namespace {

__global__ void __launch_bounds__(kFlatThreads) pack_mask_kernel(const uint8_t* mask, uint8_t* bits, int64_t n) {
  for_flat((n + 7) / 8, [&](int64_t byte) {
    unsigned packed = 0;
    for (int64_t i = 8 * byte; i < 8 * byte + 8 && i < n; ++i) packed |= static_cast<unsigned>(mask[i] != 0) << (i - 8 * byte);
    store(&bits[byte], static_cast<uint8_t>(packed));
  });
}

__global__ void __launch_bounds__(kFlatThreads) unpack_mask_kernel(const uint8_t* bits, uint8_t* mask, int64_t n) {
  for_flat(n, [&](int64_t i) { store(&mask[i], static_cast<uint8_t>(bits[i / 8] >> (i % 8) & 1)); });
}

}  // namespace

Tensor pack_mask(const Tensor& mask) {
  const int64_t n = mask.numel();
  STD_TORCH_CHECK(mask.scalar_type() == torch::headeronly::ScalarType::Bool, "dstee: mask is not bool");
  const DeviceGuard guard(mask);
  Tensor out = make({(n + 7) / 8}, torch::headeronly::ScalarType::Byte, mask);
  launch_flat<pack_mask_kernel>((n + 7) / 8, guard.stream(), static_cast<const uint8_t*>(mask.const_data_ptr()),
                                static_cast<uint8_t*>(out.mutable_data_ptr()), n);
  return out;
}

Tensor unpack_mask(const Tensor& mask_bits, const std::vector<int64_t>& shape) {
  const DeviceGuard guard(mask_bits);
  Tensor out = make(shape, torch::headeronly::ScalarType::Bool, mask_bits);
  const int64_t n = out.numel();
  const auto* bits = flat_data<uint8_t>(mask_bits, torch::headeronly::ScalarType::Byte, (n + 7) / 8, "mask_bits");
  launch_flat<unpack_mask_kernel>(n, guard.stream(), bits, static_cast<uint8_t*>(out.mutable_data_ptr()), n);
  return out;
}

DSTEE_CUDA_LIBRARY(m) {
  m.impl("pack_mask", TORCH_BOX(&pack_mask));
  m.impl("unpack_mask", TORCH_BOX(&unpack_mask));
}

}  // namespace dstee::cuda
