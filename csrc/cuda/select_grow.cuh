// Last launch, one block a layer: the finalists of the growth, and whole layers whose lists are not to be trusted.
//
// Traffic: 16 bytes for each finalist, and what applies to winners. A flagged layer is read about ten times over.
#pragma once

#include <cstdint>

#include "block_select.cuh"
#include "commit.cuh"
#include "fallback.cuh"
#include "launch.cuh"
#include "layer_state.cuh"
#include "lists.cuh"
#include "options.cuh"
#include "table.cuh"
#include "threshold.cuh"
#include "weights.cuh"

namespace dstee::cuda {

__global__ void __launch_bounds__(2 * kThreads)
    select_grow_kernel(const Table table, const Pass pass, State* states, const Pool pool) {
  auto& s = shared<SelectStorage>();
  const Row& row = table.rows[blockIdx.x];
  if (row.layer.n <= kSmallLayer) return;
  State& state = states[blockIdx.x];
  if (state.k == 0 || !(state.flagged || state.grow.left)) return;
  const Weights x(row.layer, pass, state.gradient, state.seed);
  if (state.flagged) {
    update_by_scans(s, x, state.k);
    return;
  }
  const uint32_t count = state.grow.finalist_count;
  const Finalist* finalists = pool.finalists(state.grow);
  const Cut cut = block_select(s, state.grow.left, pass.bonus != nullptr, 32, 0, [&](auto visit) {
    for (uint32_t f = threadIdx.x; f < count; f += blockDim.x) {
      const Finalist finalist = load(&finalists[f]);
      visit(static_cast<uint32_t>(finalist.key >> 32), [&] { return static_cast<uint32_t>(finalist.key); }, finalist.index);
    }
  });
  for (uint32_t f = threadIdx.x; f < count; f += blockDim.x) {
    const Finalist finalist = load(&finalists[f]);
    const bool wins = takes(cut, finalist.key, finalist.index);
    if (finalist.tag)
      finish_dropped(x, finalist.index, wins);
    else if (wins)
      x.swap(finalist.index);
  }
}

}  // namespace dstee::cuda
