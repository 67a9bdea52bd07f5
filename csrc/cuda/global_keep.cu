// global_keep_ on the GPU: the first of all active weights of all layers, found a byte at a time over all of them, then one
// pass that drops the others.
//
// Traffic: for each of up to four bytes of the score the mask and, in sectors with an active weight, the scores; the same once
// more to drop. Bytes of the place are counted only where scores tie at the limit.
#include <algorithm>
#include <cstdint>
#include <utility>
#include <vector>

#include "../arguments.h"
#include "../layers.h"
#include "../rules.h"
#include "digit_search.cuh"
#include "group.cuh"
#include "launch.cuh"
#include "table.cuh"

namespace dstee::cuda {
namespace {

constexpr size_t kLayersAtOnce = 448;  // pointers that fit the 4 KB of kernel arguments

// Scores lie in device memory, written there for this call: they are other tensors each time.
struct Scores {
  const void* of[kLayersAtOnce];
};

__global__ void __launch_bounds__(kBytes)
    start_keep_kernel(const __grid_constant__ Scores scores, int first, int count, const void** all, DigitSearch* search,
                      int64_t total, const int64_t* total_on_device) {
  for (int i = static_cast<int>(threadIdx.x); i < count; i += kBytes) store(&all[first + i], scores.of[i]);
  if (first == 0) start_search(*search, total_on_device ? *total_on_device : total);
}

// Keys of the lanes of a group; others are undefined. Without scores, abs(w).
__device__ __forceinline__ void keep_keys(const Layer& l, const void* scores, int64_t i, int count, uint32_t* keys) {
  float x[kGroup];
  load_group(scores ? scores : l.w, scores ? l.drop_dtype : l.dtype, i, count, x);
#pragma unroll
  for (int j = 0; j < kGroup; ++j) keys[j] = signed_rank_of(scores ? x[j] : float_of(bits_of(x[j]) & 0x7FFFFFFFu));
}

// The order of layers and indices, from the end.
__device__ __forceinline__ uint64_t place_of(const Table& table, const Row& row, int64_t i) {
  return static_cast<uint64_t>((table.tiles - row.first_tile) * kTile - 1 - i);
}

__global__ void __launch_bounds__(kThreads, 4)
    count_scores_kernel(const Table table, const void* const* scores, DigitSearch* search, Digit digit) {
  auto& s = shared<DigitStorage>();
  if (search->decided) return;
  const DigitSearch& known = *search;
  s.histogram[threadIdx.x] = 0;
  __syncthreads();
  for_groups(table, [&](int index, const Row& row, int64_t i, int count) {
    const uint32_t active = active_lanes(row.layer, i, count);
    if (active == 0) return;
    uint32_t keys[kGroup];
    keep_keys(row.layer, scores[index], i, count, keys);
#pragma unroll
    for (int j = 0; j < kGroup; ++j) {
      const uint64_t place = place_of(table, row, i + j);
      if (active >> j & 1 && agrees(known, digit, keys[j], place)) atomicAdd(&s.histogram[byte_of(digit, keys[j], place)], 1u);
    }
  });
  __syncthreads();
  const uint32_t found = s.histogram[threadIdx.x];
  if (found) atomicAdd(&search->histogram[threadIdx.x], static_cast<unsigned long long>(found));
}

__global__ void __launch_bounds__(kThreads, 4)
    drop_others_kernel(const Table table, const void* const* scores, const DigitSearch* search, int32_t round,
                       const int64_t* round_on_device) {
  const int32_t q = round_on_device ? static_cast<int32_t>(*round_on_device) : round;
  for_groups(table, [&](int index, const Row& row, int64_t i, int count) {
    const Layer& l = row.layer;
    const uint32_t active = active_lanes(l, i, count);
    if (active == 0) return;
    uint32_t keys[kGroup], gone = 0;
    keep_keys(l, scores[index], i, count, keys);
#pragma unroll
    for (int j = 0; j < kGroup; ++j)
      gone |= static_cast<uint32_t>(active >> j & 1 && !is_selected(*search, keys[j], place_of(table, row, i + j))) << j;
    if (gone == 0) return;
    const float zeros[kGroup] = {};
    store(&l.bits[i / kGroup], static_cast<uint8_t>(active & ~gone));
    store_group(l.w, l.dtype, i, gone, zeros);
    if (l.m) store_group(l.m, l.dtype, i, gone, zeros);
    if (!l.counts) return;
#pragma unroll
    for (int j = 0; j < kGroup; ++j)
      if (gone >> j & 1) store(&l.counts[i + j], static_cast<int16_t>(flip_count<int32_t>(load(l.counts + i + j), q)));
  });
}

}  // namespace

void global_keep_(const KeepArguments& a) {
  const auto layers = read_keep(kDevice, a);
  if (layers.empty()) return;
  check_alignment(layers);
  const DeviceGuard guard(a.params[0]);
  const cudaStream_t stream = guard.stream();
  std::vector<Row> rows;
  int64_t tiles = 0;
  for (const Layer& layer : layers) {
    rows.push_back(row_of(layer, tiles));
    rows.back().layer.drop = nullptr;
    tiles += tiles_of(layer.n);
  }
  const size_t count = layers.size(), pointers = (sizeof(void*) * count + 15) / 16 * 16;
  const Tensor uploaded = upload_rows(std::move(rows), a.params[0], stream);
  const Table table{static_cast<const Row*>(uploaded.const_data_ptr()), static_cast<int>(count), tiles};
  const Tensor memory = device_memory(pointers + sizeof(DigitSearch), a.params[0]);
  auto* const scores = static_cast<const void**>(memory.mutable_data_ptr());
  auto* const search = reinterpret_cast<DigitSearch*>(static_cast<char*>(memory.mutable_data_ptr()) + pointers);

  for (size_t first = 0; first < count; first += kLayersAtOnce) {
    Scores given{};
    const size_t some = std::min(kLayersAtOnce, count - first);
    for (size_t i = 0; i < some && !a.scores.empty(); ++i) given.of[i] = layers[first + i].drop;
    launch<start_keep_kernel>(1, kBytes, 0, stream, given, static_cast<int>(first), static_cast<int>(some), scores, search,
                              a.total,
                              a.total_tensor ? static_cast<const int64_t*>(a.total_tensor->const_data_ptr()) : nullptr);
  }
  if (tiles == 0) return;
  for_digits(tiles * kTile, [&](Digit digit, bool first) {
    launch<count_scores_kernel>(grid_for<count_scores_kernel>(tiles), kThreads, 0, stream, table, scores, search, digit);
    launch<take_digit_kernel>(1, kBytes, 0, stream, search, digit, first);
  });
  launch<drop_others_kernel>(grid_for<drop_others_kernel>(tiles), kThreads, 0, stream, table, scores, search,
                             static_cast<int32_t>(a.round),
                             a.round_tensor ? static_cast<const int64_t*>(a.round_tensor->const_data_ptr()) : nullptr);
}

DSTEE_CUDA_LIBRARY(m) { m.impl("global_keep_", TORCH_BOX(&global_keep_entry<global_keep_>)); }

}  // namespace dstee::cuda
