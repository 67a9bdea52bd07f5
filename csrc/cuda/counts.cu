// encode_counts, decode_counts on the GPU: counters N <-> their stored form. count_active, count_explored: sums per layer.
//
// The sums take a launch a layer: they are no part of a step, and the table of one launch over all layers would have to be
// uploaded, which a graph's capture refuses for a list that it is the first to see.
#include <cstdint>
#include <vector>

#include "../arguments.h"
#include "../rules.h"
#include "flat.cuh"
#include "launch.cuh"

namespace dstee::cuda {
namespace {

using torch::headeronly::ScalarType;

template <class I>
__global__ void __launch_bounds__(kFlatThreads)
    encode_counts_kernel(const I* N, const uint8_t* mask, int16_t* counts, int64_t n, int64_t round) {
  for_flat(n, [&](int64_t i) {
    const auto x = static_cast<int64_t>(N[i]);
    store(&counts[i], static_cast<int16_t>(mask[i] ? flip_count(x, round) : x));
  });
}

__global__ void __launch_bounds__(kFlatThreads)
    decode_counts_kernel(const int16_t* counts, const uint8_t* bits, int32_t* N, int64_t n, int32_t round) {
  for_flat(n, [&](int64_t i) {
    const int32_t stored = counts[i];
    store(&N[i], bits[i / 8] >> (i % 8) & 1 ? flip_count(stored, round) : stored);
  });
}

__device__ void add_up(unsigned long long mine, unsigned long long* total) {
  for (int step = 16; step > 0; step /= 2) mine += __shfl_down_sync(0xFFFFFFFFu, mine, step);
  if (threadIdx.x % 32 == 0 && mine) atomicAdd(total, mine);
}

__global__ void __launch_bounds__(kFlatThreads)
    count_active_kernel(const uint8_t* bits, int64_t bytes, unsigned long long* total) {
  unsigned long long mine = 0;
  for_flat(bytes, [&](int64_t i) { mine += static_cast<unsigned>(__popc(static_cast<unsigned>(bits[i]))); });
  add_up(mine, total);
}

__global__ void __launch_bounds__(kFlatThreads)
    count_explored_kernel(const int16_t* counts, const uint8_t* bits, int64_t n, unsigned long long* total) {
  unsigned long long mine = 0;
  for_flat(n, [&](int64_t i) { mine += counts[i] != 0 || (bits[i / 8] >> (i % 8) & 1); });
  add_up(mine, total);
}

template <class I>
void encode(const Tensor& N, const uint8_t* mask, int16_t* out, int64_t round, cudaStream_t stream) {
  launch_flat<encode_counts_kernel<I>>(N.numel(), stream, static_cast<const I*>(N.const_data_ptr()), mask, out, N.numel(),
                                       round);
}

Tensor zeros(size_t count, const Tensor& like, cudaStream_t stream) {
  Tensor out = make({static_cast<int64_t>(count)}, ScalarType::Long, like);
  clear(out.mutable_data_ptr(), 8 * count, stream);
  return out;
}

}  // namespace

Tensor encode_counts(const Tensor& N, const Tensor& mask, int64_t round) {
  STD_TORCH_CHECK(mask.numel() == N.numel() && mask.scalar_type() == ScalarType::Bool, "dstee: mask does not fit N");
  const DeviceGuard guard(N);
  Tensor out = make({N.numel()}, ScalarType::Short, N);
  auto* to = static_cast<int16_t*>(out.mutable_data_ptr());
  const auto* m = static_cast<const uint8_t*>(mask.const_data_ptr());
  switch (N.scalar_type()) {
    case ScalarType::Byte:
      encode<uint8_t>(N, m, to, round, guard.stream());
      break;
    case ScalarType::Char:
      encode<int8_t>(N, m, to, round, guard.stream());
      break;
    case ScalarType::Short:
      encode<int16_t>(N, m, to, round, guard.stream());
      break;
    case ScalarType::Int:
      encode<int32_t>(N, m, to, round, guard.stream());
      break;
    case ScalarType::Long:
      encode<int64_t>(N, m, to, round, guard.stream());
      break;
    default:
      STD_TORCH_CHECK(false, "dstee: N is not uint8, int8, int16, int32 or int64");
  }
  return out;
}

Tensor decode_counts(const Tensor& counts, const Tensor& mask_bits, int64_t round, const std::vector<int64_t>& shape) {
  const DeviceGuard guard(counts);
  Tensor out = make(shape, ScalarType::Int, counts);
  const int64_t n = out.numel();
  const auto* from = flat_data<int16_t>(counts, ScalarType::Short, n, "counts");
  const auto* bits = flat_data<uint8_t>(mask_bits, ScalarType::Byte, (n + 7) / 8, "mask_bits");
  launch_flat<decode_counts_kernel>(n, guard.stream(), from, bits, static_cast<int32_t*>(out.mutable_data_ptr()), n,
                                    static_cast<int32_t>(round));
  return out;
}

Tensor count_active(const Tensors& mask_bits) {
  STD_TORCH_CHECK(!mask_bits.empty(), "dstee: no layers");
  const DeviceGuard guard(mask_bits[0]);
  Tensor out = zeros(mask_bits.size(), mask_bits[0], guard.stream());
  auto* totals = static_cast<unsigned long long*>(out.mutable_data_ptr());
  for (size_t l = 0; l < mask_bits.size(); ++l) {
    const int64_t bytes = mask_bits[l].numel();
    launch_flat<count_active_kernel>(bytes, guard.stream(),
                                     flat_data<uint8_t>(mask_bits[l], ScalarType::Byte, bytes, "mask_bits"), bytes, totals + l);
  }
  return out;
}

Tensor count_explored(const Tensors& counts, const Tensors& mask_bits) {
  STD_TORCH_CHECK(!counts.empty() && counts.size() == mask_bits.size(), "dstee: counts and mask_bits differ in length");
  const DeviceGuard guard(counts[0]);
  Tensor out = zeros(counts.size(), counts[0], guard.stream());
  auto* totals = static_cast<unsigned long long*>(out.mutable_data_ptr());
  for (size_t l = 0; l < counts.size(); ++l) {
    const int64_t n = counts[l].numel();
    launch_flat<count_explored_kernel>(n, guard.stream(), flat_data<int16_t>(counts[l], ScalarType::Short, n, "counts"),
                                       flat_data<uint8_t>(mask_bits[l], ScalarType::Byte, (n + 7) / 8, "mask_bits"), n,
                                       totals + l);
  }
  return out;
}

DSTEE_CUDA_LIBRARY(m) {
  m.impl("encode_counts", TORCH_BOX(&encode_counts));
  m.impl("decode_counts", TORCH_BOX(&decode_counts));
  m.impl("count_active", TORCH_BOX(&count_active));
  m.impl("count_explored", TORCH_BOX(&count_explored));
}

}  // namespace dstee::cuda
