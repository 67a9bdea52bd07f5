// growth_scale: about the k-th largest signal among the inactive weights of each layer, from a fixed sample.
#include <algorithm>
#include <array>
#include <functional>

#include "../arguments.h"
#include "parallel.h"
#include "prefetch.h"

namespace dstee::cpu {
namespace {

float scale(const Layer& l, int64_t k, int32_t round) {
  constexpr int64_t kAhead = 64;
  const int64_t strata = strata_of(l.n);
  std::array<int64_t, kMostStrata> index;
  std::array<uint32_t, kMostStrata> rank;
  for (int64_t s = 0; s < strata; ++s) index[s] = sampled_index(l.n, static_cast<uint32_t>(s), round);
  int64_t count = 0;
  for (int64_t s = 0; s < strata; ++s) {
    if (s + kAhead < strata) {  // every one is a miss: let them overlap
      prefetch(at(l.w, index[s + kAhead], l.dtype));
      prefetch(l.bits + index[s + kAhead] / 8);
    }
    rank[count] = rank_of(value_at(l.w, index[s], l.dtype));
    count += !is_active(l.bits, index[s]);
  }
  if (count == 0) return scale_of(0);
  const auto nth = rank.begin() + (std::min(sampled_place(k, l.n, strata), count) - 1);
  std::nth_element(rank.begin(), nth, rank.begin() + count, std::greater<uint32_t>());
  return scale_of(*nth);
}

}  // namespace

Tensor growth_scale(const ScaleArguments& a) {
  const std::vector<Layer> layers = read_scale(DeviceType::CPU, a);
  const auto L = static_cast<int64_t>(layers.size());
  const int32_t round = read_round(a.round, a.round_tensor);
  const void* k = a.k_tensor ? a.k_tensor->const_data_ptr() : a.k.data();
  int64_t sampled = 0;
  for (const Layer& l : layers) sampled += strata_of(l.n);
  Tensor out = torch::stable::empty({L}, torch::headeronly::ScalarType::Float);
  auto* to = static_cast<float*>(out.mutable_data_ptr());
  for_tickets(worker_count(sampled), L, [&](int, int64_t i) { to[i] = scale(layers[i], read<int64_t>(k, i), round); });
  return out;
}

STABLE_TORCH_LIBRARY_IMPL(dstee, CPU, m) { m.impl("growth_scale", TORCH_BOX(&growth_scale_entry<growth_scale>)); }

}  // namespace dstee::cpu
