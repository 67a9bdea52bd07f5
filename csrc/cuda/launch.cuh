// What the kernels need of CUDA and of torch, and the only file that knows whether nvcc compiles them for a GPU or g++ for
// the host harness of the tests (tests/cuda_host).
#pragma once

#if defined(DSTEE_CUDA_HOST)
#include "cuda_host.h"
#else
#include <cuda_runtime.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#endif

#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <string>

namespace dstee::cuda {

using torch::stable::Tensor;

// The type of device whose memory the kernels work on.
#if defined(DSTEE_CUDA_HOST)
constexpr auto kDevice = torch::headeronly::DeviceType::CPU;
#else
constexpr auto kDevice = torch::headeronly::DeviceType::CUDA;
#endif

// --- in kernels ----------------------------------------------------------------------------------------------------------

// The block's one static object in shared memory.
template <class T>
__device__ __forceinline__ T& shared() {
#if defined(DSTEE_CUDA_HOST)
  return *static_cast<T*>(cuda_host::static_shared(sizeof(T), alignof(T)));
#else
  __shared__ T storage;
  return storage;
#endif
}

// The block's dynamic shared memory.
__device__ __forceinline__ char* dynamic_shared() {
#if defined(DSTEE_CUDA_HOST)
  return cuda_host::dynamic_shared();
#else
  extern __shared__ __align__(16) char dstee_dynamic_shared[];
  return dstee_dynamic_shared;
#endif
}

#if defined(DSTEE_CUDA_HOST)
template <class T>
void require_aligned(const T* p) {
  if (reinterpret_cast<uintptr_t>(p) % alignof(T)) cuda_host::report("an access to a misaligned address");
}
#endif

// Global memory. load and store are for threads of a warp that go through neighbouring memory, gather and scatter for scattered
// places, each of which moves a whole 32-byte sector. No two blocks of a launch may store to one address.
template <class T>
__device__ __forceinline__ T load(const T* p) {
#if defined(DSTEE_CUDA_HOST)
  require_aligned(p);
  cuda_host::note_load(p, sizeof(T));
#else
  __builtin_assume(__isGlobal(p));
#endif
  return *p;
}
template <class T>
__device__ __forceinline__ T gather(const T* p) {
#if defined(DSTEE_CUDA_HOST)
  require_aligned(p);
  cuda_host::note_gather(p, sizeof(T));
#else
  __builtin_assume(__isGlobal(p));
#endif
  return *p;
}
template <class T>
__device__ __forceinline__ void store(T* p, std::common_type_t<T> value) {
#if defined(DSTEE_CUDA_HOST)
  require_aligned(p);
  cuda_host::note_store(p, sizeof(T));
#else
  __builtin_assume(__isGlobal(p));
#endif
  *p = value;
}
template <class T>
__device__ __forceinline__ void scatter(T* p, std::common_type_t<T> value) {
#if defined(DSTEE_CUDA_HOST)
  require_aligned(p);
  cuda_host::note_scatter(p, sizeof(T));
#else
  __builtin_assume(__isGlobal(p));
#endif
  *p = value;
}

// --- around kernels ------------------------------------------------------------------------------------------------------

inline void check(cudaError_t error, const char* what) {
  STD_TORCH_CHECK(error == cudaSuccess, "dstee: ", what, ": ", cudaGetErrorString(error));
}

// The kernel's name as the compiler writes it.
template <auto kernel>
std::string kernel_name() {
  const std::string text = __PRETTY_FUNCTION__;
  const size_t equals = text.find('=', text.find("kernel", text.find('[')));
  const size_t start = text.find_first_not_of(" &", equals + 1);
  return text.substr(start, text.find_first_of(";]", start) - start);
}

constexpr int kMostDynamicBytes = 64 << 10;

// Queues the kernel.
template <auto kernel, class... Args>
void launch(unsigned blocks, unsigned threads, size_t dynamic_bytes, cudaStream_t stream, Args... args) {
#if defined(DSTEE_CUDA_HOST)
  static const std::string name = kernel_name<kernel>();
  cuda_host::call<kernel>(name.c_str(), blocks, threads, dynamic_bytes, args...);
#else
  if (dynamic_bytes > 16 << 10)  // with the static memory it may be more than the default limit
    check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kMostDynamicBytes),
          "shared memory of a kernel");
  // clang-format off
  kernel<<<blocks, threads, dynamic_bytes, stream>>>(args...);  // clang-format takes the end for three operators
  // clang-format on
  const cudaError_t error = cudaGetLastError();
  if (error != cudaSuccess) check(error, ("launch of " + kernel_name<kernel>()).c_str());
#endif
}

// True while a CUDA graph is captured from the stream.
inline bool is_capturing(cudaStream_t stream) {
  cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
  check(cudaStreamIsCapturing(stream, &status), "cudaStreamIsCapturing");
  return status != cudaStreamCaptureStatusNone;
}

// Queues the zeroing of memory.
inline void clear(void* memory, size_t bytes, cudaStream_t stream) {
  check(cudaMemsetAsync(memory, 0, bytes, stream), "clearing of a workspace");
}

// Makes the tensor's device current while it lives, and knows its current stream.
class DeviceGuard {
 public:
#if defined(DSTEE_CUDA_HOST)
  explicit DeviceGuard(const Tensor&) {}
#else
  explicit DeviceGuard(const Tensor& t) : guard_(t.get_device_index()) {
    void* stream = nullptr;
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(t.get_device_index(), &stream));
    stream_ = static_cast<cudaStream_t>(stream);
  }
#endif
  cudaStream_t stream() const { return stream_; }

 private:
#if !defined(DSTEE_CUDA_HOST)
  torch::stable::accelerator::DeviceGuard guard_;
#endif
  cudaStream_t stream_ = nullptr;
};

// Blocks of 256 threads that the current device can hold at once.
inline int resident_blocks() {
  int device = 0, processors = 0, threads = 0;
  check(cudaGetDevice(&device), "cudaGetDevice");
  check(cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device), "cudaDeviceGetAttribute");
  check(cudaDeviceGetAttribute(&threads, cudaDevAttrMaxThreadsPerMultiProcessor, device), "cudaDeviceGetAttribute");
  return processors * (threads / 256);
}

// The same for a kernel with its registers and static shared memory.
template <auto kernel>
int resident_blocks() {
  int device = 0, processors = 0, blocks = 0;
  check(cudaGetDevice(&device), "cudaGetDevice");
  check(cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device), "cudaDeviceGetAttribute");
  check(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, kernel, 256, 0),
        "cudaOccupancyMaxActiveBlocksPerMultiprocessor");
  return processors * blocks;
}

// Uninitialised memory on the tensor's device, at least 16-byte aligned: torch's caching allocator, or the harness's guarded
// and poisoned memory.
inline Tensor device_memory(size_t bytes, const Tensor& like) {
  using torch::headeronly::ScalarType;
  const int64_t size = static_cast<int64_t>(bytes);
#if defined(DSTEE_CUDA_HOST)
  const int64_t stride = 1;
  return torch::stable::from_blob(cuda_host::new_workspace(bytes), {&size, 1}, {&stride, 1}, like.device(), ScalarType::Byte,
                                  &cuda_host::free_workspace);
#else
  return torch::stable::empty({size}, ScalarType::Byte, torch::headeronly::Layout::Strided, like.device());
#endif
}

}  // namespace dstee::cuda

// Registers implementations, from any file: DSTEE_CUDA_LIBRARY(m) { m.impl("name", TORCH_BOX(&function)); }
#if defined(DSTEE_CUDA_HOST)
#define DSTEE_CUDA_LIBRARY_IN(space, m) STABLE_TORCH_LIBRARY_IMPL(space, CPU, m)
#define DSTEE_CUDA_LIBRARY(m) DSTEE_CUDA_LIBRARY_IN(DSTEE_CUDA_HOST, m)
#else
#define DSTEE_CUDA_LIBRARY(m) STABLE_TORCH_LIBRARY_IMPL(dstee, CUDA, m)
#endif
