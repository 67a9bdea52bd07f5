// Kernels over one flat tensor, without layers and tiles.
#pragma once

#include <cstdint>
#include <vector>

#include "../arguments.h"
#include "launch.cuh"

namespace dstee::cuda {

constexpr int kFlatThreads = 256;

template <class Body>
__device__ __forceinline__ void for_flat(int64_t n, Body body) {
  const int64_t stride = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < n; i += stride) body(i);
}

template <auto kernel, class... Args>
void launch_flat(int64_t n, cudaStream_t stream, Args... args) {
  if (n == 0) return;
  const int64_t blocks = (n + kFlatThreads - 1) / kFlatThreads, most = 4 * static_cast<int64_t>(resident_blocks());
  launch<kernel>(static_cast<int>(blocks < most ? blocks : most), kFlatThreads, 0, stream, args...);
}

inline Tensor make(const std::vector<int64_t>& shape, torch::headeronly::ScalarType dtype, const Tensor& like) {
  return torch::stable::empty(torch::headeronly::IntHeaderOnlyArrayRef(shape.data(), shape.size()), dtype,
                              torch::headeronly::Layout::Strided, like.device());
}

template <class T>
const T* flat_data(const Tensor& t, torch::headeronly::ScalarType dtype, int64_t n, const char* name) {
  STD_TORCH_CHECK(t.scalar_type() == dtype && t.numel() == n && t.is_contiguous(), "dstee: ", name,
                  " has another dtype or size");
  return static_cast<const T*>(t.const_data_ptr());
}

}  // namespace dstee::cuda
