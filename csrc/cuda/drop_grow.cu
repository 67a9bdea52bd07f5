// drop_grow_ on the GPU, the plain exact form: radix selection over all layers together, 11 bits of the key a launch.
//
//   step     masked SGD, where asked for
//   count    active weights per layer; set: k per layer, clipped
//   digits   three launches find the rank of the last dropped weight, up to six the key of the last grown one
//   ties     equal keys: the index of the last winner
//   commit   mask bits, counters, zeros
//
// No host sync, no waiting between blocks: the last block to finish a layer takes its decision (all writes, fence, barrier,
// counter). Counts are sums of integers, so the result does not depend on the schedule.
#include "drop_grow.cuh"

namespace dstee::cuda {
namespace {

// A key is score rank << 32 | signal rank, 31 bits each; a drop key has the first half only. Digits from the top.
constexpr int kLevels = 6, kDropLevels = 3, kBins = 1 << 11;
__device__ __forceinline__ int digit_shift(int level) { return (level < kDropLevels ? 52 : 50) - 10 * level; }
__device__ __forceinline__ int digit_bits(int level) { return level % 3 == 0 ? 11 : 10; }

enum Side { kDrop, kGrow };

// Everything the scans of one side need to know of one weight.
__device__ __forceinline__ void side_keys(Side side, const Pass& pass, const State& state, const Layer& l, const void* gradient,
                                          int64_t i, int count, uint32_t active, uint32_t* candidates, uint64_t* keys) {
  if (side == kDrop) {
    *candidates = active;
    if (active) drop_keys(l, i, count, keys);
    return;
  }
  const uint32_t present = (1u << count) - 1;
  uint32_t dropped = 0;
  if (pass.regrow && active) dropped = dropped_lanes(state, l, i, count, active);
  *candidates = (~active & present) | dropped;
  if (*candidates) grow_keys(pass, state, l, gradient, i, count, active, keys);
}

struct DigitStorage {
  uint32_t bins[kBins];
  unsigned long long sums[kThreads];
  bool last;
};

// True in every thread of the block that is the last of the layer's tiles to get here.
__device__ bool last_of_layer(Cut& cut, int64_t tiles, bool& flag) {
  __threadfence();
  __syncthreads();
  if (threadIdx.x == 0) flag = atomicAdd(&cut.done, 1u) + 1 == static_cast<uint32_t>(tiles);
  __syncthreads();
  __threadfence();
  return flag;
}

template <Side side>
__global__ void __launch_bounds__(kThreads, 4)
    digit_kernel(const Table table, const __grid_constant__ Gradients gradients, const Pass pass, State* states, int level) {
  auto& s = shared<DigitStorage>();
  const int shift = digit_shift(level), bits = digit_bits(level);
  auto cut_of = [&](int index) -> Cut& { return side == kDrop ? states[index].drop : states[index].grow; };
  for_groups(
      table,
      [&](int index, const Row&) {
        if (cut_of(index).settled) return false;
        for (int b = threadIdx.x; b < kBins; b += kThreads) s.bins[b] = 0;
        __syncthreads();
        return true;
      },
      [&](int index, const Row& row, int64_t i, int count) {
        uint32_t candidates;
        uint64_t keys[kGroup];
        side_keys(side, pass, states[index], row.layer, gradients.g[index], i, count, active_lanes(row.layer, i, count),
                  &candidates, keys);
        const uint64_t floor = cut_of(index).floor;
#pragma unroll
        for (int j = 0; j < kGroup; ++j)
          if (candidates >> j & 1 && (keys[j] ^ floor) >> (shift + bits) == 0)
            atomicAdd(&s.bins[keys[j] >> shift & ((1u << bits) - 1)], 1u);
      },
      [&](int index, const Row& row, int64_t) {
        Cut& cut = cut_of(index);
        __syncthreads();
        for (int b = threadIdx.x; b < kBins; b += kThreads)
          if (s.bins[b]) atomicAdd(&cut.bins[b], static_cast<unsigned long long>(s.bins[b]));
        if (!last_of_layer(cut, tiles_of(row.layer.n), s.last)) return;

        // Walk the bins from the top to the one that holds the k-th key.
        constexpr int kPer = kBins / kThreads;
        unsigned long long sum = 0;
        for (int b = 0; b < kPer; ++b) sum += fresh(&cut.bins[threadIdx.x * kPer + b]);
        s.sums[threadIdx.x] = sum;
        __syncthreads();
        if (threadIdx.x == 0) {
          unsigned long long left = cut.left;
          int t = kThreads - 1;
          while (t > 0 && s.sums[t] < left) left -= s.sums[t--];
          int b = t * kPer + kPer - 1;
          while (b > 0 && fresh(&cut.bins[b]) < left) left -= fresh(&cut.bins[b--]);
          cut.floor |= static_cast<uint64_t>(b) << shift;
          cut.left = left;
          cut.settled = fresh(&cut.bins[b]) == left;  // the whole bin wins
          cut.done = 0;
        }
        __syncthreads();
        for (int b = threadIdx.x; b < kBins; b += kThreads) cut.bins[b] = 0;  // for the next level
      });
}

struct TieStorage {
  uint32_t ties, before[kThreads];
  int64_t tile;
  unsigned long long left;
  bool last;
};

// Of the keys equal to the floor the first `left` win: finds the index of the last of them.
template <Side side>
__global__ void __launch_bounds__(kThreads, 4) tie_kernel(const Table table, const __grid_constant__ Gradients gradients,
                                                          const Pass pass, State* states, uint32_t* tile_ties) {
  auto& s = shared<TieStorage>();
  auto cut_of = [&](int index) -> Cut& { return side == kDrop ? states[index].drop : states[index].grow; };
  auto ties_at = [&](int index, const Row& row, int64_t i, int count) {
    uint32_t candidates, ties = 0;
    uint64_t keys[kGroup];
    side_keys(side, pass, states[index], row.layer, gradients.g[index], i, count, active_lanes(row.layer, i, count),
              &candidates, keys);
#pragma unroll
    for (int j = 0; j < kGroup; ++j) ties |= static_cast<uint32_t>(candidates >> j & 1 && keys[j] == cut_of(index).floor) << j;
    return ties;
  };
  for_groups(
      table,
      [&](int index, const Row&) {
        if (cut_of(index).settled) return false;
        if (threadIdx.x == 0) s.ties = 0;
        __syncthreads();
        return true;
      },
      [&](int index, const Row& row, int64_t i, int count) {
        const uint32_t ties = ties_at(index, row, i, count);
        if (ties) atomicAdd(&s.ties, static_cast<uint32_t>(__popc(ties)));
      },
      [&](int index, const Row& row, int64_t tile) {
        Cut& cut = cut_of(index);
        __syncthreads();
        if (threadIdx.x == 0) store(&tile_ties[tile], s.ties);
        const int64_t tiles = tiles_of(row.layer.n);
        if (!last_of_layer(cut, tiles, s.last)) return;

        if (threadIdx.x == 0) {
          unsigned long long left = cut.left;
          int64_t t = row.first_tile;
          while (t < row.first_tile + tiles - 1 && fresh(&tile_ties[t]) < left) left -= fresh(&tile_ties[t++]);
          s.tile = t;
          s.left = left;
        }
        __syncthreads();
        // Through the tile, 256 groups at a time.
        const int64_t first = (s.tile - row.first_tile) * kTile;
        for (int64_t start = first; start < first + kTile; start += kThreads * kGroup) {
          const int64_t i = start + threadIdx.x * kGroup, left_here = row.layer.n - i;
          const int count = left_here < kGroup ? (left_here < 0 ? 0 : static_cast<int>(left_here)) : kGroup;
          uint32_t ties = count > 0 ? ties_at(index, row, i, count) : 0;
          s.before[threadIdx.x] = static_cast<uint32_t>(__popc(ties));
          __syncthreads();
          unsigned long long wanted = s.left;
          for (int t = 0; t < static_cast<int>(threadIdx.x) && wanted > 0; ++t)
            wanted = wanted > s.before[t] ? wanted - s.before[t] : 0;
          if (wanted > 0 && wanted <= s.before[threadIdx.x]) {  // the last winner is one of mine
            for (int j = 0; j < kGroup; ++j)
              if (ties >> j & 1 && --wanted == 0) {
                cut.index = i + j;
                break;
              }
          }
          __syncthreads();
          if (threadIdx.x == 0) {
            unsigned long long all = 0;
            for (int t = 0; t < kThreads; ++t) all += s.before[t];
            s.left = s.left > all ? s.left - all : 0;
            cut.done = 0;
          }
          __syncthreads();
          if (s.left == 0) break;
        }
        if (threadIdx.x == 0) cut.settled = 1;
      });
}

__global__ void __launch_bounds__(kThreads, 4)
    commit_kernel(const Table table, const __grid_constant__ Gradients gradients, const Pass pass, const State* states) {
  for_groups(
      table, [&](int index, const Row&) { return states[index].k > 0; },
      [&](int index, const Row& row, int64_t i, int count) {
        const Layer& l = row.layer;
        const State& state = states[index];
        const uint32_t active = active_lanes(l, i, count);
        const uint32_t dropped = active ? dropped_lanes(state, l, i, count, active) : 0;
        uint32_t candidates, grown = 0;
        uint64_t keys[kGroup];
        side_keys(kGrow, pass, state, l, gradients.g[index], i, count, active, &candidates, keys);
#pragma unroll
        for (int j = 0; j < kGroup; ++j)
          grown |= static_cast<uint32_t>(candidates >> j & 1 && takes(state.grow, keys[j], i + j)) << j;
        const uint32_t changed = dropped ^ grown, gone = pass.reset_regrown ? dropped : dropped & ~grown;
        if (changed) store(&l.bits[i / kGroup], static_cast<uint8_t>(active ^ changed));
        if (changed && l.counts)
#pragma unroll
          for (int j = 0; j < kGroup; ++j)
            if (changed >> j & 1)
              store(&l.counts[i + j], static_cast<int16_t>(flip_count<int32_t>(l.counts[i + j], round_of(pass))));
        if (gone) {
          const float zeros[kGroup] = {};
          store_group(l.w, l.dtype, i, gone, zeros);
          if (l.m) store_group(l.m, l.dtype, i, gone, zeros);
        }
      },
      [](int, const Row&, int64_t) {});
}

__global__ void __launch_bounds__(kThreads, 4) count_kernel(const Table table, State* states) {
  int found = 0;
  for_groups(
      table,
      [&](int, const Row&) {
        found = 0;
        return true;
      },
      [&](int, const Row& row, int64_t i, int count) { found += __popc(active_lanes(row.layer, i, count)); },
      [&](int index, const Row&, int64_t) {
        for (int step = 16; step > 0; step /= 2) found += __shfl_down_sync(0xFFFFFFFFu, found, step);
        if (threadIdx.x % 32 == 0 && found) atomicAdd(&states[index].nnz, static_cast<unsigned long long>(found));
      });
}

// k per layer, clipped; a layer with nothing to do is settled from the start.
__global__ void set_k_kernel(const Table table, State* states, const __grid_constant__ Longs asked,
                             const int64_t* asked_on_device, bool regrow, Scalar found_inf) {
  for (int i = threadIdx.x; i < table.layers; i += blockDim.x) {
    State& state = states[i];
    const auto nnz = static_cast<int64_t>(state.nnz), n = table.rows[i].layer.n;
    int64_t k = asked_on_device ? asked_on_device[i] : asked.x[i];
    k = k < nnz ? k : nnz;
    if (!regrow) k = k < n - nnz ? k : n - nnz;
    if (k < 0 || value_of(found_inf) != 0) k = 0;
    state.k = k;
    for (Cut* cut : {&state.drop, &state.grow}) {
      cut->floor = k ? 0 : ~uint64_t{0};
      cut->left = static_cast<unsigned long long>(k);
      cut->index = k ? n : -1;
      cut->settled = k == 0;
    }
  }
}

__global__ void set_seeds_kernel(State* states, int layers, const __grid_constant__ Longs seeds) {
  for (int i = threadIdx.x; i < layers; i += blockDim.x) states[i].seed = static_cast<uint64_t>(seeds.x[i]);
}

// From the sorted halves of the keys to the decision: levels, then ties.
template <Side side>
void select(const Table& table, const Gradients& gradients, const Pass& pass, State* states, uint32_t* tile_ties, int levels,
            cudaStream_t stream) {
  const int grid = grid_for(table.tiles);
  for (int level = 0; level < levels; ++level)
    launch<digit_kernel<side>>(grid, kThreads, 0, stream, table, gradients, pass, states, level);
  launch<tie_kernel<side>>(grid, kThreads, 0, stream, table, gradients, pass, states, tile_ties);
}

}  // namespace

void drop_grow_(const Tensors& params, const Tensors& grads, const Tensors& momenta, const Tensors& mask_bits,
                const Tensors& counts, const std::vector<int64_t>& k, const std::optional<Tensor>& k_tensor,
                const std::optional<Tensor>& bonus, int64_t round, const std::optional<Tensor>& round_tensor,
                const Tensors& drop_scores, const Tensors& grow_signal, const std::vector<int64_t>& grow_seeds, bool regrow,
                bool reset_regrown, bool sgd, double lr, const std::optional<Tensor>& lr_tensor, double momentum,
                double dampening, double weight_decay, bool nesterov, bool maximize, bool first_step,
                const std::optional<Tensor>& found_inf) {
  const auto layers = read_layers(kDevice, params, grads, momenta, mask_bits, counts, drop_scores, grow_signal);
  if (layers.empty()) return;
  check_update(kDevice, params, grads, momenta, counts, k, k_tensor, bonus, round, round_tensor, grow_signal, grow_seeds, sgd,
               momentum);
  for (size_t i = 0; i < k.size() && !k_tensor; ++i)
    STD_TORCH_CHECK(k[i] >= 0 && k[i] <= layers[i].n, "dstee: k is larger than the layer");
  const DeviceGuard guard(params[0]);
  const cudaStream_t stream = guard.stream();
  Pass pass;
  pass.bonus = bonus ? static_cast<const float*>(bonus->const_data_ptr()) : nullptr;
  pass.bonus_size = bonus ? static_cast<uint32_t>(bonus->numel()) : 0;
  pass.round = static_cast<int32_t>(round);
  pass.round_pointer = round_tensor ? static_cast<const int64_t*>(round_tensor->const_data_ptr()) : nullptr;
  pass.random = !grow_seeds.empty();
  pass.regrow = regrow;
  pass.reset_regrown = reset_regrown;
  const Step step{make_rule(momentum, dampening, weight_decay, nesterov, maximize, first_step, false), scalar_of(lr, lr_tensor),
                  scalar_of(1.0, std::nullopt), scalar_of(0.0, found_inf)};

  for_chunks(layers, params[0], guard.stream(), [&](const Table& table, const Gradients& gradients, size_t first) {
    // The signal's second key says something only where a bonus was added to it.
    const int grow_levels = pass.bonus ? kLevels : kDropLevels;
    const size_t state_bytes = sizeof(State) * static_cast<size_t>(table.layers);
    const Tensor memory = device_memory(state_bytes + sizeof(uint32_t) * static_cast<size_t>(table.tiles), params[0]);
    auto* states = static_cast<State*>(memory.mutable_data_ptr());
    auto* tile_ties = reinterpret_cast<uint32_t*>(reinterpret_cast<char*>(states) + state_bytes);
    clear(states, state_bytes, stream);

    const int grid = grid_for(table.tiles);
    if (sgd) launch<step_kernel>(grid, kThreads, 0, stream, table, gradients, step);
    launch<count_kernel>(grid, kThreads, 0, stream, table, states);
    const int64_t* asked = k_tensor ? static_cast<const int64_t*>(k_tensor->const_data_ptr()) + first : nullptr;
    launch<set_k_kernel>(1, kThreads, 0, stream, table, states, longs(k, first, table.layers), asked, regrow, step.found_inf);
    if (pass.random)
      launch<set_seeds_kernel>(1, kThreads, 0, stream, states, table.layers, longs(grow_seeds, first, table.layers));
    select<kDrop>(table, gradients, pass, states, tile_ties, kDropLevels, stream);
    select<kGrow>(table, gradients, pass, states, tile_ties, grow_levels, stream);
    launch<commit_kernel>(grid, kThreads, 0, stream, table, gradients, pass, states);
  });
}

DSTEE_CUDA_LIBRARY(m) { m.impl("drop_grow_", TORCH_BOX(&drop_grow_)); }

}  // namespace dstee::cuda
