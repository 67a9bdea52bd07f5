// growth_scale on the GPU: one launch for nearly every model, a block a layer, which selects among at most 8,192 sampled
// weights.
//
// Traffic: a sector of signal and one of mask for each sampled weight.
#include <algorithm>
#include <cstdint>
#include <utility>
#include <vector>

#include "../arguments.h"
#include "../layers.h"
#include "../rules.h"
#include "block_select.cuh"
#include "flat.cuh"
#include "group.cuh"
#include "launch.cuh"
#include "table.cuh"

namespace dstee::cuda {
namespace {

constexpr int kScaleLayers = 224;  // pointers and numbers that fit the 4 KB of kernel arguments
constexpr uint32_t kNotSampled = ~uint32_t{0};
constexpr int kStratumBits = 13;
static_assert(kMostStrata <= 1 << kStratumBits);

struct ScaleInputs {
  const void* signal[kScaleLayers];
  int64_t k[kScaleLayers];
};

struct ScaleStorage {
  SelectStorage select;
  uint32_t candidates, last[2 * kThreads / 32];
};

__global__ void __launch_bounds__(2 * kThreads)
    growth_scale_kernel(const Table table, const __grid_constant__ ScaleInputs inputs, const int64_t* k_on_device,
                        int32_t round, const int64_t* round_on_device, float* out) {
  auto& s = shared<ScaleStorage>();
  auto* const ranks = reinterpret_cast<uint32_t*>(dynamic_shared());
  const Layer& l = table.rows[blockIdx.x].layer;
  const int64_t strata = strata_of(l.n), k = k_on_device ? k_on_device[blockIdx.x] : inputs.k[blockIdx.x];
  const int32_t q = round_on_device ? static_cast<int32_t>(*round_on_device) : round;
  if (threadIdx.x == 0) s.candidates = 0;
  __syncthreads();
  uint32_t mine = 0;
  for (auto t = static_cast<uint32_t>(threadIdx.x); t < strata; t += blockDim.x) {
    const int64_t i = sampled_index(l.n, t, q);
    const bool candidate = !(gather(&l.bits[i / 8]) >> (i % 8) & 1);
    ranks[t] = candidate ? rank_of(gather_float(inputs.signal[blockIdx.x], l.dtype, i)) : kNotSampled;
    mine += candidate;
  }
  if (mine) atomicAdd(&s.candidates, mine);
  __syncthreads();
  const uint32_t candidates = s.candidates;
  uint32_t rank = 0;
  if (candidates > 0) {
    const int64_t place = sampled_place(k, l.n, strata);
    const auto count = static_cast<uint32_t>(place < candidates ? place : candidates);
    const Threshold kth = block_select(s.select, count, false, kStratumBits, 0, [&](auto visit) {
      for (auto t = static_cast<uint32_t>(threadIdx.x); t < strata; t += blockDim.x)
        if (ranks[t] != kNotSampled) visit(ranks[t], [] { return 0u; }, t);
    });
    rank = ~uint32_t{0};  // the last one that passes
    for (auto t = static_cast<uint32_t>(threadIdx.x); t < strata; t += blockDim.x)
      if (ranks[t] != kNotSampled && passes(kth, static_cast<uint64_t>(ranks[t]) << 32, t))
        rank = ranks[t] < rank ? ranks[t] : rank;
    rank = __reduce_min_sync(~0u, rank);
    if (threadIdx.x % 32 == 0) s.last[threadIdx.x / 32] = rank;
    __syncthreads();
    for (unsigned w = 0; w < blockDim.x / 32; ++w) rank = s.last[w] < rank ? s.last[w] : rank;
  }
  if (threadIdx.x == 0) store(&out[blockIdx.x], scale_of(rank));
}

}  // namespace

Tensor growth_scale(const ScaleArguments& a) {
  const std::vector<Layer> layers = read_scale(kDevice, a);
  STD_TORCH_CHECK(!layers.empty(), "dstee: no layers");
  check_alignment(layers);
  const DeviceGuard guard(a.signals[0]);
  const cudaStream_t stream = guard.stream();
  const auto* k = a.k_tensor ? static_cast<const int64_t*>(a.k_tensor->const_data_ptr()) : nullptr;
  const auto* round = a.round_tensor ? static_cast<const int64_t*>(a.round_tensor->const_data_ptr()) : nullptr;
  Tensor out = make({static_cast<int64_t>(layers.size())}, torch::headeronly::ScalarType::Float, a.signals[0]);
  auto* scales = static_cast<float*>(out.mutable_data_ptr());
  for (size_t first = 0; first < layers.size(); first += kScaleLayers) {
    const size_t count = std::min<size_t>(kScaleLayers, layers.size() - first);
    ScaleInputs inputs{};
    std::vector<Row> rows;
    int64_t strata = 1;
    for (size_t i = 0; i < count; ++i) {
      Layer layer = layers[first + i];
      inputs.signal[i] = std::exchange(layer.w, nullptr);  // as gradients do, it changes from call to call
      layer.drop = nullptr;
      rows.push_back(row_of(layer, 0));
      inputs.k[i] = k ? 0 : a.k[first + i];
      strata = std::max(strata, strata_of(layer.n));
    }
    const Tensor uploaded = upload_rows(std::move(rows), a.signals[0], stream);
    const Table table{static_cast<const Row*>(uploaded.const_data_ptr()), static_cast<int>(count), 0};
    launch<growth_scale_kernel>(static_cast<unsigned>(count), 2 * kThreads, sizeof(uint32_t) * static_cast<size_t>(strata),
                                stream, table, inputs, k ? k + first : nullptr, static_cast<int32_t>(a.round), round,
                                scales + first);
  }
  return out;
}

DSTEE_CUDA_LIBRARY(m) { m.impl("growth_scale", TORCH_BOX(&growth_scale_entry<growth_scale>)); }

}  // namespace dstee::cuda
