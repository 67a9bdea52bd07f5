// What the kernels know of the layers. What stays the same from call to call lies in a table in device memory, uploaded once
// for a list of layers; gradients, which change, come by value.
#pragma once

#include <cstdint>
#include <type_traits>
#include <utility>
#include <vector>

#include "../arguments.h"
#include "../layers.h"
#include "../rules.h"
#include "launch.cuh"

namespace dstee::cuda {

constexpr int kThreads = 256;
constexpr int kGroup = 8;  // weights a thread handles at a time: one byte of mask, a 32-byte sector of float32
constexpr int64_t kTile = 8 * kThreads * kGroup;  // weights a block handles at a time
constexpr int kMaxLayers = 448;                   // gradient pointers that fit the 4 KB of kernel arguments

struct Row {
  Layer layer;         // layer.g is not valid here
  int64_t first_tile;  // tiles of all layers are numbered through
  Place place;         // in a larger layer, where the call has places
};
static_assert(std::has_unique_object_representations_v<Row>, "padding would make equal tables look different");

// All layers of one launch.
struct Table {
  const Row* rows;
  int layers;
  int64_t tiles;
};

// Of the layers of one launch, by value.
struct Gradients {
  const void* g[kMaxLayers];
};

// The layer that owns a tile.
DSTEE_HD int layer_of_tile(const Table& t, int64_t tile) {
  int low = 0, high = t.layers - 1;
  while (low < high) {
    const int middle = (low + high + 1) / 2;
    if (t.rows[middle].first_tile <= tile)
      low = middle;
    else
      high = middle - 1;
  }
  return low;
}

DSTEE_HD int64_t tiles_of(int64_t n) { return (n + kTile - 1) / kTile; }

// A layer's row. Gradients stay out of it, or each call would upload a table of its own: a layer that grows by its gradient has
// a null `grow`.
inline Row row_of(const Layer& layer, int64_t first_tile) {
  Row row{layer, first_tile, {}};
  if (layer.grow == layer.g && layer.grow_dtype == layer.dtype) row.layer.grow = nullptr;
  row.layer.g = nullptr;
  return row;
}

// Refuses tensors that a GPU cannot read, before anything is queued.
void check_alignment(const std::vector<Layer>& layers);

// Uploads the rows of the layers, or finds them uploaded by an earlier call with the same list. Hold the tensor until the
// launches are queued.
Tensor upload_rows(std::vector<Row> rows, const Tensor& like, cudaStream_t stream);

// Blocks of a kernel's grid that strides over so many tiles.
template <auto kernel>
unsigned grid_for(int64_t tiles) {
  const int64_t blocks = resident_blocks<kernel>();
  return static_cast<unsigned>(tiles < blocks ? tiles : blocks);
}

// Calls body(table, gradients) for each launch, of at most kMaxLayers layers: one serves nearly every model.
template <class Body>
void for_each_launch(const std::vector<Layer>& layers, const Tensor& like, cudaStream_t stream, const Body& body) {
  for (size_t first = 0; first < layers.size(); first += kMaxLayers) {
    const size_t count = layers.size() - first < kMaxLayers ? layers.size() - first : kMaxLayers;
    std::vector<Row> rows;
    Gradients gradients{};
    int64_t tiles = 0;
    for (size_t i = 0; i < count; ++i) {
      const Layer& layer = layers[first + i];
      rows.push_back(row_of(layer, tiles));
      gradients.g[i] = layer.g;
      tiles += tiles_of(layer.n);
    }
    if (tiles == 0) continue;
    const Tensor memory = upload_rows(std::move(rows), like, stream);
    body(Table{static_cast<const Row*>(memory.const_data_ptr()), static_cast<int>(count), tiles}, gradients);
  }
}

}  // namespace dstee::cuda
