// key_histogram on the GPU: candidates counted by one byte of their keys, in one launch over all layers.
//
// Traffic: mask, signal and counter of each weight; of the drop, or where dropped weights may grow again, what it ranks in
// sectors with an active weight.
#include <algorithm>
#include <cstdint>
#include <utility>
#include <vector>

#include "../arguments.h"
#include "../layers.h"
#include "../rules.h"
#include "digit_search.cuh"
#include "flat.cuh"
#include "group.cuh"
#include "launch.cuh"
#include "options.cuh"
#include "table.cuh"

namespace dstee::cuda {
namespace {

// What comes with a call, for each layer.
struct CountedLayer {
  const void* gradient;
  int64_t total;
  uint64_t seed;
  Place place;
};
constexpr size_t kCountedAtOnce = 64;  // that fit the 4 KB of kernel arguments
struct CountedLayers {
  CountedLayer of[kCountedAtOnce];
};

struct CountOptions {
  BonusTable bonus;
  int32_t round;
  const int64_t* round_pointer;
  const int64_t *prefix, *drop_from;  // [layers, 3]; drop_from or null
  bool random, has_places, growth;
  int word, shift;
};

// One thread for each layer.
__global__ void __launch_bounds__(kCountedAtOnce)
    keep_layers_kernel(const __grid_constant__ CountedLayers given, int count, CountedLayer* layers) {
  if (static_cast<int>(threadIdx.x) < count) layers[threadIdx.x] = given.of[threadIdx.x];
}

struct Key {
  uint64_t first, second, place;
};

// Whether a key of the drop, word by word, is at least another; its place is asked for where that decides.
template <class PlaceOf>
__device__ __forceinline__ bool reaches(uint32_t first, const PlaceOf& place_of, const int64_t* least) {
  if (first != least[0]) return first > least[0];
  return least[1] < 0 || (least[1] == 0 && static_cast<int64_t>(place_of()) >= least[2]);
}

// The byte of a candidate that agrees with the prefix, or kBytes.
__device__ __forceinline__ uint32_t counted_byte(const CountOptions& options, const int64_t* prefix, const Key& key) {
  const uint64_t word = options.word == 0 ? key.first : options.word == 1 ? key.second : key.place;
  if (options.word > 0 && key.first != static_cast<uint64_t>(prefix[0])) return kBytes;
  if (options.word > 1 && key.second != static_cast<uint64_t>(prefix[1])) return kBytes;
  if ((word ^ static_cast<uint64_t>(prefix[options.word])) >> options.shift >> 8) return kBytes;
  return static_cast<uint32_t>(word >> options.shift) & (kBytes - 1);
}

__global__ void __launch_bounds__(kThreads, 4)
    key_histogram_kernel(const Table table, const CountedLayer* layers, const CountOptions options, int32_t* out) {
  auto& s = shared<DigitStorage>();
  const int32_t round = options.round_pointer ? static_cast<int32_t>(*options.round_pointer) : options.round;
  s.histogram[threadIdx.x] = 0;
  __syncthreads();
  for_tiles(
      table,
      [&](int index, const Row& row, int64_t i, int count) {
        const Layer& l = row.layer;
        const CountedLayer& given = layers[index];
        const uint32_t active = active_lanes(l, i, count);
        const auto index_of = [&](int64_t at) {
          const auto local = static_cast<uint64_t>(at);
          return options.has_places ? global_index(given.place, local) : local;
        };
        const auto place_of = [&](uint64_t global) { return static_cast<uint64_t>(given.total) - 1 - global; };
        uint32_t lanes = active;
        float drop[kGroup] = {}, signal[kGroup] = {};
        if (active && (!options.growth || options.drop_from)) load_group(l.drop, l.drop_dtype, i, count, drop);
        if (options.growth) {
          lanes = ~active & ((1u << count) - 1);
          if (active && options.drop_from)
#pragma unroll
            for (int j = 0; j < kGroup; ++j) {
              const bool dropped =
                  active >> j & 1 &&
                  reaches(drop_key(drop[j]), [&] { return place_of(index_of(i + j)); }, options.drop_from + 3 * index);
              lanes |= static_cast<uint32_t>(dropped) << j;
            }
          if (lanes && !options.random)
            load_group(l.grow ? l.grow : given.gradient, l.grow ? l.grow_dtype : l.dtype, i, count, signal);
        }
#pragma unroll
        for (int j = 0; j < kGroup; ++j) {
          if (!(lanes >> j & 1)) continue;
          const uint64_t global = index_of(i + j);
          Key key{drop_key(drop[j]), 0, place_of(global)};
          if (options.growth) {
            float x = float_of(bits_of(signal[j]) & 0x7FFFFFFFu);
            if (options.random)
              x = static_cast<float>(random24(static_cast<uint32_t>(global), static_cast<uint32_t>(global >> 32), given.seed)) *
                  kRandomUnit;
            key.first = rank_of(x);
            if (options.bonus) {
              const uint32_t counter = counter_of(load(l.counts + i + j), active >> j & 1, round, options.bonus.size);
              key.second = key.first;
              key.first = rank_of(score(x, options.bonus.at(index, counter)));
            }
          }
          const uint32_t byte = counted_byte(options, options.prefix + 3 * index, key);
          if (byte < kBytes) atomicAdd(&s.histogram[byte], 1u);
        }
      },
      [&](int index) {
        __syncthreads();
        const uint32_t found = s.histogram[threadIdx.x];
        if (found) atomicAdd(&out[index * kBytes + static_cast<int>(threadIdx.x)], static_cast<int32_t>(found));
        s.histogram[threadIdx.x] = 0;
        __syncthreads();
      });
}

CountOptions options_of(const HistogramArguments& a) {
  CountOptions options{};
  options.bonus = bonus_table_of(a.bonus, a.bonus_scale);
  options.round = static_cast<int32_t>(a.round);
  options.round_pointer = a.round_tensor ? static_cast<const int64_t*>(a.round_tensor->const_data_ptr()) : nullptr;
  options.prefix = static_cast<const int64_t*>(a.prefix.const_data_ptr());
  options.drop_from = a.drop_from ? static_cast<const int64_t*>(a.drop_from->const_data_ptr()) : nullptr;
  options.random = !a.grow_seeds.empty();
  options.has_places = !a.where.empty();
  options.growth = a.growth;
  options.word = static_cast<int>(a.word);
  options.shift = static_cast<int>(a.shift);
  return options;
}

}  // namespace

Tensor key_histogram(const HistogramArguments& a) {
  const std::vector<Layer> layers = read_histogram(kDevice, a);
  STD_TORCH_CHECK(!layers.empty(), "dstee: no layers");
  check_alignment(layers);
  const DeviceGuard guard(a.params[0]);
  const cudaStream_t stream = guard.stream();
  const size_t count = layers.size();
  Tensor out = make({static_cast<int64_t>(count), kBytes}, torch::headeronly::ScalarType::Int, a.params[0]);
  auto* const histogram = static_cast<int32_t*>(out.mutable_data_ptr());
  clear(histogram, sizeof(int32_t) * kBytes * count, stream);

  std::vector<Row> rows;
  int64_t tiles = 0;
  for (const Layer& layer : layers) {
    rows.push_back(row_of(layer, tiles));
    tiles += tiles_of(layer.n);
  }
  if (tiles == 0) return out;
  const Tensor uploaded = upload_rows(std::move(rows), a.params[0], stream);
  const Table table{static_cast<const Row*>(uploaded.const_data_ptr()), static_cast<int>(count), tiles};
  const Tensor memory = device_memory(sizeof(CountedLayer) * count, a.params[0]);
  auto* const counted = static_cast<CountedLayer*>(memory.mutable_data_ptr());

  const std::vector<Place> places = places_of(a.where);
  for (size_t first = 0; first < count; first += kCountedAtOnce) {
    CountedLayers given{};
    const size_t some = std::min(kCountedAtOnce, count - first);
    for (size_t j = 0; j < some; ++j) {
      const size_t i = first + j;
      given.of[j] = {layers[i].g, a.total[i], a.grow_seeds.empty() ? 0 : static_cast<uint64_t>(a.grow_seeds[i]),
                     places.empty() ? Place{} : places[i]};
    }
    launch<keep_layers_kernel>(1, kCountedAtOnce, 0, stream, given, static_cast<int>(some), counted + first);
  }
  launch<key_histogram_kernel>(grid_for<key_histogram_kernel>(tiles), kThreads, 0, stream, table, counted, options_of(a),
                               histogram);
  return out;
}

DSTEE_CUDA_LIBRARY(m) { m.impl("key_histogram", TORCH_BOX(&key_histogram_entry<key_histogram>)); }

}  // namespace dstee::cuda
