// global_keep_: of the active weights of all layers the first stay. Three scans of what is ranked find the last of them, a
// fourth drops the others.
#include <numeric>

#include "../arguments.h"
#include "parallel.h"
#include "radix_select.h"
#include "update.h"

namespace dstee::cpu {

void global_keep_(const KeepArguments& a) {
  Update u;
  u.layers = read_keep(DeviceType::CPU, a);
  u.round = read_round(a.round, a.round_tensor);
  u.pieces = cut_pieces(u.layers);
  u.workers = worker_count(total_weights(u.layers));
  u.rows.count(u.layers, u.pieces, u.workers);
  const int64_t nnz = std::accumulate(u.rows.of_layer.begin(), u.rows.of_layer.end(), int64_t{0});
  const int64_t total = a.total_tensor ? read<int64_t>(a.total_tensor->const_data_ptr()) : a.total;
  STD_TORCH_CHECK(a.total_tensor || total <= nnz, "dstee: total is larger than what is there");
  if (total >= nnz) return;

  const Order order = a.scores.empty() ? kLargest : kLargestSigned;
  const Selected kept = radix_select(u.layers, u.pieces.data(), u.pieces.size(), order, std::max<int64_t>(total, 0), u.workers);
  for_tickets(u.workers, static_cast<int64_t>(u.pieces.size()), [&](int, int64_t p) {
    int64_t ties = kept.ties[p];
    for_active_keys(u.layers, u.pieces[p], order, 0, kept.key, [&](uint32_t key, int64_t i) {
      const bool stays = key == kept.key && ties > 0;
      ties -= stays;
      if (!stays) Weight(u, u.pieces[p].layer, i).drop();
    });
  });
}

STABLE_TORCH_LIBRARY_IMPL(dstee, CPU, m) { m.impl("global_keep_", TORCH_BOX(&global_keep_entry<global_keep_>)); }

}  // namespace dstee::cpu
