// Eight neighbouring weights, which one thread reads and writes: a group.
#pragma once

#include <cstdint>
#include <cstring>

#include "../layers.h"
#include "../rules.h"
#include "launch.cuh"
#include "table.cuh"

namespace dstee::cuda {

struct alignas(16) Quad {
  uint32_t x[4];
};

// 8 values from p on, which is aligned.
template <class T>
__device__ __forceinline__ void load_aligned_group(const T* p, float* out) {
  constexpr int kPerQuad = 16 / sizeof(T);
#pragma unroll
  for (int q = 0; q < kGroup / kPerQuad; ++q) {
    const Quad raw = load(reinterpret_cast<const Quad*>(p + q * kPerQuad));
    T values[kPerQuad];
    memcpy(values, &raw, sizeof raw);
#pragma unroll
    for (int j = 0; j < kPerQuad; ++j) out[q * kPerQuad + j] = to_float(values[j]);
  }
}

// count (at most 8) values at element i of p. Whole groups of aligned tensors move 16 bytes at a time.
template <class T>
__device__ __forceinline__ void load_group(const T* p, int64_t i, int count, float* out) {
  if (count == kGroup && reinterpret_cast<uintptr_t>(p + i) % 16 == 0) {
    load_aligned_group(p + i, out);
  } else {
#pragma unroll
    for (int j = 0; j < kGroup; ++j) out[j] = j < count ? to_float(load(p + i + j)) : 0.0f;
  }
}

__device__ __forceinline__ void load_group(const void* p, Dtype dtype, int64_t i, int count, float* out) {
  if (dtype == kF32)
    load_group(static_cast<const float*>(p), i, count, out);
  else if (dtype == kBF16)
    load_group(static_cast<const bf16*>(p), i, count, out);
  else
    load_group(static_cast<const f16*>(p), i, count, out);
}

// Writes the values chosen by `lanes`; the other elements keep their bits.
template <class T>
__device__ __forceinline__ void store_group(T* p, int64_t i, uint32_t lanes, const float* values) {
  if (lanes == 0xFF && reinterpret_cast<uintptr_t>(p + i) % 16 == 0) {
    constexpr int kPerQuad = 16 / sizeof(T);
#pragma unroll
    for (int q = 0; q < kGroup / kPerQuad; ++q) {
      T raw[kPerQuad];
#pragma unroll
      for (int j = 0; j < kPerQuad; ++j) from_float(values[q * kPerQuad + j], raw[j]);
      Quad quad;
      memcpy(&quad, raw, sizeof quad);
      store(reinterpret_cast<Quad*>(p + i + q * kPerQuad), quad);
    }
  } else {
#pragma unroll
    for (int j = 0; j < kGroup; ++j)
      if (lanes >> j & 1) {
        T raw;
        from_float(values[j], raw);
        store(p + i + j, raw);
      }
  }
}

__device__ __forceinline__ void store_group(void* p, Dtype dtype, int64_t i, uint32_t lanes, const float* values) {
  if (dtype == kF32)
    store_group(static_cast<float*>(p), i, lanes, values);
  else if (dtype == kBF16)
    store_group(static_cast<bf16*>(p), i, lanes, values);
  else
    store_group(static_cast<f16*>(p), i, lanes, values);
}

// x as it is read back after it was stored as dtype.
__device__ __forceinline__ float rounded(float x, Dtype dtype) {
  bf16 b;
  f16 h;
  if (dtype == kF32) return x;
  if (dtype == kBF16) return from_float(x, b), to_float(b);
  return from_float(x, h), to_float(h);
}

// The active ones of the group at i. Padding bits may hold anything.
__device__ __forceinline__ uint32_t active_lanes(const Layer& l, int64_t i, int count) {
  return load(&l.bits[i / kGroup]) & ((1u << count) - 1);
}

// Element i, from anywhere.
__device__ __forceinline__ float gather_float(const void* p, Dtype dtype, int64_t i) {
  if (dtype == kF32) return gather(static_cast<const float*>(p) + i);
  return dtype == kBF16 ? to_float(gather(static_cast<const bf16*>(p) + i)) : to_float(gather(static_cast<const f16*>(p) + i));
}

// Calls body(row index, row, first weight, weights in it) for each group of each tile of this block, and in all its threads
// end_of_tile(row index).
template <class Body, class End>
__device__ __forceinline__ void for_tiles(const Table& t, Body body, End end_of_tile) {
  for (int64_t tile = blockIdx.x; tile < t.tiles; tile += gridDim.x) {
    const int index = layer_of_tile(t, tile);
    const Row& row = t.rows[index];
    const int64_t first = (tile - row.first_tile) * kTile;
    for (int64_t i = first + threadIdx.x * kGroup; i < first + kTile && i < row.layer.n; i += blockDim.x * kGroup) {
      const int64_t left = row.layer.n - i;
      body(index, row, i, left < kGroup ? static_cast<int>(left) : kGroup);
    }
    end_of_tile(index);
  }
}
template <class Body>
__device__ __forceinline__ void for_groups(const Table& t, Body body) {
  for_tiles(t, body, [](int) {});
}

}  // namespace dstee::cuda
