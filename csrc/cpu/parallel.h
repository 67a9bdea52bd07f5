// Work sharing over torch's threads: each worker takes the next ticket until none is left, so that a slow core does not hold up
// the others. No result may depend on who took which. The only header of the CPU kernels that knows of torch.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <atomic>
#include <cstdint>

#include "loops.h"
#include "pieces.h"

namespace dstee::cpu {

// Workers worth starting for so many weights.
inline int worker_count(int64_t weights) {
  constexpr int64_t kGrain = 1 << 15;
  const int64_t threads = torch::stable::get_num_threads();
  return static_cast<int>(std::clamp<int64_t>(weights / kGrain, 1, threads));
}

// body(worker, ticket) for every ticket in [0, tickets); worker < workers.
template <class Body>
void for_tickets(int workers, int64_t tickets, const Body& body) {
  std::atomic<int64_t> next{0};
  torch::stable::parallel_for(0, workers, 1, [&](int64_t first, int64_t last) {
    const StrictFloat strict;
    for (int64_t worker = first; worker < last; ++worker)
      for (int64_t t = next++; t < tickets; t = next++) body(static_cast<int>(worker), t);
  });
}

// body(first, last) for ranges of weights that together are [0, n); each starts a byte of the mask.
template <class Body>
void for_ranges(int workers, int64_t n, const Body& body) {
  for_tickets(workers, (n + kPiece - 1) / kPiece, [&](int, int64_t t) { body(t * kPiece, std::min(n, (t + 1) * kPiece)); });
}

}  // namespace dstee::cpu
