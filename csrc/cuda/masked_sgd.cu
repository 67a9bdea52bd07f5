// masked_sgd_ on the GPU: one launch for the whole model. A warp lists the active weights of a stretch, then each of its lanes
// takes one of them: no lane computes for an inactive weight, and neighbours are still read together.
//
// Traffic: 1/8 byte of mask a weight; gradient, weight and momentum in 32-byte sectors that hold an active weight.
#include <cstdint>

#include "../arguments.h"
#include "block_scan.cuh"
#include "launch.cuh"
#include "masked_sgd.cuh"
#include "scalar.cuh"
#include "table.cuh"

namespace dstee::cuda {
namespace {

constexpr int kWarps = kThreads / 32;
constexpr int kStretch = 32 * 32;                        // weights whose mask a warp reads at once, a word a lane
constexpr int kStretches = kTile / (kWarps * kStretch);  // of a warp in a tile
constexpr int kAtOnce = 4;                               // weights of a lane that are under way at the same time

struct MaskedSgdStorage {
  uint16_t active[kWarps][kStretch];
};

// The active ones of 32 weights. The layer may end before them or among them; padding bits may hold anything.
__device__ __forceinline__ uint32_t active_word(const Layer& l, int64_t i) {
  const uint8_t* const bytes = l.bits + i / 8;
  const int64_t left = l.n - i;
  if (left >= 32 && reinterpret_cast<uintptr_t>(bytes) % 4 == 0) return load(reinterpret_cast<const uint32_t*>(bytes));
  uint32_t word = 0;
  for (int b = 0; b < 4 && 8 * b < left; ++b) word |= static_cast<uint32_t>(load(bytes + b)) << 8 * b;
  return left < 32 ? word & ((1u << (left < 0 ? 0 : left)) - 1) : word;
}

// Lists the set bits of a warp's words in order and returns their number.
__device__ __forceinline__ uint32_t list_active(uint16_t* list, uint32_t word) {
  const unsigned lane = threadIdx.x % 32;
  const auto count = static_cast<uint32_t>(__popc(word)), end = warp_scan(count);
  for (uint16_t* next = list + (end - count); word; word &= word - 1)
    *next++ = static_cast<uint16_t>(lane * 32 + static_cast<unsigned>(__ffs(static_cast<int>(word))) - 1);
  __syncwarp();
  return __shfl_sync(~0u, end, 31);
}

// The step of a warp's listed weights, which count from w, g and m on.
template <class T>
__device__ __forceinline__ void step_listed(T* w, const T* g, T* m, const uint16_t* list, uint32_t listed,
                                            const SgdRule& rule) {
  for (uint32_t first = threadIdx.x % 32; first < listed; first += 32 * kAtOnce) {
    uint32_t at[kAtOnce];
    float weight[kAtOnce], gradient[kAtOnce], momentum[kAtOnce];
#pragma unroll
    for (int a = 0; a < kAtOnce; ++a)
      if (first + 32 * a < listed) {
        at[a] = list[first + 32 * a];
        gradient[a] = to_float(load(g + at[a]));
        weight[a] = to_float(load(w + at[a]));
        if (rule.has_momentum) momentum[a] = to_float(load(m + at[a]));
      }
#pragma unroll
    for (int a = 0; a < kAtOnce; ++a)
      if (first + 32 * a < listed) {
        T stored;
        sgd(weight[a], gradient[a], momentum[a], rule);
        from_float(weight[a], stored);
        store(w + at[a], stored);
        if (!rule.has_momentum) continue;
        from_float(momentum[a], stored);
        store(m + at[a], stored);
      }
  }
}

template <class T>
__device__ __forceinline__ void step_listed(const Layer& l, const void* gradient, int64_t i, const uint16_t* list,
                                            uint32_t listed, const SgdRule& rule) {
  step_listed(static_cast<T*>(l.w) + i, static_cast<const T*>(gradient) + i, static_cast<T*>(l.m) + i, list, listed, rule);
}

__global__ void __launch_bounds__(kThreads, 5)
    masked_sgd_kernel(const Table table, const __grid_constant__ Gradients gradients, const SgdStep step) {
  if (value_of(step.found_inf) != 0) return;
  const SgdRule rule = rule_on_device(step);
  const unsigned warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  uint16_t* const list = shared<MaskedSgdStorage>().active[warp];
  for (int64_t tile = blockIdx.x; tile < table.tiles; tile += gridDim.x) {
    const int index = layer_of_tile(table, tile);
    const Row& row = table.rows[index];
    const Layer& l = row.layer;
    const int64_t first = (tile - row.first_tile) * kTile + warp * kStretch;
    uint32_t next = active_word(l, first + lane * 32);
#pragma unroll 1
    for (int s = 0; s < kStretches; ++s) {
      const int64_t i = first + s * kWarps * kStretch;
      const uint32_t listed = list_active(list, next);
      if (s + 1 < kStretches) next = active_word(l, i + kWarps * kStretch + lane * 32);  // arrives during this step
      if (l.dtype == kF32)
        step_listed<float>(l, gradients.g[index], i, list, listed, rule);
      else if (l.dtype == kBF16)
        step_listed<bf16>(l, gradients.g[index], i, list, listed, rule);
      else
        step_listed<f16>(l, gradients.g[index], i, list, listed, rule);
      __syncwarp();
    }
  }
}

}  // namespace

void masked_sgd_(const StepArguments& a) {
  const auto layers = read_step(kDevice, a);
  if (layers.empty()) return;
  check_alignment(layers);
  const DeviceGuard guard(a.params[0]);
  const SgdStep step = step_of(a.sgd, a.lr, a.grad_scale, a.found_inf);
  for_each_launch(layers, a.params[0], guard.stream(), [&](const Table& table, const Gradients& gradients) {
    launch<masked_sgd_kernel>(grid_for<masked_sgd_kernel>(table.tiles), kThreads, 0, guard.stream(), table, gradients, step);
  });
}

DSTEE_CUDA_LIBRARY(m) { m.impl("masked_sgd_", TORCH_BOX(&masked_sgd_entry<masked_sgd_>)); }

}  // namespace dstee::cuda
