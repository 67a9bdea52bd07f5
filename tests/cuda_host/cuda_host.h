// The CUDA language for g++: kernels compiled against this header run on the CPU, each thread of the grid as a fiber of
// one OS thread. A seeded random scheduler decides who runs, so that a dependence on timing shows as a changed bit, and
// what a GPU would silently survive is reported: see scheduler.h. A test tool, never part of the package.
//
// Only what the kernels and the planted ones use is here. What nvcc would refuse must not compile either: atomics have exactly
// CUDA's overloads, and there is no __shared__ (memory of a block is reached through dstee::cuda::shared, so that every block
// has its own).
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <typeinfo>

#include "fake_runtime.h"
#include "scheduler.h"

#define __global__
#define __device__
#define __host__
#define __grid_constant__
#define __launch_bounds__(...)
#define __forceinline__ inline __attribute__((always_inline))
#define __align__(n) __attribute__((aligned(n)))

struct uint3 {
  unsigned x = 0, y = 0, z = 0;
};
inline uint3 threadIdx, blockIdx;
inline dim3 blockDim, gridDim;

// --- launches ------------------------------------------------------------------------------------------------------------

namespace cuda_host {

template <auto kernel>
struct KernelTag {};

template <class... Parameters>
void call(void (*kernel)(Parameters...), const char* tag, const char* name, unsigned blocks, unsigned threads,
            size_t dynamic_bytes, std::common_type_t<Parameters>... arguments) {
  const Argument list[] = {{&arguments, sizeof arguments, alignof(Parameters)}..., {}};
  run({name, tag, blocks, threads, dynamic_bytes, list, sizeof...(Parameters)}, [&] { kernel(arguments...); });
}

// The same of kernels that are known as they are compiled.
template <auto kernel, class... Arguments>
void call(const char* name, unsigned blocks, unsigned threads, size_t dynamic_bytes, const Arguments&... arguments) {
  call(kernel, typeid(KernelTag<kernel>).name(), name, blocks, threads, dynamic_bytes, arguments...);
}

}  // namespace cuda_host

// --- barriers and fences -------------------------------------------------------------------------------------------------

using cuda_host::Meeting;
using cuda_host::Site;

inline void __syncthreads(Site site = Site::here()) { cuda_host::meet_block(Meeting::kBarrier, 0, site); }
inline int __syncthreads_count(int p, Site site = Site::here()) { return cuda_host::meet_block(Meeting::kCount, p, site); }
inline int __syncthreads_or(int p, Site site = Site::here()) { return cuda_host::meet_block(Meeting::kOr, p, site); }
inline int __syncthreads_and(int p, Site site = Site::here()) { return cuda_host::meet_block(Meeting::kAnd, p, site); }
inline void __syncwarp(unsigned mask = ~0u, Site site = Site::here()) {
  cuda_host::meet_warp(Meeting::kSyncWarp, mask, 0, 0, site);
}
inline void __threadfence() { cuda_host::point(cuda_host::kOften); }

// --- warps ---------------------------------------------------------------------------------------------------------------

inline unsigned __ballot_sync(unsigned mask, int p, Site site = Site::here()) {
  return static_cast<unsigned>(cuda_host::meet_warp(Meeting::kBallot, mask, p != 0, 0, site));
}
inline int __any_sync(unsigned mask, int p, Site site = Site::here()) {
  return cuda_host::meet_warp(Meeting::kAny, mask, p != 0, 0, site) != 0;
}
inline int __all_sync(unsigned mask, int p, Site site = Site::here()) {
  return cuda_host::meet_warp(Meeting::kAll, mask, p != 0, 0, site) != 0;
}
inline unsigned __reduce_add_sync(unsigned mask, unsigned x, Site site = Site::here()) {
  return static_cast<unsigned>(cuda_host::meet_warp(Meeting::kSum, mask, x, 0, site));
}
inline unsigned __reduce_min_sync(unsigned mask, unsigned x, Site site = Site::here()) {
  return static_cast<unsigned>(cuda_host::meet_warp(Meeting::kMin, mask, x, 0, site));
}
inline unsigned __reduce_max_sync(unsigned mask, unsigned x, Site site = Site::here()) {
  return static_cast<unsigned>(cuda_host::meet_warp(Meeting::kMax, mask, x, 0, site));
}
inline unsigned __reduce_or_sync(unsigned mask, unsigned x, Site site = Site::here()) {
  return static_cast<unsigned>(cuda_host::meet_warp(Meeting::kBitOr, mask, x, 0, site));
}

namespace cuda_host {

template <class T>
T shuffle(Meeting kind, unsigned mask, T value, int source, Site site) {
  static_assert(std::is_arithmetic_v<T> && (sizeof(T) == 4 || sizeof(T) == 8), "CUDA has no such shuffle");
  uint64_t bits = 0;
  memcpy(&bits, &value, sizeof value);
  bits = meet_warp(kind, mask, bits, source, site);
  memcpy(&value, &bits, sizeof value);
  return value;
}

inline int lane() { return static_cast<int>(threadIdx.x % 32); }

}  // namespace cuda_host

// A source outside the segment of `width` lanes means the lane itself, as in CUDA.
template <class T>
T __shfl_sync(unsigned mask, T value, int source, int width = 32, Site site = Site::here()) {
  const int base = cuda_host::lane() & -width;
  return cuda_host::shuffle(Meeting::kShuffle, mask, value, base + (source & (width - 1)), site);
}
template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32, Site site = Site::here()) {
  const int lane = cuda_host::lane(), from = lane - static_cast<int>(delta);
  return cuda_host::shuffle(Meeting::kShuffleUp, mask, value, from < (lane & -width) ? lane : from, site);
}
template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32, Site site = Site::here()) {
  const int lane = cuda_host::lane(), from = lane + static_cast<int>(delta);
  return cuda_host::shuffle(Meeting::kShuffleDown, mask, value, from >= (lane & -width) + width ? lane : from, site);
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int lanes, int width = 32, Site site = Site::here()) {
  const int lane = cuda_host::lane(), from = lane ^ lanes;
  return cuda_host::shuffle(Meeting::kShuffleXor, mask, value, from >= (lane & -width) + width ? lane : from, site);
}

// --- atomics: whole between two switches, hence plain code ---------------------------------------------------------------

#define CUDA_HOST_ATOMIC(name, T, expression) \
  inline T name(T* p, T x) {                  \
    cuda_host::note_atomic(p);                \
    const T old = *p;                         \
    *p = expression;                          \
    return old;                               \
  }
CUDA_HOST_ATOMIC(atomicAdd, int, static_cast<int>(static_cast<unsigned>(old) + static_cast<unsigned>(x)))
CUDA_HOST_ATOMIC(atomicAdd, unsigned, old + x)
CUDA_HOST_ATOMIC(atomicAdd, unsigned long long, old + x)
CUDA_HOST_ATOMIC(atomicOr, unsigned, old | x)
CUDA_HOST_ATOMIC(atomicOr, unsigned long long, old | x)
CUDA_HOST_ATOMIC(atomicXor, unsigned, old ^ x)
#undef CUDA_HOST_ATOMIC

#define CUDA_HOST_CAS(T)                            \
  inline T atomicCAS(T* p, T expected, T desired) { \
    cuda_host::note_atomic(p);                      \
    const T old = *p;                               \
    if (old == expected) *p = desired;              \
    return old;                                     \
  }
CUDA_HOST_CAS(int)
CUDA_HOST_CAS(unsigned)
CUDA_HOST_CAS(unsigned long long)
#undef CUDA_HOST_CAS

// --- arithmetic ----------------------------------------------------------------------------------------------------------

inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __clz(int x) { return x == 0 ? 32 : __builtin_clz(static_cast<unsigned>(x)); }
inline unsigned __brev(unsigned x) {
  unsigned y = 0;
  for (int i = 0; i < 32; ++i) y |= ((x >> i) & 1u) << (31 - i);
  return y;
}
inline unsigned __funnelshift_l(unsigned low, unsigned high, unsigned shift) {
  return static_cast<unsigned>(((static_cast<uint64_t>(high) << 32 | low) << (shift & 31)) >> 32);
}
inline unsigned __umulhi(unsigned a, unsigned b) { return static_cast<unsigned>((static_cast<uint64_t>(a) * b) >> 32); }

inline unsigned __float_as_uint(float x) {
  unsigned u;
  memcpy(&u, &x, sizeof u);
  return u;
}
