#include <cstdint>
#include <cstring>
#include <list>
#include <memory>
#include <mutex>
#include <type_traits>
#include <utility>
#include <vector>

#include "../arguments.h"
#include "../layers.h"
#include "../rules.h"
#include "launch.cuh"
#include "table.cuh"

namespace dstee::cuda {
namespace {

struct DestroyEvent {
  void operator()(cudaEvent_t event) const { cudaEventDestroy(event); }
};
using Event = std::unique_ptr<std::remove_pointer_t<cudaEvent_t>, DestroyEvent>;

struct Uploaded {
  std::vector<Row> rows;
  int32_t device;
  cudaStream_t stream;  // whose order the memory's reuse follows
  Tensor memory;
  Event arrived;
  bool in_graph;  // a captured graph may read it for ever
};

constexpr size_t kKept = 64;  // layer lists, captured ones not counted

// Never destroyed: at exit torch may be gone before.
std::mutex& mutex() {
  static auto& m = *new std::mutex;
  return m;
}
std::list<Uploaded>& uploaded() {  // the latest first
  static auto& list = *new std::list<Uploaded>;
  return list;
}

void forget_oldest() {
  size_t kept = 0;
  auto& list = uploaded();
  for (auto it = list.begin(); it != list.end();) it = !it->in_graph && ++kept > kKept ? list.erase(it) : std::next(it);
}

// An event behind all that the stream has to do so far.
Event record_event(cudaStream_t stream) {
  cudaEvent_t event = nullptr;
  check(cudaEventCreateWithFlags(&event, cudaEventDisableTiming), "cudaEventCreateWithFlags");
  Event owner(event);
  check(cudaEventRecord(event, stream), "cudaEventRecord");
  return owner;
}

// Lets the host wait, which a thread that captures may do in relaxed mode only.
void wait_for(const Event& event) {
  cudaStreamCaptureMode mode = cudaStreamCaptureModeRelaxed;
  check(cudaThreadExchangeStreamCaptureMode(&mode), "cudaThreadExchangeStreamCaptureMode");
  const cudaError_t waited = cudaEventSynchronize(event.get());
  check(cudaThreadExchangeStreamCaptureMode(&mode), "cudaThreadExchangeStreamCaptureMode");
  check(waited, "upload of the layer table");
}

}  // namespace

void check_alignment(const std::vector<Layer>& layers) {
  auto fits = [](const void* p, Dtype dtype) {
    return reinterpret_cast<uintptr_t>(p) % static_cast<uintptr_t>(element_size(dtype)) == 0;
  };
  for (const Layer& l : layers)
    STD_TORCH_CHECK(fits(l.w, l.dtype) && fits(l.g, l.dtype) && fits(l.m, l.dtype) && fits(l.counts, kF16) &&
                        fits(l.drop, l.drop_dtype) && fits(l.grow, l.grow_dtype),
                    "dstee: the memory of a tensor does not start at a multiple of its element size: clone it");
}

Tensor upload_rows(std::vector<Row> rows, const Tensor& like, cudaStream_t stream) {
  const size_t bytes = rows.size() * sizeof(Row);
  const int32_t device = like.get_device_index();
  auto same = [&](const Uploaded& u) {
    return u.device == device && u.rows.size() == rows.size() && memcmp(u.rows.data(), rows.data(), bytes) == 0;
  };

  // A graph is captured on a stream of its own, where any stream's table serves. It may be replayed on a stream that never
  // waited for the upload, and a capture cannot depend on work outside of it: so the host waits, at the table's first capture.
  const bool captured = is_capturing(stream);
  const std::lock_guard<std::mutex> lock(mutex());
  auto& list = uploaded();
  for (auto it = list.begin(); it != list.end(); ++it)
    if ((captured || it->stream == stream) && same(*it)) {
      if (captured && !it->in_graph) wait_for(it->arrived);
      it->in_graph |= captured;
      list.splice(list.begin(), list, it);
      return it->memory;
    }
  STD_TORCH_CHECK(!captured, "dstee: this list of layers was not seen before the capture: call the op once before capturing");
  Tensor memory = device_memory(bytes, like);
  check(cudaMemcpyAsync(memory.mutable_data_ptr(), rows.data(), bytes, cudaMemcpyHostToDevice, stream),
        "upload of the layer table");
  list.push_front({std::move(rows), device, stream, memory, record_event(stream), false});
  forget_oldest();
  return memory;
}

}  // namespace dstee::cuda
