// drop_grow_ on the GPU: one sweep over the large layers, five launches for any number of layers (one more for each further
// 1,280); one launch where all layers are small. A file a stage:
//
//   sample       one block a layer: of a large layer a sample, and from it which weights need not be listed;
//                small_layer: a small one is updated whole
//   sweep        masked SGD and scores; weights that may be selected are listed and counted in bins between the sample's keys
//   select_drop  the exact drop; what is dropped may grow again
//   commit       mask bits, counters and zeros of all weights that the bins decide
//   select_grow  the exact growth in the bin of the k-th key, committed at once;
//                fallback: a layer whose sample misled or whose list was full, by scans of all of it
//
// No host sync, no waiting between blocks: the last block to finish a layer decides for it. All memory is initialised by the
// first launch. The selected sets are functions of keys and indices alone, so the result does not depend on grids or schedules.
#include <cmath>
#include <cstdint>
#include <optional>
#include <type_traits>
#include <vector>

#include "../arguments.h"
#include "../layers.h"
#include "commit.cuh"
#include "launch.cuh"
#include "layer_state.cuh"
#include "lists.cuh"
#include "masked_sgd.cuh"
#include "options.cuh"
#include "sample.cuh"
#include "sample_size.cuh"
#include "scalar.cuh"
#include "select_drop.cuh"
#include "select_grow.cuh"
#include "sweep.cuh"
#include "table.cuh"

namespace dstee::cuda {
namespace {

constexpr size_t kFewCalls = 128, kManyCalls = 1280;  // 3 KB and 30 KB of kernel arguments

// Entries that a layer's lists almost surely need: see set_bounds.
double expected_entries(int64_t n, double k) {
  const double size = static_cast<double>(n), sampled = sample_size(n);
  const double listed = 1.3 * sample_rank(k * sampled / size) * size / sampled + 2048;
  return std::fmin(size, 2 * listed) + listed;  // with finalists
}

struct Work {
  std::vector<Row> rows;
  int64_t tiles = 0, largest = 0;
  double entries = 1024;
  bool by_gradient = true;  // no layer grows by another tensor
};

Work plan(const std::vector<Layer>& layers, const std::vector<int64_t>& k, bool k_on_device) {
  Work work;
  for (size_t i = 0; i < layers.size(); ++i) {
    const int64_t n = layers[i].n;
    work.rows.push_back(row_of(layers[i], work.tiles));
    work.by_gradient &= work.rows.back().layer.grow == nullptr;
    STD_TORCH_CHECK(n < (int64_t{1} << 32) - 2 * kTile, "dstee: a layer of 2^32 weights; split it");
    work.largest = n > work.largest ? n : work.largest;
    if (n <= kSmallLayer) continue;
    work.tiles += tiles_of(n);
    // How many a tensor asks for is known on the device only: room for one weight in eight.
    work.entries += expected_entries(n, k_on_device ? n / 8.0 : static_cast<double>(k[i]));
  }
  return work;
}

template <size_t most>
void launch_sample(const Table& table, const std::vector<Layer>& layers, const std::vector<int64_t>& k,
                   const int64_t* k_on_device, const std::vector<int64_t>& seeds, const Pass& pass, const Step& step,
                   bool with_step, State* states, const Pool& pool, unsigned threads, size_t dynamic_bytes,
                   cudaStream_t stream) {
  for (size_t first = 0; first < layers.size(); first += most) {
    const size_t count = layers.size() - first < most ? layers.size() - first : most;
    Calls<static_cast<int>(most)> calls{};
    for (size_t i = 0; i < count; ++i) {
      calls.gradient[i] = layers[first + i].g;
      if (!k_on_device) calls.k[i] = k[first + i];
      if (!seeds.empty()) calls.seed[i] = seeds[first + i];
    }
    launch<sample_kernel<static_cast<int>(most)>>(static_cast<unsigned>(count), threads, dynamic_bytes, stream, table, calls,
                                                  static_cast<int>(first), k_on_device, pass, step, with_step, states, pool);
  }
}

}  // namespace

void drop_grow_(const UpdateArguments& a) {
  const auto layers = read_update(kDevice, a);
  if (layers.empty()) return;
  check_alignment(layers);
  for (size_t i = 0; i < a.k.size() && !a.k_tensor; ++i)
    STD_TORCH_CHECK(a.k[i] >= 0 && a.k[i] <= layers[i].n, "dstee: k is larger than the layer");
  const DeviceGuard guard(a.params[0]);
  const cudaStream_t stream = guard.stream();
  Pass pass;
  pass.bonus = a.bonus ? static_cast<const float*>(a.bonus->const_data_ptr()) : nullptr;
  pass.bonus_size = a.bonus ? static_cast<uint32_t>(a.bonus->numel()) : 0;
  pass.round = static_cast<int32_t>(a.round);
  pass.round_pointer = a.round_tensor ? static_cast<const int64_t*>(a.round_tensor->const_data_ptr()) : nullptr;
  pass.random = !a.grow_seeds.empty();
  pass.regrow = a.regrow;
  pass.reset_regrown = a.reset_regrown;
  pass.shy_bracket = handicap().shy_bracket;
  const bool with_step = !a.sgd.empty();
  const Step step = step_of(a.sgd, a.lr, std::nullopt, a.found_inf);

  const Work work = plan(layers, a.k, a.k_tensor.has_value());
  const Tensor rows = upload_rows(work.rows, a.params[0], stream);
  const Table table{static_cast<const Row*>(rows.const_data_ptr()), static_cast<int>(layers.size()), work.tiles};

  // States, the pool's counter, chunks, entries. Large pieces come from torch's cache, so that an update holds no memory
  // between calls and a captured graph has its own.
  Pool pool;
  pool.capacity = static_cast<uint32_t>(std::fmin(work.entries * handicap().list_share, (1u << 31) - 2.0));
  pool.chunk_capacity = pool.capacity / (kStaged - kWarpWeights) + static_cast<uint32_t>(work.tiles) + 1;
  const size_t state_bytes = work.tiles ? sizeof(State) * layers.size() : 0, chunk_bytes = sizeof(Chunk) * pool.chunk_capacity;
  const Tensor memory =
      device_memory(state_bytes + 16 + (work.tiles ? chunk_bytes + sizeof(Entry) * pool.capacity : 0), a.params[0]);
  auto* const base = static_cast<char*>(memory.mutable_data_ptr());
  auto* const states = reinterpret_cast<State*>(base);
  pool.used = reinterpret_cast<unsigned long long*>(base + state_bytes);
  pool.chunks = reinterpret_cast<Chunk*>(base + state_bytes + 16);
  pool.entries = reinterpret_cast<Entry*>(base + state_bytes + 16 + chunk_bytes);

  const int64_t* asked = a.k_tensor ? static_cast<const int64_t*>(a.k_tensor->const_data_ptr()) : nullptr;
  const unsigned threads = work.largest <= 4096 ? kThreads : 2 * kThreads;
  const size_t keys = work.tiles ? sizeof(uint64_t) * kMostSampled : sizeof(uint32_t) * static_cast<size_t>(work.largest);
  auto sample = [&](auto launch_sample) {
    launch_sample(table, layers, a.k, asked, a.grow_seeds, pass, step, with_step, states, pool, threads, keys, stream);
  };
  sample(layers.size() <= kFewCalls ? launch_sample<kFewCalls> : launch_sample<kManyCalls>);
  if (work.tiles == 0) return;
  auto sweep = [&](auto by_gradient) {
    const int grid = resident_blocks<sweep_kernel<by_gradient.value>>();
    launch<sweep_kernel<by_gradient.value>>(static_cast<unsigned>(work.tiles < grid ? work.tiles : grid), kThreads, 0, stream,
                                            table, Sweep{pass, step, with_step}, states, pool);
  };
  if (work.by_gradient && !pass.random)
    sweep(std::true_type{});
  else
    sweep(std::false_type{});
  const auto grid = static_cast<unsigned>(resident_blocks<select_drop_kernel>());
  launch<select_drop_kernel>(grid, kThreads, 0, stream, table, pass, states, pool);
  launch<commit_kernel>(grid, kThreads, 0, stream, table, pass, states, pool);
  launch<select_grow_kernel>(static_cast<unsigned>(layers.size()), 2 * kThreads, 0, stream, table, pass, states, pool);
}

DSTEE_CUDA_LIBRARY(m) { m.impl("drop_grow_", TORCH_BOX(&drop_grow_entry<drop_grow_>)); }

}  // namespace dstee::cuda
