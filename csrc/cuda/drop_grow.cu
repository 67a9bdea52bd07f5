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
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <optional>
#include <utility>
#include <vector>

#include "../arguments.h"
#include "../layers.h"
#include "../test_limits.h"
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

constexpr size_t kFewLayers = 128, kManyLayers = 1280;  // 3 KB and 30 KB of kernel arguments

// Entries that a layer's lists almost surely need, see sample_rank.
double expected_entries(int64_t n, double k) {
  const double size = static_cast<double>(n), sampled = sample_size(n);
  const double listed = 1.3 * sample_rank(k * sampled / size) * size / sampled + 2048;
  return std::fmin(size, 2 * listed) + listed;  // with the undecided, of two entries each
}

struct UpdatePlan {
  std::vector<Row> rows;
  int64_t tiles = 0, largest = 0;
  double entries = 1024;
};

UpdatePlan plan_update(const std::vector<Layer>& layers, const UpdateArguments& a) {
  UpdatePlan plan;
  const std::vector<Place> places = places_of(a.where);
  const bool on_device = a.k_tensor || a.k_grow_tensor;
  for (size_t i = 0; i < layers.size(); ++i) {
    const int64_t n = layers[i].n;
    plan.rows.push_back(row_of(layers[i], plan.tiles));
    if (!places.empty()) plan.rows.back().place = places[i];
    STD_TORCH_CHECK(n < (int64_t{1} << 32) - 2 * kTile, "dstee: a layer of 2^32 weights; split it");
    plan.largest = n > plan.largest ? n : plan.largest;
    if (n <= kSmallLayer) continue;
    plan.tiles += tiles_of(n);
    // A k in a tensor is known on the device only: room for one weight in eight.
    const int64_t k = on_device ? n / 8 : a.k_grow.empty() ? a.k[i] : std::max(a.k[i], a.k_grow[i]);
    plan.entries += expected_entries(n, static_cast<double>(k));
  }
  return plan;
}

UpdateOptions options_of(const UpdateArguments& a) {
  UpdateOptions options;
  options.bonus = bonus_table_of(a.bonus, a.bonus_scale);
  options.round = static_cast<int32_t>(a.round);
  options.round_pointer = a.round_tensor ? static_cast<const int64_t*>(a.round_tensor->const_data_ptr()) : nullptr;
  options.random = !a.grow_seeds.empty();
  options.has_places = !a.where.empty();
  options.uneven = !a.k_grow.empty() || a.k_grow_tensor;
  options.regrow = a.regrow;
  options.reset_regrown = a.reset_regrown;
  options.tight_bounds = test_limits().tight_bounds;
  return options;
}

// The memory of one update: states, the pool's counter, chunks, entries. It comes from torch's cache, so that an update holds
// none between calls and a captured graph has its own.
struct Workspace {
  Tensor memory;
  LayerState* states;
  Pool pool;
};

Workspace make_workspace(const UpdatePlan& plan, size_t layers, const Tensor& like) {
  Pool pool;
  pool.capacity = static_cast<uint32_t>(std::fmin(plan.entries * test_limits().list_share, (1u << 31) - 2.0));
  pool.chunk_capacity = pool.capacity / kChunk + static_cast<uint32_t>(plan.tiles) + 1;
  const size_t state_bytes = plan.tiles ? sizeof(LayerState) * layers : 0, chunk_bytes = sizeof(Chunk) * pool.chunk_capacity;
  const Tensor memory = device_memory(state_bytes + 16 + (plan.tiles ? chunk_bytes + sizeof(Entry) * pool.capacity : 0), like);
  auto* const base = static_cast<char*>(memory.mutable_data_ptr());
  pool.used = reinterpret_cast<unsigned long long*>(base + state_bytes);
  pool.chunks = reinterpret_cast<Chunk*>(base + state_bytes + 16);
  pool.entries = reinterpret_cast<Entry*>(base + state_bytes + 16 + chunk_bytes);
  return {memory, reinterpret_cast<LayerState*>(base), pool};
}

// What every launch gets of the call.
struct Call {
  const UpdateArguments& arguments;
  const std::vector<Layer>& layers;
  Table table;
  SweepArguments sweep;
  LayerState* states;
  Pool pool;
  cudaStream_t stream;
};

const int64_t* on_device(const std::optional<Tensor>& numbers) {
  return numbers ? static_cast<const int64_t*>(numbers->const_data_ptr()) : nullptr;
}

template <size_t most>
void launch_sample(const Call& call, int64_t largest) {
  const UpdateArguments& a = call.arguments;
  const bool uneven = call.sweep.options.uneven;
  const std::vector<int64_t>& grow = uneven ? a.k_grow : a.k;
  const int64_t* const k_on_device = on_device(a.k_tensor);
  const int64_t* const k_grow_on_device = on_device(uneven ? a.k_grow_tensor : a.k_tensor);
  const unsigned threads = largest <= 4096 ? kThreads : 2 * kThreads;
  const size_t keys = call.table.tiles ? sizeof(uint64_t) * kMostSampled : sizeof(uint32_t) * static_cast<size_t>(largest);
  for (size_t first = 0; first < call.layers.size(); first += most) {
    const size_t count = call.layers.size() - first < most ? call.layers.size() - first : most;
    PerCallInputs<static_cast<int>(most)> inputs{};
    for (size_t i = 0; i < count; ++i) {
      inputs.gradient[i] = call.layers[first + i].g;
      if (!k_on_device) inputs.drop[i] = static_cast<uint32_t>(a.k[first + i]);
      if (!k_grow_on_device) inputs.grow[i] = static_cast<uint32_t>(grow[first + i]);
      if (!a.grow_seeds.empty()) inputs.seed[i] = a.grow_seeds[first + i];
    }
    launch<sample_kernel<static_cast<int>(most)>>(static_cast<unsigned>(count), threads, keys, call.stream, call.table, inputs,
                                                  static_cast<int>(first), k_on_device, k_grow_on_device, call.sweep.options,
                                                  call.sweep.step, call.sweep.with_step, call.states, call.pool);
  }
}

template <auto kernel>
void launch_over_lists(const Call& call) {
  launch<kernel>(static_cast<unsigned>(resident_blocks<kernel>()), kThreads, 0, call.stream, call.table, call.sweep.options,
                 call.states, call.pool);
}

}  // namespace

void drop_grow_(const UpdateArguments& a) {
  const auto layers = read_update(kDevice, a);
  if (layers.empty()) return;
  check_alignment(layers);
  for (const auto* k : {&a.k, &a.k_grow})
    for (size_t i = 0; i < k->size(); ++i)
      STD_TORCH_CHECK((*k)[i] >= 0 && (*k)[i] <= layers[i].n, "dstee: k or k_grow is larger than the layer");
  const DeviceGuard guard(a.params[0]);
  const cudaStream_t stream = guard.stream();
  const SweepArguments sweep{options_of(a), step_of(a.sgd, a.lr, std::nullopt, a.found_inf), !a.sgd.empty()};

  UpdatePlan plan = plan_update(layers, a);
  const Tensor rows = upload_rows(std::move(plan.rows), a.params[0], stream);
  const Table table{static_cast<const Row*>(rows.const_data_ptr()), static_cast<int>(layers.size()), plan.tiles};
  const Workspace space = make_workspace(plan, layers.size(), a.params[0]);
  const Call call{a, layers, table, sweep, space.states, space.pool, stream};

  if (layers.size() <= kFewLayers)
    launch_sample<kFewLayers>(call, plan.largest);
  else
    launch_sample<kManyLayers>(call, plan.largest);
  if (plan.tiles == 0) return;
  launch<sweep_kernel>(grid_for<sweep_kernel>(plan.tiles), kThreads, 0, stream, table, sweep, space.states, space.pool);
  launch_over_lists<select_drop_kernel>(call);
  launch_over_lists<commit_kernel>(call);
  launch<select_grow_kernel>(static_cast<unsigned>(layers.size()), 2 * kThreads, 0, stream, table, sweep.options, space.states,
                             space.pool);
}

DSTEE_CUDA_LIBRARY(m) { m.impl("drop_grow_", TORCH_BOX(&drop_grow_entry<drop_grow_>)); }

}  // namespace dstee::cuda
