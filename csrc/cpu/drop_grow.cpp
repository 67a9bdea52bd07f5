// drop_grow_: one mask update of all layers, fused with the SGD step where asked for. stages.h has its stages.
//
// Bytes per weight that must move: gradient 4, counter 2, mask 1/8, and the cache lines of w (and m) that hold an active
// weight. Most swapped weights change while the sweep has their lines; for the others the commit touches them again.
#include <atomic>
#include <utility>

#include "../arguments.h"
#include "../test_limits.h"
#include "layer_order.h"
#include "parallel.h"
#include "stages.h"
#include "update_stats.h"

namespace dstee::cpu {
namespace {

std::atomic<int64_t> fallback_layers{0}, list_entries{0};

// Of each layer one bound that nothing passes, or nearly nothing, so that the lists cannot hold what is selected; or one that
// nearly everything passes, so that too much is committed.
void tighten(std::vector<Bounds>& bounds) {
  for (size_t i = 0; i < bounds.size(); ++i) {
    Bounds& b = bounds[i];
    if (b.commits() && i % 4 == 2)
      b.high_score = b.low_score;
    else if (b.commits() && i % 4 == 3)
      b.high_drop = b.low_drop;
    else if (i % 2)
      b.low_score = kMaxRank;
    else
      b.low_drop = kMaxRank;
  }
}

void run(const Update& u, const TestLimits& limits) {
  const auto count = static_cast<int64_t>(u.layers.size());
  std::vector<Bounds> bounds(u.layers.size());
  for_tickets(u.workers, count, [&](int, int64_t i) {
    if (u.moves(static_cast<size_t>(i))) bounds[i] = sample(u, static_cast<int>(i));
  });
  std::vector<char> selected(u.layers.size());
  for (size_t i = 0; i < u.layers.size(); ++i) selected[i] = !u.moves(i);
  Lists lists(u, std::move(bounds), limits.list_share);
  if (limits.tight_bounds) tighten(lists.bounds);

  const auto finish = [&](int64_t piece) { (selected[u.pieces[piece].layer] ? commit : undo)(u, lists, piece); };
  LayerOrder order(u, lists);
  for_tickets(u.workers, u.workers, [&](int worker, int64_t) {
    for (Work work = order.next(); work.kind != Work::kNone; work = order.next()) {
      if (work.kind == Work::kCommit) {
        finish(work.piece);
        continue;
      }
      const Arena free = lists.arenas[worker];
      sweep(u, lists, work.piece, worker);
      const int layer = u.pieces[work.piece].layer;
      if (!order.swept(layer)) continue;
      const bool moves = u.moves(static_cast<size_t>(layer)), alone = Lists::is_one_piece(u.layers[layer]);
      if (moves) selected[layer] = select_drop(u, lists, layer) && select_grow(u, lists, layer);
      if (alone && moves) {
        finish(work.piece);
        lists.arenas[worker] = free;
      }
      order.selected(layer, moves && !alone);
    }
  });
  int64_t scanned = 0;
  for (int64_t i = 0; i < count; ++i)
    if (!selected[i]) {
      fallback(u, lists, static_cast<int>(i));
      ++scanned;
    }
  if (u.packs()) repack(u, lists);
  list_entries = lists.entries();
  fallback_layers = scanned;
}

void read_moves(const UpdateArguments& a, Update& u) {
  const bool uneven = a.k_grow_tensor || !a.k_grow.empty();
  const void* drops = a.k_tensor ? a.k_tensor->const_data_ptr() : a.k.data();
  const void* grows = a.k_grow_tensor ? a.k_grow_tensor->const_data_ptr() : a.k_grow.data();
  for (size_t i = 0; i < u.layers.size(); ++i) {
    const auto k = read<int64_t>(drops, static_cast<int64_t>(i));
    const int64_t n = u.layers[i].n, nnz = u.nnz(i);
    STD_TORCH_CHECK(a.k_tensor || (k >= 0 && k <= nnz), "dstee: k is larger than what is there");
    u.k_drop.push_back(clip_swaps(k, nnz, n, u.regrow || uneven));
    u.k_grow.push_back(u.k_drop[i]);
    if (!uneven) continue;
    const auto k_grow = read<int64_t>(grows, static_cast<int64_t>(i));
    u.k_grow[i] = clip_growth(k_grow, u.k_drop[i], nnz, n, u.regrow);
    STD_TORCH_CHECK(a.k_grow_tensor || u.k_grow[i] == k_grow, "dstee: k_grow is larger than what is there");
  }
}

}  // namespace

void drop_grow_(const UpdateArguments& a) {
  const StrictFloat strict;  // for what is computed outside the workers
  Update u;
  u.layers = read_update(DeviceType::CPU, a);
  if (u.layers.empty()) return;
  if (a.bonus)
    u.set_bonus(a.bonus->const_data_ptr(), a.bonus_scale ? a.bonus_scale->const_data_ptr() : nullptr, a.bonus->numel());
  u.round = read_round(a.round, a.round_tensor);
  u.regrow = a.regrow;
  u.reset_regrown = a.reset_regrown;
  u.sgd = !a.sgd.empty();
  u.rule = rule_of(a.sgd, false);
  if (a.lr) u.rule.lr = static_cast<float>(read_scalar(*a.lr));
  u.seeds.assign(a.grow_seeds.begin(), a.grow_seeds.end());
  u.where = places_of(a.where);
  u.pieces = cut_pieces(u.layers);
  u.workers = worker_count(total_weights(u.layers));
  const TestLimits limits = test_limits();
  u.margin_share = limits.margin_share;

  u.rows.count(u.layers, u.pieces, u.workers);
  if (a.packed_momenta) {
    check_rows(a.momenta, u.rows.of_layer);
    for (size_t i = 0; i < a.momenta.size(); ++i) u.packed.push_back(std::exchange(u.layers[i].m, nullptr));
  }
  read_moves(a, u);
  if (a.found_inf && read_scalar(*a.found_inf) != 0) return;
  run(u, limits);
}
UpdateStats last_update_stats() { return {fallback_layers, list_entries}; }

STABLE_TORCH_LIBRARY_IMPL(dstee, CPU, m) { m.impl("drop_grow_", TORCH_BOX(&drop_grow_entry<drop_grow_>)); }

}  // namespace dstee::cpu
